"""Trains a detector, a segmenter or a classifier: ``python tools/train.py CONFIG``.

The config determines the task. Data, weights and run folder are checked before any work.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
from pathlib import Path

from mmengine.config import Config

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn import cli
from mmvitattn.checkpoint import use_safe_loading
from mmvitattn.checkpoint.pretrained import drop_pretrained
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.training import checks, class_checks, picture_checks
from mmvitattn.training.data_workers import worker_deaths_explained
from mmvitattn.training.mixed_precision import use_mixed_precision
from mmvitattn.training.run_folder import (
    check_run_folder,
    locked,
    restarted,
    tolerate_unwritable_logs,
)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or from the last one in the work dir',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision; on CPUs, in bfloat16'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the actual over the intended batch size',
    )
    parser.add_argument(
        '--from-scratch', action='store_true', help='start without pretrained weights'
    )
    parser.add_argument(
        '--check-pictures', action='store_true', help='decode all pictures before training'
    )
    parser.add_argument(
        '--skip-bad-pictures',
        type=int,
        default=0,
        metavar='N',
        help='skip up to N pictures that cannot be decoded; by default the first ends the run',
    )
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> tuple[Config, dict[str, dict]]:
    """The config with the options applied, and the checkpoints by path, after all checks.

    Raises:
        UsageError: if the user has to correct something before training can start.
    """
    cfg = cli.load_config(args)
    if args.amp:
        use_mixed_precision(cfg)
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise UsageError('--auto-scale-lr: the config states no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if restarted(cfg.work_dir, cfg.launcher):
        args.resume = 'auto'
    if args.resume:
        cfg.resume = True
        if args.resume != 'auto':
            if not Path(args.resume).is_file():
                raise UsageError(f'--resume: there is no checkpoint {args.resume}')
            cfg.load_from = args.resume
    if args.skip_bad_pictures < 0:
        raise UsageError(f'--skip-bad-pictures {args.skip_bad_pictures}: choose 0 or more')
    checks.check_data(cfg, ('train', 'val'))
    class_checks.check_class_names(cfg, ('train', 'val'))
    resume = cfg.get('resume', False)
    resumes = check_run_folder(cfg.work_dir, resume and cfg.get('load_from'), resume)
    if args.from_scratch or resumes:  # a resumed run takes its weights from the checkpoint
        drop_pretrained(cfg)
    checks.check_pretrained(cfg, args.config)
    return cfg, checks.check_checkpoints(cfg, args.trust_checkpoint)


def main() -> None:
    """Trains; exits with status 75 if a signal interrupted it after it was saved."""
    args = parse_args()
    with usage_errors_exit():
        cfg, checkpoints = prepare(args)
        use_safe_loading(args.trust_checkpoint, checkpoints)
        tolerate_unwritable_logs()
        with locked(cfg.work_dir, cfg.launcher), worker_deaths_explained():
            cli.start_processes(cfg)
            runner = cli.build_runner(cfg)
            runner.register_hook(checks.FreeCheckpointsHook(checkpoints))
            datasets = class_checks.check_built(runner)
            picture_checks.check_pictures(datasets, args.check_pictures)
            skipped = picture_checks.guard_loading(datasets, args.skip_bad_pictures)
            runner.train()
    if skipped.count:
        print(f'{skipped.count} pictures could not be decoded and were skipped; see the log')


if __name__ == '__main__':
    main()
