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
        arch: name of the architecture; ``None`` determines it from the parameters' shapes.
        window_sizes: new window sides of window self-attention, one for all stages or one per
            stage; the bias tables are resized. ``None`` keeps the sizes.
        kernel_sizes: the same for learned-query attention and its scale tables.
        config: the release's model configuration, used instead of the parameters' names and shapes.
            Needed for what these do not determine: queries that are not normalised, the scales
            'posneg', 'avg' and 'none', the heads 'qnav1' and 'qnav2', heads and windows of window
            self-attention without bias tables.

    Returns:
        The state dict, ``backbone.*``, ``head.fc.*`` and, with a QnA head, ``neck.*``, and a
        description: ``arch`` (a name or a dict), ``kernel_sizes``, ``window_sizes``,
        ``num_queries``, ``num_classes``, ``backbone`` (QnAViT's arguments), ``neck`` (the
        classifier's, as a config), and ``dropped``, the entries of the checkpoint that are not
        weights.

    Raises:
        CheckpointError: if parameters are missing, left over or of other shapes than the
            architecture's, or do not determine the model.
        ValueError: for invalid sizes, or both an arch and a config.
    """
    if arch is not None and config is not None:
        raise ValueError('a configuration contains the architecture: give arch or config')
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
            "kernel_sizes cannot be changed with position bias 'contextual_pos', which has no "
            'tables over window offsets to resize'
        )
    backbone = QnAViT(settings, out_indices=-1, **options)
    rules = list(
        classifier_rules(settings, options, window_sizes is not None, kernel_sizes is not None)
    )
    neck, neck_config = None, dict(type='GlobalAveragePooling')
    if contents.head != 'gap':
        pooling = _pooling(source, skip=contents.head == 'qnav2')
        neck, neck_config = QnAPooling(**pooling), dict(type='mmvitattn.QnAPooling', **pooling)
        rules += qna_rules(f'{HEAD}/{QNA}', 'neck', DEFAULTS, None)
    num_classes = len(get_parameter(source, f'{HEAD}/head_logits/bias'))
    state_dict = apply_rules(rules, source, backbone, num_classes, neck)
    architecture = dict(
        arch=name or settings,
        kernel_sizes=settings['kernel_sizes'],
        window_sizes=settings['window_sizes'],
    )
    changed = {key: value for key, value in options.items() if value != DEFAULTS[key]}
    if 'drop_path_rate' in settings:
        changed['drop_path_rate'] = settings['drop_path_rate']
    description = dict(
        architecture,
        num_queries=options['num_queries'],
        backbone=architecture | changed,
        num_classes=num_classes,
        neck=neck_config,
        dropped=sorted(str(key) for key in checkpoint if key not in used),
    )
    return state_dict, description


def _parameters(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], set[str]]:
    """Parameters and running statistics by name, and the entries that held them."""
    if not isinstance(checkpoint.get('params'), Mapping):
        raise CheckpointError(
            'not a QnA-ViT checkpoint: it lacks the dict "params" and has '
            f'{sorted(map(str, checkpoint))}'
        )
    source, used = dict(_flatten(checkpoint['params'])), {'params'}
    state = checkpoint.get('model_state')
    nested = state.get(STATISTICS) if isinstance(state, Mapping) else None
    for key, statistics in ((STATISTICS, checkpoint.get(STATISTICS)), ('model_state', nested)):
        if isinstance(statistics, Mapping):
            source.update(_flatten(statistics, f'{STATISTICS}/'))
            used.add(key)
    return source, used


def _pooling(source: Mapping[str, Tensor], skip: bool) -> dict[str, Any]:
    """Arguments of the classifier's QnAPooling."""
    num_queries, channels = get_parameter(source, f'{HEAD}/{QNA}/query', 2).shape
    table = get_parameter(source, f'{HEAD}/{QNA}/rpe_bias')
    num_heads = table.shape[-1] // num_queries
    return dict(in_channels=channels, num_heads=num_heads, map_size=side_of(table), skip=skip)


def _name(settings: Mapping[str, Any]) -> str | None:
    """Name of a published architecture; its window sizes may differ."""
    in_use = _in_use(settings)
    return next((name for name, a in QnAViT.arch_zoo.items() if _in_use(a) == in_use), None)


def _in_use(settings: Mapping[str, Any]) -> list:
    """Settings without window sizes, and with 0 for blocks that do not exist."""
    last = len(settings['qna_depths']) - 1
    qna = [depth > 0 or i < last for i, depth in enumerate(settings['qna_depths'])]
    lsa = [depth > 0 for depth in settings['lsa_depths']]
    lists = dict(qna_depths=qna, qna_heads=qna, kernel_sizes=qna, lsa_depths=lsa, lsa_heads=lsa)
    return [settings['base_channels']] + [
        [value * used for value, used in zip(settings[key], mask, strict=True)]
        for key, mask in lists.items()
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        name = f'{prefix}{key}'
        if isinstance(value, Mapping):
            yield from _flatten(value, f'{name}/')
        elif isinstance(value, np.ndarray) and value.dtype.kind == 'f':
            yield name, torch.from_numpy(value.astype(np.float32))
        else:
            raise CheckpointError(f'parameter {name} is not an array of floating-point numbers')
