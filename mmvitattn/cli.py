"""Command-line options that several tools share, and what the tools do with them."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor

from . import process
from .checkpoint.writing import check_destination, save_atomically
from .errors import UsageError
from .training.checks import replace_data_root

Converted = tuple[dict[str, Tensor], dict[str, Any]]  # state dict and description


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of training and evaluation, named as in the OpenMMLab toolboxes."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--data-root', help="folder of the data set instead of the config's")
    add_config_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    add_trust_argument(parser)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings that override the config: key=value, nested keys with dots, '
        'lists as key="[a,b]"',
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option of every tool that reads a checkpoint."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that contain more than weights and plain data; they can run any '
        'code, so use this only if you trust their author. Checksums are not verified either',
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every tool that predicts."""
    parser.add_argument('--device', help='e.g. cpu or cuda:0; default: a GPU if there is one')
    add_config_options(parser)
    add_trust_argument(parser)


def add_file_arguments(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds ``src``, of which the help shows an example, ``dst`` and ``--force``."""
    parser.add_argument('src', help=f'released checkpoint, e.g. {example}')
    parser.add_argument('dst', help='file to write, e.g. converted.pth')
    add_force_argument(parser)


def add_force_argument(parser: argparse.ArgumentParser, dst: str = 'DST') -> None:
    """Adds ``--force``, which the help explains with the name of the argument ``dst``."""
    parser.add_argument('--force', action='store_true', help=f'overwrite an existing {dst}')


def one_or_each(sizes: Sequence[int] | None) -> int | Sequence[int] | None:
    """The value of an option with ``nargs='+'``: a single number applies to all stages."""
    return sizes[0] if sizes is not None and len(sizes) == 1 else sizes


def convert_file(
    args: argparse.Namespace, model: str, convert: Callable[[], Converted]
) -> dict[str, Any]:
    """Writes ``args.dst`` as {'state_dict', 'meta'}, completely or not at all, and describes it.

    Args:
        args: with ``src``, ``dst`` and ``force``.
        model: name of the model family.
        convert: reads and converts ``args.src``.

    Returns:
        The description.

    Raises:
        UsageError: if ``args.dst`` cannot be written.
    """
    dst = check_destination(args.dst, args.force)
    state_dict, description = convert()
    meta = dict(description, source=Path(args.src).name)
    save_atomically(dict(state_dict=state_dict, meta=meta), dst)
    print(f'{dst}: {len(state_dict)} parameters of {model} {description["arch"]}')
    print(f'dropped: {", ".join(description["dropped"]) or "nothing"}')
    return description


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config and applies the common options.

    Args:
        args: parsed arguments, with ``config`` and those of :func:`add_common_arguments`.

    Returns:
        The config, with ``work_dir`` and ``launcher`` set.

    Raises:
        UsageError: if the file is missing.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not Path(args.config).is_file():
        raise UsageError(f'there is no config {args.config}; see configs/')
    cfg = Config.fromfile(args.config)
    if args.data_root:
        replace_data_root(cfg, args.data_root)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def start_processes(cfg: Config) -> None:
    """Joins the processes of a distributed run without GPUs.

    MMEngine cannot: it selects a CUDA device when it joins them, and when it wraps the model.

    Args:
        cfg: the config, with ``launcher``; gets the settings that MMEngine needs.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    cfg.pop('sync_bn', None)  # PyTorch's synchronised BatchNorm needs GPUs
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Builds MMEngine's runner, or the one that ``runner_type`` names."""
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.logger.info(process.describe())
    return runner
