"""Records the inputs of a backbone's attention layers in a forward pass."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import KeyOnlyAttention, LocalShiftAttention, QnALayer, ShiftedPatchEmbed

KINDS = (KeyOnlyAttention, QnALayer, LocalShiftAttention)


class Grid(NamedTuple):
    """Centres of a feature map's positions, in pixels of the image."""

    step: int
    top: float  # centre of the first row
    left: float

    def extent(self, rows: int, columns: int) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge of a map: ``extent`` of matplotlib's ``imshow``."""
        half = self.step / 2
        right = self.left + self.step * (columns - 1) + half
        bottom = self.top + self.step * (rows - 1) + half
        return self.left - half, right, bottom, self.top - half

    def nearest(self, x: float, y: float, rows: int, columns: int) -> tuple[int, int]:
        """Row and column of the position nearest to a pixel."""
        row, column = round((y - self.top) / self.step), round((x - self.left) / self.step)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """Centre (x, y) of a position."""
        return self.left + self.step * column, self.top + self.step * row


class CapturedLayer(NamedTuple):
    """An attention layer with its input for one image."""

    stage: int  # from 1
    block: int | None  # from 1; None for the down-sampling that leads to the stage
    layer: Any  # one of KINDS
    inputs: Tensor  # (1, H, W, C), with a leading axis of variants for local shifts
    grid: Grid  # of the layer's output
    shifts: Sequence[tuple[int, int]] = ()  # (down, right) in pixels, for local shifts
    border: str = ''  # of the shifts: 'extend', 'roll' or 'reflect'

    @property
    def title(self) -> str:
        """Stage and block in words."""
        place = f'stage {self.stage}'
        return f'down-sampling to {place}' if self.block is None else f'{place}, block {self.block}'

    @property
    def file_name(self) -> str:
        """Stage and block as part of a file name."""
        block = 'downsampling' if self.block is None else f'block{self.block}'
        return f'stage{self.stage}_{block}'

    @torch.no_grad()
    def weights(self) -> Tensor:
        """The layer's attention weights, on the CPU; see its ``attention_weights``."""
        return self.layer.attention_weights(self.inputs).float().cpu()


def has_attention(backbone: nn.Module) -> bool:
    """Whether the backbone has layers that :func:`capture_attention` records."""
    return any(isinstance(module, KINDS) for module in backbone.modules())


@torch.no_grad()
def capture_attention(backbone: nn.Module, image: Tensor) -> list[CapturedLayer]:
    """Runs a backbone and records the inputs of its attention layers.

    Args:
        backbone: a backbone of this package; its mode is not changed.
        image: one normalised image, (1, C, H, W).

    Returns:
        The layers of key-only attention, learned-query attention and local attention over shifts,
        in the order in which they ran.
    """
    captured: list[CapturedLayer] = []
    shifts = getattr(backbone.stem, 'shifts', ())
    border = getattr(backbone.stem, 'border', 'reflect' if shifts else '')

    def record(name: str):
        stage, block = _stage_and_block(name)
        grid = grid_of(backbone, stage, image.shape[2:])

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            captured.append(CapturedLayer(stage, block, layer, x, grid, shifts, border))

        return hook

    handles = [
        layer.register_forward_pre_hook(record(name))
        for name, layer in backbone.named_modules()
        if isinstance(layer, KINDS)
    ]
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _stage_and_block(name: str) -> tuple[int, int | None]:
    """Stage and block, from 1, of a module of :class:`~mmvitattn.models.base.PyramidBackbone`."""
    if name.startswith('downsamples.'):
        return int(name.split('.')[1]) + 2, None
    match = re.match(r'stages\.(\d+)\.(?:blocks\.)?(\d+)\.', name)
    assert match, name
    return int(match[1]) + 1, int(match[2]) + 1


def grid_of(backbone: nn.Module, stage: int, image_size: Sequence[int]) -> Grid:
    """Where the positions of a stage's map lie in the image.

    Down-samplings are centred on every second position, so only the stem determines the offset.

    Args:
        backbone: a backbone of this package.
        stage: from 1.
        image_size: height and width of the network's input, in pixels.
    """
    stem: Any = backbone.stem[0] if isinstance(backbone.stem, nn.Sequential) else backbone.stem
    offsets = [0, 0]
    if isinstance(stem, ShiftedPatchEmbed):  # it pads only on the right and the bottom
        kernel, stride, padding = stem.weight.shape[-1], stem.stride, stem.padding
    else:
        kernel, stride, padding = (
            getattr(stem.conv, name)[0] for name in ('kernel_size', 'stride', 'padding')
        )
        if kernel == stride:  # QnA-ViT's stem pads on both sides
            offsets = [(-n % stride) // 2 for n in image_size]
    top, left = (kernel / 2 - padding - n for n in offsets)
    return Grid(stride * 2 ** (stage - 1), top, left)
