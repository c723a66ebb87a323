"""The attention layers that are compared, and the sizes at which they are compared.

Maps are (B, H, W, C) before and after a layer; SAG's stem starts from images (B, 3, H, W).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmvitattn.layers import GlobalAttention, KeyOnlyAttention, QnALayer
from mmvitattn.models import SAGViT

from . import MODES, Builder, Case, Contestant, Group, Size, modules


class EmbedAndAttend(nn.Module):
    """SAG's shifted patch embedding and the local attention over its variants."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        settings = SAGViT.arch_zoo[arch]
        first_stage = {key: settings[key][:1] for key in SAGViT.stage_keys}
        model: Any = SAGViT({**settings, **first_stage})
        self.embed, self.attention = model.stem, model.stages[0].blocks[0].attention

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to a map (B, H', W', C)."""
        return self.attention(self.embed(images.permute(0, 2, 3, 1)))


def _sag(s: Size) -> nn.Module:
    return EmbedAndAttend(s.arch)


def _layer(layer: Callable[..., nn.Module], **options: bool) -> Builder:
    return lambda s: layer(s.channels, s.heads, s.kernel_size, **options)


def _global(layer: Callable[..., nn.Module]) -> Builder:
    return lambda s: layer(s.channels, s.heads)


def _window_sum(**options: bool) -> Builder:
    return lambda s: modules.WindowSum(s.heads, s.kernel_size, **options)


def _swin(shifted: bool) -> Builder:
    return lambda s: modules.SwinAttention(s.channels, (s.height, s.width), shifted)


def _flex(s: Size) -> nn.Module:
    return modules.FlexNeighbourhood(s.channels, s.heads, s.kernel_size, (s.height, s.width))


def forced(build: Builder, setting: str) -> Builder:
    """A builder of modules that run with some implementations of our ops forced."""
    return lambda s: modules.Forced(build(s), setting)


def _compiled(build: Builder, setting: str = '') -> Builder:
    # Forced from outside, so that the compiler need not trace how implementations are chosen.
    return lambda s: modules.Forced(cast(nn.Module, torch.compile(build(s))), setting)


QNA_LOOP = 'learned_query_attention=offset_loop'
QNA_STACK = 'learned_query_attention=window_stack'  # the reference loops in Python
ONE_BY_ONE = 'shifted_patch_embedding=reference,local_shift_attention=reference'
_qna, _key_only, _sum = _layer(QnALayer), _global(KeyOnlyAttention), _window_sum()
_unfold, _unfold_last = (_layer(modules.UnfoldLearnedQuery, channels_last=c) for c in (False, True))
_sasa, _sasa_last = (_layer(modules.UnfoldSelfAttention, channels_last=c) for c in (False, True))
_sum_by_unfolding = _window_sum(unfolds=True)

LAYERS = {
    'QnA': Contestant('Ours: learned-query attention, 2 queries in k x k windows', _qna),
    'QnA, loop over offsets': Contestant(
        'a loop over window offsets, exact for scores of any size', forced(_qna, QNA_LOOP), 'QnA'
    ),
    'unfold, learned queries': Contestant('F.unfold of scores and values', _unfold, 'QnA'),
    'unfold, learned queries, channels-last': Contestant(
        'QnA by copies of strided windows', _unfold_last, 'QnA'
    ),
    'unfold (SASA)': Contestant(
        'stand-alone self-attention in k x k windows, q, k, v of each position, by F.unfold', _sasa
    ),
    'unfold (SASA), channels-last': Contestant(
        'stand-alone self-attention by copies of strided windows', _sasa_last, 'unfold (SASA)'
    ),
    'HaloNet': Contestant(
        'HaloNet (timm): 8 x 8 blocks see a halo of k // 2', _layer(modules.HaloAttention)
    ),
    'Swin windows': Contestant(
        'Swin (timm): 7 x 7 windows for every k, relative bias, by SDPA', _swin(shifted=False)
    ),
    'Swin windows, shifted': Contestant(
        'Swin (timm), shifted windows, as in every second block', _swin(shifted=True)
    ),
    'key-only': Contestant('Ours: key-only attention (LinGlo), global', _key_only),
    'key-only, plain': Contestant(
        'keys and values as maps', forced(_key_only, 'key_only_attention=plain'), 'key-only'
    ),
    'key-only, folded': Contestant(
        'one matrix for each image', forced(_key_only, 'key_only_attention=folded'), 'key-only'
    ),
    'SDPA': Contestant(
        "dot-product attention by PyTorch's scaled_dot_product_attention", _global(GlobalAttention)
    ),
    'dot product, plain softmax': Contestant(
        'N x N weights in memory', _global(modules.DotProductAttention), 'SDPA'
    ),
    'SAG': Contestant("Ours: SAG's shifted embeddings and the attention over them", _sag),
    'SAG, one by one': Contestant(
        'as published: one convolution after another', forced(_sag, ONE_BY_ONE), 'SAG'
    ),
    # On GPUs only.
    'unfold, compiled': Contestant(
        'QnA by copies of strided windows under torch.compile', _compiled(_unfold_last), 'QnA'
    ),
    'QnA, stack of windows, compiled': Contestant(
        'a stack of shifted maps under torch.compile', _compiled(_qna, QNA_STACK), 'QnA'
    ),
    'unfold (SASA), compiled': Contestant(
        'strided windows under torch.compile', _compiled(_sasa_last), 'unfold (SASA)'
    ),
    'flex_attention, neighbourhood mask': Contestant(
        'dot-product attention in k x k windows by a compiled, block-masked flex_attention', _flex
    ),
    'key-only, reference, compiled': Contestant(
        'under torch.compile', _compiled(_key_only, 'key_only_attention=reference'), 'key-only'
    ),
    'SAG, one by one, compiled': Contestant(
        'SAG as published under torch.compile', _compiled(_sag, ONE_BY_ONE), 'SAG'
    ),
    'window sum': Contestant("Ours: QnA's window sum from given scores and values", _sum),
    'window sum, loop over offsets': Contestant(
        'a loop over window offsets', forced(_sum, QNA_LOOP), 'window sum'
    ),
    'window sum, unfold': Contestant('copies of strided windows', _sum_by_unfolding, 'window sum'),
    'window sum, unfold, compiled': Contestant(
        'strided windows under torch.compile', _compiled(_sum_by_unfolding), 'window sum'
    ),
}

CHANNELS, QNA_HEADS = 64, 8  # of QnA-ViT-tiny's first stage
MAP, DENSE_MAP = (56, 56), (200, 334)  # stride 4 of 224 x 224 and of 800 x 1333
SAG_SIDES = {'small': 224, 'tiny': 224, 'cifar_tiny': 32}  # of the images of each architecture
UNFOLDS = ('unfold, learned queries', 'unfold, learned queries, channels-last')
SASAS = ('unfold (SASA)', 'unfold (SASA), channels-last')
SWINS = ('Swin windows', 'Swin windows, shifted')
KEY_ONLY = ('key-only', 'key-only, plain', 'key-only, folded')
QUADRATIC = ('SDPA', 'dot product, plain softmax')
LARGEST_SASA = 11  # window side; beyond, a call takes seconds and gigabytes
LARGEST_QUADRATIC = 112  # side of a map whose N x N weights take 0.6 GB
# Only on GPUs, where compilation pays.
COMPILED = (
    *('unfold, compiled', 'QnA, stack of windows, compiled', 'unfold (SASA), compiled'),
    'flex_attention, neighbourhood mask',
)
WINDOW_TEXT = (
    'QnA has 2 queries and 8 heads; unfold attention has as many heads, Swin windows of 7 x 7 '
    'for every k and 32 channels per head, HaloNet blocks of 8 x 8 with a halo of k // 2.'
)


def attention_groups(quick: bool, on_gpu: bool) -> list[Group]:
    """What ``benchmark.py attention`` measures; on a GPU larger batches and more contestants."""
    if quick:
        return [
            _window_group('window', Size(1, 13, 15, 16, QNA_HEADS), (3, 7), SASAS),
            _global_group((7, 14)),
            sag_group({'small': 32, 'tiny': 32, 'cifar_tiny': 16}, batch=1),
        ]
    batch, dense_batch = (128, 8) if on_gpu else (8, 1)
    small = Size(batch, *MAP, CHANNELS, QNA_HEADS)
    large = Size(dense_batch, *DENSE_MAP, CHANNELS, QNA_HEADS)
    sizes = (28, 56, 112, 224, 448)
    windows = (*SASAS, *COMPILED) if on_gpu else SASAS
    groups = [
        _window_group('window', small, (3, 7, 11, 15), windows),
        _window_group('dense_map', large, (3, 7, 11), windows if on_gpu else ()),
        _global_group(sizes, ('key-only, reference, compiled',) if on_gpu else ()),
        sag_group(SAG_SIDES, batch, more=('SAG, one by one, compiled',) if on_gpu else ()),
    ]
    return [*groups, _window_sum_group(small, large)] if on_gpu else groups


def _window_group(
    key: str, size: Size, kernel_sizes: tuple[int, ...], more: tuple[str, ...] = ()
) -> Group:
    """Local attention over window sides."""
    cases = []
    for k in kernel_sizes:
        others = tuple(name for name in more if name not in SASAS or k <= LARGEST_SASA)
        names = ('QnA', 'QnA, loop over offsets', *UNFOLDS, *others, 'HaloNet', *SWINS)
        cases.append(Case(replace(size, kernel_size=k), names))
    rounds = 3 if size.height > MAP[0] else 5
    title = f'Local attention, {size.describe()}'
    return Group(key, title, WINDOW_TEXT, UNFOLDS[0], cases, 'window side', least_rounds=rounds)


def _global_group(sides: tuple[int, ...], more: tuple[str, ...] = ()) -> Group:
    """Global attention over sides of square maps."""
    cases = []
    for side in sides:
        quadratic = QUADRATIC if side <= LARGEST_QUADRATIC else ()
        cases.append(Case(Size(1, side, side, CHANNELS), (*KEY_ONLY, *quadratic, *more)))
    limit = f'{LARGEST_QUADRATIC} x {LARGEST_QUADRATIC}'
    text = f'One head, as in the first stage of LinGlo; dot-product attention up to {limit}.'
    title = f'Global attention, {CHANNELS} channels, batch 1'
    return Group('global', title, text, 'SDPA', cases, 'positions')


def sag_group(
    sides: dict[str, int], batch: int, modes: tuple[str, ...] = MODES, more: tuple[str, ...] = ()
) -> Group:
    """SAG's embedding and local attention, and ``more``, against the published form."""
    names = ('SAG', 'SAG, one by one', *more)
    cases = [Case(Size(batch, n, n, arch=arch), names, modes) for arch, n in sides.items()]
    text = 'From images to the output of the local attention, 10 or (CIFAR) 18 shifts.'
    title = 'SAG: shifted embedding and local attention'
    return Group('sag', title, text, names[1], cases, images=True)


def _window_sum_group(*sizes: Size) -> Group:
    names = tuple(name for name in LAYERS if name.startswith('window sum'))
    cases = []
    for size in sizes:
        grid = (size.batch, size.height, size.width)
        shapes = ((*grid, 2, size.heads), (*grid, size.heads, size.channels // size.heads))
        cases += [Case(replace(size, kernel_size=k), names, shapes=shapes) for k in (3, 7)]
    text = 'From scores and values to the output, without projections.'
    return Group('window_sum', 'QnA: the window sum', text, 'window sum, unfold', cases)
