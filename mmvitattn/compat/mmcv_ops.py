"""Replacements of mmcv's compiled ops by torchvision's, for CPU and CUDA.

Names, arguments and in-place outputs are those of ``mmcv._ext``. The ops are not differentiated:
mmcv wraps each pair of forward and backward ops in its own ``autograd.Function``.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

__all__ = ['OPS', 'missing_op']

AVG_POOLING = 1  # mmcv's code of pool_mode='avg'; 0 is 'max'


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


def no_compiler() -> str:
    """The compiler version in mmcv's environment report."""
    return 'n/a'


OPS: dict[str, Callable] = {
    'nms': nms,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
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
