"""Linear layers in float32 by oneDNN, where MKL, with which PyTorch computes them, is slower.

On AMD's CPUs MKL runs code for AVX2, and oneDNN, with which PyTorch computes convolutions, code for
AVX-512. On cores that execute AVX-512 at full width (Zen 5), a 1 x 1 convolution takes half the
time of the same product, on others (Zen 4) about as long. In half precision PyTorch uses oneDNN for
both.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch
from .dispatch import Implementation, is_traced

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


class LinearInputs(NamedTuple):
    """Arguments of :func:`linear`."""

    x: Tensor  # (..., C)
    weight: Tensor  # (C', C)
    bias: Tensor | None = None  # (C',)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`torch.nn.functional.linear`, in the faster of two ways.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (..., C').
    """
    return dispatch.run('linear', LinearInputs(x, weight, bias))


def linear_per_image(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As :func:`linear`, with a matrix for each image.

    Args:
        x: (B, N, C).
        weight: (B, C', C).
        bias: (B, C').

    Returns:
        (B, N, C').
    """
    # oneDNN copies each matrix into its layout, for which a few rows are not worth it.
    worth = len(x) > 0 and 2 * x.shape[1] >= x.shape[2]
    if not worth or dispatch.chosen('linear', x[0], weight[0]) != 'convolution':
        return torch.baddbmm(bias[:, None], x, weight.mT)
    return torch.stack([linear(*each) for each in zip(x, weight, bias, strict=True)])


def _convolve(inputs: LinearInputs) -> Tensor:
    x, weight, bias = inputs
    images = x.reshape(_num_images(x) or 1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels_last
    y = F.conv2d(images, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _num_images(x: Tensor) -> int:
    """Into how many images the rows are divided, so that oneDNN computes them; 0 if it cannot."""
    if torch.get_num_threads() > 1 and x.numel() > MIN_VALUES:
        return 1
    rows = x.numel() // x.shape[-1]
    return next((n for n in range(MIN_IMAGES, 2 * MIN_IMAGES) if rows % n == 0), 0)


def _reason_not_to_run(inputs: LinearInputs) -> str | None:
    x, weight, _ = inputs
    if x.device.type != 'cpu' or not x.dtype == weight.dtype == torch.float32:
        return 'takes float32 on CPUs'
    if torch.is_autocast_cpu_enabled():
        return 'autocast converts the operands'
    if is_traced():  # compiled, the convolutions' layouts are copied
        return 'products are faster when compiled or exported'
    if not x.is_contiguous() or x.numel() == 0:
        return 'the input is empty or not contiguous'
    return None


def _reason_not_to_prefer(inputs: LinearInputs) -> str | None:
    x, weight, _ = inputs
    if not MKL_IS_SLOWER:
        return "MKL is as fast on CPUs other than AMD's with AVX-512"
    if is_traced():
        return None
    if 2 * x.numel() * len(weight) < MIN_FLOPS:
        return 'the product is small'
    if not _num_images(x):
        return 'PyTorch gives this number of rows to oneDNN only with several threads'
    return None


dispatch.register(
    'linear',
    LinearInputs,
    [
        Implementation('convolution', _convolve, _reason_not_to_run, _reason_not_to_prefer),
        Implementation('reference', lambda inputs: F.linear(*inputs)),
    ],
)
