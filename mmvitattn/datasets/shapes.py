"""A small synthetic data set: six kinds of shapes on textured backgrounds.

With it, the configs of this package can be trained and evaluated without a download. Classes differ
only in form; colour, fill, size (1:8), rotation, occlusion and background vary. It has the formats
of COCO (detection), ADE20K (segmentation) and ImageNet (classification), which the data sets of
MMDetection, MMSegmentation and MMPretrain read::

    shapes.json                                          arguments of write_shapes
    coco/annotations/instances_{train,val}2017.json      boxes and polygons of the visible parts
    coco/{train,val}2017/000000000001.jpg
    ade/ADEChallengeData2016/images/{training,validation}/ADE_train_00000001.jpg
    ade/ADEChallengeData2016/annotations/{training,validation}/ADE_train_00000001.png
    imagenet/{train,val}/circle/000000.jpg

COCO and ADE20K contain the same pictures. In the masks, 0 is "ignored" and class ``i`` of
``SEGMENTATION_CLASSES`` is ``i + 1``, as in ADE20K: load them with ``reduce_zero_label=True``.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from ._shapes_render import BACKGROUND_CLASSES, SHAPE_CLASSES, SUPERSAMPLE, Scene, render_scene

__all__ = ['SEGMENTATION_CLASSES', 'SEGMENTATION_PALETTE', 'SHAPE_CLASSES', 'write_shapes']

SEGMENTATION_CLASSES = SHAPE_CLASSES + BACKGROUND_CLASSES
SEGMENTATION_PALETTE = (  # RGB: strong colours for shapes, pale ones for backgrounds
    (220, 50, 47), (38, 110, 210), (60, 160, 60), (240, 150, 20), (140, 70, 190), (20, 170, 180),
    (235, 200, 185), (190, 205, 235), (225, 235, 245), (215, 225, 180), (240, 230, 190),
    (205, 190, 215),
)  # fmt: skip

FORMAT_VERSION = 1
MIN_SIZE = 64
MAX_SHAPES = 4
EXTENT_RANGE = (0.1, 0.8)  # of the picture's side: 13 to 102 of 128 pixels
DOMINANT_RANGE = (0.4, 0.8)
DISTRACTOR_RANGE = (0.1, 0.22)
CLASS_PICTURES = 0.9  # pictures for classification per picture for detection

_SPLITS = {'train': 'training', 'val': 'validation'}
# Entry of the seed after the user's seed; a new kind of pictures needs a new number.
_STREAMS = {'train': 0, 'val': 1, 'imagenet/train': 2, 'imagenet/val': 3}


def write_shapes(
    root: str | Path,
    num_train: int = 1200,
    num_val: int = 200,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the data set, or returns at once if it already exists.

    Each picture depends only on the arguments and its index, so a smaller set consists of the first
    pictures of a larger one. The files are identical on all machines with the same versions of
    OpenCV, which encodes the pictures, and NumPy.

    Args:
        root: Folder to create. It is created when all files are written.
        num_train: Training pictures for detection and segmentation; classification has about
            ``0.15 * num_train`` per class.
        num_val: The same for validation.
        size: Side of the square pictures in pixels, at least 64.
        seed: Non-negative seed of the random numbers.
        progress: Called after each picture with the number of pictures done and the total.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If ``root`` contains anything else than this complete data set.
    """
    arguments = {'num_train': num_train, 'num_val': num_val, 'size': size, 'seed': seed}
    _check(arguments)
    root = Path(root)
    record = {
        'format_version': FORMAT_VERSION,
        **arguments,
        'shape_classes': list(SHAPE_CLASSES),
        'segmentation_classes': list(SEGMENTATION_CLASSES),
    }
    if _is_done(root, record):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f'.{root.name}-') as temporary:
        staged = Path(temporary) / 'shapes'
        total = sum(n + len(SHAPE_CLASSES) * _num_per_class(n) for n in (num_train, num_val))
        for done, _ in enumerate(_write_pictures(staged, arguments), start=1):
            if progress is not None:
                progress(done, total)
        _write_json(staged / 'shapes.json', record, indent=2)
        if root.exists():
            root.rmdir()  # empty, or _is_done would have refused
        staged.rename(root)
    return root


