"""The weights that the papers' authors published: where they are, and what they reach.

The authors of LinGlo published none. The files are in folders of Google Drive, which have to be
opened in a browser; nothing is downloaded here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError

DATA = dict(in1k='ImageNet-1K', cifar10='CIFAR-10', cifar100='CIFAR-100')
UNCONVERTED = (
    '  The file may have any suffix, or be named checkpoint* in a folder of that name. For '
    'build_backbone it need not be converted.'
)
FOLDER = Path('checkpoints')  # of converted weights, in the working directory, as in the configs


class Release(NamedTuple):
    """Official weights of a family."""

    family: str  # name of the module in ``mmvitattn.models``
    code: str  # address of the repository, whose README has the link
    weights: str  # address of the folder
    file: str  # in the folder
    tool: str  # that converts a file


QNA = Release(
    'qna_vit',
    'https://github.com/moabarar/qna',
    'https://drive.google.com/drive/folders/1o2npwntBlF8lkA_j9ZaaVIZ87b0Abg6R',
    '{}/checkpoint_*',
    'tools/model_converters/qna_flax_to_mm.py',
)
SAG = Release(
    'sag',
    'https://github.com/shellysheynin/Locally-SAG-Transformer',
    'https://drive.google.com/drive/folders/19NyfUxEebz_QanA99m_KIgIbPR5QY0OL',
    'the file of {}',
    'tools/model_converters/sag_to_mm.py',
)


class OfficialWeights(NamedTuple):
    """Weights of one model.

    Args:
        release: where they are published.
        arch: name of the architecture in the family.
        data: data set of the classifier: 'in1k', 'cifar10' or 'cifar100'.
        config: name of the config that evaluates the classifier.
        paper: top-1 accuracy that the paper reports, in percent.
        readme: top-1 accuracy of the file, by the release's README; ``None`` if it has none.
    """

    release: Release
    arch: str
    data: str
    config: str
    paper: float
    readme: float | None = None

    @property
    def backbone(self) -> str:
        """Name for :func:`mmvitattn.build_backbone`."""
        return f'{self.release.family}_{self.arch}'

    @property
    def converted(self) -> Path:
        """The converted file, named as in the configs."""
        return FOLDER / f'{self.backbone.replace("_", "-")}_{self.data}.pth'

    @property
    def original(self) -> Path:
        """The file of the release: with any suffix, or ``checkpoint*`` in a folder of this name."""
        name = self.backbone if self.data == 'in1k' else f'{self.backbone}_{self.data}'
        return FOLDER / 'official' / name

    def find(self) -> Path | None:
        """The converted file, otherwise that of the release; ``None`` if neither is there."""
        folder, name = self.original.parent, self.original.name
        patterns = (f'{name}.*', f'{name}/checkpoint*')
        others = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        paths = (self.converted, self.original, *others)
        return next((path for path in paths if path.is_file()), None)

    def describe(self) -> str:
        """How to get the file, in indented lines."""
        file = self.release.file.format(self.backbone)
        return (
            f'  download {file}, {DATA[self.data]}, from {self.release.weights}\n'
            f'  (the link in the README of {self.release.code})\n'
            f'  to {self.original}, and convert it:\n'
            f'  python {self.release.tool} {self.original} {self.converted}'
        )


OFFICIAL = (
    OfficialWeights(QNA, 'tiny', 'in1k', 'qna_vit_tiny_8xb128_in1k', 81.7, 81.7),
    OfficialWeights(QNA, 'tiny_7x7', 'in1k', 'qna_vit_tiny_7x7_8xb128_in1k', 82.0, 82.0),
    OfficialWeights(QNA, 'small', 'in1k', 'qna_vit_small_8xb128_in1k', 83.2, 83.2),
    OfficialWeights(QNA, 'base', 'in1k', 'qna_vit_base_8xb128_in1k', 83.7, 83.9),
    OfficialWeights(SAG, 'tiny', 'in1k', 'sag_tiny_8xb92_in1k', 76.0),
    OfficialWeights(SAG, 'small', 'in1k', 'sag_small_8xb64_in1k', 82.2),
    OfficialWeights(SAG, 'cifar_tiny', 'cifar10', 'sag_tiny_8xb92_cifar10', 97.0),
    OfficialWeights(SAG, 'cifar_tiny', 'cifar100', 'sag_tiny_8xb92_cifar100', 81.8),
    OfficialWeights(SAG, 'cifar_small', 'cifar10', 'sag_small_8xb40_cifar10', 97.64),
    OfficialWeights(SAG, 'cifar_small', 'cifar100', 'sag_small_8xb40_cifar100', 83.66),
    OfficialWeights(SAG, 'cifar_base', 'cifar10', 'sag_base_8xb20_cifar10', 97.75),
    OfficialWeights(SAG, 'cifar_base', 'cifar100', 'sag_base_8xb20_cifar100', 84.7),
)


def official_weights_for(path: str | Path) -> OfficialWeights | None:
    """The official weights whose converted file has this path, if there are any."""
    return next((entry for entry in OFFICIAL if entry.converted == Path(path)), None)


def load_official(backbone: str) -> tuple[Mapping[str, Any], str]:
    """Reads the official weights of a backbone; those of the release are converted in memory.

    Args:
        backbone: name of the backbone.

    Returns:
        A checkpoint with ``state_dict``, and the name of the file.

    Raises:
        CheckpointError: if there are no such weights, their file is not there or cannot be read,
            or there are files for several data sets.
    """
    entries = [entry for entry in OFFICIAL if entry.backbone == backbone]
    if not entries:
        known = ', '.join(dict.fromkeys(entry.backbone for entry in OFFICIAL))
        raise CheckpointError(
            f'there are no official weights of {backbone}, only of {known}; the authors of LinGlo '
            'published none'
        )
    found = {entry: path for entry in entries if (path := entry.find()) is not None}
    if not found:
        lines = [entry.describe() for entry in entries]
        raise CheckpointError(
            '\n'.join([f'the official weights of {backbone} are not there:', *lines, UNCONVERTED])
        )
    if len(found) > 1:
        paths = ', '.join(map(str, found.values()))
        raise CheckpointError(
            f'there are official weights of {backbone} for several data sets, {paths}: convert one '
            "and give the converted file instead of 'official'"
        )
    ((entry, path),) = found.items()
    return _read(entry, path), str(path)


def _read(entry: OfficialWeights, path: Path) -> Mapping[str, Any]:
    # Imported here: few programs read the files of the releases.
    from .checkpoint import load_checkpoint, read_torch_pickle
    from .converters import convert_qna_vit, convert_sag, read_flax_msgpack

    if path == entry.converted:
        return load_checkpoint(path)
    if entry.release.family == 'qna_vit':
        state_dict, description = convert_qna_vit(read_flax_msgpack(path))
    else:
        state_dict, description = convert_sag(read_torch_pickle(path))
    if description['arch'] != entry.arch:
        raise CheckpointError(
            f'{path} contains the weights of arch={description["arch"]!r}, not of {entry.arch!r}: '
            f'convert it with {entry.release.tool}, and build the backbone that the tool names'
        )
    return dict(state_dict=state_dict)
