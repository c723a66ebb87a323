"""What an official QnA-ViT checkpoint holds: told by its parameters or by its configuration.

The names of options are those of :class:`~mmvitattn.models.QnAViT`. Not all of them leave a trace
in the parameters; the published models have the defaults.
"""

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

DEFAULTS: dict[str, Any] = dict(
    num_queries=2,
    normalize_queries=True,
    position_bias='relative_pos',
    attention_scale='normal',
    layer_scale=None,
    stem='patch',
    downsample_skip='conv',
    window_position_bias='relative_pos',
    normalize_stop_grads=False,
    drop_path_downsample=True,
)
REMEDY = 'give the official configuration: config=..., or --config FILE.json'
UNUSED = 1  # stands for heads and windows that a stage does not use


class Contents(NamedTuple):
    """A model of the release: QnAViT's ``arch`` dict, its other options, the kind of head."""

    arch: dict[str, Any]
    options: dict[str, Any]
    head: str


def read_official_config(path: str | Path) -> dict[str, Any]:
    """Reads a configuration of the release from a JSON file.

    Args:
        path: the file, a JSON object with the keys of the release's model configuration.

    Returns:
        The configuration.

    Raises:
        CheckpointError: if the file is no JSON object.
        OSError: if it cannot be read.
    """
    try:
        config = json.loads(Path(path).read_text())
    except ValueError as error:
        raise CheckpointError(f'{path}: no JSON file: {error}') from None
    if not isinstance(config, dict):
        raise CheckpointError(f'{path}: no JSON object, but a {type(config).__name__}')
    return config


def contents_of_config(config: Mapping[str, Any]) -> Contents:
    """What a configuration of the release describes.

    Args:
        config: the keys of the release's model configuration. Of those that are missing,
            the options take the values of the published models.

    Raises:
        CheckpointError: if a key of the architecture is missing, or a value is unknown.
    """
    keys = dict(
        qna_depths='qna_layers',
        qna_heads='qna_heads',
        kernel_sizes='qna_receptive_field',
        lsa_depths='lsa_layers',
        lsa_heads='lsa_heads',
        window_sizes='lsa_window',
    )
    missing = [key for key in ('base_dim', *keys.values()) if key not in config]
    if missing:
        raise CheckpointError(f'the official configuration lacks {", ".join(missing)}')
    kinds = dict.fromkeys(keys.values(), (list, tuple))
    kinds.update(dict.fromkeys(('base_dim', 'n_stages', 'qna_num_queries'), (int,)))
    for key, kind in kinds.items():
        if key in config and not isinstance(config[key], kind):
            raise CheckpointError(
                f'the official configuration has {key}={config[key]!r}, which is no '
                f'{kind[0].__name__}'
            )
    num_stages = config.get('n_stages', len(config['qna_layers']))
    arch = dict(
        base_channels=config['base_dim'],
        **{ours: tuple(config[theirs][:num_stages]) for ours, theirs in keys.items()},
    )
    if 'drop_path' in config:
        arch['drop_path_rate'] = config['drop_path']
    normalize = config.get('qna_normalize_q', True)
    if isinstance(normalize, list | tuple):
        normalize = tuple(normalize[:num_stages])
        normalize = normalize[0] if len(set(normalize)) == 1 else normalize
    _choice(config, 'qna_implementation', {'fused_efficient': None})
    options = dict(
        DEFAULTS,
        num_queries=config.get('qna_num_queries', DEFAULTS['num_queries']),
        normalize_queries=normalize,
        position_bias=_choice(
            config,
            'qna_pos_embedding_type',
            _same('relative_pos', 'absolute_pos', 'contextual_pos', none=None),
        ),
        attention_scale=_choice(
            config,
            'qna_attention_scale',
            _same('normal', 'normal_elementwise', 'posneg', 'ones', 'avg', none=None),
        ),
        layer_scale=config.get('layer_scale'),
        stem=_choice(config, 'stem_type', _same('patch', 'resnet')),
        downsample_skip=_choice(config, 'qna_down_skip', dict(conv1x1='conv', avgpool='avgpool')),
        window_position_bias=_choice(
            config, 'lsa_pos_embedding_type', _same('relative_pos', none=None)
        ),
        normalize_stop_grads=config.get('qna_normalize_stop_grads', False),
        drop_path_downsample=config.get('drop_path_downsample', True),
    )
    head = _choice(config, 'classification_head_type', _same('gap', 'qnav1', 'qnav2'))
    return Contents(arch, options, head)


