"""Detection, segmentation and classification behind one interface.

Predictors take BGR arrays and return drawings and plain data; :mod:`.build` builds them.
"""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData

CIFAR_SIDE = 32
TOP = 5  # labels of a classification
SIDE_DRAWN = 384  # smaller images are enlarged so that captions fit
MAX_PIXELS = 4096 * 4096  # of the network's input; more would need tens of gigabytes


class Predictor(ABC):
    """Predictions for BGR arrays.

    Args:
        model: of the toolbox, in evaluation mode.
        cfg: the config, with the test pipeline.
        meta: ``classes``, which may be empty, and ``palette``, a colour for each.
    """

    default_score_thr = 0.0
    visualizer_type: str

    def __init__(self, model: Any, cfg: Config, meta: Mapping[str, Any]) -> None:
        self.model, self.cfg, self.names = model, cfg, meta['classes']
        transforms = cfg.test_dataloader.dataset.pipeline
        is_loading = ['.Load' in f'.{transform["type"]}' for transform in transforms]
        kept = zip(transforms, is_loading, strict=True)
        self.pipeline = Compose([transform for transform, loading in kept if not loading])
        visualizer = dict(cfg.get('visualizer') or dict(type=self.visualizer_type))
        visualizer.update(vis_backends=None, name=f'predictor {time.time_ns()}')  # it is global
        self.visualizer: Any = VISUALIZERS.build(visualizer)
        if self.names:
            self.visualizer.dataset_meta = dict(meta)

    def pack(self, image: np.ndarray) -> dict:
        """Runs the test pipeline.

        Args:
            image: BGR, (H, W, 3), uint8.

        Returns:
            ``inputs``, the network's image (3, H', W') before normalisation, and ``data_samples``.

        Raises:
            ValueError: if the image has a shape that the pipeline or the memory does not allow.
        """
        shape = image.shape[:2]
        return self.transform(dict(img=image, img_path=None, img_shape=shape, ori_shape=shape))

    def transform(self, data: dict) -> dict:
        """Runs the test pipeline on its input; raises ValueError as :meth:`pack` does."""
        height, width = data['ori_shape']
        try:
            packed = self.pipeline(data)
        except cv2.error:  # a side would have no pixels
            raise ValueError(
                f'{width} x {height} pixels are too elongated for this model'
            ) from None
        if packed['inputs'].shape[-2] * packed['inputs'].shape[-1] > MAX_PIXELS:
            raise ValueError(f'more than {MAX_PIXELS} pixels: resize the image first')
        return packed

    def collate(self, packed: list[dict]) -> dict:
        """Makes a batch for the model of images of one size."""
        return pseudo_collate(packed)

    def shown(self, packed: dict) -> np.ndarray:
        """The network's image as RGB, (H', W', 3), uint8."""
        image = packed['inputs'].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
        return image[..., ::-1]

    def predict(self, images: Sequence[np.ndarray]) -> list:
        """Predicts for images of any sizes; those of equal size form one batch.

        Padding to a common size would change the attention.

        Args:
            images: BGR, (H, W, 3), uint8.

        Returns:
            The toolbox's data sample for each image, on the CPU.
        """
        packed = [self.pack(image) for image in images]
        groups: dict[tuple, list[int]] = {}
        for i, data in enumerate(packed):
            groups.setdefault(tuple(data['inputs'].shape), []).append(i)
        samples: dict[int, Any] = {}
        for group in groups.values():
            with torch.no_grad():
                predicted = self.model.test_step(self.collate([packed[i] for i in group]))
            samples.update(zip(group, predicted, strict=True))
        return [samples[i].cpu() for i in range(len(images))]

    @abstractmethod
    def draw(self, image: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """The image with the prediction drawn on it, BGR; small images are enlarged."""

    @abstractmethod
    def describe(self, sample: Any, score_thr: float) -> dict:
        """The prediction as plain data."""

    def name(self, label: int) -> str:
        """Name of a class."""
        return str(self.names[label]) if label < len(self.names) else f'class {label}'

    def label_map(self, sample: Any) -> np.ndarray | None:
        """Class of each pixel, (H, W); ``None`` for other tasks than segmentation."""
        return None


class DetectionPredictor(Predictor):
    """Boxes, and masks if the model predicts them."""

    default_score_thr = 0.3
    visualizer_type = 'DetLocalVisualizer'

    def draw(self, image: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """See the base class."""
        image, factor = _enlarged(image)
        sample = sample.clone()
        order = sample.pred_instances.scores.argsort()  # highest score last, on top
        instances = sample.pred_instances = sample.pred_instances[order]
        instances.bboxes = instances.bboxes * factor
        if 'masks' in instances:
            masks = instances.masks.repeat_interleave(factor, 1)
            instances.masks = masks.repeat_interleave(factor, 2)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # boxes may touch the border
            self.visualizer.add_datasample(
                'prediction', _rgb(image), sample, draw_gt=False, pred_score_thr=score_thr
            )
        return _rgb(self.visualizer.get_image())

    def describe(self, sample: Any, score_thr: float) -> dict:
        """``detections``: label, score, box [x1, y1, x2, y2] in pixels, mask as COCO's RLE."""
        instances = sample.pred_instances
        instances = instances[instances.scores > score_thr]
        detections = []
        for i in range(len(instances)):
            label = int(instances.labels[i])
            detection = dict(
                label=self.name(label),
                label_id=label,
                score=round(float(instances.scores[i]), 4),
                box=[round(x, 2) for x in instances.bboxes[i].tolist()],
            )
            if 'masks' in instances:
                detection['mask'] = _run_lengths(instances.masks[i].numpy())
            detections.append(detection)
        return dict(detections=detections)


class SegmentationPredictor(Predictor):
    """A class for each pixel."""

    visualizer_type = 'SegLocalVisualizer'

    def draw(self, image: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """See the base class."""
        image, factor = _enlarged(image)
        if factor > 1:
            labels = sample.pred_sem_seg.data.repeat_interleave(factor, 1)
            sample = type(sample)()
            sample.pred_sem_seg = PixelData(data=labels.repeat_interleave(factor, 2))
        self.visualizer.alpha = 0.5
        self.visualizer.add_datasample(
            'prediction', _rgb(image), sample, draw_gt=False, with_labels=True
        )
        return _rgb(self.visualizer.get_image())

    def describe(self, sample: Any, score_thr: float) -> dict:
        """``classes``: those present, with their fraction of the pixels, largest first."""
        labels, counts = np.unique(self.label_map(sample), return_counts=True)
        order = np.argsort(-counts, kind='stable')
        classes = [
            dict(
                label=self.name(int(labels[i])),
                label_id=int(labels[i]),
                share=round(float(counts[i] / counts.sum()), 6),
            )
            for i in order
        ]
        return dict(classes=classes)

    def label_map(self, sample: Any) -> np.ndarray:
        """Class of each pixel, (H, W), uint8 if that suffices, else uint16."""
        labels = sample.pred_sem_seg.data[0].numpy()
        return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)


class ClassificationPredictor(Predictor):
    """A label for each image."""

    visualizer_type = 'UniversalVisualizer'

    def pack(self, image: np.ndarray) -> dict:
        """See the base class."""
        height, width = shape = image.shape[:2]
        data = dict(ori_shape=shape)
        if self._is_cifar:  # its pipeline loads no image: the data set yields RGB of 32 x 32
            image = _rgb(image)
            image = cv2.resize(image, (CIFAR_SIDE,) * 2, interpolation=cv2.INTER_AREA)
            data['scale_factor'] = (CIFAR_SIDE / width, CIFAR_SIDE / height)
        return self.transform(dict(data, img=image, img_shape=image.shape[:2]))

    def shown(self, packed: dict) -> np.ndarray:
        """See the base class."""
        image = super().shown(packed)
        return image[..., ::-1] if self._is_cifar else image

    @property
    def _is_cifar(self) -> bool:
        return str(self.cfg.test_dataloader.dataset.type).startswith('CIFAR')

    def draw(self, image: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """See the base class."""
        image, _ = _enlarged(image)
        drawn = self.visualizer.visualize_cls(
            _rgb(image), sample, classes=self.names or None, draw_gt=False
        )
        return _rgb(drawn)

    def describe(self, sample: Any, score_thr: float) -> dict:
        """``labels``: the best, and up to four more above the threshold, with their scores."""
        scores, labels = sample.pred_score.topk(min(TOP, len(sample.pred_score)))
        found = [
            dict(label=self.name(label), label_id=label, score=round(score, 4))
            for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        return dict(labels=[found[0], *(f for f in found[1:] if f['score'] > score_thr)])


def _enlarged(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Enlarges a small image for drawing by an integer factor, which is returned as well."""
    factor = max(1, -(-SIDE_DRAWN // max(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), factor


def _rgb(image: np.ndarray) -> np.ndarray:
    """BGR to RGB, and RGB to BGR."""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _run_lengths(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())
