"""State-dict map of the official SAG checkpoints (PyTorch).

Names of the release: ``to_patch_embedding.projections.{t}``; ``layers.{i}.0``, stage i with
``pos_emb``, ``norm1``, ``norm2`` and ``layers.{j}``, of which ``.0`` is the attention and ``.1``
the FFN; ``layers.{i}.1``, the down-sampling; ``norm``; ``mlp_head``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS
from ..models import SAGViT
from ..models.base import per_stage
from .rules import CheckpointError, Rule, apply_rules

EMBED = 'to_patch_embedding.projections'
# What shapes do not tell, by what they do: the release has these patch embeddings alone.
STRIDE_PADDING = {arch['kernel_size']: (arch['stride'], arch['padding']) for arch in SAGViT.arch_zoo.values()}
SHIFTS_BORDER = {
    len(IMAGENET_SHIFTS): (IMAGENET_SHIFTS, 'extend'),
    len(CIFAR_SHIFTS): (CIFAR_SHIFTS, 'roll'),
}


def convert_sag(
    checkpoint: Mapping[str, Any],
    arch: str | Mapping | None = None,
    num_heads: int | Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converts an official checkpoint to a classifier's state dict.

    Args:
        checkpoint: content of the checkpoint, as :func:`read_torch_pickle` returns it.
        arch: architecture, a name or a dict; ``None`` takes it from the parameters' shapes.
        num_heads: attention heads, one number or one a stage, where shapes do not tell them: with
            keys and values for each head, in an architecture that is none of the published ones.

    Returns:
        The state dict, ``backbone.*`` and ``head.fc.*``, and a description: ``arch`` (a name or a
        dict), ``num_classes``, and ``dropped``, the entries of the checkpoint that are no weights.

    Raises:
        CheckpointError: if parameters are missing, left over or of other shapes than the
            architecture's, or the number of heads is not known.
        ValueError: for settings that the model cannot have.
    """
    if not isinstance(checkpoint.get('model'), Mapping):
        raise CheckpointError(
            f'no SAG checkpoint: it has no dict "model", but {sorted(map(str, checkpoint))}'
        )
    source = checkpoint['model']
    for name, parameter in source.items():
        if not isinstance(parameter, Tensor) or not parameter.is_floating_point():
            raise CheckpointError(f'parameter {name} is no tensor of numbers')
    if arch is None:
        arch = detect_arch(source, num_heads)
    settings = SAGViT.resolve_arch(arch, optional=('drop_path_rate',))
    backbone = SAGViT(settings, _get(source, f'{EMBED}.0.weight').shape[1], out_indices=-1)
    num_classes = len(_get(source, 'mlp_head.bias'))
    state_dict = apply_rules(list(_rules(settings, backbone)), source, backbone, num_classes)
    description = dict(
        arch=arch if isinstance(arch, str) else settings,
        num_classes=num_classes,
        dropped=sorted(str(key) for key in checkpoint if key != 'model'),
    )
    return state_dict, description


