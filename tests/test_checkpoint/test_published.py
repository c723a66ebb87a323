"""The weights that the package contains are found by name, and compared with their SHA-256."""

import hashlib
import shutil

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint as load_with_mmengine

import mmvitattn
from mmvitattn.checkpoint import load_checkpoint, published, use_safe_loading
from mmvitattn.errors import CheckpointError
from mmvitattn.models import LinGlo

ADDRESS = 'mmvitattn://linglo-b0_tiny-imagenet'
PREFIX = 'backbone.'


@pytest.fixture(scope='module')
def weights():
    """Those of the backbone, as the file has them."""
    state = load_checkpoint(ADDRESS)['state_dict']
    return {n.removeprefix(PREFIX): w for n, w in state.items() if n.startswith(PREFIX)}


def assert_loaded(backbone, weights):
    own = backbone.state_dict()
    assert len(set(own) & set(weights)) > 100
    for name in set(own) & set(weights):
        assert torch.equal(own[name], weights[name].to(own[name].dtype)), name


@pytest.mark.parametrize('name', published.SHA256)
def test_the_files_are_small_and_what_was_published(name):
    path = published.published_file(published.SCHEME + name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == published.SHA256[name]
    assert path.stat().st_size < 8e6
    floats = [w for w in load_checkpoint(path)['state_dict'].values() if w.is_floating_point()]
    assert len(floats) > 100 and {w.dtype for w in floats} == {torch.float16}
    card = path.with_name(f'{name}.md').read_text()
    assert path.name in card and '# Limits' in card and '# Licence' in card
    assert sorted(path.parent.glob('*.safetensors')) == sorted(
        published.published_path(each) for each in published.SHA256
    )


def test_build_backbone(weights):
    backbone = mmvitattn.build_backbone('linglo_b0', pretrained='tiny-imagenet', out_indices=-1)
    assert_loaded(backbone, weights)
    same = mmvitattn.build_backbone('linglo_b0', pretrained=ADDRESS, out_indices=-1)
    image = torch.rand(1, 3, 70, 64)
    assert torch.equal(same.eval()(image)[0], backbone.eval()(image)[0])
    folded = mmvitattn.build_backbone(
        'linglo_b0', pretrained='tiny-imagenet', out_indices=-1, deploy=True
    )
    torch.testing.assert_close(folded.eval()(image)[0], backbone(image)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('prefix', [{}, dict(prefix='backbone')])
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_configs_of_every_toolbox(prefix, scope, weights):
    init_default_scope(scope)
    init_cfg = dict(type='Pretrained', checkpoint=ADDRESS, **prefix)
    for safely in (False, True):
        if safely:
            use_safe_loading()
        config = dict(type='mmvitattn.LinGlo', arch='b0', init_cfg=init_cfg)
        backbone = MODELS.build(config)
        backbone.init_weights()
        assert_loaded(backbone, weights)


def test_a_model_with_a_backbone_keeps_its_prefix(weights):
    """Only where a backbone itself is loaded are the other weights left out."""
    model = torch.nn.Module()
    model.backbone = LinGlo('b0', out_indices=-1)
    load_with_mmengine(model, ADDRESS)
    assert_loaded(model.backbone, weights)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\).*head'):
        model.load_state_dict(load_checkpoint(ADDRESS)['state_dict'])


def test_timm(weights):
    timm = pytest.importorskip('timm', reason='extra [timm]')
    pytest.importorskip('mmvitattn.timm')
    model = timm.create_model('linglo_b0.tiny_imagenet', pretrained=True).eval()
    assert_loaded(model.backbone, weights)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 202)
    features = timm.create_model(
        'linglo_b0.tiny_imagenet', pretrained=True, features_only=True, num_classes=0
    )
    assert_loaded(features.model.backbone, weights)
    assert timm.create_model('linglo_b0').num_classes == 1000
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model('linglo_b0', pretrained=True)


@pytest.mark.parametrize(
    ('name', 'pretrained', 'message'),
    [
        ('linglo_b1', 'tiny-imagenet', r'no tiny-imagenet weights of linglo_b1, only of linglo_b0'),
        ('linglo_b0', 'mmvitattn://linglo-b0', r'no weights mmvitattn://linglo-b0; .*_tiny-imag'),
        ('linglo_b0', 'imagenet', r'there is no checkpoint imagenet'),
    ],
)
def test_other_names_are_errors(name, pretrained, message):
    with pytest.raises(CheckpointError, match=message):
        mmvitattn.build_backbone(name, pretrained=pretrained)


def test_tampered_or_missing_files_are_refused(tmp_path, monkeypatch, run_tool, root):
    original = published.published_file(ADDRESS)
    monkeypatch.setattr(published, 'FOLDER', tmp_path)
    with pytest.raises(CheckpointError, match='is missing; install the package again'):
        load_checkpoint(ADDRESS)
    copy = shutil.copy(original, tmp_path)
    content = bytearray(original.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / original.name).write_bytes(content)
    use_safe_loading()
    backbone = LinGlo('b0', init_cfg=dict(type='Pretrained', checkpoint=ADDRESS))
    for load in (
        lambda: load_checkpoint(ADDRESS),
        lambda: load_checkpoint(copy),
        lambda: mmvitattn.build_backbone('linglo_b0', pretrained='tiny-imagenet'),
        backbone.init_weights,
    ):
        with pytest.raises(CheckpointError, match=f'{original.name}: its SHA-256 begins with'):
            load()
    config = root / 'configs/linglo_b0_1xb128_tiny-imagenet.py'
    done = run_tool('infer', config, ADDRESS, root / 'README.md', status=2)
    assert 'its SHA-256 begins with' in done.stderr
