"""Backbones for the contract: whole archs, and short ones that keep each kind of block.

Options that change what is built have variants of the short archs.
"""

import pytest
import torch
from torch import nn

from mmvitattn.zoo import families

FAMILIES = families()
ARCHS = {
    f'{family}_{arch}': (cls, settings)
    for family, cls in FAMILIES.items()
    for arch, settings in cls.arch_zoo.items()
}
SHORT = [pytest.param((name, False), id=name) for name in ARCHS]
WHOLE = [pytest.param((name, True), marks=pytest.mark.slow, id=f'{name}-whole') for name in ARCHS]
OPTIONS = {  # variants of archs
    'linglo_b0-CH': dict(layout='CH', position='p_cpe'),
    'linglo_b0-dot_product': dict(attention='dot_product', position='absolute'),
    'linglo_b0-patch': dict(stem='patch', downsample='patch', patch_size=2),
}
VARIANTS = [
    pytest.param((name.split('-')[0], False, options), id=name) for name, options in OPTIONS.items()
]


def shorten(cls, settings):
    """An arch of the last two stages, with one block of each kind in each."""
    arch = dict(settings, drop_path_rate=0.0)
    for key in cls.stage_keys:
        arch[key] = settings[key][-2:]
        if key.endswith('depths'):
            arch[key] = tuple(min(depth, 1) for depth in arch[key])
    return arch


class Case:
    """Builds a backbone with any options; holds one in evaluation mode that no test may change."""

    def __init__(self, name, whole, options=None):
        self.family, settings = ARCHS[name]
        self.options = options or {}
        whole_arch = dict(settings, drop_path_rate=0.0)
        self.arch = whole_arch if whole else shorten(self.family, settings)
        torch.manual_seed(0)
        self.backbone = self.build().eval()
        self.num_stages = len(self.backbone.out_indices)

    def build(self, **options):
        return self.family(self.arch, **{**self.options, **options})

    def image(self, batch=2):
        side = self.backbone.min_size
        return torch.randn(batch, 3, side + 1, side + 6)

    def train_copy(self, **options):
        """A backbone of the same weights with other options, in training mode."""
        model = self.build(**options).train()
        model.load_state_dict(self.backbone.state_dict(), strict=False)
        return model


@pytest.fixture(scope='module')
def quick_start_values():
    """A truncated normal takes most of the time that building takes."""

    def normal(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
        return nn.init.normal_(tensor, mean, std)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, 'trunc_normal_', normal)
        yield


@pytest.fixture(scope='module', params=SHORT + VARIANTS + WHOLE)
def case(request, quick_start_values):
    return Case(*request.param)


@pytest.fixture
def short_arch():
    """The first arch of a family, shortened."""

    def find(name):
        cls = FAMILIES[name]
        return shorten(cls, next(iter(cls.arch_zoo.values())))

    return find


@pytest.fixture
def short_backbone(short_arch):
    """A backbone of that arch."""

    def build(name, **options):
        return FAMILIES[name](short_arch(name), **options)

    return build
