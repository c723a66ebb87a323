"""The model that an official QnA-ViT checkpoint holds, from its parameters or its configuration.

The names of options are those of :class:`~mmvitattn.models.QnAViT`. Not all of them can be
determined from the parameters; the published models have the defaults.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import CheckpointError
from ..models import QnAViT
from .rules import count, get_parameter

STEM, HEAD = 'StemBlock_0', 'ClassificationHead_0'
QNA, LSA = 'FusedKQnA_0', 'MultiHeadSelfAttention_0'
LSA_TABLE = 'RelativePositionalEmbedding_0/rpe_bias'
AVGPOOL = 'AvgPool1x1Conv_0/Conv_0/kernel'
POSITION_TABLES = {  # parameter and its axis of window offsets
    'relative_pos': ('rpe_bias', 0),
    'absolute_pos': ('absolute_pos_embedding', 0),
    'contextual_pos': ('rpe_bias/kernel', 2),
}


def _same(*names: str, **others: Any) -> dict[str, Any]:
    return {name: name for name in names} | others


# Our options: the release's key, and our value for each of its values (``None``: any, the same).
# The first value is that of the published models.
CONFIG_OPTIONS: dict[str, tuple[str, dict[str, Any] | None]] = dict(
    num_queries=('qna_num_queries', None),
    normalize_queries=('qna_normalize_q', None),
    position_bias=(
        'qna_pos_embedding_type',
        _same('relative_pos', 'absolute_pos', 'contextual_pos', none=None),
    ),
    attention_scale=(
        'qna_attention_scale',
        _same('normal', 'normal_elementwise', 'posneg', 'ones', 'avg', none=None),
    ),
    layer_scale=('layer_scale', None),
    stem=('stem_type', _same('patch', 'resnet')),
    downsample_skip=('qna_down_skip', dict(conv1x1='conv', avgpool='avgpool')),
    window_position_bias=('lsa_pos_embedding_type', _same('relative_pos', none=None)),
    normalize_stop_grads=('qna_normalize_stop_grads', None),
    drop_path_downsample=('drop_path_downsample', None),
)
CONFIG_ARCH = dict(
    qna_depths='qna_layers',
    qna_heads='qna_heads',
    kernel_sizes='qna_receptive_field',
    lsa_depths='lsa_layers',
    lsa_heads='lsa_heads',
    window_sizes='lsa_window',
)
HEADS = _same('gap', 'qnav1', 'qnav2')
DEFAULTS = {key: inspect.signature(QnAViT).parameters[key].default for key in CONFIG_OPTIONS}
REMEDY = 'give the official configuration: config=..., or --config FILE.json'
UNUSED = 1  # number of heads and size of windows in stages without such blocks


class Contents(NamedTuple):
    """A model of the release."""

    arch: dict[str, Any]  # QnAViT's ``arch``
    options: dict[str, Any]  # QnAViT's other options
    head: str  # one of HEADS


def read_official_config(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file with the keys of the release's model configuration.

    Raises:
        CheckpointError: if the file does not hold a JSON object.
        OSError: if it cannot be read.
    """
    try:
        config = json.loads(Path(path).read_text())
    except ValueError as error:
        raise CheckpointError(f'{path}: not a JSON file: {error}') from None
    if not isinstance(config, dict):
        raise CheckpointError(f'{path}: not a JSON object, but a {type(config).__name__}')
    return config


def contents_of_config(config: Mapping[str, Any]) -> Contents:
    """The model that a configuration of the release describes.

    Missing options have the values of the published models.

    Raises:
        CheckpointError: if a key of the architecture is missing, or a value is unknown.
    """
    missing = [key for key in ('base_dim', *CONFIG_ARCH.values()) if key not in config]
    if missing:
        raise CheckpointError(f'the official configuration lacks {", ".join(missing)}')
    kinds: dict[str, tuple[type, ...]] = dict.fromkeys(CONFIG_ARCH.values(), (list, tuple))
    kinds |= dict.fromkeys(('base_dim', 'n_stages', 'qna_num_queries'), (int,))
    for key, kind in kinds.items():
        if key in config and not isinstance(config[key], kind):
            raise CheckpointError(
                f'the official configuration has {key}={config[key]!r}, which is not of type '
                f'{kind[0].__name__}'
            )
    num_stages = config.get('n_stages', len(config['qna_layers']))
    arch = {ours: tuple(config[theirs][:num_stages]) for ours, theirs in CONFIG_ARCH.items()}
    arch = dict(base_channels=config['base_dim'], **arch)
    if 'drop_path' in config:
        arch['drop_path_rate'] = config['drop_path']
    options = {
        option: _choose(config, key, choices) if choices else config.get(key, DEFAULTS[option])
        for option, (key, choices) in CONFIG_OPTIONS.items()
    }
    if isinstance(options['normalize_queries'], list | tuple):
        normalize = tuple(options['normalize_queries'][:num_stages])
        options['normalize_queries'] = normalize[0] if len(set(normalize)) == 1 else normalize
    _choose(config, 'qna_implementation', {'fused_efficient': None})
    return Contents(arch, options, _choose(config, 'classification_head_type', HEADS))


def _choose(config: Mapping[str, Any], key: str, choices: Mapping[str, Any]) -> Any:
    value = config.get(key, next(iter(choices)))
    if not isinstance(value, str) or value not in choices:
        raise CheckpointError(
            f'the official configuration has {key}={value!r}, but QnA-ViT supports '
            f'{", ".join(map(repr, choices))}'
        )
    return choices[value]


