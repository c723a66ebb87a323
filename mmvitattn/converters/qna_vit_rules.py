"""One rule for each parameter of the official QnA-ViT checkpoints.

Module names of the release: ``StemBlock_0``, ``LSAStage_i/MSA_Block_j``, ``QnAStage_i/QnA_Block_j``
and ``QnAStage_i/QnA_Block_j_stride_2`` (i from 0, j from 1; the down-sampling block comes last),
``ClassificationHead_0``.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..layers.position_table import resize_table as resize_grid
from .qna_vit_settings import AVGPOOL, HEAD, LSA, LSA_TABLE, QNA, STEM, side_of, stem_kernel
from .rules import Rule

STATISTICS = 'batch_stats'  # Flax's name for running statistics


def classifier_rules(
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    resize_windows: bool,
    resize_kernels: bool,
) -> Iterator[Rule]:
    """Rules of the backbone and of the classifier's linear layer.

    Args:
        settings: QnAViT's ``arch`` dict.
        options: QnAViT's other options.
        resize_windows: whether to resize the tables of window self-attention to ``settings``.
        resize_kernels: the same for learned-query attention.
    """
    yield from _stem_rules(options['stem'])
    last = len(settings['qna_depths']) - 1
    for i, (lsa_depth, qna_depth) in enumerate(
        zip(settings['lsa_depths'], settings['qna_depths'], strict=True)
    ):
        kernel_size = settings['kernel_sizes'][i] if resize_kernels else None
        window_size = settings['window_sizes'][i] if resize_windows else None
        for j in range(lsa_depth):
            source, target = f'LSAStage_{i}/MSA_Block_{j + 1}', f'backbone.stages.{i}.{j}'
            yield from _window_attention_rules(source, target, options, window_size)
            yield from _block_rules(source, target, options)
        blocks = [
            (f'QnAStage_{i}/QnA_Block_{j + 1}', f'backbone.stages.{i}.{lsa_depth + j}')
            for j in range(qna_depth)
        ]
        if i < last:
            source = f'QnAStage_{i}/QnA_Block_{qna_depth + 1}_stride_2'
            target = f'backbone.downsamples.{i}'
            blocks.append((source, target))
            skip = AVGPOOL if options['downsample_skip'] == 'avgpool' else 'Conv_0/kernel'
            yield Rule(f'{target}.skip.conv.weight', f'{source}/{skip}', _conv)
        for source, target in blocks:
            yield from qna_rules(f'{source}/{QNA}', f'{target}.attention', options, kernel_size)
            yield from _block_rules(source, target, options)
    yield from _norm_rules(f'{HEAD}/LayerNorm_0', f'backbone.norms.{last}')
    yield from _dense_rules(f'{HEAD}/head_logits', 'head.fc')


def _stem_rules(stem: str) -> Iterator[Rule]:
    yield Rule('backbone.stem.conv.weight', stem_kernel(stem), _conv)
    if stem == 'resnet':
        norm, target = f'{STEM}/BatchNorm_0', 'backbone.stem.norm'
        yield from _norm_rules(norm, target)
        for name, ours in (('mean', 'running_mean'), ('var', 'running_var')):
            yield Rule(f'{target}.{ours}', f'{STATISTICS}/{norm}/{name}')


def _block_rules(source: str, target: str, options: Mapping[str, Any]) -> Iterator[Rule]:
    for i in range(2):
        yield from _norm_rules(f'{source}/LayerNorm_{i}', f'{target}.norm{i + 1}')
        yield from _dense_rules(f'{source}/MlpBlock_0/Dense_{i}', f'{target}.ffn.fc{i + 1}')
        if options['layer_scale'] is not None:
            yield Rule(f'{target}.layer_scale{i + 1}', f'{source}/LayerScale_{i}/scale_param')


def _norm_rules(source: str, target: str) -> Iterator[Rule]:
    yield Rule(f'{target}.weight', f'{source}/scale')
    yield Rule(f'{target}.bias', f'{source}/bias')


def _dense_rules(source: str, target: str) -> Iterator[Rule]:
    yield Rule(f'{target}.weight', f'{source}/kernel', _dense)
    yield Rule(f'{target}.bias', f'{source}/bias')


def _window_attention_rules(
    source: str, target: str, options: Mapping[str, Any], window_size: int | None
) -> Iterator[Rule]:
    source, target = f'{source}/{LSA}', f'{target}.attention'
    yield Rule(f'{target}.qkv.weight', f'{source}/to_qkv/kernel', _dense)
    yield Rule(f'{target}.out.weight', f'{source}/to_out/kernel', _dense)
    if options['window_position_bias'] is not None:
        side = None if window_size is None else 2 * window_size - 1
        resize = partial(resize_table, side=side)
        yield Rule(f'{target}.position_bias', f'{source}/{LSA_TABLE}', resize)


def qna_rules(
    source: str, target: str, options: Mapping[str, Any], kernel_size: int | None
) -> Iterator[Rule]:
    """Rules of a learned-query layer; its tables are resized to a given ``kernel_size``."""
    num_queries = options['num_queries']

    def table(parameter: Tensor) -> Tensor:
        """From (..., k*k, q * n) to (k*k, q, n)."""
        offsets = parameter.reshape(parameter.shape[-2:])
        return resize_table(offsets, kernel_size).unflatten(-1, (num_queries, -1))

    def unflattened_table(parameter: Tensor) -> Tensor:
        """From (..., k*k, q, n) to (k*k, q, n)."""
        return table(parameter.flatten(-2))

    yield Rule(f'{target}.query', f'{source}/query')
    yield Rule(f'{target}.key.weight', f'{source}/Wk', _dense)
    yield Rule(f'{target}.value.weight', f'{source}/to_v/kernel', _dense)
    yield Rule(f'{target}.out.weight', f'{source}/to_out/kernel', _dense)

    kind = options['position_bias']
    if kind == 'relative_pos':
        yield Rule(f'{target}.position_bias', f'{source}/rpe_bias', table)
    elif kind == 'absolute_pos':
        name = f'{source}/absolute_pos_embedding'
        yield Rule(f'{target}.position_bias_vectors', name, unflattened_table)
    elif kind == 'contextual_pos':  # kernel (h, d, k*k, h), bias (k*k, h)
        name = f'{target}.position_map'
        yield Rule(f'{name}.weight', f'{source}/rpe_bias/kernel', _dense_over_pairs)
        yield Rule(f'{name}.bias', f'{source}/rpe_bias/bias', Tensor.flatten)

    name, kind = f'{target}.attention_scale', options['attention_scale']
    if kind == 'normal':
        yield Rule(name, f'{source}/attn_scale_weights', table)
    elif kind == 'normal_elementwise':  # one scale for all offsets: nothing to resize
        to_queries = partial(torch.reshape, shape=(1, num_queries, -1))
        yield Rule(name, f'{source}/attn_scale_weights', to_queries)
    elif kind == 'ones':
        yield Rule(name, f'{source}/attn_scale_pos', unflattened_table)


def _dense_over_pairs(kernel: Tensor) -> Tensor:
    return _dense(kernel.flatten(2).flatten(0, 1))


def _dense(kernel: Tensor) -> Tensor:
    return kernel.T.contiguous()


def _conv(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1).contiguous()


def resize_table(table: Tensor, side: int | None) -> Tensor:
    """Resizes a table over a square of offsets, bicubically and antialiased, as the release does.

    Args:
        table: (n * n, channels), offsets row by row.
        side: new side of the square; ``None`` or n returns the table itself.

    Raises:
        CheckpointError: if the number of offsets is not a square.
    """
    if side is None or side == side_of(table):
        return table
    grid = table.unflatten(0, (-1, side_of(table)))
    return resize_grid(grid, (side, side)).flatten(0, 1)
