"""Official weights by name: absent, unconverted, converted; small recorded files stand for them."""

import shutil
from pathlib import Path

import pytest
import torch

from mmvitattn import build_backbone, list_backbones, official
from mmvitattn.checkpoint import read_torch_pickle
from mmvitattn.converters import convert_qna_vit, convert_sag, read_flax_msgpack
from mmvitattn.errors import CheckpointError
from mmvitattn.hub import get_config
from mmvitattn.models import QnAViT, SAGViT
from mmvitattn.official import OFFICIAL, QNA, SAG, OfficialWeights

DATA = Path(__file__).parents[1] / 'data'
RECORDED = {
    'qna_vit_mini': DATA / 'qna/checkpoint_mini',
    'sag_mini': DATA / 'sag/checkpoint_mini.pth',
}
TOOLS = {'qna_vit_mini': 'qna_flax_to_mm', 'sag_mini': 'sag_to_mm'}


@pytest.fixture(scope='module')
def converted():
    """State dicts and descriptions of the recorded files."""
    pytest.importorskip('msgpack', reason='extra [convert]')
    qna, sag = RECORDED.values()
    pairs = convert_qna_vit(read_flax_msgpack(qna)), convert_sag(read_torch_pickle(sag))
    return dict(zip(RECORDED, pairs, strict=True))


@pytest.fixture(autouse=True)
def published(converted, monkeypatch, tmp_path):
    """The recorded models as published ones, and an empty working directory."""
    heads = dict(num_heads=(2, 4, 4))
    monkeypatch.setitem(QnAViT.arch_zoo, 'mini', dict(converted['qna_vit_mini'][1]['arch']))
    monkeypatch.setitem(SAGViT.arch_zoo, 'mini', converted['sag_mini'][1]['arch'] | heads)
    minis = [OfficialWeights(r, 'mini', 'in1k', 'config', 1.0) for r in (QNA, SAG)]
    minis.append(OfficialWeights(SAG, 'mini', 'cifar10', 'config', 2.0))
    monkeypatch.setattr(official, 'OFFICIAL', (*OFFICIAL, *minis))
    monkeypatch.chdir(tmp_path)


def place(name, path):
    path = Path('checkpoints') / path
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(RECORDED[name], path)
    return path


def assert_official(backbone, state):
    """All weights are the file's but the norms of the other outputs."""
    loaded = 0
    for name, weight in backbone.state_dict().items():
        if f'backbone.{name}' in state:
            assert torch.equal(weight, state[f'backbone.{name}']), name
            loaded += 1
        else:
            assert name.startswith('norms.'), name
    assert loaded > 50


@pytest.mark.parametrize('name', RECORDED)
@pytest.mark.parametrize('path', ['{}', '{}.pth', '{}.msgpack', '{}/checkpoint_0'])
def test_unconverted_weights_are_converted_in_memory(name, path, converted):
    place(name, f'official/{path.format(name)}')
    assert_official(build_backbone(name, pretrained='official'), converted[name][0])
    assert not list(Path('checkpoints').glob('*.pth'))


@pytest.mark.parametrize('name', RECORDED)
def test_converted_weights_come_first(name, converted, run_tool, tmp_path, monkeypatch):
    source = tmp_path / place(name, f'official/{name}')
    file = tmp_path / f'checkpoints/{name.replace("_", "-")}_in1k.pth'
    run_tool(TOOLS[name], source, file)
    monkeypatch.chdir(tmp_path)
    source.write_text('not read')
    assert_official(build_backbone(name, pretrained='official'), converted[name][0])


def test_options_still_apply(converted):
    place('qna_vit_mini', 'official/qna_vit_mini')
    backbone = build_backbone(
        'qna_vit_mini', pretrained='official', out_indices=(0, 1), kernel_sizes=5
    )
    expected = convert_qna_vit(read_flax_msgpack(RECORDED['qna_vit_mini']), kernel_sizes=5)[0]
    assert_official(backbone, expected)
    assert list(backbone.norms) == ['0', '1']


@pytest.mark.parametrize('entry', OFFICIAL, ids=lambda entry: entry.converted.stem)
def test_absent_weights_are_described(entry):
    Path('checkpoints/official').mkdir(parents=True)
    Path(f'checkpoints/official/{entry.original.name}_7x7').touch()  # another model's
    with pytest.raises(CheckpointError) as caught:
        build_backbone(entry.backbone, pretrained='official')
    message = str(caught.value)
    assert message.startswith(f'the official weights of {entry.backbone} are not there:\n')
    for part in (entry.release.weights, entry.release.code, str(entry.original)):
        assert part in message
    assert f'python {entry.release.tool} {entry.original} {entry.converted}\n' in message


def test_table_is_true():
    assert {entry.backbone for entry in OFFICIAL} <= set(list_backbones())
    for paths in ([e.converted for e in OFFICIAL], [e.original for e in OFFICIAL]):
        assert len(set(paths)) == len(OFFICIAL)
    root = Path(__file__).parents[2]
    for entry in OFFICIAL:
        assert (root / entry.release.tool).is_file()
        cfg = get_config(entry.config)
        assert entry.config.endswith(f'_{entry.data}')
        assert cfg.model.backbone.arch == entry.arch
    base = next(entry for entry in OFFICIAL if entry.backbone == 'qna_vit_base')
    assert (base.paper, base.readme) == (83.7, 83.9)


@pytest.mark.parametrize('name', ['linglo_b0', 'sag_cifar_tiny_4_heads'])
def test_backbones_without_official_weights(name):
    with pytest.raises(CheckpointError, match=f'no official weights of {name}, .*LinGlo'):
        build_backbone(name, pretrained='official')


def test_files_of_several_data_sets_are_not_guessed():
    place('sag_mini', 'official/sag_mini_cifar10.pth')
    build_backbone('sag_mini', pretrained='official')
    place('sag_mini', 'official/sag_mini.pth')
    with pytest.raises(CheckpointError, match='several data sets, .*sag_mini.pth.*_cifar10.pth'):
        build_backbone('sag_mini', pretrained='official')


def test_weights_of_another_architecture_are_named():
    place('qna_vit_mini', 'official/qna_vit_tiny')
    with pytest.raises(
        CheckpointError, match="qna_vit_tiny contains .* arch='mini', not of 'tiny'"
    ):
        build_backbone('qna_vit_tiny', pretrained='official')


def test_damaged_files_are_named():
    place('qna_vit_mini', 'official/qna_vit_mini').write_bytes(b'\x81')
    with pytest.raises(CheckpointError, match='official/qna_vit_mini: not a Flax'):
        build_backbone('qna_vit_mini', pretrained='official')
