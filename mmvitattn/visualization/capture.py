"""What the attention layers of a backbone saw, caught on its way through."""

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import KeyOnlyAttention, LocalShiftAttention, QnALayer

KINDS = (KeyOnlyAttention, QnALayer, LocalShiftAttention)


class CapturedLayer(NamedTuple):
    """An attention layer with its input for one picture."""

    stage: int  # from 1
    block: int | None  # from 1; None for the down-sampling that leads to the stage
    layer: nn.Module
    inputs: Tensor  # (1, H, W, C), with a leading axis of variants for local shifts

    @property
    def title(self) -> str:
        """Stage and block in words."""
        place = f'stage {self.stage}'
        return f'down-sampling to {place}' if self.block is None else f'{place}, block {self.block}'

    @property
    def file_name(self) -> str:
        """Stage and block as the stem of a file name."""
        block = 'downsampling' if self.block is None else f'block{self.block}'
        return f'stage{self.stage}_{block}'

    @torch.no_grad()
    def weights(self) -> Tensor:
        """The layer's attention weights, on the CPU; see its ``attention_weights``."""
        return self.layer.attention_weights(self.inputs).float().cpu()


def has_attention(backbone: nn.Module) -> bool:
    """Whether there is attention that :func:`capture_attention` would find."""
    return any(isinstance(module, KINDS) for module in backbone.modules())


@torch.no_grad()
def capture_attention(backbone: nn.Module, image: Tensor) -> list[CapturedLayer]:
    """Runs a backbone and keeps what its attention layers of this package got.

    Args:
        backbone: a backbone; its mode is left as it is.
        image: one normalised picture, (1, C, H, W).

    Returns:
        The layers in the order in which they ran: key-only attention, learned-query attention,
        local attention over shifts.
    """
    captured: list[CapturedLayer] = []

    def keep(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            captured.append(CapturedLayer(*_place(name), layer, inputs[0].detach()))

        return hook

    handles = [
        layer.register_forward_pre_hook(keep(name))
        for name, layer in backbone.named_modules()
        if isinstance(layer, KINDS)
    ]
    try:
        backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _place(name: str) -> tuple[int, int | None]:
    """Stage and block, from 1, of a module of :class:`~mmvitattn.models.base.PyramidBackbone`."""
    if name.startswith('downsamples.'):
        return int(name.split('.')[1]) + 2, None
    stage, block = re.match(r'stages\.(\d+)\.(?:blocks\.)?(\d+)\.', name).groups()
    return int(stage) + 1, int(block) + 1
