"""What all rows have in common: data, schedule and budget, taken from a demo config and flags."""

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmvitattn.checkpoint.pretrained import drop_pretrained
from mmvitattn.errors import UsageError
from mmvitattn.inference.build import read_model_config
from mmvitattn.training import checks

from .sets import CONFIGS, Row, construct_on_meta

DEMOS = {  # whose data, augmentation, loss, optimizer and defaults are taken
    'shapes': 'demo/linglo_b0_shapes.py',
    'cifar10_folder': 'demo/sag_cifar_tiny_cifar10_folder.py',
}
WARM_UP, LAST_LR = 0.05, 0.01  # shares of the iterations and of the learning rate
VAL_BATCH = 60
SETTINGS = 'settings.json'


def common_config(args: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The config of every row but for its model and seed.

    Args:
        args: the command line: data, data_root, image_size, epochs, batch_size, lr; ``None``
            for the demo's own.

    Returns:
        The config, and the settings that a comparison has to have in common.

    Raises:
        UsageError: if the data is not there.
    """
    cfg = Config.fromfile(CONFIGS / DEMOS[args.data])
    if args.data_root:
        checks.replace_data_root(cfg, args.data_root)
    checks.check_data(cfg, ('train', 'val'))
    epochs = args.epochs or cfg.train_cfg.max_epochs
    batch_size = args.batch_size or cfg.train_dataloader.batch_size
    lr = args.lr or cfg.optim_wrapper.optimizer.lr
    side = _set_image_size(cfg, args.image_size)
    train, val = (_build_dataset(cfg, split) for split in ('train', 'val'))
    if train.CLASSES != val.CLASSES:
        raise UsageError(f'{cfg.data_root}: training and validation differ in their class folders')
    cfg.data_preprocessor.num_classes = len(train.CLASSES)
    cfg.train_dataloader.batch_size = batch_size
    cfg.val_dataloader.batch_size = max(batch_size, VAL_BATCH)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.pin_memory = torch.cuda.is_available()  # without a GPU, PyTorch warns
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    _set_schedule(cfg, epochs, math.ceil(len(train) / batch_size), lr)
    settings = dict(
        data=args.data,
        data_root=str(Path(cfg.data_root).resolve()),
        classes=list(train.CLASSES),
        training_pictures=len(train),
        validation_pictures=len(val),
        image_size=side,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
    )
    return cfg, settings


def _build_dataset(cfg: Config, split: str) -> Any:
    init_default_scope(cfg.default_scope)
    try:
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    except (IndexError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f'{cfg.data_root} lacks pictures that the {split} loader of --data takes: {reason}'
        ) from None


def _set_image_size(cfg: Config, side: int | None) -> int:
    """Scales the sizes in both pipelines, in place; returns the side of the pictures."""
    train, val = (cfg[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'val'))
    (crop,) = (step for step in train if step.type == 'RandomCrop')
    old = crop.crop_size
    if side is None or side == old:
        return old
    for pipeline in (train, val):
        if not any(step.type == 'Resize' for step in pipeline):  # the files have the size
            pipeline.insert(1, dict(type='Resize', scale=(old, old)))
        for step in pipeline:
            for key in {'scale', 'crop_size', 'padding'} & set(step):
                step[key] = _scaled(step[key], side / old)
    return side


def _scaled(size: Any, factor: float) -> Any:
    if isinstance(size, (list, tuple)):
        return tuple(_scaled(part, factor) for part in size)
    return round(size * factor)


def _set_schedule(cfg: Config, epochs: int, length: int, lr: float) -> None:
    """Linear warm-up, then cosine, both by iterations; one point of the log an epoch."""
    total = epochs * length
    warm_up = max(1, round(WARM_UP * total))
    cfg.optim_wrapper.optimizer.lr = lr
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
        dict(
            type='CosineAnnealingLR',
            eta_min=LAST_LR * lr,
            by_epoch=False,
            begin=warm_up,
            end=max(total, warm_up + 1),
        ),
    ]
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
    cfg.default_hooks.logger.interval = length
    cfg.log_processor.window_size = length  # a point is the mean of its epoch
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
    cfg.log_level = 'WARNING'


def run_config(common: Config, row: Row, settings: Mapping, seed: int, work_dir: Path) -> Config:
    """The config of one run.

    Args:
        common: of :func:`common_config`.
        row: whose model is trained; it takes the number of classes, the loss and the
            augmentation of batches from the common config.
        settings: of :func:`common_config`.
        seed: of the run.
        work_dir: its folder.

    Returns:
        The config.

    Raises:
        UsageError: if the row has no classifier, or it cannot take pictures of that size.
    """
    own = read_model_config(row.config)
    if own.get('default_scope') != common.default_scope or 'num_classes' not in own.model.head:
        raise UsageError(f'row {row.name}: {row.config} has no classifier; table counts any model')
    drop_pretrained(own)
    cfg = Config(common.to_dict())
    head = dict(common.model.head, **own.model.head)
    head.update(num_classes=len(settings['classes']), topk=(1,), loss=common.model.head.loss)
    model = dict(own.model.to_dict(), head=head, train_cfg=common.model.train_cfg)
    model.pop('data_preprocessor', None)
    cfg.model = model
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(work_dir)
    _check_sizes(cfg, row, settings)
    return cfg


def _check_sizes(cfg: Config, row: Row, settings: Mapping) -> None:
    """Runs the smallest batch of an epoch through the model, in its training form, as on meta."""
    side, rest = settings['image_size'], settings['training_pictures'] % settings['batch_size']
    model = construct_on_meta(cfg).train()
    try:
        model(torch.empty(rest or settings['batch_size'], 3, side, side, device='meta'))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f'row {row.name}: the model cannot take pictures of {side} x {side} in batches of '
            f'{settings["batch_size"]}: {reason}'
        ) from None


def check_folder(out_dir: Path, set_name: str, settings: Mapping) -> dict[str, Any]:
    """Runs of other settings never meet in one folder.

    Args:
        out_dir: of the comparison.
        set_name: the set whose rows are compared.
        settings: of :func:`common_config`.

    Returns:
        What is to be recorded in the folder.

    Raises:
        UsageError: if it holds runs of another set or other settings, or something else.
    """
    record = dict(set=set_name, **settings)
    file = out_dir / SETTINGS
    if file.is_file():
        check_same(record, file, 'a comparison', str(out_dir))
    elif out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UsageError(f'--out-dir {out_dir} holds something else: name a new or an empty folder')
    return record


def check_same(record: Mapping, file: Path, what: str, place: str) -> None:
    """Compares a record with the one that was written.

    Args:
        record: plain values by name.
        file: JSON of the earlier one.
        what: was recorded, for the message.
        place: where it lies, likewise.

    Raises:
        UsageError: naming the values that differ.
    """
    earlier = json.loads(file.read_text(encoding='utf-8'))
    now = json.loads(as_json(record))
    changes = [
        f'{key} was {_short(earlier.get(key))} and is {_short(now.get(key))}'
        for key in {**earlier, **now}
        if earlier.get(key) != now.get(key)
    ]
    if changes:
        raise UsageError(
            f'{place} holds {what} with other settings: {"; ".join(changes)}. Name another '
            'folder: --out-dir DIR'
        )


def _short(value: Any) -> str:
    text = re.sub(r'\s+', ' ', str(value))
    return text if len(text) <= 200 else f'{text[:200]}...'


def as_json(value: Any) -> str:
    """Plain text that compares and reads well."""
    return json.dumps(value, indent=1, default=str) + '\n'
