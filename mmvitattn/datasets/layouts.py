"""Folder layouts of the public data sets, and checks of a folder against them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
MAX_NAMED = 5  # missing files that are listed by name
MASKS_READ = 20  # per split
CIFAR10_BATCH_BYTES = 30_000_000  # 10,000 pictures of 3,072 bytes, and their labels


@dataclass(frozen=True)
class Layout:
    """Files and folders of a data set."""

    title: str  # for messages
    root: str  # folder that the configs expect, relative to the working directory
    tree: str  # example paths, one per line
    download: str  # source of the official files
    find_problems: Callable[[Path], Iterator[str]]  # yields a line for each problem of a folder
    summarize: Callable[[Path], str]  # describes a correct folder in one line
    prepare: Callable[[Path], None] | None = None  # adds what the configs need; changes nothing

    def describe(self, root: str | Path) -> str:
        """Expected files at ``root`` and their download, as indented text."""
        tree = '\n'.join(f'    {line}' for line in self.tree.strip().splitlines())
        return f'  expected layout of {root}:\n{tree}\n  official download: {self.download}'


def _missing(root: Path, *paths: str) -> list[str]:
    return [f'{root / path} is missing' for path in paths if not (root / path).exists()]


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def _name_some(what: str, missing: list) -> Iterator[str]:
    for path in missing[:MAX_NAMED]:
        yield f'{what} {path}'
    if len(missing) > MAX_NAMED:
        yield f'{what} {len(missing) - MAX_NAMED} more files'


def _coco_problems(root: Path) -> Iterator[str]:
    for split in ('train2017', 'val2017'):
        annotation = f'annotations/instances_{split}.json'
        missing = _missing(root, annotation, split)
        yield from missing
        if missing:
            continue
        try:
            content = json.loads((root / annotation).read_text())
            names = [image['file_name'] for image in content['images']]
            annotations, categories = content['annotations'], content['categories']
            if not all(isinstance(name, str) for name in names):
                raise TypeError('a file_name is not text')
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            yield f'{root / annotation} is not a readable COCO annotation file: {error!r}'
            continue
        if not names or not annotations or not categories:
            yield f'{root / annotation} lists no pictures, no objects or no categories'
        present = {path.name for path in _images(root / split)}
        absent = [root / split / name for name in names if name not in present]
        yield from _name_some(f'{annotation} lists a picture that is missing:', absent)


def _summary(root: Path, **official: int) -> str:
    """Numbers of pictures in folders below ``root``, with the official numbers."""
    counts = [f'{s} {len(_images(root / s)):,} of {n:,}' for s, n in official.items()]
    return f'pictures: {", ".join(counts)} (official counts)'


def _ade20k_problems(root: Path) -> Iterator[str]:
    import cv2

    for split in ('training', 'validation'):
        missing = _missing(root, f'images/{split}', f'annotations/{split}')
        yield from missing
        if missing:
            continue
        images, masks = _images(root / 'images' / split), _images(root / 'annotations' / split)
        if not images:
            yield f'{root / "images" / split} holds no pictures'
        stems = {mask.stem for mask in masks}
        absent = [image.name for image in images if image.stem not in stems]
        yield from _name_some(f'annotations/{split} has no mask for', absent)
        stems = {image.stem for image in images}
        orphans = [mask.name for mask in masks if mask.stem not in stems]
        yield from _name_some(f'images/{split} has no picture for', orphans)
        for path in masks[:: max(1, len(masks) // MASKS_READ)]:
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if mask is None or mask.ndim != 2 or mask.max() > 150:
                yield f'{path} is not an index mask of 0 (ignored) to 150'


def _class_folder_problems(root: Path) -> Iterator[str]:
    missing = _missing(root, 'train', 'val')
    yield from missing
    if missing:
        return
    train, val = ({p.name for p in (root / s).iterdir() if p.is_dir()} for s in ('train', 'val'))
    if not train:
        yield f'{root / "train"} holds no class folders'
    elif not val:
        yield (
            f'{root / "val"} holds no class folders: sort the validation pictures into one '
            'folder for each class, named as in train'
        )
    else:
        yield from _name_some('val has no folder for the class', sorted(train - val))
        yield from _name_some('train has no folder for the class', sorted(val - train))
        folders = [p for s in ('train', 'val') for p in (root / s).iterdir() if p.is_dir()]
        empty = [folder for folder in folders if not any(folder.iterdir())]
        yield from _name_some('no pictures in', sorted(empty))


def _class_folder_summary(root: Path) -> str:
    folders = {s: [p for p in (root / s).iterdir() if p.is_dir()] for s in ('train', 'val')}
    counts = {s: sum(len(_images(p)) for p in folders[s]) for s in folders}
    return (
        f'{len(folders["train"]):,} of 1,000 classes; pictures: train {counts["train"]:,} of '
        f'1,281,167, val {counts["val"]:,} of 50,000 (official counts)'
    )


def _cifar10_problems(root: Path) -> Iterator[str]:
    batches = [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch', 'batches.meta']
    yield from _missing(root, *(f'cifar-10-batches-py/{name}' for name in batches))
    for name in batches[:-1]:  # only sizes: a batch is a pickle, which is not safe to read
        path = root / 'cifar-10-batches-py' / name
        if path.exists() and path.stat().st_size < CIFAR10_BATCH_BYTES:
            yield f'{path} is too small to hold 10,000 pictures'


def _tiny_imagenet_classes(root: Path) -> list[str]:
    return sorted(path.name for path in (root / 'train').iterdir() if path.is_dir())


def _tiny_imagenet_labels(root: Path) -> dict[str, str]:
    """Class of each validation picture, from the official list; '' where a line has none."""
    lines = (root / 'val/val_annotations.txt').read_text().splitlines()
    rows = [line.split('\t') for line in lines if line.strip()]
    return {row[0]: row[1] if len(row) > 1 else '' for row in rows}


def _list_tiny_imagenet_labels(root: Path) -> None:
    """Writes the validation list that mmpretrain's ``CustomDataset`` reads: picture and class."""
    target = root / 'val_labels.txt'
    if target.exists() or _missing(root, 'train', 'val/val_annotations.txt'):
        return
    numbers = {name: number for number, name in enumerate(_tiny_imagenet_classes(root))}
    labels = _tiny_imagenet_labels(root).items()
    if all(name in numbers for _, name in labels):
        target.write_text(''.join(f'{picture} {numbers[name]}\n' for picture, name in labels))


