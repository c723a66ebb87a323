"""The replacements of mmcv's compiled ops, called as mmcv and mmdet call them.

Every reference below is written from the definition of the op, in float64 loops.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvitattn import compat

pytest.importorskip('mmcv')
compat.install()
ops = pytest.importorskip('mmcv.ops')
if not compat.is_active():
    pytest.skip('mmcv has compiled ops here', allow_module_level=True)

QUICK = settings(max_examples=60, deadline=None)


# ---------------------------------------------------------------------------------------- nms


def reference_nms(boxes, scores, threshold, offset=0):
    """Indices kept by greedy suppression, best first; equal scores in input order."""
    boxes, scores = boxes.double().tolist(), scores.double().tolist()

    def area(x1, y1, x2, y2):
        return (x2 - x1 + offset) * (y2 - y1 + offset)

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0]) + offset
        height = min(a[3], b[3]) - max(a[1], b[1]) + offset
        overlap = max(width, 0) * max(height, 0)
        union = area(*a) + area(*b) - overlap
        return overlap / union if union else 0.0

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@st.composite
def scored_boxes(draw):
    """Boxes with integer corners (so float32 is exact), some without area, some scores equal."""
    coordinate, size = st.integers(0, 40), st.integers(0, 24)
    rows = draw(
        st.lists(st.tuples(coordinate, coordinate, size, size, st.integers(0, 6)), max_size=14)
    )
    x, y, w, h, score = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5).unbind(1)
    return torch.stack([x, y, x + w, y + h], 1), score / 8


@QUICK
@given(scored_boxes(), st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.sampled_from([0, 1]))
def test_nms_matches_greedy_loop(data, threshold, offset):
    boxes, scores = data
    dets, keep = ops.nms(boxes, scores, threshold, offset=offset)
    assert keep.dtype == torch.int64
    assert keep.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], 1))


@QUICK
@given(scored_boxes(), st.integers(0, 3), st.sampled_from([1, 10000]))
def test_batched_nms_treats_classes_apart(data, seed, split_thr):
    boxes, scores = data
    # No ties: mmcv orders the result of several classes with an unstable sort.
    scores = scores + torch.arange(len(scores)) / 1024
    classes = torch.randint(0, 3, (len(boxes),), generator=torch.Generator().manual_seed(seed))
    if not len(boxes):
        return  # mmcv takes the maximum of the boxes first; its callers guard against none
    expected = []
    for c in range(3):
        members = (classes == c).nonzero()[:, 0]
        kept = reference_nms(boxes[members], scores[members], 0.5)
        expected += members[kept].tolist()
    expected.sort(key=lambda i: -scores[i])
    cfg = {'type': 'nms', 'iou_threshold': 0.5, 'split_thr': split_thr}
    dets, keep = ops.batched_nms(boxes, scores, classes, cfg)
    assert keep.tolist() == expected
    assert torch.equal(dets[:, :4], boxes[keep])


@pytest.mark.parametrize('short', [[9.0, 4.0], [4.0, 9.0]])
def test_nms_offset_decides_about_a_pixel(short):
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, *short]])
    scores = torch.tensor([0.9, 0.8])
    # IoU: 36/81 = 0.44 without the offset, 50/100 with it.
    assert ops.nms(boxes, scores, 0.45, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.45, offset=1)[1].tolist() == [0]


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_of_no_boxes(offset):
    dets, keep = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset=offset)
    assert dets.shape == (0, 5) and keep.shape == (0,) and keep.dtype == torch.int64


def test_nms_filters_by_score_and_number():
    boxes = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 9, 9.0] for i in range(4)])
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.3)[1].tolist() == [1, 3, 2]
    assert ops.nms(boxes, scores, 0.5, max_num=2)[1].tolist() == [1, 3]


def test_nms_takes_half_numpy_and_mixed_types():
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 8, 8], [16, 16, 24, 24]])
    scores = torch.tensor([0.5, 0.75, 0.25])
    assert ops.nms(boxes.half(), scores.half(), 0.5)[1].tolist() == [1, 2]
    assert ops.nms(boxes.double(), scores, 0.5)[1].tolist() == [1, 2]
    assert ops.nms(boxes.numpy(), scores.numpy(), 0.5)[1].tolist() == [1, 2]


def test_nms_ignores_strides_and_leaves_its_inputs_alone():
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 8, 8], [16, 16, 24, 24]]).t().contiguous().t()
    scores = torch.tensor([0.5, 9, 0.75, 9, 0.25, 9])[::2]
    before = boxes.clone()
    assert ops.nms(boxes, scores, 0.5, offset=1)[1].tolist() == [1, 2]
    assert torch.equal(boxes, before)


# --------------------------------------------------------------------------- sigmoid focal loss


def reference_focal(logits, target, gamma, alpha, weight=None):
    """Element-wise loss (N, C), differentiable, straight from the paper's formula."""
    rows = []
    for n, c in itertools.product(*map(range, logits.shape)):
        p = 1 / (1 + torch.exp(-logits[n, c]))
        if target[n] == c:
            loss = -alpha * (1 - p) ** gamma * torch.log(p)
        else:
            loss = -(1 - alpha) * p**gamma * torch.log(1 - p)
        if weight is not None and target[n] < logits.size(1):
            loss = loss * weight[target[n]]
        rows.append(loss)
    return torch.stack(rows).reshape(logits.shape)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('alpha', [0.25, 0.7])
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_and_gradient(gamma, alpha, weighted):
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 4, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4 is background
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    upstream = torch.randn(7, 4, dtype=torch.float64)

    loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, 'none')
    expected = reference_focal(logits, target, gamma, alpha, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits, upstream)
    (wanted,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(('reduction', 'divisor'), [('mean', 5), ('sum', 1)])
def test_focal_loss_reductions(reduction, divisor):
    torch.manual_seed(1)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 3, 2, 1, 3])
    criterion = ops.SigmoidFocalLoss(2.0, 0.25, reduction=reduction)
    expected = reference_focal(logits, target, 2.0, 0.25).sum() / divisor
    torch.testing.assert_close(criterion(logits, target), expected)
    (gradient,) = torch.autograd.grad(criterion(logits, target), logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_focal_loss_of_extreme_logits(dtype):
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 0])
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    expected = torch.tensor([[0.0, 0.0], [25.0, 75.0]], dtype=dtype)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-30)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    expected = torch.tensor([[0.0, 0.0], [-0.25, 0.75]], dtype=dtype)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-30)


