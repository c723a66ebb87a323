"""Drawings of classifications, one file for each image."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ..registry import HOOKS


@HOOKS.register_module()
class ClassificationPicturesHook(Hook):
    """Draws the predicted and the true label on every test image.

    mmpretrain's own hook uses only the image's file name, which can occur in several class folders,
    and cannot draw under test-time augmentation. Here the folder is part of the name.

    Args:
        out_dir: folder of the drawings.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Draws the images of one batch."""
        visualizer = Visualizer.get_current_instance()
        for sample in outputs or ():
            path = Path(sample.img_path)
            image = mmcv.imread(str(path), channel_order='rgb')
            name = f'{path.parent.name}_{path.stem}'
            visualizer.visualize_cls(
                image, sample, rescale_factor=None, out_file=str(self.out_dir / f'{name}.png')
            )
