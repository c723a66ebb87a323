"""Backbones and necks; importing this module registers them."""

from .linglo import LinGlo
from .qna_fpn import QnAFPN, QnAUpsample2d
from .qna_pooling import QnAPooling
from .qna_vit import QnAViT
from .sag import SAGViT

__all__ = ['LinGlo', 'QnAFPN', 'QnAPooling', 'QnAUpsample2d', 'QnAViT', 'SAGViT']
