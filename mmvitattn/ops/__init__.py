"""Attention as functions on plain tensors; imports PyTorch alone."""

from .dispatch import explain, force
from .key_only import key_only_attention

__all__ = ['explain', 'force', 'key_only_attention']
