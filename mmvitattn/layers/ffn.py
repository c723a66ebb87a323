"""Feed-forward network on channels-last maps, with optional modules between its linear layers."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dispatch import as_autocast, is_traced
from .init import trunc_normal_
from .linear import Linear

TILE = 1 << 21  # values of the hidden map per tile: 8 MiB in float32, which fit in a CPU's cache
HALF_PART = 1 << 19  # values in half precision of which GELU is computed in float32 at once: 2 MiB


class FFN(nn.Module):
    """Two-layer perceptron at each position: Linear, position encoding, GELU, gate, Linear.

    For inference on CPUs, large maps are processed in tiles, so that the hidden map, which is
    several times as large as the input, is never stored as a whole.

    Args:
        channels: channels C of input and output.
        hidden_channels: channels between the two linear layers.
        position: module on (B, hidden, H, W) maps between the first linear layer and the
            activation, e.g. :class:`RPCPE`; ``None`` for none. Tiling requires that it has the
            attribute ``reach``: the radius of its receptive field in evaluation, in positions.
        approximate: form of GELU: 'none' (erf) or 'tanh'.
        gate: module on (B, hidden, H, W) maps between the activation and the second linear
            layer, e.g. ``torchvision.ops.SqueezeExcitation``; ``None`` for none.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        position: nn.Module | None = None,
        approximate: str = 'none',
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.position = position
        self.activation = TanhGELU() if approximate == 'tanh' else nn.GELU(approximate)
        self.gate = gate
        self.fc2 = Linear(hidden_channels, channels)
        trunc_normal_(self.fc1)
        trunc_normal_(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C), contiguous, to the same shape."""
        if self._is_tiled(x):
            return self._forward_in_tiles(x)
        x = self.activation(_on_images(self.position, self.fc1(x)))
        return self.fc2(_on_images(self.gate, x))

    def _is_tiled(self, x: Tensor) -> bool:
        unknown_reach = self.position is not None and not hasattr(self.position, 'reach')
        if self.training or torch.is_grad_enabled() or self.gate is not None or unknown_reach:
            return False
        if is_traced():
            return False
        hidden_values = x[..., 0].numel() * self.fc1.out_features
        return x.device.type == 'cpu' and hidden_values > 2 * TILE

    def _forward_in_tiles(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        row_values = width * self.fc1.out_features
        images = max(1, TILE // (height * row_values))
        rows = max(1, TILE // (images * row_values))
        (like_product,) = as_autocast(x[:0])
        output = torch.empty_like(x, dtype=like_product.dtype)
        for i in range(0, batch, images):
            for top, hidden in self._tiles(x[i : i + images], rows):
                y = self.fc2(self.activation(hidden))
                output[i : i + images, top : top + hidden.shape[1]] = y
        return output

    def _tiles(self, x: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
        """First row and encoded hidden map of each band of ``rows`` rows."""
        reach = getattr(self.position, 'reach', 0)
        kept: Tensor | None = None
        first = 0  # row of ``kept``
        for top in range(0, x.shape[1], rows):
            # Rows that the next band needs, too, are kept instead of being computed twice.
            begin = top + reach if top else 0
            hidden = self.fc1(x[:, begin : top + rows + reach])
            hidden = hidden if kept is None else torch.cat([kept, hidden], dim=1)
            yield top, _on_images(self.position, hidden)[:, top - first :][:, :rows]
            first_of_next = max(0, top + rows - reach)
            kept = hidden[:, first_of_next - first :] if reach else None
            first = first_of_next


class TanhGELU(nn.GELU):
    """GELU in its tanh approximation, ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.

    With ``(1 + tanh(t)) / 2 = sigmoid(2 t)`` it needs no hyperbolic tangent, whose CPU kernel takes
    several times as long as an exponential. Used for inference on CPUs; half precision is computed
    in float32, as by PyTorch's kernel.
    """

    def __init__(self) -> None:
        super().__init__(approximate='tanh')

    def forward(self, x: Tensor) -> Tensor:
        """Maps any shape to the same."""
        plain = x.requires_grad and torch.is_grad_enabled()
        if plain or is_traced() or x.device.type != 'cpu':
            return F.gelu(x, approximate='tanh')
        if x.dtype in (torch.float32, torch.float64):
            return _by_sigmoid(x)
        y = torch.empty(x.shape, dtype=x.dtype)
        parts = zip(x.reshape(-1).split(HALF_PART), y.view(-1).split(HALF_PART), strict=True)
        for part, output in parts:
            output.copy_(_by_sigmoid(part.float()))
        return y


def _by_sigmoid(x: Tensor) -> Tensor:
    # The square may overflow: then the sigmoid is 0 or 1, as it should be.
    slope, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    y = torch.addcmul(x.new_tensor(slope), x, x, value=slope * cubic)
    return y.mul_(x).sigmoid_().mul_(x)


def _on_images(module: nn.Module | None, x: Tensor) -> Tensor:
    """Runs a module on (B, C, H, W) maps on a channels-last map; ``None`` changes nothing.

    A permuted channels-last map *is* a (B, C, H, W) map in channels_last memory format: the module
    runs on it without a copy.
    """
    return x if module is None else module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
