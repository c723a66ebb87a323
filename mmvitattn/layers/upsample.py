"""Up-sampling with learned queries (QnA paper, section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import learned_query_attention, learned_query_scores
from ..ops.learned_query.convolution import project_in
from .init import learned_query_, lecun_normal_

START_WIDTH = 0.5  # standard deviation of the start windows, in positions of the input
START_FLOOR = -8.0  # least bias at the start: exp(-8) = 3e-4


class QnAUpsample(nn.Module):
    """Enlarges a map by an integer factor with local attention from learned queries.

    Each input position becomes a cell of scale x scale output positions. Each of these has queries
    of its own, which attend to the k x k window around the input position; keys and values are
    shared. Equivariant to translations by whole input positions, linear in their number, and exact
    for scores of any size.

    The position biases start as a Gaussian around the centre of each output position, so that the
    layer starts close to a linear interpolation of the values.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, and of queries, keys and values.
        scale: factor by which height and width grow.
        kernel_size: odd side k of the window, in input positions.
        num_heads: heads h; must divide ``out_channels``.
        num_queries: learned queries for each output position of a cell; their results are summed.

    Raises:
        ValueError: if ``num_heads`` does not divide ``out_channels``, the window is even, or a
            number is below 1.

    Example:
        >>> upsample = QnAUpsample(64, 32, scale=2, num_heads=8)
        >>> upsample(torch.rand(8, 28, 28, 64)).shape
        torch.Size([8, 56, 56, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int = 2,
        kernel_size: int = 3,
        num_heads: int = 8,
        num_queries: int = 2,
    ) -> None:
        super().__init__()
        if num_heads < 1 or out_channels % num_heads:
            raise ValueError(f'num_heads={num_heads} must divide out_channels={out_channels}')
        if kernel_size < 1 or kernel_size % 2 == 0 or scale < 1 or num_queries < 1:
            raise ValueError(
                'QnAUpsample needs an odd kernel_size, scale >= 1 and num_queries >= 1, got '
                f'kernel_size={kernel_size}, scale={scale}, num_queries={num_queries}'
            )
        self.scale, self.kernel_size = scale, kernel_size
        self.num_heads, self.num_queries = num_heads, num_queries
        # one set of queries for each position of a cell, row by row; a set counts as heads
        self.query = nn.Parameter(torch.empty(num_queries, scale**2, out_channels))
        self.key = nn.Linear(in_channels, out_channels, bias=False)
        self.value = nn.Linear(in_channels, out_channels, bias=False)
        self.out = nn.Linear(out_channels, out_channels, bias=False)
        table = (kernel_size**2, num_queries, scale**2 * num_heads)
        self.position_bias = nn.Parameter(torch.empty(table))
        self.attention_scale = nn.Parameter(torch.empty(table))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """QnA's start values for queries and linear maps; windows as the class describes."""
        for linear in (self.key, self.value, self.out):
            lecun_normal_(linear)
        learned_query_(self.query, self.out.in_features // self.num_heads)
        nn.init.constant_(self.attention_scale, 1 / self.num_queries)
        offsets = torch.arange(self.kernel_size) - self.kernel_size // 2
        centres = (torch.arange(self.scale) + 0.5) / self.scale - 0.5
        squares = ((offsets[:, None] - centres) / START_WIDTH) ** 2  # (k, scale)
        bias = -0.5 * (squares[:, None, :, None] + squares[None, :, None, :])  # (k, k, s, s)
        bias = bias.clamp(min=START_FLOOR).flatten(2).flatten(0, 1)
        bias = bias.repeat_interleave(self.num_heads, dim=1)[:, None]
        with torch.no_grad():
            self.position_bias.copy_(bias.expand_as(self.position_bias))

    def forward(self, x: Tensor) -> Tensor:
        """Up-samples a map.

        Args:
            x: (B, H, W, C_in).

        Returns:
            (B, scale * H, scale * W, C_out).
        """
        sets, scale = self.scale**2, self.scale
        query = self.query.flatten(1).unflatten(1, (sets * self.num_heads, -1))
        scores = learned_query_scores(x, query, self.key.weight.repeat(sets, 1))
        values = project_in(x, self.value.weight).unflatten(-1, (self.num_heads, -1))
        values = values.repeat(1, 1, 1, sets, 1)
        tables = (self.position_bias, self.attention_scale)
        y = learned_query_attention(scores, values, *tables, self.kernel_size)
        y = y.flatten(3).unflatten(3, (scale, scale, -1)).transpose(2, 3)
        return F.linear(y.flatten(3, 4).flatten(1, 2), self.out.weight)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay, as those of QnA-ViT."""
        return {'query', 'position_bias', 'attention_scale'}

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return (
            f'scale={self.scale}, kernel_size={self.kernel_size}, num_heads={self.num_heads}, '
            f'num_queries={self.num_queries}'
        )
