"""Layers over :mod:`mmvitattn.ops`; they need PyTorch and torchvision alone."""

from .embed import ConvEmbed
from .ffn import FFN
from .key_only import KeyOnlyAttention
from .position import RPCPE

__all__ = ['FFN', 'RPCPE', 'ConvEmbed', 'KeyOnlyAttention']
