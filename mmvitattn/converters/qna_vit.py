"""Official QnA-ViT checkpoints (JAX/Flax) as state dicts of classifiers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models import QnAPooling, QnAViT
from ..models.options import per_stage
from .qna_vit_rules import STATISTICS, classifier_rules, qna_rules
from .qna_vit_settings import (
    DEFAULTS,
    HEAD,
    QNA,
    Contents,
    contents_of_config,
    contents_of_parameters,
    side_of,
)
from .rules import apply_rules, get_parameter


def convert_qna_vit(
    checkpoint: Mapping[str, Any],
    arch: str | None = None,
    window_sizes: int | Sequence[int] | None = None,
    kernel_sizes: int | Sequence[int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converts an official checkpoint to a classifier's state dict.

    Args:
        checkpoint: content of the checkpoint, as :func:`read_flax_msgpack` returns it.
        arch: name of the architecture; ``None`` takes it from the parameters' shapes.
        window_sizes: new window sides of window self-attention, one or one a stage; the bias tables
            are resized. ``None`` keeps them.
        kernel_sizes: the same for learned-query attention and its scale tables.
        config: the release's model configuration, which takes the place of what the parameters
            tell. Needed for what leaves no trace in them: queries that are not normalised, the
            scales 'posneg', 'avg' and 'none', the heads 'qnav1' and 'qnav2', heads and windows of
            window self-attention without tables.

    Returns:
        The state dict, ``backbone.*``, ``head.fc.*`` and, with a QnA head, ``neck.*``, and a
        description: ``arch`` (a name or a dict), ``kernel_sizes``, ``window_sizes``,
        ``num_queries``, ``num_classes``, ``backbone`` (all that QnAViT needs, as a dict),
        ``neck`` (the classifier's, as a config), and ``dropped``, the entries of the checkpoint
        that are no weights.

    Raises:
        CheckpointError: if parameters are missing, left over or of other shapes than the
            architecture's, or do not tell what the model computes.
        ValueError: for sizes that the model cannot have, or both an arch and a config.
    """
    if arch is not None and config is not None:
        raise ValueError('a configuration has its architecture: give arch or config')
    source, used = _parameters(checkpoint)
    if config is None:
        contents = contents_of_parameters(source, arch)
    else:
        contents = contents_of_config(config)
    settings, options = dict(contents.arch), contents.options
    name = arch or _name(settings)
    num_stages = len(settings['qna_depths'])
    for key, sizes in (('kernel_sizes', kernel_sizes), ('window_sizes', window_sizes)):
        if sizes is not None:
            settings[key] = per_stage(key, sizes, num_stages)
    if kernel_sizes is not None and options['position_bias'] == 'contextual_pos':
        raise CheckpointError(
            "the maps of position bias 'contextual_pos' are no tables over offsets: their "
            'kernel_sizes cannot be changed'
        )
    backbone = QnAViT(settings, out_indices=-1, **options)
    pooling = _pooling(source, contents)
    neck = None if pooling is None else QnAPooling(**pooling)
    rules = list(
        classifier_rules(settings, options, window_sizes is not None, kernel_sizes is not None)
    )
    if pooling is not None:
        rules += qna_rules(f'{HEAD}/{QNA}', 'neck', DEFAULTS, None)
    num_classes = len(_get(source, f'{HEAD}/head_logits/bias'))
    state_dict = apply_rules(rules, source, backbone, num_classes, neck)
    description = dict(
        _architecture(name, settings, contents),
        num_classes=num_classes,
        neck=dict(type='GlobalAveragePooling')
        if pooling is None
        else dict(type='mmvitattn.QnAPooling', **pooling),
        dropped=sorted(str(key) for key in checkpoint if key not in used),
    )
    return state_dict, description


def _architecture(
    name: str | None, settings: Mapping[str, Any], contents: Contents
) -> dict[str, Any]:
    """What of the description is about the backbone."""
    sizes = {key: settings[key] for key in ('kernel_sizes', 'window_sizes')}
    given = {key: value for key, value in contents.options.items() if value != DEFAULTS[key]}
    if 'drop_path_rate' in settings:
        given['drop_path_rate'] = settings['drop_path_rate']
    arch = dict(arch=name or dict(settings), **sizes)
    return dict(arch, num_queries=contents.options['num_queries'], backbone=arch | given)


def _parameters(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """Parameters and running statistics by name, and the entries that held them."""
    if not isinstance(checkpoint.get('params'), Mapping):
        raise CheckpointError(
            f'no QnA-ViT checkpoint: it has no dict "params", but {sorted(map(str, checkpoint))}'
        )
    source, used = dict(_flatten(checkpoint['params'])), {'params'}
    state = checkpoint.get('model_state')
    nested = state.get(STATISTICS) if isinstance(state, Mapping) else None
    for key, statistics in ((STATISTICS, checkpoint.get(STATISTICS)), ('model_state', nested)):
        if isinstance(statistics, Mapping):
            source.update(_flatten(statistics, f'{STATISTICS}/'))
            used.add(key)
    return source, used


def _pooling(source: Mapping[str, Tensor], contents: Contents) -> dict[str, Any] | None:
    """Arguments of the classifier's QnAPooling, if it has one."""
    if contents.head == 'gap':
        return None
    num_queries, channels = _get(source, f'{HEAD}/{QNA}/query', 2).shape
    table = _get(source, f'{HEAD}/{QNA}/rpe_bias')
    return dict(
        in_channels=channels,
        num_heads=table.shape[-1] // num_queries,
        map_size=side_of(table),
        skip=contents.head == 'qnav2',
    )


def _name(settings: Mapping[str, Any]) -> str | None:
    in_use = _in_use(settings)
    return next((name for name, a in QnAViT.arch_zoo.items() if _in_use(a) == in_use), None)


def _in_use(settings: Mapping[str, Any]) -> tuple:
    """What makes an architecture: settings of blocks that exist, window sizes aside."""
    last = len(settings['qna_depths']) - 1
    qna = [depth > 0 or i < last for i, depth in enumerate(settings['qna_depths'])]
    lsa = [depth > 0 for depth in settings['lsa_depths']]
    heads = [h * used for h, used in zip(settings['qna_heads'], qna, strict=True)]
    kernel_sizes = [k * used for k, used in zip(settings['kernel_sizes'], qna, strict=True)]
    lsa_heads = [h * used for h, used in zip(settings['lsa_heads'], lsa, strict=True)]
    depths = (tuple(settings['qna_depths']), tuple(settings['lsa_depths']))
    return settings['base_channels'], depths, heads, kernel_sizes, lsa_heads


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        name = f'{prefix}{key}'
        if isinstance(value, Mapping):
            yield from _flatten(value, f'{name}/')
        elif isinstance(value, np.ndarray) and value.dtype.kind == 'f':
            yield name, torch.from_numpy(value.astype(np.float32))
        else:
            raise CheckpointError(f'parameter {name} is no array of numbers')


def _get(source: Mapping[str, Tensor], name: str, least_axes: int = 1) -> Tensor:
    return get_parameter(source, name, 'QnA-ViT', least_axes)