def _check(arguments: dict[str, int]) -> None:
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f'{name} must be an integer, got {value!r}')
    for name, least in {'num_train': 1, 'num_val': 1, 'size': MIN_SIZE, 'seed': 0}.items():
        if arguments[name] < least:
            raise ValueError(f'{name} must be at least {least}, got {arguments[name]}')


def _is_done(root: Path, record: dict) -> bool:
    """Whether ``root`` is this complete data set; False if it is missing or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = 'choose another --root or remove it'
    try:
        found = json.loads((root / 'shapes.json').read_text())
    except (OSError, ValueError):
        raise FileExistsError(f'{root} exists and is not a shapes data set: {remedy}') from None
    if found != record:
        raise FileExistsError(f'{root} contains shapes made with other arguments: {remedy}')
    files = [root / 'coco' / 'annotations' / f'instances_{split}2017.json' for split in _SPLITS]
    complete = all(file.is_file() for file in files) and all(
        (root / folder).is_dir() and len(list((root / folder).iterdir())) == expected
        for folder, expected in _image_folders(record)
    )
    if not complete:
        raise FileExistsError(f'{root} contains shapes, but some files are missing: {remedy}')
    return True


def _image_folders(arguments: dict) -> list[tuple[str, int]]:
    """Every folder of pictures or masks, with the number of files in it."""
    folders = []
    for split, ade_split in _SPLITS.items():
        num = arguments[f'num_{split}']
        folders.append((f'coco/{split}2017', num))
        folders.append((f'ade/ADEChallengeData2016/images/{ade_split}', num))
        folders.append((f'ade/ADEChallengeData2016/annotations/{ade_split}', num))
        for name in SHAPE_CLASSES:
            folders.append((f'imagenet/{split}/{name}', _num_per_class(num)))
    return folders


def _num_per_class(num_pictures: int) -> int:
    return max(1, round(num_pictures * CLASS_PICTURES / len(SHAPE_CLASSES)))


def _write_pictures(staged: Path, arguments: dict[str, int]) -> Iterator[None]:
    """Writes all files except ``shapes.json`` and yields after each picture."""
    size, seed = arguments['size'], arguments['seed']
    for folder, _ in _image_folders(arguments):
        (staged / folder).mkdir(parents=True)
    (staged / 'coco' / 'annotations').mkdir()
    for split in _SPLITS:
        num = arguments[f'num_{split}']
        yield from _write_scenes(staged, split, num, size, seed)
        yield from _write_class_pictures(staged / 'imagenet', split, num, size, seed)


def _write_scenes(staged: Path, split: str, num: int, size: int, seed: int) -> Iterator[None]:
    """Writes pictures of several shapes in the formats of COCO and ADE20K."""
    coco, ade = staged / 'coco', staged / 'ade' / 'ADEChallengeData2016'
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(1, num + 1):
        rng = np.random.default_rng([seed, _STREAMS[split], index])
        drawn = rng.integers(len(SHAPE_CLASSES), size=rng.integers(1, MAX_SHAPES + 1))
        scene = render_scene(rng, size, [(c, _extent(rng, size, EXTENT_RANGE)) for c in drawn])

        name = f'{index:012d}.jpg'
        ade_name = f'ADE_{split}_{index:08d}'
        jpeg = _encode(scene.image)
        (coco / f'{split}2017' / name).write_bytes(jpeg)
        (ade / 'images' / _SPLITS[split] / f'{ade_name}.jpg').write_bytes(jpeg)
        mask = _encode(segmentation_mask(scene), '.png')
        (ade / 'annotations' / _SPLITS[split] / f'{ade_name}.png').write_bytes(mask)

        images.append({'id': index, 'file_name': name, 'height': size, 'width': size})
        for annotation in coco_annotations(scene):
            annotations.append({'id': len(annotations) + 1, 'image_id': index, **annotation})
        yield
    categories = [
        {'id': i, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(SHAPE_CLASSES, 1)
    ]
    info = {'description': f'mmvitattn shapes, seed {seed}', 'version': str(FORMAT_VERSION)}
    instances = {'info': info, 'licenses': [], 'images': images}
    instances |= {'annotations': annotations, 'categories': categories}
    _write_json(coco / 'annotations' / f'instances_{split}2017.json', instances)


def _write_class_pictures(
    folder: Path, split: str, num: int, size: int, seed: int
) -> Iterator[None]:
    """Writes pictures of one large shape each in the format of ImageNet."""
    for category, name in enumerate(SHAPE_CLASSES):
        others = [c for c in range(len(SHAPE_CLASSES)) if c != category]
        for index in range(_num_per_class(num)):
            rng = np.random.default_rng([seed, _STREAMS[f'imagenet/{split}'], category, index])
            shapes = [(category, _extent(rng, size, DOMINANT_RANGE))]
            for distractor in rng.choice(others, size=rng.integers(4)):
                shapes.append((distractor, _extent(rng, size, DISTRACTOR_RANGE)))
            scene = render_scene(rng, size, shapes)
            (folder / split / name / f'{index:06d}.jpg').write_bytes(_encode(scene.image))
            yield


def _extent(rng: np.random.Generator, size: int, share: tuple[float, float]) -> float:
    """A random length in pixels from a log-uniform distribution."""
    return size * float(np.exp(rng.uniform(*np.log(share))))


def segmentation_mask(scene: Scene) -> np.ndarray:
    """Labels each pixel of a scene in the format of ADE20K.

    Returns:
        ``(size, size)`` uint8: index into ``SEGMENTATION_CLASSES`` plus 1, or 0 ("ignored") for
        pixels on the edge of a shape.
    """
    labels = np.array([0, *(c + 1 for c in scene.categories)], np.uint8)
    size = len(scene.background)
    blocks = scene.owner.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE)
    centre = blocks[:, SUPERSAMPLE // 2, :, SUPERSAMPLE // 2]
    agreement = (blocks == centre[:, None, :, None]).mean(axis=(1, 3))
    background = scene.background + np.uint8(len(SHAPE_CLASSES) + 1)
    mask = np.where(centre > 0, labels[centre], background)
    return np.where(agreement >= 0.75, mask, 0).astype(np.uint8)


def coco_annotations(scene: Scene) -> list[dict]:
    """Annotates the visible part of each shape in the format of COCO.

    Returns:
        One annotation per shape, farthest first, without ``id`` and ``image_id``: box as
        ``[x, y, width, height]`` in pixels, polygons in pixels, area in pixels squared.
    """
    annotations = []
    for number, category in enumerate(scene.categories, start=1):
        visible = scene.owner == number
        polygons = _polygons(visible)
        points = np.concatenate(polygons)
        low, high = points.min(axis=0), points.max(axis=0)
        annotations.append(
            {
                'category_id': int(category) + 1,
                'bbox': np.round([*low, *(high - low)], 3).tolist(),
                'area': int(visible.sum()) / SUPERSAMPLE**2,
                'segmentation': [np.round(polygon, 3).ravel().tolist() for polygon in polygons],
                'iscrowd': 0,
            }
        )
    return annotations


def _polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the largest parts of a supersampled mask, in pixels of the picture.

    COCO polygons cannot have holes, so each hole is joined to its outline by a slit of width 0.
    With the even-odd rule, by which pycocotools fills polygons, it is then outside.
    """
    grid = mask.astype(np.uint8)
    found, hierarchy = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [cv2.approxPolyDP(contour, 0.8, True)[:, 0] for contour in found]
    areas = [cv2.contourArea(contour) for contour in found]
    smallest = min(2 * SUPERSAMPLE**2, max(areas))
    polygons = []
    for index, (_, _, child, parent) in enumerate(hierarchy[0]):
        if parent >= 0 or areas[index] < smallest:
            continue
        polygon = contours[index]
        while child >= 0:
            if areas[child] >= SUPERSAMPLE**2:
                polygon = _join_hole(polygon, contours[child])
            child = hierarchy[0][child][0]
        polygons.append((polygon + 0.5) / SUPERSAMPLE)  # pixel centres to picture coordinates
    return polygons


def _join_hole(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(outline[:, None] - hole[None], axis=2)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    return np.concatenate([outline[: i + 1], hole[j:], hole[: j + 1], outline[i:]])


def _encode(image: np.ndarray, suffix: str = '.jpg') -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == '.jpg' else []
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _write_json(path: Path, content: dict, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent) + '\n')
