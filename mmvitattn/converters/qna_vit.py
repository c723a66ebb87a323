"""State-dict map of the official QnA-ViT checkpoints (JAX/Flax).

Module names of the release: ``StemBlock_0``, ``LSAStage_i/MSA_Block_j``, ``QnAStage_i/QnA_Block_j``
and ``QnAStage_i/QnA_Block_j_stride_2`` (i from 0, j from 1; the down-sampling block comes last),
``ClassificationHead_0``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..layers.position_table import resize_table as resize_grid
from ..models import QnAViT
from ..models.base import per_stage
from .rules import CheckpointError, Rule, apply_rules, count, get_parameter

NUM_STAGES = 4
STEM, HEAD = 'StemBlock_0/conv_1x1/kernel', 'ClassificationHead_0'
QNA, LSA = 'FusedKQnA_0', 'MultiHeadSelfAttention_0'
LSA_TABLE = 'RelativePositionalEmbedding_0/rpe_bias'


def convert_qna_vit(
    checkpoint: Mapping[str, Any],
    arch: str | None = None,
    window_sizes: int | Sequence[int] | None = None,
    kernel_sizes: int | Sequence[int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converts an official checkpoint to a classifier's state dict.

    Args:
        checkpoint: content of the checkpoint, as :func:`read_flax_msgpack` returns it.
        arch: name of the architecture; ``None`` takes it from the parameters' shapes.
        window_sizes: new window sides of window self-attention, one or one a stage; the bias tables
            are resized. ``None`` keeps them.
        kernel_sizes: the same for learned-query attention and its scale tables.

    Returns:
        The state dict, ``backbone.*`` and ``head.fc.*``, and a description: ``arch`` (a name or a
        dict), ``kernel_sizes``, ``window_sizes``, ``num_queries``, ``num_classes``, and
        ``dropped``, the entries of the checkpoint that are no weights.

    Raises:
        CheckpointError: if parameters are missing, left over or of other shapes than the
            architecture's.
        ValueError: for sizes that the model cannot have.
    """
    if not isinstance(checkpoint.get('params'), Mapping):
        raise CheckpointError(
            f'no QnA-ViT checkpoint: it has no dict "params", but {sorted(map(str, checkpoint))}'
        )
    source = dict(_flatten(checkpoint['params']))
    settings, num_queries = detect_settings(source)
    name = arch or _name(settings)
    if arch is not None:
        settings = QnAViT.resolve_arch(arch)
    for key, sizes in (('kernel_sizes', kernel_sizes), ('window_sizes', window_sizes)):
        if sizes is not None:
            settings[key] = per_stage(key, sizes, NUM_STAGES)
    rules = list(_rules(settings, num_queries, window_sizes is not None, kernel_sizes is not None))
    backbone = QnAViT(settings, out_indices=-1, num_queries=num_queries)
    num_classes = len(_get(source, f'{HEAD}/head_logits/bias'))
    state_dict = apply_rules(rules, source, backbone, num_classes)
    description = dict(
        arch=name or settings,
        kernel_sizes=settings['kernel_sizes'],
        window_sizes=settings['window_sizes'],
        num_queries=num_queries,
        num_classes=num_classes,
        dropped=sorted(str(key) for key in checkpoint if key != 'params'),
    )
    return state_dict, description


