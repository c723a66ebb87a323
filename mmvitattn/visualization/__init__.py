"""Figures that show the attention of a backbone; needs matplotlib and OpenCV."""

from .attention import draw_attention
from .capture import CapturedLayer, capture_attention, has_attention
from .scene import Scene

__all__ = ['CapturedLayer', 'Scene', 'capture_attention', 'draw_attention', 'has_attention']
