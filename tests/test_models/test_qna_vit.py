import pytest
import torch
from torch import nn

from mmvitattn.layers import QnALayer, WindowAttention
from mmvitattn.layers.drop_path import DropPath
from mmvitattn.models import QnAViT

MINI = dict(
    base_channels=8,
    qna_depths=(1, 2, 1, 0),
    qna_heads=(1, 2, 4, 8),
    kernel_sizes=(3, 3, 3, 3),
    lsa_depths=(0, 0, 2, 1),
    lsa_heads=(1, 2, 2, 4),
    window_sizes=(7, 7, 4, 4),
    drop_path_rate=0.0,
)
# Depths, counting the down-sampling blocks, of MINI's stages: 2, 3, 4, 1.


def mini(**options):
    torch.manual_seed(0)
    return QnAViT(MINI, **options)


@pytest.mark.parametrize(
    ('arch', 'parameters'),
    [
        ('tiny', 15_715_560),
        ('tiny_7x7', 15_753_960),
        ('small', 24_971_560),
        ('base', 55_670_008),
    ],
)
def test_parameter_counts_are_the_published_models(arch, parameters, monkeypatch):
    for name in ('trunc_normal_', 'normal_', 'zeros_', 'ones_'):  # values do not count
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    model = QnAViT(arch, out_indices=-1)
    head = nn.Linear(model.feature_info.channels()[-1], 1000)
    assert sum(p.numel() for m in (model, head) for p in m.parameters()) == parameters


def test_outputs_lie_before_the_downsampling_blocks():
    model = mini().eval()
    seen = []
    for downsample in model.downsamples:
        downsample.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    outputs = model(torch.randn(1, 3, 64, 64))
    for i in range(3):
        expected = model.norms[str(i)](seen[i]).permute(0, 3, 1, 2)
        assert torch.equal(outputs[i], expected)


def test_order_of_blocks():
    model = QnAViT('tiny')
    kinds = [[type(block.attention) for block in stage] for stage in model.stages]
    assert kinds == [
        [QnALayer] * 2,
        [QnALayer] * 3,
        [WindowAttention] * 4 + [QnALayer] * 2,
        [WindowAttention] * 2,
    ]
    assert [b.attention.window_size for b in model.stages[2][:4]] == [14] * 4
    assert [d.attention.num_heads for d in model.downsamples] == [16, 32, 64]
    assert all(d.attention.stride == 2 for d in model.downsamples)


def test_drop_path_rises_over_all_blocks():
    model = mini(drop_path_rate=0.9)
    blocks = []
    for i, stage in enumerate(model.stages):
        blocks += [*stage, *model.downsamples[i : i + 1]]
    rates = [block.drop_path.p for block in blocks]
    assert rates == pytest.approx([0.9 * i / 9 for i in range(10)])


def test_downsampling_block_never_drops_its_attention():
    """With all FFN branches dropped, what is left is the skip path and the attention."""
    block = mini().downsamples[0]
    block.drop_path = DropPath(1.0)
    block.train()
    x = torch.randn(1, 6, 6, 8)
    expected = block.skip(x) + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), expected)
    strided = torch.einsum('byxc,dc->byxd', x[:, ::2, ::2], block.skip.conv.weight[..., 0, 0])
    torch.testing.assert_close(block.skip(x), strided)


def test_layer_scale_multiplies_both_branches():
    model = mini(layer_scale=0.0).eval()
    x = torch.randn(1, 8, 8, 8)
    assert torch.equal(model.stages[0][0](x), x)
    assert model.stages[0][0].layer_scale1.shape == (8,)
    assert not any('layer_scale' in name for name, _ in mini().named_parameters())


@torch.no_grad()
def test_qna_stages_are_shift_equivariant():
    """A picture that is shifted by whole strides gives shifted features, away from the border."""
    model = mini(out_indices=(0, 1)).eval().double()
    for module in model.modules():
        if isinstance(module, QnALayer):
            nn.init.normal_(module.position_bias)
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    shifted = image.roll((16, 8), dims=(2, 3))
    for output, moved, stride in zip(model(image), model(shifted), (4, 8), strict=True):
        expected = output.roll((16 // stride, 8 // stride), dims=(2, 3))
        border = 40 // stride  # the shift and the layers' reach
        inside = (..., slice(border, -border), slice(border, -border))
        torch.testing.assert_close(moved[inside], expected[inside])
        assert not torch.allclose(moved, expected)  # the border does see the wrapped picture


def test_layer_depths():
    model = mini()
    depths = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    }
    assert {total for _, total in depths.values()} == {1 + 7 + 1}
    assert depths['stem.conv.weight'][0] == 0
    assert depths['stages.0.0.attention.query'][0] == 1
    assert depths['downsamples.0.skip.conv.weight'][0] == 2
    assert depths['stages.2.2.norm1.weight'][0] == 6
    assert depths['norms.0.weight'][0] == 8


def test_sizes_override_those_of_the_arch():
    model = QnAViT(MINI, kernel_sizes=5, window_sizes=(7, 7, 3, 2))
    layers = list(model.modules())
    assert {m.kernel_size for m in layers if isinstance(m, QnALayer)} == {5}
    assert [m.window_size for m in layers if isinstance(m, WindowAttention)] == [3, 3, 2]
    with pytest.raises(ValueError, match='kernel_sizes'):
        QnAViT(MINI, kernel_sizes=(3, 3))


def test_start_values_are_lecun_normal():
    model = QnAViT(dict(MINI, base_channels=32))
    block = model.downsamples[1]
    for weight, fan_in in (
        (model.stem.conv.weight, 48),
        (block.skip.conv.weight, 64),
        (block.ffn.fc1.weight, 128),
        (block.ffn.fc2.weight, 512),
    ):
        assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.05)
        assert weight.abs().max() <= 2 * fan_in**-0.5 / 0.8796
    assert (block.ffn.fc1.bias == 0).all()
    assert block.ffn.activation.approximate == 'tanh'
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
