"""State-dict map of the official SAG checkpoints (PyTorch).

Names of the release: ``to_patch_embedding.projections.{t}``; ``layers.{i}.0``, stage i with
``pos_emb``, ``norm1``, ``norm2`` and ``layers.{j}``, of which ``.0`` is the attention and ``.1``
the FFN; ``layers.{i}.1``, the down-sampling; ``norm``; ``mlp_head``.
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
# The release's patch embeddings: what shapes do not tell, by what they tell.
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
        arch: architecture, a name or a dict; ``None`` takes it from the parameters' shapes.
        num_heads: attention heads, one number or one a stage, for the description. Shapes do not
            tell them where each head has its own keys and values, and no parameter depends on them:
            without, they are known for shared keys and values and the published models alone.

    Returns:
        The state dict, ``backbone.*`` and ``head.fc.*``, and a description: ``arch`` (a name or a
        dict, without ``num_heads`` where they are not known), ``num_classes``, and ``dropped``, the
        entries of the checkpoint that are no weights.

    Raises:
        CheckpointError: if parameters are missing, left over or of other shapes than the
            architecture's.
        ValueError: for settings that the model cannot have, or both of them given.
    """
    if not isinstance(checkpoint.get('model'), Mapping):
        raise CheckpointError(
            f'no SAG checkpoint: it has no dict "model", but {sorted(map(str, checkpoint))}'
        )
    source = {}
    for name, parameter in checkpoint['model'].items():
        if not isinstance(parameter, Tensor) or not parameter.is_floating_point():
            raise CheckpointError(f'parameter {name} is no tensor of numbers')
        source[name] = parameter.detach().float()
    if arch is not None and num_heads is not None:
        raise ValueError('an architecture has its number of heads: give arch or num_heads')
    if arch is None:
        arch = detect_arch(source, num_heads)
    settings = SAGViT.resolve_arch(arch, optional=('drop_path_rate', 'num_heads'))
    any_heads = dict(num_heads=(1,) * len(settings['channels']))
    in_channels = _get(source, f'{EMBED}.0.weight', 4).shape[1]
    backbone = SAGViT(any_heads | settings, in_channels, out_indices=-1)
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
        A name, or settings as SAGViT's ``arch`` dict, without ``num_heads`` if nothing tells them.

    Raises:
        CheckpointError: if a parameter that tells it is missing, or the patch embedding is none of
            the release's.
    """
    stages = range(count(source, r'layers\.\d+\.0\.pos_emb'))
    if not stages:
        raise CheckpointError('no SAG checkpoint: parameter layers.0.0.pos_emb is missing')
    tables = [_get(source, f'layers.{i}.0.pos_emb', 2) for i in stages]
    channels = tuple(table.shape[-1] for table in tables)
    kv_channels = tuple(len(_get(source, f'{_key_value(i, 0)}.weight')) // 2 for i in stages)
    settings = dict(
        channels=channels,
        depths=tuple(count(source, rf'layers\.{i}\.0\.layers\.\d+\.') for i in stages),
        shared_kv=kv_channels != channels,
        **_patch_embedding(source),
    )
    if num_heads is not None:
        settings['num_heads'] = per_stage('num_heads', num_heads, len(stages))
    elif settings['shared_kv']:
        heads = (c // max(kv, 1) for c, kv in zip(channels, kv_channels, strict=True))
        settings['num_heads'] = tuple(heads)
    else:
        settings.update(_published_heads(settings))
    settings['image_size'] = math.isqrt(tables[0].shape[-2]) * settings['stride']
    return next((name for name, a in SAGViT.arch_zoo.items() if a == settings), settings)


def _published_heads(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    for published in SAGViT.arch_zoo.values():
        if all(published[key] == value for key, value in settings.items()):
            return dict(num_heads=published['num_heads'])
    return {}


def _patch_embedding(source: Mapping[str, Tensor]) -> dict[str, Any]:
    num_variants = count(source, r'to_patch_embedding\.projections\.\d+\.weight')
    kernel_size = _get(source, f'{EMBED}.0.weight', 4).shape[-1]
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
        yield Rule(f'backbone.stem.{kind}', sources, _stack)
    last = len(settings['depths']) - 1
    for i, depth in enumerate(settings['depths']):
        source, target = f'layers.{i}.0', f'backbone.stages.{i}'
        grid = backbone.stages[i].position.table.shape[-3:-1]
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
    kind = _kind(i, j)
    for name, layer in (
        ('attention.query', f'0.Wq_{kind}'),
        ('attention.key_value', f'0.Wkv_{kind}'),
        ('attention.out', '0.proj'),
        ('ffn.fc1', '1.fc1'),
        ('ffn.fc2', '1.fc2'),
    ):
        yield from _affine(f'layers.{i}.0.layers.{j}.{layer}', f'{target}.{name}')


def _stack(*parameters: Tensor) -> Tensor:
    return torch.stack(parameters)


def _affine(source: str, target: str) -> Iterator[Rule]:
    for kind in ('weight', 'bias'):
        yield Rule(f'{target}.{kind}', f'{source}.{kind}')


def _kind(i: int, j: int) -> str:
    """The release's name for the local layer, the first, and for the global ones."""
    return 'even' if i == j == 0 else 'odd'


def _key_value(i: int, j: int) -> str:
    return f'layers.{i}.0.layers.{j}.0.Wkv_{_kind(i, j)}'


def _get(source: Mapping[str, Tensor], name: str, least_axes: int = 1) -> Tensor:
    return get_parameter(source, name, 'SAG', least_axes)
