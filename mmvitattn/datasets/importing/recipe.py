"""Chooses the numbers of a config from the statistics of own data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .records import OwnData
from .report import box_side

CLEAR_SIDE = 28  # pixels that most objects should have at least in the input
# Input sides to choose from, and the number of pictures to train on, each with the device.
DETECTOR_SIDES = dict(cpu=(320, 416, 512, 640), cuda=(512, 640, 800, 1024))
OTHER_SIDES = dict(cpu=(128, 160, 224, 256), cuda=(224, 256, 384, 512))
PASSES = dict(cpu=9_000, cuda=60_000)
FROM_WEIGHTS = 0.5  # share of these pictures that suffices with pretrained weights
EPOCHS = dict(cpu=(12, 80), cuda=(24, 300))
BATCH = dict(cpu=4, cuda=16)
WORKERS = dict(cpu=2, cuda=8)
LEARNING_RATE = 2e-3 / 8  # for each picture of a batch, as in configs/demo
SMALLEST_ANCHOR = (16, 32)  # pixels


@dataclass(frozen=True)
class Backbone:
    """What a config needs to know about a backbone.

    Args:
        type: name in the registry, e.g. 'mmvitattn.LinGlo'.
        arch: of the family.
        channels: of the outputs.
        strides: of the outputs.
        weights: address of pretrained weights to start from.
    """

    type: str
    arch: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    weights: str | None = None


@dataclass(frozen=True)
class Schedule:
    """Numbers of a training."""

    batch: int
    epochs: int
    steps: int  # of all epochs
    warm_up: int  # steps
    interval: int  # epochs between two evaluations
    learning_rate: float
    workers: int  # processes that load data


def schedule(data: OwnData, device: str, side: int, pretrained: bool = False) -> Schedule:
    """Chooses batch and length of the training.

    Args:
        data: split into training and validation.
        device: 'cpu' or 'cuda'.
        side: of the input, in pixels; larger inputs are seen less often on a CPU.
        pretrained: whether the backbone starts from pretrained weights.
    """
    pictures = len(data.split('train'))
    batch = min(BATCH[device], pictures)
    passes = PASSES[device] * min(1.0, (DETECTOR_SIDES[device][0] / side) ** 2)
    passes *= FROM_WEIGHTS if pretrained else 1
    low, high = EPOCHS[device]
    epochs = min(max(math.ceil(passes / pictures), low), high)
    interval = max(1, epochs // 8)
    epochs = math.ceil(epochs / interval) * interval  # the last epoch is evaluated
    steps = epochs * math.ceil(pictures / batch)
    warm_up, rate = min(200, steps // 5), LEARNING_RATE * batch
    return Schedule(batch, epochs, steps, warm_up, interval, rate, WORKERS[device])


@dataclass(frozen=True)
class BoxStatistics:
    """Sizes and shapes of the boxes after the pictures are scaled to the input."""

    side: int  # of the input
    small: float  # 5th, 10th and 95th percentile of the square root of the area, in pixels
    clear: float
    large: float
    ratios: tuple[float, ...]  # height / width


def box_statistics(data: OwnData, device: str) -> BoxStatistics:
    """Chooses the input side and describes the training boxes in its pixels.

    The side is the smallest at which nine of ten objects have ``CLEAR_SIDE`` pixels.
    """
    boxes = [(box.corners, max(s.size)) for s in data.split('train') for box in s.boxes]
    sides = np.array([box_side(corners) / longest for corners, longest in boxes])
    shapes = np.array([(c[3] - c[1]) / (c[2] - c[0]) for c, _ in boxes])
    small, clear, large = np.quantile(sides, (0.05, 0.1, 0.95))
    choices = DETECTOR_SIDES[device]
    side = next((s for s in choices if s * clear >= CLEAR_SIDE), choices[-1])
    low, middle, high = np.quantile(shapes, (0.1, 0.5, 0.9))
    ratios = (low, middle, high) if high / low > 1.6 else (middle,)
    return BoxStatistics(
        side,
        small=round(float(small * side), 1),
        clear=round(float(clear * side), 1),
        large=round(float(large * side), 1),
        ratios=tuple(round(float(ratio), 2) for ratio in ratios),
    )


@dataclass(frozen=True)
class Anchors:
    """Anchors of a RetinaNet."""

    strides: tuple[int, ...]
    base_scale: float  # the smallest anchor of a level, in strides
    smallest: float
    largest: float


def choose_anchors(boxes: BoxStatistics, strides: Sequence[int]) -> Anchors:
    """Chooses anchors that reach from the small to the large boxes.

    Args:
        boxes: their statistics.
        strides: of the backbone's outputs; levels with doubled strides are added as needed.
    """
    low, high = SMALLEST_ANCHOR
    smallest = min(max(0.8 * boxes.small, low), high)
    scale = round(smallest / strides[0] * 2) / 2
    levels = list(strides)
    while levels[-1] * scale * 2 ** (2 / 3) < boxes.large and levels[-1] * 2 < boxes.side:
        levels.append(levels[-1] * 2)
    return Anchors(
        tuple(levels), scale, levels[0] * scale, round(levels[-1] * scale * 2 ** (2 / 3))
    )


def picture_side(data: OwnData, device: str) -> int:
    """Input side of a segmenter or classifier: the median shorter side, rounded down."""
    shorter = float(np.median([min(sample.size) for sample in data.split('train')]))
    fitting = [side for side in OTHER_SIDES[device] if side <= shorter]
    return fitting[-1] if fitting else OTHER_SIDES[device][0]
