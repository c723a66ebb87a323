"""Reads pictures with masks of class indices or colours."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UnreadableError, UsageError
from .checks import in_threads
from .files import SUFFIXES, read_text, source_folder, split_of, visible_files
from .records import Flaws, OwnData, Sample

MASK_FOLDERS = {'mask', 'masks', 'label', 'labels', 'annotation', 'annotations', 'gt', 'ann_dir'}
MASK_FOLDERS |= {'segmentationclass', 'segmentation', 'groundtruth', 'indexlabel'}
PICTURE_FOLDERS = {'image', 'images', 'img', 'imgs', 'pictures', 'photos', 'jpegimages', 'img_dir'}
MASK_ENDING = re.compile(r'_(mask|masks|label|labels|gt|seg|labelids|labeltrainids|p)$', re.I)
CLASS_FILES = ('labelmap.txt', 'classes.txt', 'codes.txt', 'label_colors.txt', 'class_dict.csv')
IGNORED = 255
MAX_CLASSES = 254


def read_masks(source: Path, flaws: Flaws, class_file: Path | None, zero_ignored: bool) -> OwnData:
    """Pairs pictures with masks by their names, and finds what the values of the masks mean.

    A mask is in a folder such as ``masks``, or its name ends in ``_mask`` or ``_label``. The class
    names, with or without indices or RGB colours, are in ``class_file`` or one of ``CLASS_FILES``;
    without, the classes are named after the values. 255 is ignored, unless 0 and 255 are the only
    values.

    Args:
        source: the folder.
        flaws: is extended.
        class_file: names of the classes.
        zero_ignored: whether 0 in index masks means "no class", and 1 the first class.

    Raises:
        UsageError: if there are no pairs, or more values than classes can have.
    """
    root = source_folder(source)
    samples = _pair(root, flaws)
    if not samples:
        raise UsageError(
            f'{root} has no pictures with masks: put them in images/ and masks/, with equal names'
        )
    values: set[int] = set()
    read = in_threads(_values_or_error, [sample.mask for sample in samples if sample.mask])
    kept = []
    for sample, result in zip(samples, list(read), strict=True):
        if isinstance(result, UnreadableError):
            flaws.add('mask cannot be read', sample.mask or '', str(result))
        else:
            sample.values, sample.mask_size = result
            values.update(sample.values)
            kept.append(sample)
    names, mapping = _meanings(root, class_file, values, zero_ignored)
    for sample in kept:
        unknown = {v: n for v, n in sample.values.items() if v not in mapping and v != IGNORED}
        if unknown and not (zero_ignored and set(unknown) == {0}):
            shown = ', '.join(f'{_name(v)} ({n:,} pixels)' for v, n in sorted(unknown.items())[:5])
            flaws.add('mask value without a class', sample.mask or '', shown)
    return OwnData('segmentation', names, kept, mapping)


def _pair(root: Path, flaws: Flaws) -> list[Sample]:
    """Samples of the pictures that have a mask; both have the same key."""
    pictures: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for path in visible_files(root, SUFFIXES):
        *folders, _ = path.relative_to(root).parts
        is_mask = any(f.lower() in MASK_FOLDERS for f in folders) or MASK_ENDING.search(path.stem)
        kept = [f for f in folders if f.lower() not in MASK_FOLDERS | PICTURE_FOLDERS]
        key = (*kept, MASK_ENDING.sub('', path.stem) if is_mask else path.stem)
        (masks if is_mask else pictures)[key] = path
    samples = []
    for key, path in pictures.items():
        if key in masks:
            relative = path.relative_to(root)
            samples.append(
                Sample(path, masks[key], mask=masks[key], split=split_of(relative.parent))
            )
        else:
            flaws.add('mask is missing', path)
    for key in masks.keys() - pictures.keys():
        flaws.add('picture is missing', masks[key], 'it is a mask without a picture')
    return samples


def load_mask(path: Path) -> np.ndarray:
    """Reads a mask.

    Args:
        path: the file; the values of a palette image are its indices.

    Returns:
        ``(H, W)`` int64: values, or ``1 << 24 | red << 16 | green << 8 | blue`` for colours.

    Raises:
        UnreadableError: if it is damaged, or a JPEG, which changes values.
    """
    try:
        with Image.open(path) as image:
            if image.format == 'JPEG':
                raise UnreadableError('it is a JPEG, which blurs the values; save masks as PNG')
            has_alpha = image.mode in ('RGBA', 'LA')
            plain = image.convert(image.mode[:-1]) if has_alpha else image
            values = np.asarray(plain).astype(np.int64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(f'it cannot be decoded: {error}') from None
    if values.ndim == 2:
        return values
    red, green, blue = (values[..., i] for i in range(3))
    return 1 << 24 | red << 16 | green << 8 | blue


def _values_or_error(path: Path) -> tuple[dict[int, int], tuple[int, int]] | UnreadableError:
    """Pixels of each value, and width and height."""
    try:
        mask = load_mask(path)
    except UnreadableError as error:
        return error
    found = np.unique(mask, return_counts=True)
    return {int(v): int(n) for v, n in zip(*found, strict=True)}, (mask.shape[1], mask.shape[0])


def _name(value: int) -> str:
    return f'#{value & 0xFFFFFF:06x}' if value >> 24 else str(value)


def _meanings(
    root: Path, file: Path | None, values: set[int], zero_ignored: bool
) -> tuple[list[str], dict[int, int]]:
    """Class names, and the index of the class of each value."""
    if file is None:
        found = [f for f in visible_files(root, {'.txt', '.csv'}) if f.name in CLASS_FILES]
        file = min(found, key=lambda f: (len(f.parts), CLASS_FILES.index(f.name)), default=None)
    colours = any(value >> 24 for value in values)
    if file is not None:
        return _read_classes(file, colours, zero_ignored)
    if values <= {0, IGNORED} and IGNORED in values:
        return ['background', 'foreground'], {0: 0, IGNORED: 1}
    used = sorted(values - {IGNORED} - ({0} if zero_ignored else set()))
    if not 1 < len(used) <= MAX_CLASSES:
        raise UsageError(
            f'the masks below {root} have {len(used)} different values; 2 to {MAX_CLASSES} can be '
            'classes. Anti-aliased or resized masks have mixed values; --classes FILE names those '
            'that are classes, and others are ignored'
        )
    prefix = 'colour' if colours else 'class'
    names = [f'{prefix}_{_name(value).removeprefix("#")}' for value in used]
    return names, {value: i for i, value in enumerate(used)}


def _read_classes(
    file: Path, colours: bool, zero_ignored: bool
) -> tuple[list[str], dict[int, int]]:
    """Lines such as ``road``, ``3 road``, ``road:128,64,128`` and ``128 64 128 road``."""
    names: list[str] = []
    mapping: dict[int, int] = {}
    for line in read_text(file).splitlines():
        line = line.partition('#')[0].strip() if file.name == 'labelmap.txt' else line.strip()
        if not line or re.fullmatch(r'name\W+r\W+g\W+b', line, re.I):
            continue
        number, value = r'(\d{1,3})', len(names) + int(zero_ignored)
        name, separator = line, r'[\s:,]+'
        three = separator.join([number] * 3)
        if match := re.fullmatch(rf'(.+?){separator}{three}[\s:,]*', line):
            name, parts = match[1], match.groups()[1:]
        elif match := re.fullmatch(rf'{three}{separator}(.+)', line):
            name, parts = match[4], match.groups()[:3]
        else:
            parts = ()
            if match := re.fullmatch(rf'{number}{separator}(.+)', line):
                value, name = int(match[1]), match[2]
        if colours:
            if not parts:
                raise UsageError(
                    f'{file}: {line!r} has no colour, but the masks are coloured; write lines '
                    'such as road:128,64,128'
                )
            red, green, blue = map(int, parts)
            value = 1 << 24 | red << 16 | green << 8 | blue
        mapping[value] = len(names)
        names.append(name.strip().rstrip(':'))
    if not 1 < len(names) <= MAX_CLASSES:
        raise UsageError(f'{file} names {len(names)} classes; 2 to {MAX_CLASSES} are possible')
    return names, mapping
