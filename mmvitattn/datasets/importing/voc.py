"""Reads Pascal VOC: one XML file for each picture, as LabelImg, CVAT and others write it."""

from pathlib import Path
from xml.etree import ElementTree

from ...errors import UnreadableError, UsageError
from .files import PictureIndex, read_text, source_folder, split_of, visible_files
from .records import Box, Flaws, OwnData, Sample

MAX_XML = 2**24  # bytes


def read_voc(source: Path, flaws: Flaws) -> OwnData:
    """Reads all annotations below a folder.

    Boxes are pixel indices that start with 1 and include both ends, as VOC defines them. The
    splits are those of ``ImageSets/Main``, if it exists.

    Args:
        source: the folder.
        flaws: is extended.

    Raises:
        UsageError: if there is no annotation file.
    """
    root = source_folder(source)
    files = visible_files(root, {'.xml'})
    if not files:
        raise UsageError(f'{root} has no .xml files, which --format voc reads')
    index, splits = PictureIndex(root), _image_sets(root)
    samples = []
    for file in files:
        sample = _read_file(file, index, flaws)
        if sample is not None:
            sample.split = splits.get(file.stem)
            samples.append(sample)
    annotated = {sample.picture for sample in samples}
    folders = {path.parent for path in annotated}
    stems = {file.stem for file in files}
    for path in index.pictures:
        if path.parent in folders and path not in annotated and path.stem not in stems:
            flaws.add('picture without annotation', path)
    classes = sorted({box.label for sample in samples for box in sample.boxes})
    return OwnData('detection', classes, samples)


def _image_sets(root: Path) -> dict[str, str]:
    """The split of each picture, by its name without suffix."""
    splits = {}
    for file in visible_files(root, {'.txt'}):
        if file.parent.parts[-2:] == ('ImageSets', 'Main') and file.stem in (
            'train',
            'val',
            'test',
        ):
            for line in read_text(file).splitlines():
                if line.strip():
                    splits[line.split()[0]] = split_of(Path(file.name)) or 'train'
    return splits


def parse_xml(file: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        UnreadableError: if it is damaged, or declares entities, which can expand without end.
    """
    text = read_text(file, MAX_XML)
    if '<!ENTITY' in text:
        raise UnreadableError(f'{file} declares XML entities')
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UnreadableError(f'{file} is not well-formed XML: {error}') from None


def _read_file(file: Path, index: PictureIndex, flaws: Flaws) -> Sample | None:
    try:
        tree = parse_xml(file)
        if tree.tag != 'annotation':
            raise UnreadableError(f'its root element is <{tree.tag}> instead of <annotation>')
    except UnreadableError as error:
        flaws.add('annotation file cannot be read', file, str(error).removeprefix(f'{file} '))
        return None
    stated = _text(tree, 'filename')
    own, named = index.find_stem(file.stem, file.parent), index.find(stated, file.parent)
    picture = own or named
    if picture is None:
        flaws.add('picture is missing', file, f'it names {stated!r}')
        return None
    if own and stated and Path(stated.replace('\\', '/')).stem.lower() != own.stem.lower():
        flaws.add('picture of another name', file, f'it names {stated!r}; used: {own.name}')
    size = (_number(tree, 'size/width'), _number(tree, 'size/height'))
    stated_size = (int(size[0]), int(size[1])) if size[0] and size[1] else None
    boxes = [box for item in tree.iter('object') if (box := _read_object(item, file, flaws))]
    return Sample(picture, file, boxes, stated_size)


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or '').strip()


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        number = float(_text(element, path))
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None  # not NaN either


def _read_object(item: ElementTree.Element, file: Path, flaws: Flaws) -> Box | None:
    label = _text(item, 'name')
    ends = [_number(item, f'bndbox/{name}') for name in ('xmin', 'ymin', 'xmax', 'ymax')]
    if not label or None in ends:
        flaws.add('annotation is incomplete', file, f'class {label!r}, box {ends}')
        return None
    x1, y1, x2, y2 = (end for end in ends if end is not None)
    if x1 == x2 or y1 == y2:
        return Box(label, (x1, y1, x1, y1))  # without area
    if x1 > x2 or y1 > y2:
        flaws.add('corners in the wrong order', file, f'{label} {ends}')
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    ignored = _text(item, 'difficult') == '1'
    return Box(label, (x1 - 1, y1 - 1, x2, y2), ignored)
