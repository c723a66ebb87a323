"""Attention, and the functions around it, on plain tensors.

Imports only PyTorch, and Triton where it is installed and its kernels can run.
"""

from .depthwise import depthwise_conv2d
from .dispatch import explain, force
from .key_only import key_only_attention, key_only_weights
from .learned_query import learned_query_attention, learned_query_scores, window_weights
from .local_moments import branch_statistics
from .shifted import local_shift_attention, shift_weights, shifted_patch_embedding

__all__ = [
    'branch_statistics',
    'depthwise_conv2d',
    'explain',
    'force',
    'key_only_attention',
    'key_only_weights',
    'learned_query_attention',
    'learned_query_scores',
    'local_shift_attention',
    'shift_weights',
    'shifted_patch_embedding',
    'window_weights',
]
