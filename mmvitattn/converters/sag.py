"""State-dict map of the official SAG checkpoints (PyTorch).

Names of the release: ``to_patch_embedding.projections.{t}``; ``layers.{i}.0``, stage i with
``pos_emb``, ``norm1``, ``norm2`` and ``layers.{j}``, of which ``.0`` is the attention and ``.1``
the FFN; ``layers.{i}.1``, the down-sampling; ``norm``; ``mlp_head``. The linear maps of the local
layer, the first one, end with ``_even``, those of the global layers with ``_odd``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layers.shifted import CIFAR_SHIFTS, IMAGENET_SHIFTS
from ..models import SAGViT
from ..models.options import per_stage
from .rules import Rule, apply_rules, count, get_parameter

EMBED = 'to_patch_embedding.projections'
# The release's patch embeddings: stride and padding by kernel size, shifts by their number.
STRIDE_PADDING = {
    arch['kernel_size']: (arch['stride'], arch['padding']) for arch in SAGViT.arch_zoo.values()
}
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
        arch: architecture, a name or a dict; ``None`` determines it from the parameters' shapes.
        num_heads: attention heads, one number or one per stage, for the description. No parameter
            depends on them; by default they are known only for published models and for keys and
            values shared by all heads.

    Returns:
        The state dict, ``backbone.*`` and ``head.fc.*``, and a description: ``arch`` (a name or a
        dict, without ``num_heads`` where it is unknown), ``num_classes``, and ``dropped``, the
        entries of the checkpoint that are not weights.

    Raises:
        CheckpointError: if parameters are missing, left over or of other shapes than the
            architecture's.
        ValueError: for invalid settings, or both ``arch`` and ``num_heads``.
    """
    if not isinstance(checkpoint.get('model'), Mapping):
        raise CheckpointError(
            'not a SAG checkpoint: it lacks the dict "model" and has '
            f'{sorted(map(str, checkpoint))}'
        )
    source = {}
    for name, parameter in checkpoint['model'].items():
        if not isinstance(parameter, Tensor) or not parameter.is_floating_point():
            raise CheckpointError(f'parameter {name} is not a tensor of floating-point numbers')
        source[name] = parameter.detach().float()
    if arch is not None and num_heads is not None:
        raise ValueError('an architecture contains the number of heads: give arch or num_heads')
    if arch is None:
        arch = detect_arch(source, num_heads)
    settings = SAGViT.resolve_arch(arch, optional=('drop_path_rate', 'num_heads'))
    any_heads = dict(num_heads=(1,) * len(settings['channels']))
    in_channels = get_parameter(source, f'{EMBED}.0.weight', 4).shape[1]
    backbone = SAGViT(any_heads | settings, in_channels, out_indices=-1)
    num_classes = len(get_parameter(source, 'mlp_head.bias'))
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
        num_heads: attention heads, if the shapes do not determine them.

    Returns:
        A name, or SAGViT's ``arch`` dict, without ``num_heads`` if it is unknown.

    Raises:
        CheckpointError: if a parameter is missing, or the patch embedding is not one of the
            release's.
    """
    stages = range(max(1, count(source, r'layers\.\d+\.0\.pos_emb')))
    tables = [get_parameter(source, f'layers.{i}.0.pos_emb', 2) for i in stages]
    channels = tuple(table.shape[-1] for table in tables)
    kv_weights = [get_parameter(source, f'{_attention(i, 0)[1]}.weight') for i in stages]
    kv_channels = tuple(len(weight) // 2 for weight in kv_weights)
    settings: dict[str, Any] = dict(
        channels=channels,
        depths=tuple(count(source, rf'layers\.{i}\.0\.layers\.\d+\.') for i in stages),
        shared_kv=kv_channels != channels,
        **_patch_embedding(source),
    )
    published = [a for a in SAGViT.arch_zoo.values() if settings.items() <= a.items()]
    if num_heads is not None:
        settings['num_heads'] = per_stage('num_heads', num_heads, len(stages))
    elif settings['shared_kv']:
        heads = (c // max(kv, 1) for c, kv in zip(channels, kv_channels, strict=True))
        settings['num_heads'] = tuple(heads)
    elif published:
        settings['num_heads'] = published[0]['num_heads']
    settings['image_size'] = math.isqrt(tables[0].shape[-2]) * settings['stride']
    return next((name for name, a in SAGViT.arch_zoo.items() if a == settings), settings)


def _patch_embedding(source: Mapping[str, Tensor]) -> dict[str, Any]:
    num_variants = count(source, r'to_patch_embedding\.projections\.\d+\.weight')
    kernel_size = get_parameter(source, f'{EMBED}.0.weight', 4).shape[-1]
    if kernel_size not in STRIDE_PADDING or num_variants not in SHIFTS_BORDER:
        raise CheckpointError(
            f'the release has no patch embedding with {num_variants} shifts and kernels of side '
            f'{kernel_size}: give arch, a dict'
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
        grid = backbone.get_parameter(f'stages.{i}.position.table').shape[-3:-1]
        to_grid = partial(Tensor.unflatten, dim=-2, sizes=grid)
        yield Rule(f'{target}.position.table', f'{source}.pos_emb', to_grid)
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
    query, key_value = _attention(i, j)
    layer = f'layers.{i}.0.layers.{j}'
    yield from _affine(query, f'{target}.attention.query')
    yield from _affine(key_value, f'{target}.attention.key_value')
    yield from _affine(f'{layer}.0.proj', f'{target}.attention.out')
    for name in ('fc1', 'fc2'):
        yield from _affine(f'{layer}.1.{name}', f'{target}.ffn.{name}')


def _attention(i: int, j: int) -> tuple[str, str]:
    """The release's names of the linear maps to queries and to keys and values."""
    kind = 'even' if i == j == 0 else 'odd'
    layer = f'layers.{i}.0.layers.{j}.0'
    return f'{layer}.Wq_{kind}', f'{layer}.Wkv_{kind}'


def _affine(source: str, target: str) -> Iterator[Rule]:
    for kind in ('weight', 'bias'):
        yield Rule(f'{target}.{kind}', f'{source}.{kind}')
