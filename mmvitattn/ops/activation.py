"""GELU in its tanh approximation, at the price of a sigmoid where PyTorch's own costs more."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_api import is_compiling, is_exporting

SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def gelu_tanh(x: Tensor) -> Tensor:
    """``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.

    With ``(1 + tanh(t)) / 2 = sigmoid(2 t)`` it needs no hyperbolic tangent, whose CPU kernel takes
    several times as long as an exponential. Used for inference on CPUs.

    Args:
        x: any shape.

    Returns:
        Output of the same shape.
    """
    plain = x.requires_grad and torch.is_grad_enabled()
    plain = plain or is_compiling() or is_exporting() or x.device.type != 'cpu'
    if plain or x.dtype not in (torch.float32, torch.float64):
        return F.gelu(x, approximate='tanh')
    # The square may overflow: then the sigmoid is 0 or 1, as it should be.
    return x.square().mul_(SLOPE * CUBIC).add_(SLOPE).mul_(x).sigmoid_().mul_(x)
