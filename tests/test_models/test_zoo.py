"""Backbones by flat names, without any config."""

import pytest
import torch
from safetensors.torch import save_file

import mmvitattn
from mmvitattn import build_backbone, list_backbones
from mmvitattn.errors import UsageError
from mmvitattn.models import LinGlo

NAMES = ['linglo_b0', 'linglo_b1', 'linglo_b2']
NAMES += ['qna_vit_tiny', 'qna_vit_tiny_7x7', 'qna_vit_small', 'qna_vit_base']
NAMES += ['sag_tiny', 'sag_small', 'sag_cifar_tiny', 'sag_cifar_tiny_4_heads', 'sag_cifar_small']
NAMES += ['sag_cifar_base']
ALL_NAMES = """
import sys, timm
before = timm.list_models()
import torch, mmvitattn
names = mmvitattn.list_backbones()
with torch.device('meta'):
    for name in names:
        backbone = mmvitattn.build_backbone(name, out_indices=0)
        assert backbone.feature_info.channels()[0] == backbone.norms['0'].weight.numel()
assert timm.list_models() == before
print(*names)
"""


@pytest.mark.parametrize(
    ('filter', 'expected'),
    [
        ('', NAMES),
        ('cifar', NAMES[-4:]),
        ('*_tiny', ['qna_vit_tiny', 'sag_tiny', 'sag_cifar_tiny']),
        ('linglo_b?', NAMES[:3]),
        ('resnet', []),
    ],
)
def test_names_are_listed(filter, expected):
    assert list_backbones(filter)[: len(NAMES)] == expected  # those of other packages follow


@pytest.mark.slow
def test_every_name_builds_in_a_fresh_interpreter(run_code):
    pytest.importorskip('timm', reason='to see that nothing is registered in it')
    assert run_code(ALL_NAMES).split() == NAMES


def test_options_reach_the_backbone():
    backbone = build_backbone('linglo_b0', out_indices=(1, -1), in_channels=4, frozen_stages=1)
    assert isinstance(backbone, LinGlo) and backbone.training
    shapes = [tuple(y.shape) for y in backbone(torch.randn(1, 4, 64, 33))]
    assert shapes == [(1, 64, 8, 5), (1, 256, 2, 2)]
    assert not any(p.requires_grad for p in backbone.stem.parameters())


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('linglo_b3', "no backbone 'linglo_b3'; did you mean linglo_b2, "),
        ('sag_cifar', 'did you mean sag_cifar_tiny, '),
        ('resnet50', r'see mmvitattn.list_backbones\(\)'),
        ('', "no backbone ''"),
    ],
)
def test_unknown_names_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name)


def test_options_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match=r"'linglo_b0' includes the arch; .*models.LinGlo\(arch=...\)"
    ):
        build_backbone('linglo_b0', arch='b1')
    with pytest.raises(TypeError, match='kernel'):
        build_backbone('linglo_b0', kernel=3)
    with pytest.raises(ValueError, match='not both'):
        build_backbone('linglo_b0', pretrained='a.pth', init_cfg=dict(type='Pretrained'))


@pytest.fixture(scope='module')
def classifier_state():
    """Weights of a classifier, changed from their start values."""
    state = build_backbone('linglo_b0', out_indices=-1).state_dict()
    return {
        name: value + 1 if value.is_floating_point() else value for name, value in state.items()
    }


def assert_loaded(backbone, state):
    fresh = 0
    for name, value in backbone.state_dict().items():
        if name in state:
            assert torch.equal(value, state[name]), name
        else:
            assert name.startswith('norms.'), name
            fresh += 1
    return fresh


@pytest.mark.parametrize('form', ['backbone', 'classifier', 'training', 'safetensors'])
def test_pretrained(form, classifier_state, tmp_path):
    """Of all forms; a pyramid's other norms keep their start values, unused stages do no harm."""
    path = tmp_path / 'file.pth'
    prefixed = {f'backbone.{name}': value for name, value in classifier_state.items()}
    prefixed['head.fc.weight'] = torch.zeros(10, 256)
    if form == 'safetensors':
        path = tmp_path / 'file.safetensors'
        save_file(prefixed, path)
    elif form == 'training':
        torch.save(dict(state_dict=prefixed, meta=dict(epoch=3), optimizer={}), path)
    else:
        torch.save(classifier_state if form == 'backbone' else {'state_dict': prefixed}, path)
    assert assert_loaded(build_backbone('linglo_b0', pretrained=path), classifier_state) == 6
    backbone = build_backbone('linglo_b0', pretrained=str(path), out_indices=(0, 1))
    assert assert_loaded(backbone, classifier_state) == 4


def test_pretrained_in_both_forms(classifier_state, tmp_path):
    torch.save(classifier_state, tmp_path / 'training.pth')
    options = dict(pretrained=tmp_path / 'training.pth', out_indices=-1)
    expected = build_backbone('linglo_b0', **options).eval()
    folded = build_backbone('linglo_b0', deploy=True, **options).eval()
    torch.save(folded.state_dict(), tmp_path / 'deploy.pth')
    options['pretrained'] = tmp_path / 'deploy.pth'
    image = torch.randn(1, 3, 32, 32)
    for backbone in (folded, build_backbone('linglo_b0', **options).eval()):
        assert not any('convs' in name for name in backbone.state_dict())
        torch.testing.assert_close(backbone(image), expected(image), rtol=1e-4, atol=1e-4)


def test_init_cfg_is_carried_out_at_once(classifier_state, tmp_path):
    torch.save({'state_dict': classifier_state}, tmp_path / 'file.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
    assert assert_loaded(build_backbone('linglo_b0', init_cfg=init_cfg), classifier_state) == 6


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('linglo_b1', {}, r'file.pth does not fit.*stages.0.0.norm1.weight \(32,\).*has \(64,\)'),
        ('qna_vit_tiny', {}, 'file.pth does not fit.*weights are missing'),
        ('linglo_b0', dict(position=dict(num_branches=3)), 'left over.*convs.3.weight'),
    ],
)
def test_pretrained_that_does_not_fit_is_named(name, options, message, classifier_state, tmp_path):
    torch.save(classifier_state, tmp_path / 'file.pth')
    with pytest.raises(UsageError, match=message):
        build_backbone(name, pretrained=tmp_path / 'file.pth', **options)


def test_pretrained_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match='no checkpoint .*nothing.pth'):
        build_backbone('linglo_b0', pretrained=tmp_path / 'nothing.pth')


def test_attributes():
    assert {'build_backbone', 'list_backbones'} <= set(mmvitattn.__all__)
    with pytest.raises(AttributeError, match='no attribute'):
        _ = mmvitattn.nothing
