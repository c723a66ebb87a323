"""Attention, and what it needs around it, as functions on plain tensors; imports PyTorch alone."""

from .depthwise import branch_statistics, depthwise_conv2d
from .dispatch import explain, force
from .key_only import key_only_attention
from .learned_query import learned_query_attention, learned_query_scores
from .shifted import local_shift_attention, shifted_patch_embedding

__all__ = [
    'branch_statistics',
    'depthwise_conv2d',
    'explain',
    'force',
    'key_only_attention',
    'learned_query_attention',
    'learned_query_scores',
    'local_shift_attention',
    'shifted_patch_embedding',
]
