import pytest
import torch
from torch import nn

from mmvitattn.models import LinGlo
from mmvitattn.models.linglo import LinGloBlock

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


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (64, 96), (97, 131)])
def test_any_size_and_feature_info(size):
    model = tiny().eval()
    outputs = model(torch.randn(1, 3, *size))
    for output, info in zip(outputs, model.feature_info, strict=True):
        expected = [-(-side // info['reduction']) for side in size]
        assert output.shape == (1, info['num_chs'], *expected)
        assert output.isfinite().all()
    assert model.feature_info.channels() == [8, 12, 20, 24]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ('out_indices', 'resolved'), [(-1, (3,)), ((0, -1), (0, 3)), ([2, 1], (2, 1)), (1, (1,))]
)
def test_out_indices(out_indices, resolved):
    full, model = tiny().eval(), tiny(out_indices=out_indices).eval()
    model.load_state_dict(full.state_dict(), strict=False)
    image = torch.randn(1, 3, 40, 40)
    everything, chosen = full(image), model(image)
    assert model.out_indices == resolved
    assert len(model.stages) == max(resolved) + 1  # stages behind the last output are not built
    torch.testing.assert_close(chosen, tuple(everything[i] for i in resolved))


def test_drop_path_is_a_linear_ramp_with_the_arch_default():
    def rates(model):
        return [m.drop_path.p for m in model.modules() if isinstance(m, LinGloBlock)]

    assert rates(LinGlo('b0')) == [0.0] * 10
    assert rates(LinGlo('b1')) == pytest.approx([0.1 * i / 9 for i in range(10)])
    assert rates(LinGlo('b0', drop_path_rate=0.2))[-1] == pytest.approx(0.2)


def test_deploy_is_equal_and_idempotent():
    model = tiny().train()
    for _ in range(3):  # statistics that differ from their start values
        model(torch.randn(4, 3, 64, 64) * 2 + 1)
    model.eval()
    image = torch.randn(1, 3, 65, 49)
    expected = model(image)
    for _ in range(2):
        model.switch_to_deploy()
        for a, e in zip(model(image), expected, strict=True):
            assert (a - e).abs().max() <= 1e-5 * e.abs().max()
    twin = tiny(deploy=True).eval()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(image), model(image))


@pytest.mark.parametrize('options', [dict(deploy=True), {}])
def test_deploy_keeps_frozen_stages_frozen(options):
    model = tiny(frozen_stages=2, **options).train()
    model.switch_to_deploy()
    trainable = {n.split('.')[1] for n, p in model.stages.named_parameters('s') if p.requires_grad}
    assert trainable == {'2', '3'}


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_frozen_stages_under_train(frozen_stages):
    model = tiny(frozen_stages=frozen_stages).train()
    before = {name: b.clone() for name, b in model.named_buffers() if b.is_floating_point()}
    loss = sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 64)))
    if frozen_stages < 4:
        loss.backward()
    frozen_parts = ('stem',) if frozen_stages >= 0 else ()
    for k in range(frozen_stages):
        frozen_parts += (f'stages.{k}.', f'downsamples.{k - 1}.', f'norms.{k}.')
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen_parts), name
    for name, buffer in model.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name]) == name.startswith(frozen_parts), name


def test_norm_eval_freezes_running_statistics():
    model = tiny(norm_eval=True).train()
    before = [b.clone() for b in model.buffers()]
    model(torch.randn(2, 3, 64, 64))
    assert before and all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_with_cp_equals_without():
    plain = tiny().train()
    checkpointed = tiny(with_cp=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 96)
    for model in (plain, checkpointed):
        sum(y.square().mean() for y in model(image)).backward()
    for a, e in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-4, atol=1e-6)
    for a, e in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, e)  # running statistics are updated once, not twice


def test_layer_depth_covers_all_parameters_in_order():
    model = tiny()
    depths = {
        n: model.get_layer_depth(f'backbone.{n}', 'backbone.') for n, _ in model.named_parameters()
    }
    last = sum(TINY['depths']) + 1
    assert {layers for _, layers in depths.values()} == {last + 1}
    assert {depth for depth, _ in depths.values()} == set(range(last + 1))
    assert depths['stem.0.conv.weight'][0] == 0
    assert depths['stages.1.1.attention.saliency'][0] == 3
    assert depths['downsamples.0.1.conv.bias'][0] == depths['stages.1.0.norm1.weight'][0] == 2
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (last, last + 1)


def test_bfloat16_autocast_is_finite():
    model = tiny().train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = model(torch.randn(2, 3, 64, 64) * 100)
    sum(y.float().square().mean() for y in outputs).backward()
    assert all(y.isfinite().all() for y in outputs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_pretrained_weights_are_really_loaded(tmp_path, prefix):
    source, file = tiny(out_indices=-1), tmp_path / 'weights.pth'
    state = {prefix + name: torch.randn_like(p) for name, p in source.named_parameters()}
    torch.save({'state_dict': state}, file)
    init_cfg = dict(type='Pretrained', checkpoint=str(file), prefix=prefix or None)
    model = tiny(out_indices=-1, init_cfg=init_cfg)
    model.init_weights()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[prefix + name]), name


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='b9'), "unknown arch 'b9'; choose one of b0, b1, b2"),
        (dict(arch=dict(channels=(8,))), r"lacks \['depths', 'ffn_ratios', 'num_heads'\]"),
        (dict(arch=dict(TINY, width=3)), r"unknown keys \['width'\]"),
        (dict(arch=dict(TINY, num_heads=(1, 2, 5))), "one entry a stage.*'num_heads': 3"),
        (dict(out_indices=(4,)), r'out_indices=\(4,\).*there are 4 stages'),
        (dict(out_indices=(0, -4)), 'must be distinct'),
        (dict(out_indices=()), 'out_indices'),
        (dict(frozen_stages=5), r'frozen_stages=5 must lie in \[-1, 4\]'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LinGlo(**{'arch': TINY, **options})


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((1, 4, 64, 64), r'takes images \(B, 3, H, W\), got \(1, 4, 64, 64\); set in_channels'),
        ((3, 64, 64), r'takes images \(B, 3, H, W\)'),
        ((1, 3, 31, 64), 'at least 32 x 32 pixels, got 31 x 64'),
    ],
)
def test_bad_images_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny()(torch.randn(shape))


def test_other_inputs():
    assert tiny(in_channels=5, out_indices=0)(torch.randn(1, 5, 32, 32))[0].shape == (1, 8, 8, 8)
