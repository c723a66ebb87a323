"""The wheel: built offline from a copy of the sources, installed and used in another folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow
CLONE_ONLY = ('benchmark.py', 'gpu_report.py')
NOT_SOURCES = ('.*', 'data', 'work_dirs', 'checkpoints', 'build', 'dist', '*.egg-info')


def pip(*arguments, cwd):
    call = [sys.executable, '-m', 'pip', '--disable-pip-version-check', *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def sources(root, tmp_path_factory):
    """A copy of the repository without what others make or keep in it."""
    folder = tmp_path_factory.mktemp('sources') / 'mmvitattn'
    ignored = shutil.ignore_patterns('__pycache__')

    def skipped(path, names):
        top = shutil.ignore_patterns(*NOT_SOURCES)(path, names) if path == str(root) else set()
        return top | ignored(path, names)

    return shutil.copytree(root, folder, ignore=skipped)


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory):
    folder, before = tmp_path_factory.mktemp('wheel'), set(sources.rglob('*'))
    pip('wheel', '--no-build-isolation', '--no-deps', '--no-index', '-w', folder, '.', cwd=sources)
    made = {path.relative_to(sources).parts[0] for path in set(sources.rglob('*')) - before}
    assert made <= {'build', 'mmvitattn.egg-info'}  # both ignored by git
    (file,) = folder.glob('*.whl')
    return file


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp('site')
    pip('install', '--no-deps', '--no-index', '--target', target, wheel, cwd=target)
    return target


def python(installed, *arguments, cwd):
    """Runs Python on the installed wheel, not on the sources."""
    env = {**os.environ, 'PYTHONPATH': str(installed)}
    call = [sys.executable, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd, env=env)


def test_contents(wheel, sources):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        expected = {
            f'mmvitattn/.mim/{path.relative_to(sources).as_posix()}'
            for path in (sources / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts and path.name not in CLONE_ONLY
        }
        found = {name for name in names if name.startswith(f'mmvitattn/.mim/{folder}/')}
        assert found == expected
    assert 'mmvitattn/.mim/model-index.yml' in names
    assert not [name for name in names if name.startswith('tests/') or '__pycache__' in name]
    modules = {p.relative_to(sources).as_posix() for p in (sources / 'mmvitattn').rglob('*.py')}
    benchmark = {name for name in modules if name.startswith('mmvitattn/benchmark/')}
    assert benchmark and {*modules, 'mmvitattn/py.typed'} - benchmark <= names
    assert not [name for name in names if 'benchmark' in name]  # for a clone


CODE = """
import mmengine.hub, mmvitattn
from mmvitattn import hub
print(mmvitattn.__file__)
print(hub.get_config('retinanet_linglo_b2_fpn_1x_coco').model.backbone.type)
print(mmengine.hub.get_config('mmvitattn::demo/linglo_b0_shapes.py').model.backbone.arch)
"""


def test_configs_are_found(installed, tmp_path):
    done = python(installed, '-c', CODE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path, backbone, arch = done.stdout.splitlines()[-3:]
    assert path.startswith(str(installed)) and (backbone, arch) == ('mmvitattn.LinGlo', 'b0')


WEIGHTS = """
import mmvitattn
from mmengine.registry import MODELS
address = 'mmvitattn://linglo-b0_tiny-imagenet'
init_cfg = dict(type='Pretrained', checkpoint=address)
model = MODELS.build(dict(type='mmvitattn.LinGlo', arch='b0', init_cfg=init_cfg))
model.init_weights()
same = mmvitattn.build_backbone('linglo_b0', pretrained='tiny-imagenet')
assert model.stem[1].weight.equal(same.stem[1].weight) and same.stem[1].weight.std() > 0
print(mmvitattn.__file__)
"""


def test_weights_are_found_in_an_empty_folder(installed, tmp_path):
    done = python(installed, '-c', WEIGHTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(installed))


def test_tools_run(installed, tmp_path):
    done = python(installed, '-m', 'mmvitattn', cwd=tmp_path)
    assert done.returncode == 0 and '  train ' in done.stdout, done.stderr
    assert str(installed) in done.stdout
    script = python(installed, installed / 'bin/mmvitattn', cwd=tmp_path)
    assert script.stdout == done.stdout, script.stderr
    done = python(installed, '-m', 'mmvitattn', 'prepare_data', 'shapes', '--help', cwd=tmp_path)
    assert done.returncode == 0 and 'usage: prepare_data.py' in done.stdout, done.stderr
    done = python(
        *(installed, '-m', 'mmvitattn', 'train', 'demo/linglo_b0_shapes.py'), cwd=tmp_path
    )
    assert done.returncode == 2 and 'the data is not there' in done.stderr, done.stderr


def test_a_config_may_inherit_the_schedules_and_hooks(installed, tmp_path):
    """MMEngine gives what is inherited this package's scope: right for what is MMEngine's own."""
    (tmp_path / 'mine.py').write_text("_base_ = 'mmvitattn::_base_/schedules/adamw_1x_coco.py'\n")
    code = (
        'import mmvitattn; from mmengine.config import Config;'
        "print(Config.fromfile('mine.py').optim_wrapper.optimizer.lr)"
    )
    done = python(installed, '-c', code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '0.0001', done.stderr


INHERIT = """
_base_ = str(__import__('mmvitattn.hub').hub.config_path('{name}'))
train_cfg = dict(max_epochs=3)
"""
TOOLBOX = """
import runpy, sys
import mmdet
assert 'mmvitattn' not in sys.modules
sys.argv = ['print_config.py', 'mine.py']
runpy.run_path(mmdet.__path__[0] + '/.mim/tools/misc/print_config.py', run_name='__main__')
"""


@pytest.mark.parametrize(
    'name', ['retinanet_linglo_b2_fpn_1x_coco', 'demo/retinanet_linglo_b0_fpn_shapes']
)
def test_a_config_inherits_any_of_ours_in_the_script_of_a_toolbox(installed, tmp_path, name):
    (tmp_path / 'mine.py').write_text(INHERIT.format(name=name))
    done = python(installed, '-c', TOOLBOX, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("type='mmvitattn.LinGlo'", 'max_epochs=3', "type='RetinaNet'"):
        assert line in done.stdout
    assert '_scope_' not in done.stdout  # with which mmdet's detector would not be found


def test_a_config_inherits_one_of_a_toolbox_with_our_backbone(installed, tmp_path):
    bases = {
        "'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'": 'mmdet',
        "__import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/fpn_r50.py'": 'mmseg',
    }
    for base, toolbox in bases.items():
        (tmp_path / f'{toolbox}_config.py').write_text(
            f"_base_ = {base}\nmodel = dict(backbone=dict(_delete_=True, type='mmvitattn.LinGlo'))"
        )
        code = (
            'from mmengine.config import Config;'
            f"print(Config.fromfile('{toolbox}_config.py').model.backbone.type)"
        )
        done = python(installed, '-c', code, cwd=tmp_path)
        assert done.stdout.splitlines()[-1:] == ['mmvitattn.LinGlo'], done.stderr


def test_the_hub_of_mmengine_reads_flat_configs(installed, tmp_path):
    code = (
        'import mmengine.hub; from mmvitattn import hub;'
        'flat = [name for name in hub.list_configs() if "/" not in name];'
        'assert len(flat) > 50;'
        '[mmengine.hub.get_config(f"mmvitattn::_base_/../{name}.py") for name in flat[::20]]'
    )
    done = python(installed, '-c', code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