def test_focal_loss_keeps_float32_digits_where_one_minus_p_rounds_to_zero():
    loss = ops.sigmoid_focal_loss(
        torch.tensor([[20.0]]), torch.tensor([1]), 2.0, 0.25, None, 'none'
    )
    assert loss.item() == pytest.approx(0.75 * 20, rel=1e-6)


def test_focal_loss_in_half_precision_is_the_rounded_float32_one():
    logits = torch.linspace(-15, 15, 60).reshape(20, 3).half()
    target = torch.arange(20) % 4
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    expected = ops.sigmoid_focal_loss(logits.float(), target, 2.0, 0.25, None, 'none')
    assert torch.equal(loss, expected.half())


def test_focal_loss_of_no_rows():
    logits = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, torch.ones(3), 'sum')
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 3)


@pytest.mark.parametrize('outside', [-1, 3, 4])
def test_focal_loss_counts_rows_without_a_class_as_background_of_weight_one(outside):
    logits = torch.linspace(-2, 2, 3, dtype=torch.float64)[None]
    target = torch.tensor([outside])
    weight = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    expected = reference_focal(logits, torch.tensor([3]), 2.0, 0.25)
    torch.testing.assert_close(loss, expected)


# ------------------------------------------------------------------------------------ roi align


def bilinear(image, y, x):
    """Sample (C, H, W) at a point; 0 from one pixel outside on, the edge value before that."""
    _, height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(image.size(0), dtype=image.dtype)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def reference_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    out = torch.zeros(len(rois), features.size(1), *size, dtype=features.dtype)
    for k, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_h, bin_w = height / size[0], width / size[1]
        rows, columns = sampling_ratio or math.ceil(bin_h), sampling_ratio or math.ceil(bin_w)
        for i, j in itertools.product(range(size[0]), range(size[1])):
            for r, c in itertools.product(range(rows), range(columns)):
                y = y1 + (i + (r + 0.5) / rows) * bin_h
                x = x1 + (j + (c + 0.5) / columns) * bin_w
                out[k, :, i, j] += bilinear(features[int(index)], y, x) / (rows * columns)
    return out


ROIS = torch.tensor(
    [
        [0, 2.0, 3.0, 11.0, 13.0],  # inside
        [1, -6.0, -4.0, 7.0, 5.0],  # over the top left corner
        [1, 12.0, 9.0, 30.0, 25.0],  # over the bottom right corner
        [0, 100.0, 100.0, 120.0, 130.0],  # outside
        [0, 5.0, 5.0, 5.0, 5.0],  # no area
        [1, 4.2, 4.1, 4.9, 5.3],  # less than a feature pixel
        [0, 0.0, 0.0, 18.0, 14.0],  # the whole image
    ],
    dtype=torch.float64,
)


def feature_map():
    return torch.randn(2, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('size', [(1, 1), (2, 3)])
def test_roi_align_matches_explicit_sampling(aligned, sampling_ratio, size):
    args = (size, 0.5, sampling_ratio)
    out = ops.roi_align(feature_map(), ROIS, *args, 'avg', aligned)
    expected = reference_roi_align(feature_map(), ROIS, *args, aligned)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradient_by_finite_differences(aligned, sampling_ratio):
    features = feature_map()[:, :1, :5, :6].clone().requires_grad_()
    pool = ops.RoIAlign((2, 3), 0.5, sampling_ratio, 'avg', aligned)
    assert torch.autograd.gradcheck(lambda x: pool(x, ROIS), features)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_roi_align_in_lower_precision(dtype, tolerance):
    features = feature_map().to(dtype).requires_grad_()
    rois = ROIS[[0, 1, 6]]
    out = ops.roi_align(features, rois.to(dtype), 2, 0.5, 2)
    assert out.dtype == dtype
    expected = reference_roi_align(feature_map(), rois, (2, 2), 0.5, 2, True)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    out.sum().backward()
    assert features.grad.dtype == dtype


def test_roi_align_of_no_regions():
    features = feature_map().requires_grad_()
    out = ops.roi_align(features, ROIS[:0], (2, 3), 0.5, 0)
    assert out.shape == (0, 3, 2, 3)
    out.sum().backward()
    assert not features.grad.any()


def test_roi_align_takes_uncontiguous_features():
    features = feature_map().to(memory_format=torch.channels_last)
    out = ops.roi_align(features, ROIS, 2, 0.5, 2)
    torch.testing.assert_close(out, ops.roi_align(feature_map(), ROIS, 2, 0.5, 2))


def test_max_pooling_is_refused():
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        ops.roi_align(feature_map(), ROIS, 2, 0.5, 2, 'max')
