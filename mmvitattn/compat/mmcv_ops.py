"""Replacements of mmcv's compiled ops by torchvision and PyTorch, for CPU and CUDA.

Names, arguments and in-place outputs are those of ``mmcv._ext``. The ops are not differentiated:
mmcv wraps each pair of forward and backward ops in its own ``autograd.Function``.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from .mmcv_deformable import OPS as DEFORMABLE_OPS

__all__ = ['OPS', 'missing_op']

AVG_POOLING = 1  # mmcv's code of pool_mode='avg'; 0 is 'max'
NAIVE, LINEAR, GAUSSIAN = 0, 1, 2  # mmcv's codes of soft-NMS methods


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) corners ``x1, y1, x2, y2`` in pixels.
        scores: (N,).
        iou_threshold: A box is removed if its IoU with a kept box of higher score exceeds this.
        offset: 0, or 1 if corners are pixel indices, so that the width is ``x2 - x1 + 1``.

    Returns:
        (K,) int64 indices of the kept boxes, best score first.
    """
    # torchvision needs equal dtypes and has no half-precision kernel for CPUs.
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


@torch.no_grad()
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft non-maximum suppression ("Soft-NMS", algorithm 1), on the CPU as in mmcv.

    Args:
        boxes: (N, 4) corners ``x1, y1, x2, y2`` in pixels.
        scores: (N,).
        dets: (N, 5); the first K rows are overwritten by the kept boxes and their reduced scores.
        iou_threshold: Scores of boxes with at least this IoU with a better box are reduced; unused
            by the Gaussian method.
        sigma: Squared width of the Gaussian.
        min_score: Boxes whose reduced score is lower are removed. The best box is always kept.
        method: 0 sets scores to zero, 1 multiplies them by ``1 - IoU``, 2 by
            ``exp(-IoU^2 / sigma)``.
        offset: As in :func:`nms`.

    Returns:
        (K,) int64 indices of the kept boxes, in order of selection.
    """
    rest, scores = torch.arange(len(boxes)), scores.clone()
    kept: list[Tensor] = []
    sizes = boxes[:, 2:] - boxes[:, :2] + offset
    while len(rest):
        best = rest[scores[rest].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        rest = rest[rest != best]
        corners = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = corners - torch.maximum(boxes[best, :2], boxes[rest, :2]) + offset
        intersection = overlap.clamp(min=0).prod(dim=1)
        union = sizes[best].prod() + sizes[rest].prod(dim=1) - intersection
        iou = (intersection / union).nan_to_num(0.0)  # of boxes without area
        if method == GAUSSIAN:
            factor = torch.exp(-iou.square() / sigma)
        else:
            reduced = 1 - iou if method == LINEAR else torch.zeros_like(iou)
            factor = torch.where(iou >= iou_threshold, reduced, 1.0)
        scores[rest] *= factor
        rest = rest[scores[rest] >= min_score]
    return torch.stack(kept) if kept else rest


def _focal_factors(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sign, signed logit and constant factor of each loss term, all (N, C).

    Every term is a binary loss of ``signed logit = sign * logit``, where the sign is +1 for the
    target class and -1 for the others.
    """
    logits = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    num_classes = logits.size(1)
    is_target = target[:, None] == torch.arange(num_classes, device=target.device)
    sign = is_target.to(logits.dtype) * 2 - 1
    factor = torch.full_like(logits, 1 - alpha).masked_fill_(is_target, alpha)
    if weight.numel():
        # Background has no class weight (mmcv's kernel reads beyond the array): 1 is used.
        in_range = (target >= 0) & (target < num_classes)
        row = weight.to(logits.dtype)[target.clamp(0, num_classes - 1)]
        factor = factor * row.where(in_range, torch.ones_like(row))[:, None]
    return sign, sign * logits, factor


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the sigmoid focal loss of every logit into ``output``.

    ``-a * (1 - pt)**gamma * log(pt)`` with ``pt`` the probability of the correct label, and ``a``
    alpha for the target class, ``1 - alpha`` for the others. The logarithm is computed from the
    logit, so it is exact for large logits; mmcv's kernel rounds ``pt`` to 0 first and limits the
    loss to ``-log(FLT_MIN)``, about 87.

    Args:
        input: (N, C) logits.
        target: (N,) int64 class of each row; C is background.
        weight: (C,) weight of the rows of each class, or empty for none.
        output: (N, C), overwritten.
        gamma: Focusing exponent.
        alpha: Weight of the target class, in [0, 1]; the others have ``1 - alpha``.
    """
    _, z, factor = _focal_factors(input, target, weight, alpha)
    output.copy_(-factor * torch.sigmoid(-z).pow(gamma) * F.logsigmoid(z))


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the derivative of every loss by its logit into ``grad_input``, (N, C).

    The other arguments are those of :func:`sigmoid_focal_loss_forward`.
    """
    sign, z, factor = _focal_factors(input, target, weight, alpha)
    miss = torch.sigmoid(-z)  # 1 - pt
    slope = gamma * torch.sigmoid(z) * F.logsigmoid(z) - miss
    grad_input.copy_(sign * factor * miss.pow(gamma) * slope)


