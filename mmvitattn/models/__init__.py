"""Backbones and a neck; importing this module registers them."""

from .linglo import LinGlo
from .qna_pooling import QnAPooling
from .qna_vit import QnAViT
from .sag import SAGViT

__all__ = ['LinGlo', 'QnAPooling', 'QnAViT', 'SAGViT']
