"""Command-line options that the tools share."""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from . import preflight
from .errors import UsageError


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that both tools take, named as in the OpenMMLab toolboxes."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--data-root', help="folder of the data set, in place of the config's")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings that override the config: key=value, nested keys with dots, '
        'lists as key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option of every tool that reads a checkpoint."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that contain more than weights and plain data; they can run any '
        'code, so only if you trust whoever made them',
    )


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config and applies the common options.

    Args:
        args: parsed arguments, with ``config`` and those of :func:`add_common_arguments`.

    Returns:
        The config, with ``work_dir`` and ``launcher`` set.

    Raises:
        UsageError: if the file is not there.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not Path(args.config).is_file():
        raise UsageError(f'there is no config {args.config}; see configs/')
    cfg = Config.fromfile(args.config)
    if args.data_root:
        preflight.replace_data_root(cfg, args.data_root)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def start_processes(cfg: Config) -> None:
    """Joins the processes of a distributed run without GPUs, which MMEngine cannot do itself.

    MMEngine selects a CUDA device when it joins them, and when it wraps the model.

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
    """MMEngine's runner, or the one that ``runner_type`` names.

    Args:
        cfg: the config.
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
