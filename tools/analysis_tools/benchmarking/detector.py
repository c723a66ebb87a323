"""``benchmark.py detector``: RetinaNet, a training step without the update, and inference."""

from .cases import BACKWARD, MODES, Case, Group, Size
from .detectors import LINGLO, PVT, QNA, RESNET, SAG, SWIN, padded_shape

IMAGE = (800, 1333)
TEXT = (
    'RetinaNet with FPN on strides 8 to 128; forward is inference to boxes, forward+backward the '
    'losses of 5 boxes an image and all gradients. Images are padded to multiples of 32.'
)


def groups(quick: bool, batch: int) -> list[Group]:
    """What ``benchmark.py detector`` measures.

    Args:
        quick: small images and few contestants.
        batch: images.
    """
    if quick:
        return [detector_group((96, 125), batch, (LINGLO, SAG, SWIN), MODES)]
    return [detector_group(IMAGE, batch, (LINGLO, QNA, SAG, SWIN, PVT, RESNET), MODES)]


def step_group(quick: bool) -> Group:
    """The training step that a target is set for.

    Args:
        quick: small images.
    """
    return detector_group((96, 125) if quick else IMAGE, 1, (LINGLO, SWIN), (BACKWARD,))


def detector_group(
    image: tuple[int, int], batch: int, names: tuple[str, ...], modes: tuple[str, ...]
) -> Group:
    """Detectors at one image size.

    Args:
        image: height and width, in pixels.
        batch: images.
        names: contestants.
        modes: of 'forward' and 'forward+backward'.
    """
    size = Size(batch, *image)
    cases = [Case(size, names, modes, shapes=(padded_shape(size),))]
    title = f'RetinaNet, {image[0]} x {image[1]}, batch {batch}'
    options = dict(images=True, autocast=True, least_rounds=3)
    return Group('detector', title, TEXT, SWIN, cases, **options)