def detect_arch(
    source: Mapping[str, Tensor], num_heads: int | Sequence[int] | None = None
) -> str | dict[str, Any]:
    """Architecture of a checkpoint, from the names and shapes of its parameters.

    Args:
        source: parameters by name.
        num_heads: attention heads, where shapes do not tell them.

    Returns:
        A name, or settings as SAGViT's ``arch`` dict.

    Raises:
        CheckpointError: if a parameter that tells it is missing, the patch embedding is none of the
            release's, or the number of heads is not known.
    """
    stages = range(_count(source, r'layers\.\d+\.0\.pos_emb'))
    tables = [_get(source, f'layers.{i}.0.pos_emb') for i in stages]
    channels = tuple(table.shape[-1] for table in tables)
    settings = dict(
        channels=channels,
        depths=tuple(_count(source, rf'layers\.{i}\.0\.layers\.\d+\.') for i in stages),
        **_patch_embedding(source),
    )
    grid = math.isqrt(tables[0].shape[-2]) if tables else 0
    settings['image_size'] = grid * settings['stride']

    kv_channels = [len(_get(source, _key_value(i, 0))) // 2 for i in stages]
    settings['shared_kv'] = tuple(kv_channels) != channels
    published = next((a for a in SAGViT.arch_zoo.values() if settings.items() <= (a | dict(image_size=settings['image_size'])).items()), None)
    if num_heads is not None:
        settings['num_heads'] = per_stage('num_heads', num_heads, len(stages))
    elif settings['shared_kv']:
        settings['num_heads'] = tuple(
            c // max(kv, 1) for c, kv in zip(channels, kv_channels, strict=True)
        )
    elif published is not None:
        settings['num_heads'] = published['num_heads']
    else:
        raise CheckpointError(
            'the checkpoint is none of the published models, and its shapes do not tell the '
            'number of attention heads: give num_heads'
        )
    return next((name for name, a in SAGViT.arch_zoo.items() if a == settings), settings)


def _patch_embedding(source: Mapping[str, Tensor]) -> dict[str, Any]:
    num_variants = _count(source, r'to_patch_embedding\.projections\.\d+\.weight')
    kernel_size = _get(source, f'{EMBED}.0.weight').shape[-1]
    if kernel_size not in STRIDE_PADDING or num_variants not in SHIFTS_BORDER:
        raise CheckpointError(
            f"{num_variants} shifts and kernels of side {kernel_size} are none of the release's "
            f'patch embeddings: give arch, a dict'
        )
    stride, padding = STRIDE_PADDING[kernel_size]
    shifts, border = SHIFTS_BORDER[num_variants]
    return dict(
        kernel_size=kernel_size, stride=stride, padding=padding, shifts=shifts, border=border
    )


def _rules(settings: Mapping[str, Any], backbone: SAGViT) -> Iterator[Rule]:
    for kind in ('weight', 'bias'):
        sources = tuple(f'{EMBED}.{t}.{kind}' for t in range(len(settings['shifts'])))
        yield Rule(f'backbone.stem.{kind}', sources, lambda *parameters: torch.stack(parameters))
    last = len(settings['depths']) - 1
    for i, depth in enumerate(settings['depths']):
        source, target = f'layers.{i}.0', f'backbone.stages.{i}'
        grid = backbone.stages[i].position.table.shape[-3:-1]
        yield Rule(
            f'{target}.position.table', f'{source}.pos_emb', lambda p, grid=grid: p.unflatten(-2, grid)
        )
        for norm in ('norm1', 'norm2'):
            yield from _affine(f'{source}.{norm}', f'{target}.{norm}')
        for j in range(depth):
            yield from _block_rules(i, j, f'{target}.blocks.{j}')
        if i < last:
            yield from _affine(f'layers.{i}.1.conv', f'backbone.downsamples.{i}.embed.conv')
            yield from _affine(f'layers.{i}.1.norm', f'backbone.downsamples.{i}.norm')
    yield from _affine('norm', f'backbone.norms.{last}')
    yield from _affine('mlp_head', 'head.fc')


def _block_rules(i: int, j: int, target: str) -> Iterator[Rule]:
    kind = _kind(i, j)
    for name, layer in (
        ('attention.query', f'0.Wq_{kind}'),
        ('attention.key_value', f'0.Wkv_{kind}'),
        ('attention.out', '0.proj'),
        ('ffn.fc1', '1.fc1'),
        ('ffn.fc2', '1.fc2'),
    ):
        yield from _affine(f'layers.{i}.0.layers.{j}.{layer}', f'{target}.{name}')


def _affine(source: str, target: str) -> Iterator[Rule]:
    for kind in ('weight', 'bias'):
        yield Rule(f'{target}.{kind}', f'{source}.{kind}')


def _kind(i: int, j: int) -> str:
    """The release's name for the local layer, the first, and for the global ones."""
    return 'even' if i == j == 0 else 'odd'


def _key_value(i: int, j: int) -> str:
    return f'layers.{i}.0.layers.{j}.0.Wkv_{_kind(i, j)}.weight'


def _get(source: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in source or source[name].dim() == 0 or source[name].numel() == 0:
        raise CheckpointError(f'no SAG checkpoint: parameter {name} is missing or empty')
    return source[name]


def _count(source: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group() for match in (re.match(pattern, name) for name in source) if match})
