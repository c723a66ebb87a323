"""Deformable attention and convolutions, RoI pooling and soft-NMS, called as mmcv calls them.

References: mmcv's own deformable attention in PyTorch, torchvision's autograd, plain convolutions,
and loops written from the definitions.
"""

import math

import pytest
import torch
import torchvision
from torch.nn import functional as F

from mmvitattn import compat

pytest.importorskip('mmcv')
compat.install()
ops = pytest.importorskip('mmcv.ops')
if not compat.is_active():
    pytest.skip('mmcv has compiled ops here', allow_module_level=True)

from mmcv.ops import multi_scale_deform_attn as mmcv_attention  # noqa: E402


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def compare(function, reference, inputs, grad=None, **tolerance):
    """Compares outputs and the gradients of all inputs."""
    results = []
    for f in (function, reference):
        own = leaves(*inputs)
        output = f(*own)
        grad = torch.rand_like(output) if grad is None else grad
        results.append((output, *torch.autograd.grad(output, own, grad)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **tolerance)


# --------------------------------------------------------------------------- deformable attention


def attention_inputs(shapes, dtype=torch.float64, queries=5):
    """Values of all levels, sampling locations inside and outside the maps, and weights."""
    torch.manual_seed(0)
    positions = sum(height * width for height, width in shapes)
    value = torch.randn(2, positions, 3, 4, dtype=dtype)
    locations = torch.rand(2, queries, 3, len(shapes), 2, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, queries, 3, len(shapes), 2, dtype=dtype)
    return value, locations, weights


def apply_attention(shapes):
    sizes = torch.tensor(shapes)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return lambda value, locations, weights: mmcv_attention.MultiScaleDeformableAttnFunction.apply(
        value, sizes, starts, locations, weights, 64
    )


@pytest.mark.parametrize('shapes', [[(6, 8), (3, 4), (2, 2)], [(5, 7)], [(1, 1), (1, 9)]])
def test_deformable_attention_matches_mmcv(shapes):
    sizes = torch.tensor(shapes)

    def reference(value, locations, weights):
        return mmcv_attention.multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)

    compare(apply_attention(shapes), reference, attention_inputs(shapes))


def test_deformable_attention_by_finite_differences():
    shapes = [(3, 4), (2, 2)]
    inputs = leaves(*attention_inputs(shapes, queries=2))
    assert torch.autograd.gradcheck(apply_attention(shapes), inputs, nondet_tol=1e-9)


def test_deformable_attention_far_outside_and_without_queries():
    shapes = [(3, 4)]
    value, locations, weights = attention_inputs(shapes, torch.float32)
    inputs = leaves(value, locations + 1e6, weights)
    output = apply_attention(shapes)(*inputs)
    output.sum().backward()
    assert not output.any() and not any(x.grad.any() for x in inputs)
    inputs = leaves(value, locations[:, :0], weights[:, :0])
    output = apply_attention(shapes)(*inputs)
    output.sum().backward()
    assert output.shape == (2, 0, 12) and not inputs[0].grad.any()


def test_module_of_deformable_attention_is_the_same_by_both_functions(monkeypatch):
    """mmcv uses the autograd function on GPUs and its PyTorch version on CPUs."""
    torch.manual_seed(0)
    layer = ops.MultiScaleDeformableAttention(16, num_heads=2, num_levels=2, batch_first=True)
    layer.eval()  # no dropout
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    shapes = torch.tensor([(6, 8), (3, 4)])
    arguments = dict(
        value=torch.randn(2, 60, 16),
        reference_points=torch.rand(2, 7, 2, 2),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 48]),
    )
    query = torch.randn(2, 7, 16)
    expected = layer(query, **arguments)

    def through_the_function(value, sizes, locations, weights):
        return apply_attention(sizes.tolist())(value, locations, weights)

    monkeypatch.setattr(mmcv_attention, 'multi_scale_deformable_attn_pytorch', through_the_function)
    torch.testing.assert_close(layer(query, **arguments), expected)


# ------------------------------------------------------------------------- deformable convolutions

SETTINGS = [  # stride, padding, dilation, groups, deformable groups
    (1, 1, 1, 1, 1),
    ((2, 1), (0, 2), (1, 2), 2, 2),
]


def convolution_inputs(stride, padding, dilation, groups, deform_groups, bias=True):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64)
    grid = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    offset = 2 * torch.randn(2, 2 * deform_groups * 6, *grid, dtype=torch.float64)
    mask = torch.rand(2, deform_groups * 6, *grid, dtype=torch.float64)
    return x, weight, offset, mask, torch.randn(6, dtype=torch.float64)


@pytest.mark.parametrize('settings', SETTINGS)
def test_deformable_convolution_matches_torchvision(settings):
    x, weight, offset, _, _ = convolution_inputs(*settings)
    compare(
        lambda x, weight, offset: ops.deform_conv2d(x, offset, weight, *settings),
        lambda x, weight, offset: torchvision.ops.deform_conv2d(
            x, offset, weight, None, *settings[:3]
        ),
        (x, weight, offset),
    )


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('with_bias', [True, False])
def test_modulated_deformable_convolution_matches_torchvision(settings, with_bias):
    inputs = convolution_inputs(*settings)[: 5 if with_bias else 4]
    compare(
        lambda x, w, offset, mask, *bias: ops.modulated_deform_conv2d(
            x, offset, mask, w, *(bias or [None]), *settings
        ),
        lambda x, w, offset, mask, *bias: torchvision.ops.deform_conv2d(
            x, offset, w, *(bias or [None]), *settings[:3], mask
        ),
        inputs,
    )


