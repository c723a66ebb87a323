"""Checks of a config before any work is done: data, pretrained weights, run folder.

Each raises :class:`UsageError` with the value that is wrong and the remedy.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..datasets.layouts import LAYOUTS
from .errors import UsageError

SPLITS = ('train', 'val', 'test')


def check_data(cfg: Mapping, splits: Iterable[str]) -> None:
    """Finds every file and folder that the data loaders will open.

    Args:
        cfg: the config; its ``data_layout`` names the layout that an error describes.
        splits: of 'train', 'val', 'test': the loaders that will be used.

    Raises:
        UsageError: if one is not there.
    """
    missing = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for path in _dataset_paths(loader['dataset']) if loader else ():
            if not path.exists():
                missing.setdefault(path, f'{split}_dataloader')
    if not missing:
        return
    lines = [
        'the data is not there:',
        *(f'  {path}  ({loader})' for path, loader in missing.items()),
    ]
    lines += _data_remedy(cfg, next(iter(missing)))
    raise UsageError('\n'.join(lines))


def _data_remedy(cfg: Mapping, path: Path) -> list[str]:
    name = cfg.get('data_layout')
    if name == 'shapes':
        return ['make the embedded data set: python tools/prepare_data.py shapes']
    if name in LAYOUTS:
        layout = LAYOUTS[name]
        return [
            layout.describe(layout.root),
            f'  check it with: python tools/prepare_data.py {name} --root {layout.root}',
            '  another place: --data-root DIR',
        ]
    return ['set data_root of the data sets, or give --data-root DIR']


def _dataset_paths(dataset: Mapping) -> Iterator[Path]:
    """Paths below a data set's root that it reads; wrappers are looked through."""
    if 'dataset' in dataset:
        yield from _dataset_paths(dataset['dataset'])
        return
    if 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from _dataset_paths(inner)
        return
    root = Path(dataset.get('data_root') or '.')
    prefix = dataset.get('data_prefix') or ''
    prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    if dataset.get('type') == 'ImageNet' and prefix == '':
        prefixes = [dataset.get('split', '')]
    for part in (dataset.get('ann_file'), *prefixes):
        if part is not None and '://' not in f'{root}{part}':
            yield root / part


def replace_data_root(cfg: Mapping, new_root: str) -> None:
    """Moves all data sets and evaluators of a config to another folder, in place.

    Args:
        cfg: the config, with the ``data_root`` that its data sets and annotation files start with.
        new_root: the folder to use in its place.

    Raises:
        UsageError: if the config names no ``data_root``.
    """
    old_root = cfg.get('data_root')
    if not old_root:
        raise UsageError('--data-root: this config has no data_root; use --cfg-options')
    old_root = old_root.rstrip('/')

    def moved(value):
        if isinstance(value, Mapping):
            for key in value:
                value[key] = moved(value[key])
        elif isinstance(value, (list, tuple)):
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
        config_file: its file; the classification config is looked for beside it.

    Raises:
        UsageError: if a local checkpoint file is not there.
    """
    for owner in _pretrained_owners(cfg['model']):
        path = str(owner['init_cfg']['checkpoint'])
        if '://' in path or Path(path).is_file():
            continue
        raise UsageError(
            f'the pretrained weights {path} are not there. Either\n'
            f'  train them: {_classifier_hint(path, Path(config_file))}\n'
            '  or convert official weights: see tools/model_converters/\n'
            '  or start without them: --from-scratch'
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


def drop_pretrained(cfg: Mapping) -> None:
    """Removes every pretrained initialisation from the model's config, in place."""
    for owner in list(_pretrained_owners(cfg['model'])):
        owner['init_cfg'] = None


def _pretrained_owners(node) -> Iterator[dict]:
    """Parts of a model config whose init_cfg loads a checkpoint."""
    if isinstance(node, Mapping):
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained':
            yield node
        for value in node.values():
            yield from _pretrained_owners(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _pretrained_owners(value)


def check_run_folder(work_dir: str | Path, resume: bool) -> None:
    """A run never writes over an earlier one.

    Raises:
        UsageError: if ``work_dir`` holds checkpoints and the run is not to be resumed.
    """
    if not resume and (Path(work_dir) / 'last_checkpoint').exists():
        raise UsageError(
            f'{work_dir} already holds the checkpoints of a run. Go on with it: --resume; keep it '
            'and start another: --work-dir DIR'
        )


def check_amp() -> None:
    """Mixed precision in MMEngine needs an accelerator.

    Raises:
        UsageError: if there is none.
    """
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU, and there is none here; train without it')
