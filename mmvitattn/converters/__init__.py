"""Weights of official releases, read without running anything that a file contains.

One module for each release, with the map from its parameters to ours. Here is what they share.
"""

from .flax_msgpack import CheckpointError, read_flax_msgpack
from .qna_vit import convert_qna_vit

__all__ = ['CheckpointError', 'convert_qna_vit', 'read_flax_msgpack']
