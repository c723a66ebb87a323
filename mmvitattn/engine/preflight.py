"""Checks of a config before any work is done: data, pretrained weights, run folder.

Each raises :class:`UsageError` with the value that is wrong and the remedy.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..datasets.layouts import LAYOUTS
from .checkpoints import load_checkpoint
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
    lines += _data_remedy(cfg)
    raise UsageError('\n'.join(lines))


def _data_remedy(cfg: Mapping) -> list[str]:
    name, root = cfg.get('data_layout'), cfg.get('data_root')
    if name == 'shapes':
        return ['make the embedded data set: python tools/prepare_data.py shapes']
    if name in LAYOUTS:
        layout = LAYOUTS[name]
        return [
            layout.describe(root),
            f'  check it with: python tools/prepare_data.py {name} --root {root}',
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
    entries = [e for part in _initialised_parts(cfg['model']) for e in _as_list(part['init_cfg'])]
    for entry in filter(_is_pretrained, entries):
        path = str(entry['checkpoint'])
        if '://' in path or Path(path).is_file():
            continue
        raise UsageError(
            f'the pretrained weights {path} are not there. Either\n'
            f'  train them: {_classifier_hint(path, Path(config_file))}\n'
            '  or convert official weights, where there are any: see tools/model_converters/\n'
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
    for owner in list(_initialised_parts(cfg['model'])):
        kept = [entry for entry in _as_list(owner['init_cfg']) if not _is_pretrained(entry)]
        if len(kept) < len(_as_list(owner['init_cfg'])):
            owner['init_cfg'] = kept or None


def check_checkpoints(cfg: Mapping, trust: bool) -> None:
    """Reads every checkpoint file that a training will read; addresses are left to MMEngine.

    Args:
        cfg: the config, with ``load_from``, ``resume``, ``work_dir`` and the model's ``init_cfg``.
        trust: whether files may contain whatever they do.

    Raises:
        UsageError: if one is missing, damaged or contains what is not read.
    """
    entries = [e for part in _initialised_parts(cfg['model']) for e in _as_list(part['init_cfg'])]
    for path in {str(entry['checkpoint']) for entry in filter(_is_pretrained, entries)}:
        if '://' not in path:
            load_checkpoint(path, trust)
    path = cfg.get('load_from') or (cfg.get('resume') and _last_checkpoint(cfg['work_dir']))
    if not path or '://' in path:
        return
    checkpoint = load_checkpoint(path, trust)
    progress = {'epoch', 'iter'} <= set(checkpoint.get('meta') or ())
    if cfg.get('resume') and not (progress and 'message_hub' in checkpoint):
        raise UsageError(
            f'--resume: {path} holds no training to go on with; to start from its weights, leave '
            f'--resume out and give --cfg-options load_from={path}'
        )


def _last_checkpoint(work_dir: str | Path) -> str | None:
    """What MMEngine will resume; ``None`` if nothing was saved yet."""
    record = Path(work_dir) / 'last_checkpoint'
    if not record.exists():
        return None
    path = record.read_text().strip()
    if not Path(path).is_file():
        raise UsageError(
            f'{record} names {path!r}, which is not there; name the one to go on with: '
            '--resume CHECKPOINT'
        )
    return path


def _initialised_parts(node) -> Iterator[dict]:
    """Parts of a model config that have an init_cfg."""
    if isinstance(node, Mapping):
        if node.get('init_cfg'):
            yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for value in node:
        yield from _initialised_parts(value)


def _as_list(init_cfg: Mapping | list) -> list:
    return init_cfg if isinstance(init_cfg, list) else [init_cfg]


def _is_pretrained(entry: Mapping) -> bool:
    return entry.get('type') == 'Pretrained'


def check_run_folder(work_dir: str | Path, checkpoint: str | None, resume: bool) -> bool:
    """A run never writes over an earlier one.

    Args:
        work_dir: folder of the run.
        checkpoint: the file to resume from; ``None`` for the last one in ``work_dir``.
        resume: whether the run is to be resumed.

    Returns:
        Whether a checkpoint will be resumed.

    Raises:
        UsageError: if ``work_dir`` holds checkpoints of a run that is not the one to go on with.
    """
    work_dir = Path(work_dir)
    holds_run = (work_dir / 'last_checkpoint').exists()
    same_run = not checkpoint or Path(checkpoint).resolve().parent == work_dir.resolve()
    if holds_run and not (resume and same_run):
        raise UsageError(
            f'{work_dir} already holds the checkpoints of a run. Go on with it: --resume; keep it '
            'and start another: --work-dir DIR'
        )
    return bool(resume and (checkpoint or holds_run))


def check_amp() -> None:
    """Mixed precision in MMEngine needs an accelerator.

    Raises:
        UsageError: if there is none.
    """
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU, and there is none here; train without it')