def contents_of_parameters(source: Mapping[str, Tensor], arch: str | None = None) -> Contents:
    """The model that the names and shapes of a checkpoint's parameters describe.

    Normalisation of the queries cannot be determined: it is assumed, as in all published models.

    Args:
        source: parameters by name, with '/' between the levels.
        arch: name of the architecture; ``None`` determines it from the shapes.

    Raises:
        CheckpointError: if a parameter is missing, or if the parameters fit several models with
            different outputs.
    """
    stem = 'resnet' if stem_kernel('resnet') in source else 'patch'
    window_tables = _any(source, rf'.*/{LSA_TABLE}') or not _any(source, rf'.*/{LSA}/.*')
    options = dict(
        DEFAULTS,
        stem=stem,
        downsample_skip='avgpool' if _any(source, rf'.*/{AVGPOOL}') else 'conv',
        # Its start value is unknown and not needed: the factors are loaded.
        layer_scale=1.0 if _any(source, r'.*/LayerScale_0/scale_param') else None,
        window_position_bias='relative_pos' if window_tables else None,
    )
    stages, layers = [], []
    num_stages = count(source, r'QnAStage_\d+/QnA_Block_\d+_stride_2/') + 1
    for i in range(num_stages):
        depth = count(source, rf'QnAStage_{i}/QnA_Block_\d+/')
        stage = dict(qna_depths=depth, qna_heads=UNUSED, kernel_sizes=UNUSED)
        if depth or i < num_stages - 1:
            block = 'QnA_Block_1' if depth else 'QnA_Block_1_stride_2'
            layers.append(_qna_layer(source, f'QnAStage_{i}/{block}/{QNA}'))
            stage['qna_heads'] = layers[-1]['num_heads'] // (1 if depth else 2)
            stage['kernel_sizes'] = layers[-1]['kernel_size']
        stages.append(stage | _window_settings(source, i, window_tables or arch is not None))
    # For a window of one position, the types of scale have the same shapes.
    layers = [layer for layer in layers if layer['kernel_size'] > 1] or layers
    for layer in layers[:1]:
        options |= {key: value for key, value in layer.items() if key in options}
    if f'{HEAD}/{QNA}/query' in source:
        raise CheckpointError(f"the heads 'qnav1' and 'qnav2' have the same parameters: {REMEDY}")
    if arch is not None:
        return Contents(QnAViT.resolve_arch(arch), options, 'gap')
    settings: dict[str, Any] = {key: tuple(stage[key] for stage in stages) for key in stages[0]}
    base_channels = get_parameter(source, stem_kernel(stem)).shape[-1]
    return Contents(dict(base_channels=base_channels, **settings), options, 'gap')


def _qna_layer(source: Mapping[str, Tensor], layer: str) -> dict[str, Any]:
    """Options of a learned-query layer."""
    num_queries = len(get_parameter(source, f'{layer}/query'))
    kinds = (kind for kind, (name, _) in POSITION_TABLES.items() if f'{layer}/{name}' in source)
    position_bias = next(kinds, 'relative_pos')
    name, axis = POSITION_TABLES[position_bias]
    kernel_size = side_of(get_parameter(source, f'{layer}/{name}', axis + 1).movedim(axis, 0))
    if f'{layer}/attn_scale_pos' in source:
        attention_scale = 'ones'
        num_heads = get_parameter(source, f'{layer}/attn_scale_pos').shape[-1]
    elif f'{layer}/attn_scale_weights' in source:
        scale = get_parameter(source, f'{layer}/attn_scale_weights', 3)
        attention_scale = 'normal' if scale.shape[-2] == kernel_size**2 else 'normal_elementwise'
        num_heads = scale.shape[-1] // num_queries
    else:
        raise CheckpointError(
            f"parameter {layer}/attn_scale_weights is missing; the scales 'posneg', 'avg' and "
            f"'none', which have no parameters, cannot be told apart: {REMEDY}"
        )
    return dict(
        kernel_size=kernel_size,
        num_heads=num_heads,
        num_queries=num_queries,
        position_bias=position_bias,
        attention_scale=attention_scale,
    )


def _window_settings(source: Mapping[str, Tensor], i: int, known: bool) -> dict[str, int]:
    """Window self-attention of a stage; ``known`` by its tables or from another source."""
    depth = count(source, rf'LSAStage_{i}/MSA_Block_\d+/')
    settings = dict(lsa_depths=depth, lsa_heads=UNUSED, window_sizes=UNUSED)
    if depth and not known:
        raise CheckpointError(
            'the heads and windows of window attention without bias tables cannot be determined '
            f'from the parameters: {REMEDY}, or the arch'
        )
    name = f'LSAStage_{i}/MSA_Block_1/{LSA}/{LSA_TABLE}'
    if name in source:
        table = get_parameter(source, name)
        settings.update(lsa_heads=table.shape[-1], window_sizes=(side_of(table) + 1) // 2)
    return settings


def stem_kernel(stem: str) -> str:
    """Name of the stem's convolution kernel in the release."""
    return f'{STEM}/{"conv_7x7" if stem == "resnet" else "conv_1x1"}/kernel'


def side_of(table: Tensor) -> int:
    """Side of a table over a square of offsets, (n * n, ...).

    Raises:
        CheckpointError: if the number of offsets is not a square.
    """
    side = math.isqrt(table.shape[0])
    if side**2 != table.shape[0]:
        raise CheckpointError(f'a table of {table.shape[0]} offsets is not square')
    return side


def _any(source: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in source)
