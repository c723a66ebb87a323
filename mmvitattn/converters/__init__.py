"""Converts weights of the official releases, without running code from their files.

Each release has a module with one rule per parameter.
"""

from .flax_msgpack import read_flax_msgpack
from .qna_vit import convert_qna_vit
from .rules import CheckpointError
from .sag import convert_sag
from .torch_pickle import read_torch_pickle

__all__ = [
    'CheckpointError',
    'convert_qna_vit',
    'convert_sag',
    'read_flax_msgpack',
    'read_torch_pickle',
]