def detect_settings(source: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """Architecture of a checkpoint, from the names and shapes of its parameters.

    Args:
        source: parameters by name, levels joined by '/'.

    Returns:
        Settings as QnAViT's ``arch`` dict (1 for heads and windows that a stage does not use), and
        the number of learned queries.

    Raises:
        CheckpointError: if a parameter that tells it is missing.
    """
    base_channels = _get(source, STEM).shape[-1]
    stages, num_queries = [], 1
    for i in range(NUM_STAGES):
        stage = dict(
            qna_depths=count(source, rf'QnAStage_{i}/QnA_Block_\d+/'),
            qna_heads=1,
            kernel_sizes=1,
            lsa_depths=count(source, rf'LSAStage_{i}/MSA_Block_\d+/'),
            lsa_heads=1,
            window_sizes=1,
        )
        if stage['qna_depths'] or i < NUM_STAGES - 1:
            downsampling = not stage['qna_depths']
            block = f'QnAStage_{i}/QnA_Block_1' + '_stride_2' * downsampling
            num_queries = len(_get(source, f'{block}/{QNA}/query'))
            table = _get(source, f'{block}/{QNA}/rpe_bias')
            stage['qna_heads'] = table.shape[-1] // num_queries // (1 + downsampling)
            stage['kernel_sizes'] = _side(table)
        if stage['lsa_depths']:
            table = _get(source, f'LSAStage_{i}/MSA_Block_1/{LSA}/{LSA_TABLE}')
            stage['lsa_heads'], stage['window_sizes'] = table.shape[-1], (_side(table) + 1) // 2
        stages.append(stage)
    settings = {key: tuple(stage[key] for stage in stages) for key in stages[0]}
    return dict(base_channels=base_channels, **settings), num_queries


def _name(settings: Mapping[str, Any]) -> str | None:
    in_use = _in_use(settings)
    return next((name for name, a in QnAViT.arch_zoo.items() if _in_use(a) == in_use), None)


def _in_use(settings: Mapping[str, Any]) -> tuple:
    """What makes an architecture: settings of blocks that exist, window sizes aside."""
    qna = [depth > 0 or i < NUM_STAGES - 1 for i, depth in enumerate(settings['qna_depths'])]
    lsa = [depth > 0 for depth in settings['lsa_depths']]
    heads = [h * used for h, used in zip(settings['qna_heads'], qna, strict=True)]
    kernel_sizes = [k * used for k, used in zip(settings['kernel_sizes'], qna, strict=True)]
    lsa_heads = [h * used for h, used in zip(settings['lsa_heads'], lsa, strict=True)]
    depths = (tuple(settings['qna_depths']), tuple(settings['lsa_depths']))
    return settings['base_channels'], depths, heads, kernel_sizes, lsa_heads


def _rules(
    settings: Mapping[str, Any], num_queries: int, resize_windows: bool, resize_kernels: bool
) -> Iterator[Rule]:
    yield Rule('backbone.stem.conv.weight', STEM, _conv)
    for i in range(NUM_STAGES):
        kernel_size = settings['kernel_sizes'][i] if resize_kernels else None
        window_size = settings['window_sizes'][i] if resize_windows else None
        lsa_depth, qna_depth = settings['lsa_depths'][i], settings['qna_depths'][i]
        for j in range(lsa_depth):
            source, target = f'LSAStage_{i}/MSA_Block_{j + 1}', f'backbone.stages.{i}.{j}'
            yield from _window_attention_rules(source, target, window_size)
            yield from _block_rules(source, target)
        for j in range(qna_depth):
            source, target = (
                f'QnAStage_{i}/QnA_Block_{j + 1}',
                f'backbone.stages.{i}.{lsa_depth + j}',
            )
            yield from _qna_rules(source, target, num_queries, kernel_size)
            yield from _block_rules(source, target)
        if i < NUM_STAGES - 1:
            source = f'QnAStage_{i}/QnA_Block_{qna_depth + 1}_stride_2'
            target = f'backbone.downsamples.{i}'
            yield from _qna_rules(source, target, num_queries, kernel_size)
            yield from _block_rules(source, target)
            yield Rule(f'{target}.skip.conv.weight', f'{source}/Conv_0/kernel', _conv)
    yield from _norm_rules(f'{HEAD}/LayerNorm_0', f'backbone.norms.{NUM_STAGES - 1}')
    yield from _dense_rules(f'{HEAD}/head_logits', 'head.fc')


def _block_rules(source: str, target: str) -> Iterator[Rule]:
    for i in range(2):
        yield from _norm_rules(f'{source}/LayerNorm_{i}', f'{target}.norm{i + 1}')
        yield from _dense_rules(f'{source}/MlpBlock_0/Dense_{i}', f'{target}.ffn.fc{i + 1}')


def _norm_rules(source: str, target: str) -> Iterator[Rule]:
    yield Rule(f'{target}.weight', f'{source}/scale')
    yield Rule(f'{target}.bias', f'{source}/bias')


def _dense_rules(source: str, target: str) -> Iterator[Rule]:
    yield Rule(f'{target}.weight', f'{source}/kernel', _dense)
    yield Rule(f'{target}.bias', f'{source}/bias')


def _window_attention_rules(source: str, target: str, window_size: int | None) -> Iterator[Rule]:
    source, target = f'{source}/{LSA}', f'{target}.attention'
    side = None if window_size is None else 2 * window_size - 1
    yield Rule(f'{target}.qkv.weight', f'{source}/to_qkv/kernel', _dense)
    yield Rule(f'{target}.out.weight', f'{source}/to_out/kernel', _dense)
    yield Rule(f'{target}.position_bias', f'{source}/{LSA_TABLE}', partial(resize_table, side=side))


def _qna_rules(
    source: str, target: str, num_queries: int, kernel_size: int | None
) -> Iterator[Rule]:
    def table(parameter: Tensor) -> Tensor:
        parameter = parameter.reshape(parameter.shape[-2:])  # the scale has two axes more
        return resize_table(parameter, kernel_size).unflatten(-1, (num_queries, -1))

    source, target = f'{source}/{QNA}', f'{target}.attention'
    yield Rule(f'{target}.query', f'{source}/query')
    yield Rule(f'{target}.key.weight', f'{source}/Wk', _dense)
    yield Rule(f'{target}.value.weight', f'{source}/to_v/kernel', _dense)
    yield Rule(f'{target}.out.weight', f'{source}/to_out/kernel', _dense)
    yield Rule(f'{target}.position_bias', f'{source}/rpe_bias', table)
    yield Rule(f'{target}.attention_scale', f'{source}/attn_scale_weights', table)


def _dense(kernel: Tensor) -> Tensor:
    return kernel.T.contiguous()


def _conv(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1).contiguous()


def resize_table(table: Tensor, side: int | None) -> Tensor:
    """Resizes a table over a square of offsets, bicubically and antialiased, as the release does.

    Args:
        table: (n * n, channels), offsets row by row.
        side: new number of offsets on a side; ``None`` or n leaves the table as it is.

    Returns:
        (side * side, channels).

    Raises:
        CheckpointError: if the table is no square of offsets.
    """
    if side is None or side == _side(table):
        return table
    grid = table.unflatten(0, (-1, _side(table)))
    return resize_grid(grid, (side, side)).flatten(0, 1)


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        name = f'{prefix}{key}'
        if isinstance(value, Mapping):
            yield from _flatten(value, f'{name}/')
        elif isinstance(value, np.ndarray) and value.dtype.kind == 'f':
            yield name, torch.from_numpy(value.astype(np.float32))
        else:
            raise CheckpointError(f'parameter {name} is no array of numbers')


def _get(source: Mapping[str, Tensor], name: str) -> Tensor:
    return get_parameter(source, name, 'QnA-ViT')


def _side(table: Tensor) -> int:
    side = math.isqrt(table.shape[0])
    if side**2 != table.shape[0]:
        raise CheckpointError(f'a table of {table.shape[0]} offsets is no square')
    return side
