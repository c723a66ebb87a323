"""Linear maps in float32 by oneDNN, where MKL, with which PyTorch computes them, is slower.

On AMD's CPUs MKL runs code for AVX2, and oneDNN, with which PyTorch computes convolutions, code for
AVX-512. On cores that execute AVX-512 at full width (Zen 5), a 1 x 1 convolution takes half the
time of the same product. In half precision PyTorch uses oneDNN for both.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import is_traced

MIN_FLOPS = 1 << 22  # below, the call itself takes longer
# PyTorch gives 1 x 1 convolutions to oneDNN if there are as many images, or if there is more than
# one thread and the input is larger.
MIN_IMAGES, MIN_VALUES = 16, 20480


def _is_mkl_slower() -> bool:
    """Whether this is a CPU of AMD with AVX-512."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    info = Path('/proc/cpuinfo')
    if torch.backends.cpu.get_cpu_capability() != 'AVX512' or not info.is_file():
        return False
    return 'AuthenticAMD' in info.read_text()


MKL_IS_SLOWER = _is_mkl_slower()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`torch.nn.functional.linear`, in the faster of two ways.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (..., C').
    """
    images = _num_images(x, weight)
    if not images:
        return F.linear(x, weight, bias)
    maps = x.reshape(images, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels_last
    y = F.conv2d(maps, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def linear_per_image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`linear`, with a matrix for each image.

    Args:
        x: (B, N, C), or (N, C) if it is the same for all images.
        weight: (B, C', C).
        bias: (B, C') or None.

    Returns:
        (B, N, C').
    """
    images = x.expand(len(weight), -1, -1)
    # oneDNN copies each matrix into its layout, for which a few rows are not worth it.
    worth = len(images) > 0 and 2 * images.shape[1] >= images.shape[2]
    if not worth or not _num_images(images[0], weight[0]):
        if bias is None:
            return images @ weight.mT
        return torch.baddbmm(bias[:, None], images, weight.mT)
    biases = [None] * len(weight) if bias is None else bias.unbind()
    each = zip(images.unbind(), weight.unbind(), biases, strict=True)
    return torch.stack([linear(*arguments) for arguments in each])


class Linear(nn.Linear):
    """As :class:`torch.nn.Linear`, computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C')."""
        return linear(x, self.weight, self.bias)


def _num_images(x: Tensor, weight: Tensor) -> int:
    """Into how many images the rows are divided for a convolution; 0 for a product."""
    possible = (
        MKL_IS_SLOWER
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and not is_traced()  # compiled, the convolutions take longer: their layouts are copied
        and x.is_contiguous()
        and not torch.is_autocast_cpu_enabled()
    )
    if not possible:
        return 0
    if 2 * x.numel() * len(weight) < MIN_FLOPS:
        return 0
    if torch.get_num_threads() > 1 and x.numel() > MIN_VALUES:
        return 1
    rows = x.numel() // x.shape[-1]
    return next((n for n in range(MIN_IMAGES, 2 * MIN_IMAGES) if rows % n == 0), 0)
