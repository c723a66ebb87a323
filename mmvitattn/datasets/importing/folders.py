"""Reads class folders: the name of a picture's folder is its class."""

from pathlib import Path

from ...errors import UsageError
from .files import SUFFIXES, source_folder, split_of, visible_files
from .records import Flaws, OwnData, Sample


def read_folders(source: Path, flaws: Flaws) -> OwnData:
    """Reads ``CLASS/x.jpg``, or ``train/CLASS/x.jpg`` and ``val/CLASS/x.jpg``.

    Args:
        source: the folder.
        flaws: is extended.

    Raises:
        UsageError: if there are fewer than two classes.
    """
    root = source_folder(source)
    tops = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith('.')]
    splits = {top: split_of(Path(top.name)) for top in tops}
    divided = any(splits[top] == 'train' for top in tops) and all(splits.values())
    samples = []
    for top in tops:
        for path in visible_files(top, SUFFIXES):
            label = path.relative_to(top).parts[0] if divided else top.name
            if divided and path.parent == top:
                flaws.add('picture without annotation', path, 'it is in no class folder')
                continue
            samples.append(Sample(path, path, label=label, split=splits[top] if divided else None))
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            flaws.add('picture without annotation', path, 'it is in no class folder')
    classes = sorted({sample.label for sample in samples if sample.label})
    if len(classes) < 2:
        raise UsageError(
            f'{root} has {len(classes)} class folders with pictures; at least 2 needed'
        )
    return OwnData('classification', classes, samples)
