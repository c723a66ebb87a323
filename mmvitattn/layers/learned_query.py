"""Learned-query attention as a layer (QnA paper, section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import learned_query_attention, learned_query_scores, window_weights
from ..ops.dispatch import precise_dtype, without_autocast
from ..ops.learned_query import normalize_queries
from ..ops.learned_query.convolution import project_in, project_out
from .init import learned_query_, lecun_normal_

POSITION_BIASES = ('relative_pos', 'absolute_pos', 'contextual_pos', None)
ATTENTION_SCALES = ('normal', 'normal_elementwise', 'ones', 'posneg', 'avg', None)


class QnALayer(nn.Module):
    """Local attention in overlapping windows, with queries that are learned ("query and attend").

    At each output position, q learned queries attend to the k x k window around it; their results
    are summed. Time and memory are linear in the number of positions.

    Args:
        channels: channels D of queries, keys and values.
        num_heads: heads h; must divide ``channels``.
        kernel_size: odd side k of the window, in positions.
        stride: distance between the centres of neighbouring windows; 2 halves the map.
        num_queries: learned queries q.
        normalize_queries: whether each query is divided by its L2 norm.
        position_bias: 'relative_pos' learns a bias for each window offset, query and head.
            'absolute_pos' learns a vector for each, whose product with the query is the bias.
            'contextual_pos' learns a linear layer from the query to its biases (contextual relative
            position encoding). ``None``: no bias.
        attention_scale: factor of the softmax weights, of either sign: learned for each window
            offset, query and head ('normal', with random start values, or 'ones'), learned for each
            query and head ('normal_elementwise'), fixed to 1/q ('avg'), fixed to 1 for the first
            half of the q*h query-heads and -1 for the others ('posneg'), or ``None`` for no factor.
        in_channels: channels of the input; default ``channels``.
        out_channels: channels of the output; default ``channels``.
        normalize_stop_grads: whether the norm of the queries is a constant in the backward pass.

    Raises:
        ValueError: if ``num_heads`` does not divide ``channels``, the window is even, or an option
            is unknown.

    Example:
        >>> attention = QnALayer(64, num_heads=8, kernel_size=3)
        >>> attention(torch.rand(8, 56, 56, 64)).shape
        torch.Size([8, 56, 56, 64])
    """

    offset_tables = ('position_bias', 'position_bias_vectors', 'attention_scale')
    position_bias: nn.Parameter | None
    position_bias_vectors: nn.Parameter
    position_map: nn.Linear
    attention_scale: Tensor | None

    def __init__(
        self,
        channels: int,
        num_heads: int,
        kernel_size: int = 3,
        stride: int = 1,
        num_queries: int = 2,
        normalize_queries: bool = True,
        position_bias: str | None = 'relative_pos',
        attention_scale: str | None = 'normal',
        in_channels: int | None = None,
        out_channels: int | None = None,
        normalize_stop_grads: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'num_heads={num_heads} must divide channels={channels}')
        if kernel_size < 1 or kernel_size % 2 == 0 or stride < 1 or num_queries < 1:
            raise ValueError(
                f'QnALayer needs an odd kernel_size, stride >= 1 and num_queries >= 1, got '
                f'kernel_size={kernel_size}, stride={stride}, num_queries={num_queries}'
            )
        if position_bias not in POSITION_BIASES or attention_scale not in ATTENTION_SCALES:
            raise ValueError(
                f'QnALayer: position_bias must be one of {POSITION_BIASES} and attention_scale one '
                f'of {ATTENTION_SCALES}, got {position_bias!r} and {attention_scale!r}'
            )
        self.channels, self.num_heads, self.num_queries = channels, num_heads, num_queries
        self.kernel_size, self.stride = kernel_size, stride
        self.normalize_queries = normalize_queries
        self.normalize_stop_grads = normalize_stop_grads
        self.position_bias_type, self.attention_scale_type = position_bias, attention_scale
        in_channels = channels if in_channels is None else in_channels
        out_channels = channels if out_channels is None else out_channels
        self.query = nn.Parameter(torch.empty(num_queries, channels))
        self.key = nn.Linear(in_channels, channels, bias=False)
        self.value = nn.Linear(in_channels, channels, bias=False)
        self.out = nn.Linear(channels, out_channels, bias=False)
        self._add_tables()
        self.reset_parameters()

    def _add_tables(self) -> None:
        table = (self.kernel_size**2, self.num_queries, self.num_heads)
        kind = self.position_bias_type
        self.position_bias = nn.Parameter(torch.empty(table)) if kind == 'relative_pos' else None
        if kind == 'absolute_pos':
            self.position_bias_vectors = nn.Parameter(torch.empty(*table[:2], self.channels))
        elif kind == 'contextual_pos':
            self.position_map = nn.Linear(self.channels, self.kernel_size**2 * self.num_heads)
        kind = self.attention_scale_type
        if kind in ('normal', 'ones'):
            self.attention_scale = nn.Parameter(torch.empty(table))
        elif kind == 'normal_elementwise':
            self.attention_scale = nn.Parameter(torch.empty(1, *table[1:]))
        elif kind == 'avg':
            scale = torch.full((1, *table[1:]), 1 / self.num_queries)
            self.register_buffer('attention_scale', scale, persistent=False)
        elif kind == 'posneg':
            scale = torch.ones(self.num_queries * self.num_heads)
            scale[len(scale) // 2 :] = -1
            self.register_buffer('attention_scale', scale.view(1, *table[1:]), persistent=False)
        else:
            self.attention_scale = None

    def reset_parameters(self) -> None:
        """Start values of the official release."""
        for linear in (self.key, self.value, self.out):
            lecun_normal_(linear)
        learned_query_(self.query, self.channels // self.num_heads)
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias)
        elif self.position_bias_type == 'absolute_pos':
            nn.init.zeros_(self.position_bias_vectors)
        elif self.position_bias_type == 'contextual_pos':
            lecun_normal_(self.position_map)
        if isinstance(self.attention_scale, nn.Parameter):
            if self.attention_scale_type == 'ones':
                nn.init.ones_(self.attention_scale)
            else:
                nn.init.normal_(self.attention_scale, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C_in) to (B, ceil(H / stride), ceil(W / stride), C_out)."""
        values = project_in(x, self.value.weight).unflatten(-1, (self.num_heads, -1))
        scores, tables = self._scores(x), (self.bias_table(), self.attention_scale)
        y = learned_query_attention(scores, values, *tables, self.kernel_size, self.stride)
        return project_out(y.flatten(-2), self.out.weight)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Factors of each window's values, summed over the queries, for an input (B, H, W, C_in).

        Returns:
            Factors of either sign, (B, H', W', k*k, h), window offsets row by row; zero outside the
            map.
        """
        tables = (self.bias_table(), self.attention_scale)
        return window_weights(self._scores(x), *tables, self.kernel_size, self.stride)

    def bias_table(self) -> Tensor | None:
        """The position bias of any type.

        The official release computes the biases of 'absolute_pos' as a sum over the images of a
        batch, which are equal for all images, so they grow with the batch size; here they are those
        of a batch of one. Those of 'contextual_pos' are computed as (q, k*k, h), then reshaped,
        without a transposition, to (k*k, q, h): the release does so, and its weights require it.

        Returns:
            (k*k, q, h), window offsets row by row, or ``None``.
        """
        if self.position_bias_type not in ('absolute_pos', 'contextual_pos'):
            return self.position_bias
        query = self._normalized_query()
        query = query * query.shape[-1] ** -0.5
        with without_autocast(query):
            if self.position_bias_type == 'absolute_pos':
                vectors = self.position_bias_vectors.unflatten(-1, (self.num_heads, -1))
                return torch.einsum('qhd,kqhd->kqh', query, vectors.to(query.dtype))
            affine = self.position_map
            weight, bias = affine.weight.to(query.dtype), affine.bias.to(query.dtype)
            biases = F.linear(query.flatten(1), weight, bias)
            return biases.reshape(-1, self.num_queries, self.num_heads)

    def _scores(self, x: Tensor) -> Tensor:
        return learned_query_scores(x, self._normalized_query(), self.key.weight, normalize=False)

    def _normalized_query(self) -> Tensor:
        query = self.query.unflatten(-1, (self.num_heads, -1))
        if self.normalize_queries:
            return normalize_queries(query, self.normalize_stop_grads)
        return query.to(precise_dtype(query))

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return (
            f'channels={self.channels}, num_heads={self.num_heads}, '
            f'kernel_size={self.kernel_size}, stride={self.stride}, num_queries={self.num_queries}'
        )
