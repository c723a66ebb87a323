from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

ROOT = Path(__file__).parents[2]


@pytest.fixture
def assert_refuses(run_tool):
    """Runs a converter, which must end with one line that contains the message."""

    def run(tool, *arguments, message):
        errors = run_tool(tool, *arguments, status=2).stderr
        assert errors.startswith('error: ') and errors.count('\n') == 1 and message in errors

    return run


def build_classifier(family, arch, channels, num_classes, **backbone):
    from mmpretrain.models import build_classifier as build

    init_default_scope('mmpretrain')
    model = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / 'classifier.py').model
    model.backbone = dict(type=f'mmvitattn.{family}', arch=arch, out_indices=-1, **backbone)
    model.head.update(in_channels=channels, num_classes=num_classes)
    return build(model).eval()


def relative_difference(actual, expected):
    expected = torch.from_numpy(expected)
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_fills_a_backbone(family, converted, path):
    """A backbone for dense prediction takes all weights but those of its further output norms."""
    state_dict, description = converted
    torch.save(dict(state_dict=state_dict), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    backbone = family(description['arch'], init_cfg=init_cfg)
    backbone.init_weights()
    loaded = {name for name in backbone.state_dict() if f'backbone.{name}' in state_dict}
    assert set(backbone.state_dict()) - loaded == {
        f'norms.{i}.{kind}' for i in range(backbone.num_stages - 1) for kind in ('weight', 'bias')
    }
    for name in loaded:
        assert torch.equal(backbone.state_dict()[name], state_dict[f'backbone.{name}'])