@pytest.mark.parametrize('settings', SETTINGS)
def test_without_offsets_it_is_a_convolution(settings):
    x, weight, offset, mask, bias = convolution_inputs(*settings)
    expected = F.conv2d(x, weight, bias, *settings[:4])
    actual = ops.modulated_deform_conv2d(
        x, 0 * offset, torch.ones_like(mask), weight, bias, *settings
    )
    torch.testing.assert_close(actual, expected)
    actual = ops.deform_conv2d(x, 0 * offset, weight, *settings)
    torch.testing.assert_close(actual, F.conv2d(x, weight, None, *settings[:4]))


def test_samples_far_outside_are_zero():
    x, weight, offset, mask, bias = convolution_inputs(*SETTINGS[0])
    y = ops.modulated_deform_conv2d(x, offset + 1e6, mask, weight, bias, *SETTINGS[0])
    torch.testing.assert_close(y, bias[:, None, None].expand_as(y))


def test_modules_train():
    for layer in (ops.DeformConv2dPack(4, 6, 3, padding=1), ops.ModulatedDeformConv2dPack(4, 6, 3)):
        x = torch.randn(2, 4, 8, 8, requires_grad=True)
        layer(x).square().sum().backward()
        grads = [x.grad, *(p.grad for p in layer.parameters())]
        assert all(grad.isfinite().all() for grad in grads) and x.grad.any()


# ---------------------------------------------------------------------------------------- roi_pool


def reference_roi_pool(features, rois, size, scale):
    """Maximum over the pixels of each bin, by loops; differentiable."""
    height, width = features.shape[2:]
    pooled = []
    for image, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for i in range(size[0]):
            for j in range(size[1]):
                step_y, step_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
                top, left = (
                    max(math.floor(k * step + low), 0)
                    for k, step, low in ((i, step_y, y1), (j, step_x, x1))
                )
                bottom = max(min(math.ceil((i + 1) * step_y + y1), height), 0)
                right = max(min(math.ceil((j + 1) * step_x + x1), width), 0)
                values = features[int(image), :, top:bottom, left:right].flatten(1)
                empty = values.shape[1] == 0 or step_y <= 0 or step_x <= 0
                pooled.append(0 * features[0, :, 0, 0] if empty else values.amax(1))
    return torch.stack(pooled).unflatten(0, (len(rois), *size)).permute(0, 3, 1, 2)


REGIONS = [
    [0.0, 0, 0, 15, 11],  # a whole image at scale 1/2
    [1.0, 3, 2, 9, 8],
    [1.0, 5, 5, 5, 5],  # a pixel
    [0.0, -20, -6, 40, 30],  # beyond the image
    [0.0, 40, 40, 60, 60],  # outside
    [1.0, 9, 8, 3, 2],  # corners exchanged
]


@pytest.mark.parametrize('size', [(2, 3), (7, 7)])
def test_roi_pool_and_gradient(size):
    torch.manual_seed(0)
    rois = torch.tensor(REGIONS, dtype=torch.float64)
    features = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    compare(
        lambda x: ops.roi_pool(x, rois, size, 0.5),
        lambda x: reference_roi_pool(x, rois, size, 0.5),
        (features,),
    )


def test_roi_pool_of_no_regions():
    features = torch.randn(1, 3, 6, 8, requires_grad=True)
    pooled = ops.roi_pool(features, torch.zeros(0, 5), 2, 0.5)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 2, 2) and not features.grad.any()


# --------------------------------------------------------------------------------------- soft_nms


def reference_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    boxes, scores = boxes.tolist(), scores.tolist()

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0]) + offset
        height = min(a[3], b[3]) - max(a[1], b[1]) + offset
        overlap = max(width, 0) * max(height, 0)
        areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
        union = sum(areas) - overlap
        return overlap / union if union else 0.0

    rest, kept = list(range(len(boxes))), []
    while rest:
        best = max(rest, key=lambda i: scores[i])
        kept.append((best, *boxes[best], scores[best]))
        rest.remove(best)
        for i in rest:
            value = iou(boxes[best], boxes[i])
            if method == 'gaussian':
                scores[i] *= math.exp(-(value**2) / sigma)
            elif value >= threshold:
                scores[i] *= 1 - value if method == 'linear' else 0
        rest = [i for i in rest if scores[i] >= min_score]
    return kept


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms(method, offset):
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 30, (40, 2), generator=generator).float()
    sizes = torch.randint(0, 25, (40, 2), generator=generator).float()  # some without area
    boxes = torch.cat([corners, corners + sizes], 1)
    scores = torch.rand(40, generator=generator)
    options = dict(sigma=0.5, min_score=0.05, method=method, offset=offset)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, **options)
    expected = reference_soft_nms(boxes, scores, 0.3, **options)
    assert kept.tolist() == [row[0] for row in expected] and 0 < len(kept) < 40
    torch.testing.assert_close(dets, torch.tensor(expected)[:, 1:])


def test_soft_nms_of_none_and_of_low_scores():
    dets, kept = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,)
    boxes = torch.tensor([[0.0, 0, 4, 4], [9.0, 9, 12, 12]])
    _, kept = ops.soft_nms(boxes, torch.tensor([0.01, 0.02]), min_score=0.5)
    assert kept.tolist() == [1]  # the best is kept, as by mmcv


def test_point_sample_is_mmcvs_own():
    """It is PyTorch code in mmcv, and works without compiled ops."""
    features = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.125, 1 / 6], [0.875, 5 / 6]]])  # centres of the corner pixels
    expected = torch.tensor([[[0.0, 11.0]]])
    torch.testing.assert_close(ops.point_sample(features, points), expected, atol=1e-5, rtol=0)
