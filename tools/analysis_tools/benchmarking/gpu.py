"""Contestants that are built on GPUs alone: compiled forms, flex_attention, the bare window sum."""

import torch
from torch import Tensor, nn

from mmvitattn.layers.global_attention import AttentionProjections
from mmvitattn.ops import force, learned_query_attention

from . import layers, peers
from .cases import Size, Unavailable, contestant
from .unfold import unfold_learned_query

LEAST_FLEX_HEAD = 16  # channels of a head that flex_attention's kernels take at least

FLEX = 'flex_attention, neighbourhood mask'
COMPILED_UNFOLD, COMPILED_STACK = 'unfold, compiled', 'QnA, stack of windows, compiled'
COMPILED_SASA = 'unfold (SASA), compiled'
COMPILED_KEY_ONLY, COMPILED_SAG = 'key-only, reference, compiled', 'SAG, one by one, compiled'
SUM, SUM_UNFOLD, SUM_LOOP = 'window sum', 'window sum, unfold', 'window sum, loop over offsets'
SUM_COMPILED = 'window sum, unfold, compiled'


@contestant(COMPILED_UNFOLD, same_as=layers.QNA)
def compiled_unfold(size: Size) -> nn.Module:
    """QnA by copies of strided windows under torch.compile."""
    return torch.compile(layers.unfold_last(size))


@contestant(COMPILED_STACK, same_as=layers.QNA)
def compiled_stack(size: Size) -> nn.Module:
    """QnA by a stack of shifted maps under torch.compile; the reference itself loops in Python."""
    return _compiled(layers.qna(size), 'learned_query_attention=window_stack')


@contestant(COMPILED_SASA, same_as=layers.SASA)
def compiled_sasa(size: Size) -> nn.Module:
    """Stand-alone self-attention by copies of strided windows under torch.compile."""
    return torch.compile(layers.sasa_last(size))


@contestant(COMPILED_KEY_ONLY, same_as=layers.KEY_ONLY)
def compiled_key_only(size: Size) -> nn.Module:
    """Key-only attention's reference, head by head, under torch.compile."""
    return _compiled(layers.key_only(size), 'key_only_attention=reference')


@contestant(COMPILED_SAG, same_as=layers.SAG)
def compiled_sag(size: Size) -> nn.Module:
    """SAG's embedding and attention one by one under torch.compile."""
    return _compiled(layers.sag(size), layers.ONE_BY_ONE)


def _compiled(module: nn.Module, setting: str) -> nn.Module:
    # Forced from outside: the compiler need not follow how implementations are chosen.
    return peers.Forced(torch.compile(module), setting)


@contestant(FLEX)
def flex(size: Size) -> nn.Module:
    """Dot-product attention in k x k windows by a compiled, block-masked flex_attention."""
    heads = max(1, min(size.heads, size.channels // LEAST_FLEX_HEAD))
    return FlexNeighbourhood(size.channels, heads, size.kernel_size, (size.height, size.width))


class FlexNeighbourhood(AttentionProjections):
    """Attention of each position to the k x k window around it by ``flex_attention``.

    Args:
        channels: channels C.
        num_heads: heads h.
        kernel_size: odd side k of the window.
        grid: height and width of the map.
        compiled: whether the kernel is compiled; without, the full N x N scores exist.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        kernel_size: int,
        grid: tuple[int, int],
        compiled: bool = True,
    ) -> None:
        try:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        except ImportError:
            raise Unavailable('this torch has no flex_attention') from None
        super().__init__(channels, num_heads)
        reach, width, positions = kernel_size // 2, grid[1], grid[0] * grid[1]

        def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            rows = (query // width - key // width).abs() <= reach
            return rows & ((query % width - key % width).abs() <= reach)

        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.mask = create_block_mask(near, None, None, positions, positions, device=device)
        self.attend = torch.compile(flex_attention) if compiled else flex_attention

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to the same shape."""
        tokens, heads = x.flatten(1, 2), (self.num_heads, self.channels // self.num_heads)
        query, key, value = (
            y.unflatten(-1, heads).transpose(1, 2)
            for y in (self.query(tokens), *self.key_value(tokens).chunk(2, dim=-1))
        )
        y = self.attend(query, key, value, block_mask=self.mask)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class WindowSum(nn.Module):
    """The op inside QnA, from scores (B, H, W, q, h) and values (B, H, W, h, d).

    Args:
        size: kernel size and heads are used.
        unfolds: whether by copies of strided windows.
        setting: implementation to force; '' for the one chosen.
    """

    def __init__(self, size: Size, unfolds: bool = False, setting: str = '') -> None:
        super().__init__()
        table = (size.kernel_size**2, 2, size.heads)
        self.bias = nn.Parameter(0.1 * torch.randn(table))
        self.scale = nn.Parameter(torch.randn(table))
        self.kernel_size, self.unfolds, self.setting = size.kernel_size, unfolds, setting

    def forward(self, scores: Tensor, values: Tensor) -> Tensor:
        """Maps to (B, H, W, h, d)."""
        args = (scores, values, self.bias, self.scale, self.kernel_size)
        if self.unfolds:
            return unfold_learned_query(*args, last=True)
        with force(self.setting):
            return learned_query_attention(*args)


@contestant(SUM)
def window_sum(size: Size) -> nn.Module:
    """Ours: QnA's window sum from given scores and values, without projections."""
    return WindowSum(size)


@contestant(SUM_LOOP, same_as=SUM)
def window_sum_loop(size: Size) -> nn.Module:
    """The same by the loop over window offsets."""
    return WindowSum(size, setting='learned_query_attention=offset_loop')


@contestant(SUM_UNFOLD, same_as=SUM)
def window_sum_unfold(size: Size) -> nn.Module:
    """The same by copies of strided windows."""
    return WindowSum(size, unfolds=True)


@contestant(SUM_COMPILED, same_as=SUM)
def window_sum_compiled(size: Size) -> nn.Module:
    """The same by copies of strided windows under torch.compile."""
    return torch.compile(WindowSum(size, unfolds=True))
