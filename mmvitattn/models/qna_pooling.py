"""Global pooling of a map by learned queries, as a neck of classifiers."""

import torch
from torch import Tensor, nn

from ..compat.engine import BaseModule
from ..errors import OptionError
from ..layers.init import learned_query_, lecun_normal_
from ..layers.linear import Linear
from ..layers.position_table import resize_table
from ..ops import learned_query_scores
from ..ops.dispatch import without_autocast
from ..registry import MODELS


@MODELS.register_module()
class QnAPooling(BaseModule):
    """Pools a map by attention from learned queries to all positions.

    It replaces the global average pooling of a classifier, as in the heads 'qnav1' and, with
    ``skip``, 'qnav2' of QnA-ViT's official release. For a map of another size than ``map_size``,
    the tables are resized bicubically.

    Args:
        in_channels: channels C of the map, and of the output.
        num_heads: heads h; must divide ``in_channels``.
        map_size: side of the square map for which the tables are made, in positions.
        num_queries: learned queries q.
        skip: whether the mean of the map is added.
        init_cfg: MMEngine's initialisation config.

    Raises:
        OptionError: if ``num_heads`` does not divide ``in_channels``, or a number is less than 1.

    Example:
        >>> QnAPooling(512, num_heads=64, map_size=7)((torch.rand(8, 512, 7, 7),))[0].shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        map_size: int = 7,
        num_queries: int = 2,
        skip: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if num_heads < 1 or in_channels % num_heads:
            raise OptionError(
                f'QnAPooling: num_heads={num_heads} must divide in_channels={in_channels}'
            )
        if map_size < 1 or num_queries < 1:
            raise OptionError(
                f'QnAPooling: map_size={map_size} and num_queries={num_queries} must be at least 1'
            )
        self.num_heads, self.map_size, self.skip = num_heads, map_size, skip
        self.query = nn.Parameter(torch.empty(num_queries, in_channels))
        self.key = Linear(in_channels, in_channels, bias=False)
        self.value = Linear(in_channels, in_channels, bias=False)
        self.out = Linear(in_channels, in_channels, bias=False)
        table = (map_size**2, num_queries, num_heads)
        self.position_bias = nn.Parameter(torch.empty(table))
        self.attention_scale = nn.Parameter(torch.empty(table))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start values of the official release, as in :class:`~mmvitattn.layers.QnALayer`."""
        for linear in (self.key, self.value, self.out):
            lecun_normal_(linear)
        learned_query_(self.query, self.query.shape[1] // self.num_heads)
        nn.init.zeros_(self.position_bias)
        nn.init.normal_(self.attention_scale, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, those of a learned-query layer."""
        return {'query', 'position_bias', 'attention_scale'}

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor]:
        """Maps (B, C, H, W) to (B, C), or a tuple, of which the last map is used, to a tuple."""
        if isinstance(features, tuple):
            return (self(features[-1]),)
        x = features.permute(0, 2, 3, 1)
        query = self.query.unflatten(-1, (self.num_heads, -1))
        scores = learned_query_scores(x, query, self.key.weight).flatten(1, 2)  # (B, N, q, h)
        values = self.value(x).unflatten(-1, (self.num_heads, -1)).flatten(1, 2)  # (B, N, h, d)
        with without_autocast(x):
            bias = self._table(self.position_bias, x).to(scores.dtype)
            scale = self._table(self.attention_scale, x).to(scores.dtype)
            weights = ((scores + bias).softmax(dim=1) * scale).sum(dim=2)
            y = torch.einsum('bnh,bnhd->bhd', weights, values.to(weights.dtype))
        y = self.out(y.flatten(1).to(values.dtype))
        return y + x.mean((1, 2)) if self.skip else y

    def _table(self, table: Tensor, x: Tensor) -> Tensor:
        """A table resized to the map ``x``, (H * W, q, h)."""
        square = table.flatten(1).unflatten(0, (self.map_size, -1))
        return resize_table(square, x.shape[1:3]).flatten(0, 1).view(-1, *table.shape[1:])

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return (
            f'in_channels={self.query.shape[1]}, num_heads={self.num_heads}, '
            f'map_size={self.map_size}, num_queries={len(self.query)}, skip={self.skip}'
        )
