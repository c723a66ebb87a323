"""The options of the LinGlo paper's ablations (section 5), one by one and together."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
import yaml
from mmengine.config import Config
from torch import nn

from mmvitattn.inference.onnx_export import (
    Exportable,
    check_shapes,
    export_onnx,
    largest_differences,
)
from mmvitattn.layers import RPCPE, GlobalAttention, KeyOnlyAttention
from mmvitattn.models import LinGlo
from mmvitattn.models.linglo_blocks import LinGloBlock, LinGloConvBlock

SMALL = dict(channels=(8, 12), depths=(1, 2), num_heads=(2, 3), ffn_ratios=(4, 2))
ISOTROPIC = dict(SMALL, channels=(12, 12))
TABLE_6 = dict(cpe=(1, False), r_cpe=(1, True), p_cpe=(4, False), rp_cpe=(4, True))
WO_C = dict(stem='patch', downsample='patch', position='absolute')
WO_CH = dict(WO_C, arch=ISOTROPIC, patch_size=16, downsample=None)
# Parameters, training and deploy form; the millions that the paper prints.
PARAMETERS = {
    'C-C-H-H': (3_550_240, 3_345_696, 3.3),
    'C-H-H-H': (3_550_000, 3_345_456, 3.4),
    'H-H-H-H (b0)': (3_549_920, 3_345_376, 3.4),
    'key-only (b0)': (3_549_920, 3_345_376, None),
    'dot product': (3_548_672, 3_344_128, None),
    'CPE': (3_351_392, 3_345_376, None),
    'R-CPE': (3_351_392, 3_345_376, None),
    'P-CPE': (3_549_920, 3_345_376, None),
    'RP-CPE (b0)': (3_549_920, 3_345_376, None),
    'b0': (3_549_920, 3_345_376, None),
    'w/o-C': (3_210_240, 3_210_240, None),
    'w/o-CH': (3_857_550, 3_857_550, None),
}
pytestmark = pytest.mark.usefixtures('quick_start_values')


def small(**options):
    return LinGlo(**{'arch': SMALL, 'drop_path_rate': 0.0, **options})


def count(module):
    return sum(p.numel() for p in module.parameters())


def randomised(module):
    """In float64, with random values for all parameters."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith('running_var'):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.5)
    return module.double()


def test_rows_have_the_counted_parameters(root):
    folder = root / 'configs/ablations'
    sets = yaml.safe_load((folder / 'linglo.yml').read_text())['sets']
    rows = [row for rows in sets.values() for row in rows['rows']]
    assert [row['name'] for row in rows] == list(PARAMETERS)

    @functools.cache
    def counts(config):
        settings = Config.fromfile(folder / config).model.backbone.to_dict()
        assert settings.pop('type') == 'mmvitattn.LinGlo'
        with torch.device('meta'):
            model = LinGlo(**settings)
            training = count(model)
            model.switch_to_deploy()
        return training, count(model)

    for row in rows:
        assert (*counts(row['config']), row['params']) == PARAMETERS[row['name']], row['name']
        if row['params'] is not None:
            assert abs(PARAMETERS[row['name']][1] / 1e6 - row['params']) < 0.06


def test_convolutional_stages_keep_the_number_of_weights():
    """Number of weights: two matrices of squeeze-and-excitation replace the attention's four."""
    for ratio in (2, 4, 8):
        arch = dict(channels=(16,), depths=(1,), num_heads=(1,), ffn_ratios=(ratio,))
        hybrid, convolutional = (LinGlo(arch, layout=letter) for letter in 'HC')
        weights = [
            sum(p.numel() for n, p in m.named_parameters() if p.dim() > 1 and 'saliency' not in n)
            for m in (hybrid, convolutional)
        ]
        assert weights[0] == weights[1]


def encoded(layer, t, branches, skip):
    """Table 6 by the equations, from the layer's weights; channels-last."""
    t = t.permute(0, 3, 1, 2)
    z = t if skip else torch.zeros_like(t)
    for b in range(branches):
        y = F.conv2d(t, layer.convs[b].weight, padding=1, groups=t.shape[1])
        norm = layer.norms[b]
        if layer.training:
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        else:
            mean, var = norm.running_mean, norm.running_var
        y = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        z = z + norm.weight[:, None, None] * y + norm.bias[:, None, None]
    return z.permute(0, 2, 3, 1)


