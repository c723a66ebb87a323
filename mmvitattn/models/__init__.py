"""Backbones; importing this module registers them."""

from .linglo import LinGlo
from .qna_vit import QnAViT
from .sag import SAGViT

__all__ = ['LinGlo', 'QnAViT', 'SAGViT']
