"""Evaluates a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``; prints AP, mIoU or top-1."""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn import cli
from mmvitattn.checkpoint import load_checkpoint, use_safe_loading
from mmvitattn.checkpoint.pretrained import drop_pretrained
from mmvitattn.checkpoint.published import SCHEME
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.training import checks
from mmvitattn.training.mixed_precision import warn_if_slow

OVERVIEW_GRID, OVERVIEW_WIDTH, GAP = (4, 3), 512, 10  # rows and columns; pixels


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Evaluate a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or mmvitattn://NAME')
    cli.add_common_arguments(parser)
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions there')
    parser.add_argument('--show-dir', help='new or empty folder for pictures of the predictions')
    parser.add_argument(
        '--amp', action='store_true', help='predict in mixed precision; on CPUs, in bfloat16'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> tuple[Config, dict[str, dict]]:
    """The config with the options applied, and the checkpoint by its path, after all checks.

    Raises:
        UsageError: if the user has to correct something before the evaluation can start.
    """
    cfg = cli.load_config(args)
    if not args.checkpoint.startswith(SCHEME) and not Path(args.checkpoint).is_file():
        raise UsageError(f'there is no checkpoint {args.checkpoint}')
    cfg.load_from = args.checkpoint
    checks.check_data(cfg, ('test',))
    drop_pretrained(cfg)  # the checkpoint contains all weights
    if args.amp:
        warn_if_slow()
        cfg.test_cfg.fp16 = True  # MMEngine's loop takes bfloat16 on CPUs
    if args.out:
        dump_predictions(cfg, args.out)
    if args.show_dir:
        draw_pictures(cfg, Path(args.show_dir).resolve())
    if args.tta:
        augment(cfg)
    return cfg, {args.checkpoint: load_checkpoint(args.checkpoint, args.trust_checkpoint)}


def dump_predictions(cfg: Config, out: str) -> None:
    """Adds the metric that writes the predictions; that of mmdet also encodes masks."""
    if not out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {out}: the file must end in .pkl or .pickle')
    if Path(out).exists():
        raise UsageError(f'--out {out}: the file exists; remove it or choose another')
    dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
    metrics = cfg.test_evaluator
    metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    cfg.test_evaluator = [*metrics, dict(type=dump, out_file_path=out)]


def draw_pictures(cfg: Config, folder: Path) -> None:
    """Makes a hook, the toolbox's own if possible, draw every test image into ``folder``."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f'--show-dir {folder}: the folder is not empty; choose another')
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=str(folder))
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = str(folder)
    else:
        pictures = dict(type='mmvitattn.ClassificationPicturesHook', out_dir=str(folder))
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), pictures]


def write_overview(folder: Path) -> None:
    """Joins the first pictures of a folder, scaled to one size, in ``overview.png``."""
    pictures = sorted(p for p in folder.rglob('*') if p.suffix in ('.png', '.jpg'))
    overview, (rows, columns) = folder / 'overview.png', OVERVIEW_GRID
    if overview in pictures:
        return  # a test picture of that name
    images = [cv2.imread(str(path)) for path in pictures[: rows * columns]]
    width, height = OVERVIEW_WIDTH, round(OVERVIEW_WIDTH * images[0].shape[0] / images[0].shape[1])
    sheet = np.full((rows * (height + GAP), columns * (width + GAP), 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = cv2.resize(image, (width, height))
    cv2.imwrite(str(overview), sheet)


def augment(cfg: Config) -> None:
    """Wraps the model and the pipeline in the config's test-time augmentation."""
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UsageError('--tta: the config has no tta_model and tta_pipeline')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    """Evaluates."""
    args = parse_args()
    with usage_errors_exit():
        cfg, checkpoints = prepare(args)
        use_safe_loading(args.trust_checkpoint, checkpoints)
        cli.start_processes(cfg)
        cli.build_runner(cfg).test()
    if args.show_dir and is_main_process():
        write_overview(Path(args.show_dir))


if __name__ == '__main__':
    main()
