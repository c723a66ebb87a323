"""Weights of official releases, read without running anything that a file contains.

One module for each release, with the map from its parameters to ours. Here is what they share.
"""

from .flax_msgpack import read_flax_msgpack
from .qna_vit import convert_qna_vit
from .sag import convert_sag

__all__ = [
    'convert_qna_vit',
    'convert_sag',
    'read_flax_msgpack',
]
