"""Backbones; importing this module registers them."""

from .linglo import LinGlo

__all__ = ['LinGlo']
