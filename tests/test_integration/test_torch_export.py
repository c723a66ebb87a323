"""torch.export with dynamic sizes."""

import pytest
import torch
from torch import nn

from mmvitattn.layers import GlobalAttention, PositionTable, WindowAttention
from mmvitattn.models import LinGlo, QnAViT, SAGViT

if not hasattr(torch.compiler, 'is_exporting'):
    pytest.skip('dynamic sizes need PyTorch 2.7', allow_module_level=True)

Dim = torch.export.Dim
# One block of each kind per stage: compilers take seconds for each block.
SMALL = {
    'linglo': (LinGlo, dict(arch='b0')),
    'qna_vit': (
        QnAViT,
        dict(
            arch=dict(
                base_channels=16,
                qna_depths=(1, 1, 1, 0),
                qna_heads=(2, 4, 8, 16),
                kernel_sizes=(3,) * 4,
                lsa_depths=(0, 0, 1, 1),
                lsa_heads=(2, 4, 8, 16),
                window_sizes=(7, 7, 14, 7),
            )
        ),
    ),
    'sag': (SAGViT, dict(arch={**SAGViT.arch_zoo['small'], 'depths': (2, 1, 1)})),
}


class LastMap(nn.Module):
    def forward(self, maps):
        return maps[-1].mean(dim=(2, 3))


def build(name, **options):
    torch.manual_seed(0)
    cls, own = SMALL[name]
    return cls(**own, **options)


def largest_difference(actual, expected):
    assert [y.shape for y in actual] == [y.shape for y in expected]
    return max((a - e).abs().max() / e.abs().max() for a, e in zip(actual, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL)
def test_export_is_valid_for_all_sizes(name):
    model = build(name).eval()
    sizes = {0: Dim('batch', max=64), **{i: Dim(f'n{i}', min=33, max=4096) for i in (2, 3)}}
    with torch.no_grad():
        program = torch.export.export(model, (torch.rand(2, 3, 257, 291),), dynamic_shapes=(sizes,))
    exported = program.module()
    # one window, exact multiples, odd sizes, sizes that the traced run did not have
    for shape in ((1, 64, 64), (3, 224, 224), (2, 97, 131), (1, 33, 300)):
        image = torch.rand(shape[0], 3, *shape[1:])
        with torch.no_grad():
            assert largest_difference(exported(image), model(image)) < 1e-5


@pytest.mark.slow
def test_packaged_classifier(tmp_path):
    """AOTInductor's package of a classifier in deploy form, as in docs/embedding.md."""
    backbone = build('linglo', out_indices=(3,)).eval()
    backbone.switch_to_deploy()
    model = nn.Sequential(backbone, LastMap(), nn.Linear(backbone.feature_info.channels()[-1], 5))
    path = str(tmp_path / 'classifier.pt2')
    with torch.no_grad():
        sizes = ({0: Dim('batch', max=64)},)
        program = torch.export.export(model, (torch.rand(2, 3, 64, 64),), dynamic_shapes=sizes)
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        packaged = torch._inductor.aoti_load_package(path)
        for batch in (1, 5):
            image = torch.rand(batch, 3, 64, 64)
            assert largest_difference([packaged(image)], [model(image)]) < 1e-5


@pytest.mark.parametrize(
    'layer',
    [
        WindowAttention(16, 2, 14),
        WindowAttention(16, 2, 3, position_bias=None),
        GlobalAttention(16, 2, shared_kv=True),
        GlobalAttention(16, 2, kv_pool=4),
        PositionTable((7, 9), 16),
    ],
    ids=['window', 'window without bias', 'shared keys', 'pooled keys', 'table'],
)
def test_exported_layer(layer):
    sizes = {0: Dim('batch', max=64), 1: Dim('rows', min=5), 2: Dim('columns', min=5)}
    layer = layer.eval()
    with torch.no_grad():
        x = torch.rand(2, 17, 19, 16)
        exported = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
        for shape in ((1, 14, 14), (3, 5, 5), (2, 15, 40)):
            x = torch.rand(*shape, 16)
            torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-6)
