import pytest
import torch
from torch import nn

from mmvitattn.checkpoint import load_backbone_weights, load_model_weights
from mmvitattn.errors import UsageError
from mmvitattn.models import LinGlo

ARCH = dict(channels=(8, 16), depths=(1, 2), num_heads=(1, 2), ffn_ratios=(2, 2))


def backbone(seed, **options):
    torch.manual_seed(seed)
    return LinGlo(ARCH, **{'out_indices': (0, 1), **options}).eval()


class Model(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.backbone, self.head = backbone(seed), nn.Linear(4, 2)


def same(a, b):
    image = torch.rand(1, 3, 40, 32)
    return all(torch.equal(x, y) for x, y in zip(a(image), b(image), strict=True))


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('deploy', [False, True])
def test_backbones_of_any_origin(prefix, deploy):
    saved, loaded = backbone(0), backbone(1)
    if deploy:
        saved.switch_to_deploy()
    state = {prefix + name: weight for name, weight in saved.state_dict().items()}
    if prefix:
        state['module.head.weight' if prefix.startswith('module.') else 'head.weight'] = state[
            f'{prefix}stem.0.conv.weight'
        ]
    assert not same(saved, loaded)
    load_backbone_weights(loaded, dict(state_dict=state), 'file.pth')
    assert same(saved, loaded)


def test_output_norms_and_further_stages_may_differ():
    """A classifier's weights in a detector's backbone, and the other way round."""
    saved, loaded = backbone(0, out_indices=-1), backbone(1, out_indices=(0, 1))
    load_backbone_weights(loaded, saved.state_dict(), 'file.pth')
    assert torch.equal(
        loaded.stages[1][1].attention.saliency, saved.stages[1][1].attention.saliency
    )
    first = backbone(2, out_indices=0)
    load_backbone_weights(first, saved.state_dict(), 'file.pth')
    assert torch.equal(first.stem[0].conv.weight, saved.stem[0].conv.weight)


def test_whole_models():
    saved, loaded = Model(0), Model(1)
    load_model_weights(loaded, dict(state_dict=saved.state_dict()), 'file.pth')
    assert torch.equal(saved.head.weight, loaded.head.weight)
    state = saved.state_dict()
    del state['head.bias']
    with pytest.raises(UsageError, match=r'file\.pth does not fit .*: 1 of .* e\.g\. head\.bias'):
        load_model_weights(Model(1), state, 'file.pth')


def test_misfits_are_named():
    state = backbone(0).state_dict()
    state['stem.0.conv.weight'] = torch.zeros(4, 3, 7, 7)
    with pytest.raises(UsageError, match=r'stem\.0\.conv\.weight \(4, 3, 7, 7\), the model has'):
        load_backbone_weights(backbone(1), state, 'file.pth')
    with pytest.raises(UsageError, match='does not fit'):
        load_backbone_weights(backbone(1), dict(state_dict={}), 'file.pth')