def _require_avg(pool_mode: int) -> None:
    if pool_mode != AVG_POOLING:
        raise NotImplementedError(
            "roi_align with pool_mode='max' needs mmcv's compiled ops, which are not installed; "
            "use pool_mode='avg' or an mmcv build with compiled ops."
        )


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Averages bilinear samples of a feature map in each bin of a grid over each region.

    Args:
        input: (N, C, H, W) features.
        rois: (K, 5) rows ``image index, x1, y1, x2, y2``, corners in pixels of the image.
        output: (K, C, aligned_height, aligned_width), overwritten.
        argmax_y: Unused; it is an output of max-pooling.
        argmax_x: Unused.
        aligned_height: Bins along y.
        aligned_width: Bins along x.
        spatial_scale: Feature pixels per image pixel.
        sampling_ratio: Samples per bin and axis; 0 for one per feature pixel, rounded up.
        pool_mode: 1 (average).
        aligned: Whether pixel centres lie at half-integers (a shift of -0.5).

    Raises:
        NotImplementedError: ``pool_mode`` is 0 (max).
    """
    _require_avg(pool_mode)
    pooled = torch.ops.torchvision.roi_align(
        input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the gradient by the features into ``grad_input``, (N, C, H, W).

    ``grad_output`` is the gradient by the output of :func:`roi_align_forward`; the other arguments
    are those of that function.

    Raises:
        NotImplementedError: ``pool_mode`` is 0 (max).
    """
    _require_avg(pool_mode)
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois,
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


def _bins(rois: Tensor, low: int, count: int, spatial_scale: float, size: int) -> Tensor:
    """First pixels, and pixels after the last, of the bins of each region on one axis.

    Args:
        rois: (K, 5).
        low: Column of the lower corner.
        count: Bins.
        spatial_scale: Feature pixels per image pixel.
        size: Pixels of the feature map.

    Returns:
        (2, K, count); regions without extent have empty bins.
    """
    start, end = rois[:, low] * spatial_scale, (rois[:, low + 2] + 1) * spatial_scale
    steps = torch.arange(count + 1, device=rois.device, dtype=rois.dtype)
    edges = steps * ((end - start) / count)[:, None] + start[:, None]
    bins = torch.stack([edges[:, :-1].floor(), edges[:, 1:].ceil()]).clamp(0, size)
    return (bins * (end > start)[:, None]).long()


@torch.no_grad()
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of a feature map in each bin of a grid over each region ("Fast R-CNN", section 2.1).

    torchvision's differs: it rounds the corners of regions. Time grows with the pixels of the
    largest bin.

    Args:
        input: (N, C, H, W) features.
        rois: (K, 5) rows ``image index, x1, y1, x2, y2``, in pixels of the image, inclusive.
        output: (K, C, pooled_height, pooled_width), overwritten; empty bins are 0.
        argmax: Of the same shape, overwritten: position ``y W + x`` of each maximum, or -1.
        pooled_height: Bins along y.
        pooled_width: Bins along x.
        spatial_scale: Feature pixels per image pixel.
    """
    height, width = input.shape[2:]
    pixels = input.permute(0, 2, 3, 1).flatten(0, 2)  # (N * H * W, C)
    top, bottom = _bins(rois, 2, pooled_height, spatial_scale, height)[..., None]
    left, right = _bins(rois, 1, pooled_width, spatial_scale, width)[:, :, None]
    first = rois[:, 0].long()[:, None, None] * height * width
    best = output.new_full((*output.shape[:1], *output.shape[2:], output.shape[1]), float('-inf'))
    index = torch.full_like(best, -1, dtype=argmax.dtype)
    for y in range(int((bottom - top).amax()) if len(rois) else 0):
        for x in range(int((right - left).amax())):
            inside = (top + y < bottom) & (left + x < right)  # (K, pooled_height, pooled_width)
            place = ((top + y) * width + left + x) * inside
            values = pixels[first + place]
            larger = inside[..., None] & (values > best)
            best = torch.where(larger, values, best)
            index = torch.where(larger, place[..., None].to(index.dtype), index)
    output.copy_(best.masked_fill(index < 0, 0.0).permute(0, 3, 1, 2))
    argmax.copy_(index.permute(0, 3, 1, 2))


@torch.no_grad()
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds the gradient by the features to ``grad_input``, (N, C, H, W).

    ``grad_output`` is the gradient by the output of :func:`roi_pool_forward`; the other arguments
    are those of that function.
    """
    channels, pixels = grad_input.shape[1], grad_input[0, 0].numel()
    maps = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # (K, C)
    places = maps[:, :, None, None] * pixels + argmax
    found = argmax >= 0
    grad_input.view(-1).index_add_(0, places[found], grad_output[found])


def no_compiler() -> str:
    """The compiler version in mmcv's environment report."""
    return 'n/a'


OPS: dict[str, Callable] = {
    **DEFORMABLE_OPS,
    'nms': nms,
    'softnms': softnms,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    'roi_pool_forward': roi_pool_forward,
    'roi_pool_backward': roi_pool_backward,
    # mmcv.utils.collect_env calls these if mmcv.ops can be imported.
    'get_compiler_version': no_compiler,
    'get_compiling_cuda_version': no_compiler,
}


def missing_op(name: str) -> Callable[..., NoReturn]:
    """A function for an op that is not provided: it raises when it is called.

    mmcv's modules check at import that their ops exist, even if they are never called. This is the
    ``__getattr__`` of ``mmcv._ext``.

    Args:
        name: Name of the op in ``mmcv._ext``.

    Returns:
        A function that raises NotImplementedError.

    Raises:
        AttributeError: ``name`` is a special name, which Python looks up in modules.
    """
    if name.startswith('__') and name.endswith('__'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def raise_not_implemented(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f'mmcv op {name!r}: mmcv is installed without compiled ops, and mmvitattn does not '
            'replace this one. Install an mmcv build with compiled ops, see '
            'https://mmcv.readthedocs.io/en/latest/get_started/installation.html'
        )

    raise_not_implemented.__name__ = raise_not_implemented.__qualname__ = name
    return raise_not_implemented
