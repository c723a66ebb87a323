"""Checkpoints: reading them safely, writing them completely, and loading them into models."""

from .loading import load_checkpoint, register_published, use_safe_loading
from .published import find_published, list_published
from .torch_pickle import read_torch_pickle
from .weights import load_backbone_weights, load_model_weights

__all__ = [
    'find_published',
    'list_published',
    'load_backbone_weights',
    'load_checkpoint',
    'load_model_weights',
    'read_torch_pickle',
    'register_published',
    'use_safe_loading',
]
