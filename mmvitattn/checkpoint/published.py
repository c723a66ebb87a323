"""Weights that the package contains, by name: ``mmvitattn://linglo-b0_tiny-imagenet``."""

from pathlib import Path

from ..errors import CheckpointError
from .integrity import check_hash

SCHEME = 'mmvitattn://'
FOLDER = Path(__file__).resolve().parents[1] / 'weights'
SHA256 = {  # of the file NAME-DIGITS.safetensors, by NAME: backbone and data set
    'linglo-b0_tiny-imagenet': 'fa7b2cdbde942067f5a475a253dc320919aeca8013033d369609652ddecc353b',
}


def published_file(address: str) -> Path:
    """Finds a file of weights, and compares it with its SHA-256.

    Args:
        address: ``mmvitattn://NAME``.

    Raises:
        CheckpointError: if there are no weights of that name, or their file is missing or damaged.
    """
    name = address.removeprefix(SCHEME)
    if name not in SHA256:
        known = ', '.join(f'{SCHEME}{each}' for each in SHA256)
        raise CheckpointError(f'there are no weights {address}; the package contains {known}')
    path = published_path(name)
    if not path.is_file():
        raise CheckpointError(f'{address}: {path} is missing; install the package again')
    check_hash(path, SHA256[name])
    return path


def published_path(name: str) -> Path:
    """Path of the file of weights with this name, which need not exist."""
    return FOLDER / f'{name}-{SHA256[name][:8]}.safetensors'


def list_published(backbone: str) -> list[str]:
    """Addresses of all weights of a backbone, by its name for :func:`mmvitattn.build_backbone`."""
    start = f'{backbone.replace("_", "-")}_'
    return [SCHEME + name for name in SHA256 if name.startswith(start)]


def find_published(backbone: str, data: str) -> str | None:
    """Address of a backbone's weights.

    Args:
        backbone: name for :func:`mmvitattn.build_backbone`.
        data: name of the data set that they were trained on.

    Returns:
        The address; ``None`` if there are no weights of that data set.

    Raises:
        CheckpointError: if there are weights of that data set, but for other backbones.
    """
    for address in list_published(backbone):
        if address.endswith(f'_{data}'):
            return address
    names = [name for name in SHA256 if name.endswith(f'_{data}')]
    if names:
        others = ', '.join(name.removesuffix(f'_{data}').replace('-', '_') for name in names)
        raise CheckpointError(f'there are no {data} weights of {backbone}, only of {others}')
    return None
