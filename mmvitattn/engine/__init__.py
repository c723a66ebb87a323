"""What the tools share: command-line options, checks before any work, and hooks."""

from .classification_pictures import ClassificationPicturesHook

__all__ = ['ClassificationPicturesHook']
