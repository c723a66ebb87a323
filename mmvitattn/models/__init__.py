"""Backbones; importing this module registers them."""

from .linglo import LinGlo
from .qna_vit import QnAViT

__all__ = ['LinGlo', 'QnAViT']
