"""Imports own data: reads what labelling tools write, checks it, writes the configs' layouts."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from .checks import check_boxes, check_classes, check_pictures, choose_names
from .coco import read_coco
from .config import write_config
from .folders import read_folders
from .masks import read_masks
from .recipe import Backbone
from .records import Flaws, OwnData
from .report import list_flaws, summarize
from .splits import split_data
from .voc import read_voc
from .writing import write_data
from .yolo import read_yolo

__all__ = ['FORMATS', 'Backbone', 'ImportOptions', 'import_data']

FORMATS = ('voc', 'yolo', 'coco', 'masks', 'folders')
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImportOptions:
    """How data are imported.

    Args:
        format: one of ``FORMATS``.
        split: share of the training pictures, instead of the source's splits.
        lists: files that name the pictures for training and for validation.
        class_file: names of the classes, for masks.
        zero_ignored: whether 0 in index masks means "no class".
        strict: stop if anything has to be left out or changed.
        device: 'cpu' or 'cuda', on which the model will be trained.
    """

    format: str
    split: float | None = None
    lists: Sequence[Path] | None = None
    class_file: Path | None = None
    zero_ignored: bool = False
    strict: bool = False
    device: str = 'cpu'


def import_data(
    source: Path,
    out: Path,
    options: ImportOptions,
    backbone: Backbone,
    configs: str,
    progress: Progress = lambda step, done, total: None,
) -> list[str]:
    """Imports data and writes a config for them; the source is only read.

    Args:
        source: a folder, or a file in it for YOLO and COCO.
        out: folder to create, with all files or not at all.
        options: how.
        backbone: of the config.
        configs: the folder of the base configs, as the config names it.
        progress: called with a step, the number of pictures done, and the total.

    Returns:
        Lines that describe what was found; ``out/report.txt`` also lists every flaw.

    Raises:
        UsageError: if the source cannot be used, ``out`` exists, or, with ``strict``, anything
            would have to be left out or changed.
    """
    if options.split is not None and not 0 < options.split < 1:
        raise UsageError(f'--split {options.split}: choose a share between 0 and 1, such as 0.8')
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f'--out {out} exists: choose another folder, or remove it')
    flaws = Flaws()
    data = read(source, options, flaws)
    check_pictures(data, flaws, lambda done, total: progress('reading pictures', done, total))
    check_boxes(data, flaws)
    split_data(data, flaws, options.split, options.lists)
    choose_names(data.samples, flaws)
    check_classes(data, flaws)
    if not data.counts('train'):
        raise UsageError(_stopped(f'{source} has no objects for training', flaws))
    if options.strict and flaws.changes():
        raise UsageError(_stopped(f'--strict: {source} has flaws, so nothing is written', flaws))
    summary = summarize(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as temporary:
        staged = Path(temporary) / 'data'
        staged.mkdir()
        write_data(data, staged, lambda done, total: progress('writing pictures', done, total))
        config = write_config(data, staged, str(out), configs, backbone, options.device)
        report = [f'{source}, format {options.format}', *summary, *list_flaws(flaws, limit=None)]
        (staged / 'report.txt').write_text('\n'.join(report) + '\n', encoding='utf-8')
        if out.exists():
            out.rmdir()
        shutil.move(staged, out)
    found = list_flaws(flaws)
    shown = [*found, f'all of them: {out / "report.txt"}'] if found else ['no flaws']
    return [*summary, *shown, f'next: python tools/train.py {out / config.name}']


def read(source: Path, options: ImportOptions, flaws: Flaws) -> OwnData:
    """Reads the annotations of a source in the given format."""
    if options.format == 'masks':
        return read_masks(source, flaws, options.class_file, options.zero_ignored)
    readers = dict(voc=read_voc, yolo=read_yolo, coco=read_coco, folders=read_folders)
    return readers[options.format](source, flaws)


def _stopped(reason: str, flaws: Flaws) -> str:
    return '\n'.join([f'{reason}:', *(f'  {line}' for line in list_flaws(flaws, limit=20))])
