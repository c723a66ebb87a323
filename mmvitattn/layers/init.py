"""Initialisation shared by the layers."""

import math

import torch
from torch import Tensor, nn


def trunc_normal_(module: nn.Linear | nn.Conv2d, std: float = 0.02) -> None:
    """Truncated normal weights of standard deviation ``std``, zero bias, in place."""
    nn.init.trunc_normal_(module.weight, std=std)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def he_normal_fan_out_(conv: nn.Conv2d) -> None:
    """He normal weights by fan-out, zero bias, in place.

    The fan-out is the number of outputs that an input value contributes to: for a depth-wise
    convolution the kernel's area (PVT's convention; ``kaiming_normal_`` ignores the groups).
    """
    kernel_height, kernel_width = conv.kernel_size
    fan_out = kernel_height * kernel_width * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=math.sqrt(2.0 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def lecun_normal_(module: nn.Linear | nn.Conv2d) -> None:
    """LeCun normal weights by fan-in, truncated as Flax does, zero bias, in place.

    Flax truncates the normal at two standard deviations and scales it so that the truncated
    distribution has variance 1 / fan_in. Convolutions must not be grouped.
    """
    std = module.weight[0].numel() ** -0.5 / 0.87962566103423978  # the truncated normal's own std
    nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def spread_bias_(module: nn.Conv2d | nn.LayerNorm, bound: float = 0.1) -> None:
    """Evenly spaced biases from -bound to bound, in place, for the first ones of a backbone.

    With a bias of zero, patches of zeros, as in the padding of images, remain zero vectors. There
    the gradient of LayerNorm is 1 / sqrt(eps), a thousand; the product of several such layers
    overflows. The values are not random: the other parameters of a seed do not depend on them.
    """
    if module.bias is not None:
        values = torch.linspace(-bound, bound, module.bias.numel())
        module.bias.data.copy_(values)


def learned_query_(query: Tensor, head_dim: int) -> None:
    """Normal values of variance 1 / head_dim, truncated at two standard deviations, in place."""
    std = head_dim**-0.5
    nn.init.trunc_normal_(query, std=std, a=-2 * std, b=2 * std)