def _tiny_imagenet_problems(root: Path) -> Iterator[str]:
    missing = _missing(root, 'train', 'val/images', 'val/val_annotations.txt')
    yield from missing
    if missing:
        return
    classes, labels = _tiny_imagenet_classes(root), _tiny_imagenet_labels(root)
    empty = [root / 'train' / c for c in classes if not any((root / 'train' / c).rglob('*.JPEG'))]
    yield from _name_some('no pictures in', empty)
    bare = [line for line, name in labels.items() if not name]
    yield from _name_some('val_annotations.txt has a line without a tab and a class:', bare)
    unknown = sorted(set(labels.values()) - {*classes, ''})
    yield from _name_some('val_annotations.txt names a class that train lacks:', unknown)
    present = {path.name for path in _images(root / 'val/images')}
    yield from _name_some('val/images lacks', sorted(set(labels) - present))
    if not (root / 'val_labels.txt').exists():
        yield (
            f'{root / "val_labels.txt"} is missing: `python tools/prepare_data.py tiny-imagenet '
            f'--root {root}` writes it'
        )


def _tiny_imagenet_summary(root: Path) -> str:
    train = sum(1 for _ in (root / 'train').glob('*/images/*.JPEG'))
    return (
        f'{len(_tiny_imagenet_classes(root))} classes; pictures: train {train:,}, '
        f'val {len(_tiny_imagenet_labels(root)):,} (official: 200 classes, 100,000 and 10,000; '
        'for another number of classes than 202 set model.head.num_classes)'
    )


LAYOUTS = {
    'coco': Layout(
        title='COCO 2017',
        root='data/coco',
        tree="""
annotations/instances_train2017.json
annotations/instances_val2017.json
train2017/000000000009.jpg ...
val2017/000000000139.jpg ...""",
        download='https://cocodataset.org/#download (2017 train and val images, annotations)',
        find_problems=_coco_problems,
        summarize=lambda root: _summary(root, train2017=118_287, val2017=5_000),
    ),
    'ade20k': Layout(
        title='ADE20K (SceneParse150)',
        root='data/ade/ADEChallengeData2016',
        tree="""
images/training/ADE_train_00000001.jpg ...
images/validation/ADE_val_00000001.jpg ...
annotations/training/ADE_train_00000001.png ...
annotations/validation/ADE_val_00000001.png ...""",
        download='http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)',
        find_problems=_ade20k_problems,
        summarize=lambda root: _summary(root / 'images', training=20_210, validation=2_000),
    ),
    'imagenet': Layout(
        title='ImageNet-1K',
        root='data/imagenet',
        tree="""
train/n01440764/n01440764_10026.JPEG ...
val/n01440764/ILSVRC2012_val_00000293.JPEG ...""",
        download='https://image-net.org/download (ILSVRC2012, task 1 and 2)',
        find_problems=_class_folder_problems,
        summarize=_class_folder_summary,
    ),
    'tiny-imagenet': Layout(
        title='Tiny-ImageNet',
        root='data/tiny-imagenet-200',
        tree="""
train/n01443537/images/n01443537_0.JPEG ...
val/images/val_0.JPEG ...
val/val_annotations.txt""",
        download='http://cs231n.stanford.edu/tiny-imagenet-200.zip, or, with 202 classes, the '
        'repository rangeetpan/IMagenet on GitHub',
        find_problems=_tiny_imagenet_problems,
        summarize=_tiny_imagenet_summary,
        prepare=_list_tiny_imagenet_labels,
    ),
    'cifar10': Layout(
        title='CIFAR-10',
        root='data/cifar10',
        tree="""
cifar-10-batches-py/data_batch_1 ... data_batch_5
cifar-10-batches-py/test_batch
cifar-10-batches-py/batches.meta""",
        download='https://www.cs.toronto.edu/~kriz/cifar.html (python version)',
        find_problems=_cifar10_problems,
        summarize=lambda root: '60,000 pictures in 6 batch files',
    ),
}
