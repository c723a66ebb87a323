"""What the readers of own data return, and the flaws that are found in it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

RULES = {  # kind of flaw: what is done with it
    'annotation file cannot be read': 'the file is left out',
    'annotation is incomplete': 'the object is left out',
    'picture is missing': 'its annotation is left out',
    'picture cannot be read': 'it is left out',
    'picture without annotation': 'it is left out',
    'picture of another name': 'the picture that is named like the annotation file is used',
    'picture name is used twice': 'the name of its folder is put before the later one',
    'size differs from the file': 'boxes are scaled if the proportions agree within 1 %; '
    'otherwise the picture is left out',
    'EXIF rotation': 'the picture is written upright; boxes or a mask of the unturned picture '
    'are turned with it',
    'box without area': 'the object is left out (sides under 1 pixel count as none)',
    'box outside the picture': 'the object is left out',
    'box partly outside the picture': 'it is clipped (excesses up to 1 pixel are not listed)',
    'corners in the wrong order': 'they are swapped',
    'object annotated twice': 'the second one is left out',
    'mask is missing': 'the picture is left out',
    'mask cannot be read': 'the picture is left out',
    'mask of another size': 'the picture is left out',
    'mask value without a class': 'its pixels are ignored in training and evaluation',
    'picture in both lists': 'it is used for validation only',
    'picture in neither list': 'it is left out',
    'list names no picture': 'the entry is left out',
}
NOTES = {  # worth knowing, but nothing is changed: --strict does not stop
    'picture without objects': 'it is kept as background',
    'class with few objects': 'it is kept; expect poor results for it',
    'class without objects': 'it is left out of the classes',
    'class names that differ only in case': 'they are kept apart; they may mean the same class',
    'pictures of a test split': 'they are left out, since there is a validation split',
}


@dataclass(frozen=True)
class Flaw:
    """A flaw of the source: its kind (of ``RULES`` or ``NOTES``), the file, and details."""

    kind: str
    file: str
    detail: str = ''

    def __str__(self) -> str:
        """The file, and the details if there are any."""
        return f'{self.file}: {self.detail}' if self.detail else self.file


class Flaws:
    """Collects flaws, in the order in which they are found."""

    def __init__(self) -> None:
        self.found: list[Flaw] = []

    def add(self, kind: str, file: Path | str, detail: str = '') -> None:
        """Adds a flaw.

        Args:
            kind: a key of ``RULES`` or ``NOTES``.
            file: where it is.
            detail: the value that is wrong.
        """
        assert kind in RULES or kind in NOTES, kind
        self.found.append(Flaw(kind, str(file), detail))

    def by_kind(self) -> Iterator[tuple[str, str, list[Flaw]]]:
        """Yields each kind that was found, its rule, and its flaws."""
        for kind, rule in {**RULES, **NOTES}.items():
            flaws = [flaw for flaw in self.found if flaw.kind == kind]
            if flaws:
                yield kind, rule, flaws

    def changes(self) -> list[Flaw]:
        """The flaws for which something is left out or changed."""
        return [flaw for flaw in self.found if flaw.kind in RULES]


@dataclass
class Box:
    """An annotated object.

    Args:
        label: name of its class.
        corners: in pixels; in fractions of the picture if ``Sample.relative``.
        ignored: neither learned nor counted as an error ('difficult' in VOC, crowds in COCO).
        segmentation: COCO's polygons in pixels, or run-length code; ``None`` without.
    """

    label: str
    corners: Corners
    ignored: bool = False
    segmentation: list[list[float]] | dict | None = None


@dataclass
class Sample:
    """A picture with its annotation.

    Args:
        picture: the file.
        annotation: the file that describes it, for messages.
        boxes: objects, for detection.
        stated_size: width and height that the annotation states; ``None`` if it does not.
        relative: whether the boxes are in fractions of width and height.
        mask: file, for segmentation.
        values: pixels of each value or colour in the mask.
        mask_size: width and height of the mask.
        label: class, for classification.
        split: 'train', 'val' or 'test' where the source says so.
        size: width and height of the upright picture; set when it is read.
        orientation: the EXIF tag, 1 to 8; set when it is read.
        name: file name in the imported data set.
    """

    picture: Path
    annotation: Path
    boxes: list[Box] = field(default_factory=list)
    stated_size: tuple[int, int] | None = None
    relative: bool = False
    mask: Path | None = None
    values: dict[int, int] = field(default_factory=dict)
    mask_size: tuple[int, int] = (0, 0)
    label: str | None = None
    split: str | None = None
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    name: str = ''


@dataclass
class OwnData:
    """Somebody's own data.

    Args:
        task: 'detection', 'segmentation' or 'classification'.
        classes: their names, in the order of the labels.
        samples: pictures with annotations.
        mask_values: index of the class of each value or colour in the masks, for segmentation.
    """

    task: str
    classes: list[str]
    samples: list[Sample]
    mask_values: dict[int, int] = field(default_factory=dict)

    def split(self, name: str) -> list[Sample]:
        """The samples of 'train' or 'val'."""
        return [sample for sample in self.samples if sample.split == name]

    def classes_of(self, sample: Sample) -> list[str]:
        """The class of each object of a sample; for segmentation, each class in the mask once."""
        if self.task == 'classification':
            return [sample.label or '']
        if self.task == 'segmentation':
            found = {self.mask_values[v] for v in sample.values if v in self.mask_values}
            return [self.classes[i] for i in sorted(found)]
        return [box.label for box in sample.boxes]

    def counts(self, split: str) -> Counter[str]:
        """Objects of each class in a split; for segmentation and classification, pictures."""
        return Counter(name for sample in self.split(split) for name in self.classes_of(sample))
