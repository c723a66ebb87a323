"""Converts weights of the official releases, without running code from their files.

Each release has a module with one rule per parameter.
"""

from .flax_msgpack import read_flax_msgpack
from .qna_vit import convert_qna_vit
from .sag import convert_sag

__all__ = [
    'convert_qna_vit',
    'convert_sag',
    'read_flax_msgpack',
]
