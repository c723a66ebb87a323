"""``python -m mmvitattn`` and the package's own configs, from any folder."""

import subprocess
import sys

import pytest

from mmvitattn import __main__ as command
from mmvitattn import hub
from mmvitattn.errors import UsageError


def python_m(*arguments, cwd):
    call = [sys.executable, '-m', 'mmvitattn', *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd)


def test_it_lists_every_tool_with_what_it_does(capsys, root):
    command.main([])
    printed = capsys.readouterr().out
    files = (root / 'tools').rglob('*.py')
    tools = sorted(path.stem for path in files if '__main__' in path.read_text())
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith('  ')}
    assert sorted(lines) == tools and {'train', 'test', 'get_flops'} <= set(tools)
    for name, line in lines.items():
        assert len(line.split(maxsplit=1)[1]) > 10, f'{name} says nothing of itself'
    assert str(root / 'configs') in printed


def test_an_unknown_tool(capsys):
    with pytest.raises(SystemExit) as raised:
        command.main(['trian'])
    assert raised.value.code == 2
    assert "there is no tool 'trian'; choose one of" in capsys.readouterr().err


def test_command_for_onnx_files(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['mmvitattn-onnx', 'model.onnx', str(tmp_path / 'gone.png')])
    with pytest.raises(SystemExit) as raised:
        command.run_onnx()
    assert raised.value.code == 2 and 'there is no input' in capsys.readouterr().err


def test_tools_run_from_any_folder(tmp_path):
    """A config of the package by its name; the data that are not there are the tool's own error."""
    done = python_m('train', 'linglo_b0_8xb128_in1k.py', '--from-scratch', cwd=tmp_path)
    assert done.returncode == 2 and 'the data is not there' in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_arguments_that_are_files_stay_as_they_are(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    path = str(root / 'configs/linglo_b0_8xb128_in1k.py')
    for name in ('linglo_b0_8xb128_in1k.py', 'configs/linglo_b0_8xb128_in1k.py'):
        assert command.resolved(name) == path
    (tmp_path / 'linglo_b0_8xb128_in1k.py').write_text('')
    for name in ('linglo_b0_8xb128_in1k.py', 'linglo_b0_8xb128_in1k', 'nothing.py', '--amp'):
        assert command.resolved(name) == name


def test_configs_by_name(root):
    names = hub.list_configs()
    in_folders = {'demo/linglo_b0_shapes', 'ablations/linglo_b0_cpe_8xb128-100e_in1k'}
    assert {'linglo_b0_8xb128_in1k', *in_folders} <= set(names)
    assert not any(name.startswith('_base_/') for name in names)
    for name in ('linglo_b0_8xb128_in1k', 'configs/linglo_b0_8xb128_in1k.py'):
        assert hub.get_config(name).model.backbone.arch == 'b0'
    with pytest.raises(UsageError, match="there is no config '_base_/default_runtime'"):
        hub.config_path('_base_/default_runtime')


def test_an_installation_without_resources(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, 'PACKAGE', tmp_path / 'mmvitattn')
    with pytest.raises(UsageError, match='has no configs and tools'):
        hub.resources()