def normalised(x, norm):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return x * norm.weight + norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('form', TABLE_6)
def test_position_encodings_of_table_6(form, training):
    block = randomised(small(position=form).stages[1][1]).train(training)
    branches, skip = TABLE_6[form]
    assert len(block.ffn.position.convs) == len(block.ffn.position.norms) == branches
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    hidden = gelu(encoded(block.ffn.position, block.ffn.fc1(x), branches, skip))
    torch.testing.assert_close(block.ffn(x), block.ffn.fc2(hidden))


def test_default_and_more_branches():
    def branches(**options):
        return {
            (len(m.convs), m.skip, m.kernel_size)
            for m in small(**options).modules()
            if isinstance(m, RPCPE)
        }

    assert branches() == branches(position='rp_cpe') == {(4, True, 3)}
    assert branches(position=dict(num_branches=6)) == {(6, True, 3)}
    assert branches(position=dict(skip=False, kernel_size=5)) == {(4, False, 5)}
    assert branches(position=None) == branches(position='absolute') == set()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('form', ['cpe', 'rp_cpe'])
def test_convolutional_block_follows_the_equations(form, training):
    """Inverted bottleneck with squeeze-and-excitation of the hidden channels, and no attention."""
    block = randomised(small(layout='CH', position=form).stages[0][0]).train(training)
    assert isinstance(block, LinGloConvBlock)
    parameters = {n: p.shape for n, p in block.named_parameters()}
    assert parameters['ffn.gate.fc1.weight'][:2] == (4, 32)  # 2 * 8 / 4 of 4 * 8
    assert not any('attention' in name for name in parameters)
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64, requires_grad=True)
    gate = block.ffn.gate
    hidden = block.ffn.fc1(normalised(x, block.norm))
    hidden = gelu(encoded(block.ffn.position, hidden, *TABLE_6[form]))
    squeezed = hidden.mean((1, 2)) @ gate.fc1.weight.flatten(1).T + gate.fc1.bias
    scale = (squeezed.relu() @ gate.fc2.weight.flatten(1).T + gate.fc2.bias).sigmoid()
    expected = x + block.ffn.fc2(hidden * scale[:, None, None])
    torch.testing.assert_close(block(x), expected)
    inputs = [x, *block.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(block(x).square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


def test_convolutional_block_copies_no_map():
    """The gate keeps the memory format, so that the next linear layer needs no copy."""
    block, seen = LinGloConvBlock(8, 4).eval(), []
    block.ffn.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for x in (torch.randn(2, 5, 7, 8), torch.randn(1, 5, 1, 8)):
        block(x)
        assert seen.pop().is_contiguous()


def test_layout_names_the_stages():
    arch = dict(SMALL, **{k: 2 * v for k, v in SMALL.items()})
    kinds = {'H': LinGloBlock, 'C': LinGloConvBlock}
    for layout in ('HHHH', 'CHHH', 'CCHH', 'HCCH', 'CCCC'):
        model = small(arch=arch, layout=layout)
        for letter, stage in zip(layout, model.stages, strict=True):
            assert {type(block) for block in stage} == {kinds[letter]}
    assert list(small().state_dict()) == list(small(layout='HH').state_dict())


def test_drop_path_of_convolutional_blocks():
    model = small(layout='CC', drop_path_rate=0.2)
    rates = [block.drop_path.p for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_dot_product_attention_in_all_stages():
    for attention, kind in (('key_only', KeyOnlyAttention), ('dot_product', GlobalAttention)):
        blocks = [b for stage in small(attention=attention).stages for b in stage]
        assert {type(block.attention) for block in blocks} == {kind}
        assert [block.attention.num_heads for block in blocks] == [2, 3, 3]


def patches(x, conv, side):
    """Each patch through the kernel as a matrix; the image is completed by zeros."""
    padded = x.new_zeros(*x.shape[:2], *(-(-n // side) * side for n in x.shape[2:]))
    padded[:, :, : x.shape[2], : x.shape[3]] = x
    rows, columns = (n // side for n in padded.shape[2:])
    cut = padded.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 1, 3, 5)
    return cut.flatten(3) @ conv.weight.flatten(1).T + conv.bias


@pytest.mark.parametrize('size', [(32, 48), (33, 51), (39, 46)])
def test_model_without_convolutions_follows_the_equations(size):
    model = randomised(small(**WO_C)).eval()
    assert not any(isinstance(m, RPCPE) for m in model.modules())
    image, (embed, norm, table) = torch.randn(2, 3, *size, dtype=torch.float64), model.stem
    x = table(normalised(patches(image, embed.conv, 4), norm))
    expected = []
    for i, stage in enumerate(model.stages):
        if i:
            norm, embed, table = model.downsamples[i - 1]
            x = table(patches(normalised(x, norm).permute(0, 3, 1, 2), embed.conv, 2))
        for block in stage:
            x = x + block.attention(normalised(x, block.norm1))
            x = x + block.ffn.fc2(gelu(block.ffn.fc1(normalised(x, block.norm2))))
        expected.append(normalised(x, model.norms[str(i)]).permute(0, 3, 1, 2))
    torch.testing.assert_close(model(image), tuple(expected))


@pytest.mark.parametrize(
    ('image_size', 'grids'), [(224, [(56, 56), (28, 28)]), ((190, 321), [(48, 81), (24, 41)])]
)
def test_position_tables_have_the_size_of_their_stage(image_size, grids):
    model, added = small(position='absolute', image_size=image_size), []
    tables = [model.stem.position, model.downsamples[0].position]
    assert [t.table.shape for t in tables] == [(*grids[0], 8), (*grids[1], 12)]
    for table in tables:
        table.register_forward_hook(lambda _, inputs, y: added.append((y - inputs[0])[0]))
    model(torch.randn(1, 3, *((224, 224) if image_size == 224 else image_size)))
    for actual, table in zip(added, tables, strict=True):  # at that size they are not resized
        torch.testing.assert_close(actual, table.table, rtol=1e-4, atol=1e-4)


def test_position_tables_belong_to_the_entrance_of_their_stage():
    """Their depth, decay and freezing are those of the embeddings in front of them."""
    model = small(position='absolute', frozen_stages=1)
    names = ['stem.position.table', 'downsamples.0.position.table']
    assert {n for n, _ in model.named_parameters() if n.endswith('table')} == set(names)
    assert [model.get_layer_depth(n)[0] for n in names] == [0, 2]
    assert set(names) <= model.no_weight_decay()
    assert [model.get_parameter(n).requires_grad for n in names] == [False, True]


@pytest.mark.parametrize(
    ('options', 'strides'),
    [
        (dict(patch_size=2), [2, 4]),
        (dict(patch_size=7, stem='patch'), [7, 14]),
        (dict(patch_size=3, downsample='patch'), [3, 6]),
        (dict(arch=ISOTROPIC, downsample=None), [4, 4]),
        (WO_CH, [16, 16]),
    ],
)
def test_strides_are_rounded_up(options, strides):
    model = small(**options).eval()
    assert model.feature_info.reduction() == strides
    for size in ((32, 64), (33, 47), (45, 38)):
        shapes = [y.shape[2:] for y in model(torch.randn(1, 3, *size))]
        assert shapes == [tuple(-(-n // stride) for n in size) for stride in strides]


def test_overlapping_embeddings_have_the_kernels_of_the_paper():
    model = small(patch_size=8)
    convs = [model.stem[0].conv, model.downsamples[0][1].conv]
    geometry = [(m.kernel_size[0], m.stride[0], m.padding[0]) for m in convs]
    assert geometry == [(15, 8, 7), (3, 2, 1)]


def test_one_resolution_recomputes_and_has_all_depths():
    """An entrance without a down-sampling; tests/test_models/test_contract.py has the others."""
    model = small(**WO_CH)
    assert [list(dict(d.named_children())) for d in model.downsamples] == [['position']]
    depths = {model.get_layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert depths == set(range(sum(ISOTROPIC['depths']) + 2))
    twin, image = small(**WO_CH, with_cp=True), torch.randn(2, 3, 50, 41)
    twin.load_state_dict(model.state_dict())
    for module in (model, twin):
        sum(y.square().mean() * i for i, y in enumerate(module(image), 2)).backward()
    for (name, a), e in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-4, atol=1e-6, msg=name)


COMBINATIONS = [
    dict(attention=attention, position=position, layout=layout, stem=stem, downsample=downsample)
    for attention, position, layout, stem, downsample in itertools.product(
        ('key_only', 'dot_product'),
        ('rp_cpe', 'absolute', None),
        ('HH', 'CH'),
        ('conv', 'patch'),
        ('conv', 'patch', None),
    )
    if layout == 'HH' or position == 'rp_cpe'
]


def test_options_combine():
    """All of them with all of them; nothing is computed."""
    assert len(COMBINATIONS) == 48
    with torch.device('meta'):
        image = torch.empty(2, 3, 33, 46)
        for options in COMBINATIONS:
            model = small(arch=dict(ISOTROPIC, depths=(1, 1)), **options)
            stride = 4 if options['downsample'] is None else 8
            expected = (2, 12, -(-33 // stride), -(-46 // stride))
            assert model(image)[1].shape == expected, options
            model.switch_to_deploy()
            assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(attention='linear'), "attention='linear' must be one of 'key_only', 'dot_product'"),
        (dict(position='sine'), "position='sine' must be one of 'rp_cpe',.*'absolute', None"),
        (dict(position=['cpe']), r"position=\['cpe'\] must be one of"),
        (dict(position=dict(branches=3)), "'branches': 3.*only num_branches, skip, kernel_size"),
        (dict(position=dict(num_branches=0)), 'num_branches=0'),
        (dict(layout='H'), "layout='H' must have one letter for each of 2 stages: H .*, C "),
        (dict(layout='HX'), "layout='HX' must have one letter .*H .hybrid., C .convolutional."),
        (dict(layout='CH', position='absolute'), "layout='CH' needs a position encoding by conv"),
        (dict(stem='pool'), "stem='pool' must be one of 'conv', 'patch'"),
        (dict(stem=None), "stem=None must be one of 'conv', 'patch'$"),
        (dict(downsample='pool'), "downsample='pool' must be one of 'conv', 'patch', None"),
        (dict(downsample=None), 'downsample=None needs equal channels in all stages, got 8 and 12'),
        (dict(patch_size=0), 'patch_size=0 must be a positive number of pixels'),
    ],
)
def test_wrong_options_are_named(options, message):
    for out_indices in (None,) if 'equal' in message else (None, 0):
        with pytest.raises(ValueError, match=message):
            small(**options, out_indices=out_indices)


EXPORTED = {
    'convolutional': dict(layout='CH', stem='patch', downsample='patch'),
    'wo_c': dict(WO_C, attention='dot_product'),
    'wo_ch': WO_CH,
}


@pytest.mark.parametrize('options', EXPORTED.values(), ids=EXPORTED)
def test_compiles_to_one_graph(options):
    model, image = small(**options).eval(), torch.randn(1, 3, 33, 46)
    torch._dynamo.reset()
    with torch.no_grad():
        actual = torch.compile(model, backend='eager', fullgraph=True)(image)
        torch.testing.assert_close(actual, model(image))
    torch._dynamo.reset()


@pytest.mark.parametrize('options', EXPORTED.values(), ids=EXPORTED)
def test_exported_for_any_size(options, tmp_path):
    pytest.importorskip('onnx', reason='extra [export]')
    pytest.importorskip('onnxruntime', reason='extra [export]')
    model = small(**options).eval()
    model.switch_to_deploy()
    module, path = Exportable(model), tmp_path / 'model.onnx'
    first, *others = check_shapes(model.min_size)
    export_onnx(module, path, others[0], {}, 'torchscript')
    assert max(largest_differences(module, path, [first, *others])) < 1e-4
