"""Contestants of ``benchmark.py attention``: one attention layer each, on maps (B, H, W, C)."""

from torch import nn

from mmvitattn.layers import GlobalAttention, KeyOnlyAttention, QnALayer

from . import peers
from .cases import Size, contestant
from .unfold import UnfoldLearnedQuery, UnfoldSelfAttention

SWIN_HEAD = 32  # channels of a head in Swin

QNA, QNA_EXACT = 'QnA', 'QnA, loop over offsets'
SASA, SASA_LAST = 'unfold (SASA)', 'unfold (SASA), channels-last'
UNFOLD, UNFOLD_LAST = 'unfold, learned queries', 'unfold, learned queries, channels-last'
HALO, SWIN, SWIN_SHIFTED = 'HaloNet', 'Swin windows', 'Swin windows, shifted'
KEY_ONLY, KEY_ONLY_PLAIN, KEY_ONLY_FOLDED = 'key-only', 'key-only, plain', 'key-only, folded'
SDPA, DOT_PRODUCT = 'SDPA', 'dot product, plain softmax'
SAG, SAG_ONE_BY_ONE = 'SAG', 'SAG, one by one'
ONE_BY_ONE = 'shifted_patch_embedding=reference,local_shift_attention=reference'


@contestant(QNA)
def qna(size: Size) -> nn.Module:
    """Ours: learned-query attention in k x k windows, 2 queries, by the implementation chosen."""
    return QnALayer(size.channels, size.heads, size.kernel_size)


@contestant(QNA_EXACT, same_as=QNA)
def qna_exact(size: Size) -> nn.Module:
    """The same by the loop over window offsets, which is exact for scores of any size."""
    return peers.Forced(qna(size), 'learned_query_attention=offset_loop')


@contestant(UNFOLD, same_as=QNA)
def unfold(size: Size) -> nn.Module:
    """The same by F.unfold of scores and values."""
    return UnfoldLearnedQuery(size.channels, size.heads, size.kernel_size, channels_last=False)


@contestant(UNFOLD_LAST, same_as=QNA)
def unfold_last(size: Size) -> nn.Module:
    """The same by copies of strided windows, channels-last."""
    return UnfoldLearnedQuery(size.channels, size.heads, size.kernel_size, channels_last=True)


@contestant(SASA)
def sasa(size: Size) -> nn.Module:
    """Stand-alone self-attention in k x k windows: q, k, v of each position, by F.unfold."""
    return UnfoldSelfAttention(size.channels, size.heads, size.kernel_size, channels_last=False)


@contestant(SASA_LAST, same_as=SASA)
def sasa_last(size: Size) -> nn.Module:
    """The same by copies of strided windows, channels-last."""
    return UnfoldSelfAttention(size.channels, size.heads, size.kernel_size, channels_last=True)


@contestant(HALO)
def halo(size: Size) -> nn.Module:
    """HaloNet's attention (timm): 8 x 8 blocks see a halo of k // 2."""
    return peers.HaloAttention(size.channels, size.heads, size.kernel_size)


@contestant(SWIN)
def swin(size: Size) -> nn.Module:
    """Swin's attention (timm) in 7 x 7 windows whatever k is, relative bias, by SDPA."""
    return _swin(size, shifted=False)


@contestant(SWIN_SHIFTED)
def swin_shifted(size: Size) -> nn.Module:
    """The same with shifted windows, as in every second block of Swin."""
    return _swin(size, shifted=True)


def _swin(size: Size, shifted: bool) -> nn.Module:
    heads = max(1, size.channels // SWIN_HEAD)
    return peers.SwinAttention(size.channels, heads, (size.height, size.width), shifted)


@contestant(KEY_ONLY)
def key_only(size: Size) -> nn.Module:
    """Ours: key-only attention (LinGlo), global, by the implementation chosen."""
    return KeyOnlyAttention(size.channels, size.heads)


@contestant(KEY_ONLY_PLAIN, same_as=KEY_ONLY)
def key_only_plain(size: Size) -> nn.Module:
    """The same with keys and values as maps."""
    return peers.Forced(key_only(size), 'key_only_attention=plain')


@contestant(KEY_ONLY_FOLDED, same_as=KEY_ONLY)
def key_only_folded(size: Size) -> nn.Module:
    """The same with all projections folded into one matrix for each image."""
    return peers.Forced(key_only(size), 'key_only_attention=folded')


@contestant(SDPA)
def sdpa(size: Size) -> nn.Module:
    """Dot-product attention between all positions by PyTorch's scaled_dot_product_attention."""
    return GlobalAttention(size.channels, size.heads)


@contestant(DOT_PRODUCT, same_as=SDPA)
def dot_product(size: Size) -> nn.Module:
    """The same by matrix products and a softmax: the N x N weights exist."""
    return peers.DotProductAttention(size.channels, size.heads)


@contestant(SAG)
def sag(size: Size) -> nn.Module:
    """Ours: SAG's shifted embeddings and the attention over them, from images."""
    return peers.EmbedAndAttend(size.arch)


@contestant(SAG_ONE_BY_ONE, same_as=SAG)
def sag_one_by_one(size: Size) -> nn.Module:
    """The same as published: one convolution after another, keys and values of every variant."""
    return peers.Forced(sag(size), ONE_BY_ONE)
