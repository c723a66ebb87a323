import pytest
import torch
from torch import nn

from mmvitattn.models import LinGlo
from mmvitattn.models.linglo_blocks import LinGloBlock

TINY = dict(
    channels=(8, 12, 20, 24), depths=(1, 2, 1, 1), num_heads=(1, 2, 5, 3), ffn_ratios=(4, 4, 2, 2)
)


def tiny(**options):
    return LinGlo(TINY, drop_path_rate=0.0, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ('arch', 'training', 'deployed', 'four_norms'),
    [
        ('b0', 3_549_920, 3_345_376, 512),
        ('b1', 13_620_672, 13_211_584, 1024),
        ('b2', 25_456_960, 24_630_080, 1024),
    ],
)
def test_parameter_counts(arch, training, deployed, four_norms):
    """The design's exact counts; dense prediction adds three more output norms."""
    model = LinGlo(arch, out_indices=-1)
    assert count(model) == training
    model.switch_to_deploy()
    assert count(model) == deployed
    assert count(LinGlo(arch, deploy=True)) == deployed + four_norms


def test_block_follows_the_paper():
    block = LinGloBlock(8, num_heads=2, ffn_ratio=4).eval()
    x = torch.randn(2, 5, 7, 8)
    y = x + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.ffn(block.norm2(y)))


def test_model_follows_the_paper():
    """Stem convolution then norm; norm then convolution between stages; a norm on each output."""
    model, image = tiny().eval(), torch.randn(2, 3, 45, 67)
    x = model.stem[0].conv(image).permute(0, 2, 3, 1)
    x = model.stem[1](x)
    expected = []
    for i in range(4):
        if i:
            norm, embed = model.downsamples[i - 1]
            x = embed.conv(norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        for block in model.stages[i]:
            x = block(x)
        expected.append(model.norms[str(i)](x).permute(0, 3, 1, 2))
    torch.testing.assert_close(model(image), tuple(expected))
    convs = [model.stem[0].conv, *(embed.conv for _, embed in model.downsamples)]
    geometry = [(c.kernel_size[0], c.stride[0], c.padding[0]) for c in convs]
    assert geometry == [(7, 4, 3)] + 3 * [(3, 2, 1)]
    assert all(c.bias is not None for c in convs)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_drop_path_is_a_linear_ramp_with_the_arch_default():
    def rates(model):
        return [m.drop_path.p for m in model.modules() if isinstance(m, LinGloBlock)]

    for arch in ('b0', 'b1'):
        assert rates(LinGlo(arch)) == pytest.approx([0.1 * i / 9 for i in range(10)])
    assert rates(LinGlo('b0', drop_path_rate=0.2))[-1] == pytest.approx(0.2)


@pytest.mark.parametrize('options', [dict(deploy=True), {}])
def test_deploy_keeps_frozen_stages_frozen(options):
    model = tiny(frozen_stages=2, **options).train()
    model.switch_to_deploy()
    trainable = {n.split('.')[1] for n, p in model.stages.named_parameters('s') if p.requires_grad}
    assert trainable == {'2', '3'}


def test_norm_eval_freezes_running_statistics():
    model = tiny(norm_eval=True).train()
    before = [b.clone() for b in model.buffers()]
    model(torch.randn(2, 3, 64, 64))
    assert before and all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_layer_depths():
    model = tiny()
    depths = {n: model.get_layer_depth(n)[0] for n, _ in model.named_parameters()}
    assert depths['stem.0.conv.weight'] == 0
    assert depths['stages.1.1.attention.saliency'] == 3
    assert depths['downsamples.0.1.conv.bias'] == depths['stages.1.0.norm1.weight'] == 2
    assert depths['norms.0.weight'] == sum(TINY['depths']) + 1