def contents_of_parameters(source: Mapping[str, Tensor], arch: str | None = None) -> Contents:
    """What the names and shapes of a checkpoint's parameters tell.

    The queries are taken for normalised, as those of all published models are: nothing tells it.

    Args:
        source: parameters by name, levels joined by '/'.
        arch: name of the architecture; ``None`` takes it from the shapes.

    Raises:
        CheckpointError: if a parameter that tells something is missing, or if what the model
            computes depends on something that leaves no trace.
    """
    stem = 'resnet' if stem_kernel('resnet') in source else 'patch'
    base_channels = _get(source, stem_kernel(stem)).shape[-1]
    window_tables = _any(source, rf'.*/{LSA_TABLE}') or not _any(source, rf'.*/{LSA}/.*')
    options = dict(
        DEFAULTS,
        stem=stem,
        downsample_skip='avgpool' if _any(source, rf'.*/{AVGPOOL}') else 'conv',
        # Its start value is unknown, and of no use: the factors are loaded.
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
            stage['qna_heads'] = layers[-1].num_heads // (1 if depth else 2)
            stage['kernel_sizes'] = layers[-1].kernel_size
        stages.append(stage | _window_settings(source, i, window_tables or arch is not None))
    # The types of scale are the same for a window of one position.
    telling = [layer for layer in layers if layer.kernel_size > 1] or layers
    for layer in telling[:1]:
        options |= {key: getattr(layer, key) for key in layer._fields if key in options}
    if f'{HEAD}/{QNA}/query' in source:
        raise CheckpointError(f"the heads 'qnav1' and 'qnav2' have the same parameters: {REMEDY}")
    settings = {key: tuple(stage[key] for stage in stages) for key in stages[0]}
    settings = dict(base_channels=base_channels, **settings)
    return Contents(settings if arch is None else QnAViT.resolve_arch(arch), options, 'gap')


class _QnALayer(NamedTuple):
    kernel_size: int
    num_heads: int
    num_queries: int
    position_bias: str
    attention_scale: str


def _qna_layer(source: Mapping[str, Tensor], layer: str) -> _QnALayer:
    num_queries = len(_get(source, f'{layer}/query'))
    kinds = (kind for kind, (name, _) in POSITION_TABLES.items() if f'{layer}/{name}' in source)
    position_bias = next(kinds, 'relative_pos')
    name, axis = POSITION_TABLES[position_bias]
    kernel_size = side_of(_get(source, f'{layer}/{name}', axis + 1).movedim(axis, 0))
    if f'{layer}/attn_scale_pos' in source:
        heads = _get(source, f'{layer}/attn_scale_pos').shape[-1]
        return _QnALayer(kernel_size, heads, num_queries, position_bias, 'ones')
    if f'{layer}/attn_scale_weights' not in source:
        raise CheckpointError(
            f"parameter {layer}/attn_scale_weights is missing; the scales 'posneg', 'avg' and "
            f"'none' leave no trace: {REMEDY}"
        )
    scale = _get(source, f'{layer}/attn_scale_weights', 3)
    kind = 'normal' if scale.shape[-2] == kernel_size**2 else 'normal_elementwise'
    return _QnALayer(kernel_size, scale.shape[-1] // num_queries, num_queries, position_bias, kind)


def _window_settings(source: Mapping[str, Tensor], i: int, known: bool) -> dict[str, int]:
    """Window self-attention of a stage; ``known``: by its tables, or by another source."""
    depth = count(source, rf'LSAStage_{i}/MSA_Block_\d+/')
    settings = dict(lsa_depths=depth, lsa_heads=UNUSED, window_sizes=UNUSED)
    if depth and not known:
        raise CheckpointError(
            f'window attention without tables does not tell its heads and windows: {REMEDY}, or '
            'the arch'
        )
    name = f'LSAStage_{i}/MSA_Block_1/{LSA}/{LSA_TABLE}'
    if name in source:
        table = _get(source, name)
        settings.update(lsa_heads=table.shape[-1], window_sizes=(side_of(table) + 1) // 2)
    return settings


def stem_kernel(stem: str) -> str:
    """Name of the stem's convolution kernel in the release."""
    return f'{STEM}/{"conv_7x7" if stem == "resnet" else "conv_1x1"}/kernel'


def side_of(table: Tensor) -> int:
    """Side of a table over a square of offsets, (n * n, ...).

    Raises:
        CheckpointError: if it is no square.
    """
    side = math.isqrt(table.shape[0])
    if side**2 != table.shape[0]:
        raise CheckpointError(f'a table of {table.shape[0]} offsets is no square')
    return side


def _any(source: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in source)


def _get(source: Mapping[str, Tensor], name: str, least_axes: int = 1) -> Tensor:
    return get_parameter(source, name, 'QnA-ViT', least_axes)


def _same(*names: str, **others: Any) -> dict[str, Any]:
    return {name: name for name in names} | others


def _choice(config: Mapping[str, Any], key: str, choices: Mapping[str, Any]) -> Any:
    """Our value for the release's; the first one is that of the published models."""
    value = config.get(key, next(iter(choices)))
    if not isinstance(value, str) or value not in choices:
        raise CheckpointError(
            f'the official configuration has {key}={value!r}, but QnA-ViT knows '
            f'{", ".join(map(repr, choices))}'
        )
    return choices[value]
