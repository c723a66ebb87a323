"""Layers over :mod:`mmvitattn.ops`; they need only PyTorch."""

from .embed import ConvEmbed
from .ffn import FFN
from .global_attention import GlobalAttention
from .key_only import KeyOnlyAttention
from .learned_query import QnALayer
from .position import RPCPE
from .position_table import PositionTable
from .shifted import LocalShiftAttention, ShiftedPatchEmbed
from .upsample import QnAUpsample
from .window import WindowAttention

__all__ = [
    'FFN',
    'RPCPE',
    'ConvEmbed',
    'GlobalAttention',
    'KeyOnlyAttention',
    'LocalShiftAttention',
    'PositionTable',
    'QnALayer',
    'QnAUpsample',
    'ShiftedPatchEmbed',
    'WindowAttention',
]
