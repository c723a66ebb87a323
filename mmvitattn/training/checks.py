"""Checks of a config before any work is done: data and checkpoints.

Each raises :class:`UsageError` with the wrong value and the remedy.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..checkpoint import load_checkpoint
from ..checkpoint.pretrained import pretrained_files
from ..checkpoint.published import SCHEME
from ..datasets.layouts import LAYOUTS
from ..errors import UsageError
from ..official import official_weights_for
from .run_folder import check_progress, find_resumable

SPLITS = ('train', 'val', 'test')


def check_data(cfg: Mapping, splits: Iterable[str]) -> None:
    """Finds every file and folder that the data loaders will open.

    Args:
        cfg: the config; its ``data_layout`` names the layout that an error describes.
        splits: the data loaders that will be used: 'train', 'val', 'test'.

    Raises:
        UsageError: if one is missing.
    """
    missing: dict[Path, str] = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for path in _dataset_paths(loader['dataset']) if loader else ():
            if not path.exists():
                missing.setdefault(path, f'{split}_dataloader')
    if missing:
        lines = [f'  {path}  ({loader})' for path, loader in missing.items()]
        raise UsageError('\n'.join(['the data is not there:', *lines, *_data_remedy(cfg)]))


def _data_remedy(cfg: Mapping) -> list[str]:
    name, root = cfg.get('data_layout'), cfg.get('data_root')
    if name == 'shapes':
        return ['make the embedded data set: python tools/prepare_data.py shapes']
    if name not in LAYOUTS:
        return ['set data_root of the data sets, or use --data-root DIR']
    return [
        LAYOUTS[name].describe(str(root)),
        f'  check it with: python tools/prepare_data.py {name} --root {root}',
        '  another place: --data-root DIR',
    ]


def inner_datasets(dataset: Mapping) -> list[Mapping]:
    """Configs of the data sets inside a wrapper such as ``RepeatDataset``; none for others."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets') or []
    return [part for part in inner if isinstance(part, Mapping)]


def _dataset_paths(dataset: Mapping) -> Iterator[Path]:
    """Paths that a data set, or those inside a wrapper, will read."""
    if inner := inner_datasets(dataset):
        for wrapped in inner:
            yield from _dataset_paths(wrapped)
        return
    root = Path(dataset.get('data_root') or '.')
    prefix = dataset.get('data_prefix') or ''
    prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    if dataset.get('type') == 'ImageNet' and prefix == '':
        prefixes = [dataset.get('split', '')]
    for part in (dataset.get('ann_file'), *prefixes):
        if part is not None and '://' not in f'{root}{part}':
            yield root / part


def replace_data_root(cfg: Any, new_root: str) -> None:
    """Moves all data sets and evaluators of a config to another folder, in place.

    Args:
        cfg: the config, whose data sets and annotation files start with its ``data_root``.
        new_root: the folder to use instead.

    Raises:
        UsageError: if the config has no ``data_root``.
    """
    old_root = cfg.get('data_root')
    if not old_root:
        raise UsageError('--data-root: this config has no data_root; use --cfg-options')
    old_root = old_root.rstrip('/')

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                value[key] = moved(value[key])
        elif isinstance(value, list | tuple):
            return type(value)(moved(item) for item in value)
        elif isinstance(value, str) and (value == old_root or value.startswith(f'{old_root}/')):
            return str(Path(new_root)) + value[len(old_root) :]
        return value

    for split in SPLITS:
        for part in ('dataloader', 'evaluator'):
            if cfg.get(f'{split}_{part}'):
                moved(cfg[f'{split}_{part}'])
    cfg['data_root'] = new_root


def check_pretrained(cfg: Mapping, config_file: str | Path) -> None:
    """Finds the pretrained weights that the model will be initialised from.

    Args:
        cfg: the config.
        config_file: its file; the error names the classification config in the same folder.

    Raises:
        UsageError: if a local checkpoint is missing.
    """
    for path in pretrained_files(cfg):
        if '://' not in path and not Path(path).is_file():
            official = official_weights_for(path)
            raise UsageError(
                f'the pretrained weights {path} are not there. Either\n'
                f'  train them: {_classifier_hint(path, Path(config_file))}\n'
                + (f'or use the official ones:\n{official.describe()}\n' if official else '')
                + 'or start without them: --from-scratch'
            )


def _classifier_hint(checkpoint: str, config_file: Path) -> str:
    model = Path(checkpoint).stem.split('_in1k')[0].replace('-', '_')
    found = sorted(
        config_file.resolve().parent.glob(f'{model}_*_in1k.py'), key=lambda p: len(p.name)
    )
    config = f'configs/{found[0].name}' if found else 'the classification config of this backbone'
    work_dir = f'work_dirs/{found[0].stem}' if found else 'its work_dir'
    return (
        f'python tools/train.py {config}\n'
        f'              and copy the last checkpoint of {work_dir} to {checkpoint}'
    )


def check_checkpoints(cfg: MutableMapping, trust: bool) -> dict[str, dict[str, Any]]:
    """Reads every checkpoint file that a training will load; URLs are left to MMEngine.

    Args:
        cfg: the config, with ``load_from``, ``resume``, ``work_dir`` and the model's ``init_cfg``;
            ``load_from`` is set to the checkpoint to resume.
        trust: read files whatever they contain.

    Returns:
        The checkpoints by path, for :func:`mmvitattn.checkpoint.use_safe_loading`.

    Raises:
        UsageError: if a file is missing or damaged, contains an object that is not allowed, or is
            to be resumed and contains no state of a training.
    """
    start, resume = cfg.get('load_from'), cfg.get('resume')
    paths = [*pretrained_files(cfg), *([start] if start else ())]
    local = [path for path in paths if '://' not in path or path.startswith(SCHEME)]
    loaded = {path: load_checkpoint(path, trust) for path in local}
    if resume and start and start in loaded:
        check_progress(start, loaded[start])
    elif resume and not start and (found := find_resumable(cfg['work_dir'], trust)):
        cfg['load_from'], loaded[found[0]] = found
    return loaded


class FreeCheckpointsHook(Hook):
    """Frees, when training starts, the checkpoints that were read for it and not loaded.

    MMEngine ignores an ``init_cfg`` inside of a part that is itself pretrained.

    Args:
        loaded: what :func:`check_checkpoints` returned.
    """

    def __init__(self, loaded: dict[str, dict[str, Any]]) -> None:
        self.loaded = loaded

    def before_train(self, runner: Runner) -> None:
        """Empties the dict."""
        self.loaded.clear()
