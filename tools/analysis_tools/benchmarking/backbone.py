"""``benchmark.py backbone``: feature pyramids at the sizes of classification and detection."""

from .backbones import (
    B0_DOT_PRODUCT,
    B0_SDPA,
    CONVNEXT,
    CONVNEXT_LAST,
    LINGLO_B0,
    LINGLO_B1,
    LINGLO_B2,
    PVT,
    QNA_SMALL,
    QNA_TINY,
    QNA_TINY_7,
    RESNET,
    RESNET_LAST,
    SAG_SMALL,
    SAG_SMALL_ONE,
    SAG_SMALL_POOLED,
    SAG_SMALL_POOLED_MORE,
    SAG_SMALL_PUBLISHED,
    SAG_TINY,
    SAG_TINY_ONE,
    SWIN,
    SWIN_SDPA,
)
from .cases import BACKWARD, FORWARD, MODES, Case, Group, Size

LINGLOS, QNAS = (LINGLO_B0, LINGLO_B1, LINGLO_B2), (QNA_TINY, QNA_TINY_7, QNA_SMALL)
SAGS = (SAG_SMALL, SAG_SMALL_ONE, SAG_SMALL_PUBLISHED, SAG_TINY, SAG_TINY_ONE)
PEERS = (SWIN, SWIN_SDPA, PVT, CONVNEXT, CONVNEXT_LAST, RESNET, RESNET_LAST)
# At every size: one form of each peer; SAG, whose global attention is quadratic, as in detectors.
DENSE = (*LINGLOS, *QNAS, SAG_SMALL_POOLED, SWIN, PVT, CONVNEXT, RESNET)
# One form of each, which seldom is the slower one.
TRAINED = (*LINGLOS, *QNAS, SAG_SMALL, SAG_TINY, SWIN, PVT, CONVNEXT_LAST, RESNET_LAST)
FIGURE_4 = (LINGLO_B0, B0_SDPA, B0_DOT_PRODUCT)

SIDE = 224
SIDES = (224, 448, 896, 1344)
DETECTION = (800, 1344)  # 800 x 1333, padded to multiples of 32 as detectors do
LARGEST_TRAINED = 448  # side up to which the slopes are those of training, too
LARGEST_PLAIN, LARGEST_SDPA = 448, 896  # 448: N x N weights of 0.6 GB; 896: seconds
TEXT = (
    'Ours with an output norm a stage, timm models by features_only; no classifier, no drop path. '
    'LinGlo in its deploy form, for forward+backward in its training form.'
)


def groups(quick: bool, batch: int) -> list[Group]:
    """What ``benchmark.py backbone`` measures.

    Args:
        quick: small sizes and few contestants.
        batch: images at 224 x 224 in the first group.
    """
    if quick:
        names = (LINGLO_B0, SAG_TINY, SAG_TINY_ONE, SWIN, SWIN_SDPA, RESNET, RESNET_LAST)
        return [
            classification_group(1, 64, names, names),
            resolution_group((64, 128), (LINGLO_B0, SWIN, PVT, CONVNEXT), detection=None),
            figure_4_group((64, 96)),
        ]
    everything = (*LINGLOS, *QNAS, *SAGS, *PEERS)
    return [
        classification_group(batch, SIDE, everything, TRAINED),
        resolution_group(SIDES, DENSE, DETECTION),
        figure_4_group(SIDES),
        pooling_group(DETECTION),
    ]


def classification_group(
    batch: int, side: int, names: tuple[str, ...], trained: tuple[str, ...] = ()
) -> Group:
    """Backbones at the size of classification.

    Args:
        batch: images.
        side: their side, in pixels.
        names: contestants in the forward.
        trained: contestants in forward and backward.
    """
    title = f'Backbones at {side} x {side}, batch {batch}'
    size = Size(batch, side, side)
    cases = [Case(size, names, (FORWARD,))]
    if trained:
        cases.append(Case(size, trained, (BACKWARD,)))
    options = dict(images=True, autocast=True, least_rounds=4)
    return Group('classification', title, TEXT, SWIN, cases, **options)


def resolution_group(
    sides: tuple[int, ...], names: tuple[str, ...], detection: tuple[int, int] | None
) -> Group:
    """Backbones over image sizes, one image at a time.

    Args:
        sides: sides of the square images, in pixels.
        names: contestants.
        detection: height and width of one more image, of another shape.
    """
    cases = [
        Case(Size(1, side, side), names, MODES if side <= LARGEST_TRAINED else (FORWARD,))
        for side in sides
    ]
    if detection is not None:
        cases.append(Case(Size(1, *detection), names, (FORWARD,)))
    options = dict(axis='pixels', images=True, autocast=True, least_rounds=3)
    return Group('resolution', 'Backbones over image sizes', TEXT, SWIN, cases, **options)


def figure_4_group(sides: tuple[int, ...]) -> Group:
    """Dot-product attention on LinGlo-b0's architecture.

    Args:
        sides: sides of the images, in pixels.
    """
    largest = {B0_SDPA: LARGEST_SDPA, B0_DOT_PRODUCT: LARGEST_PLAIN}
    cases = []
    for side in sides:
        names = tuple(name for name in FIGURE_4 if side <= largest.get(name, side))
        cases.append(Case(Size(1, side, side), names, (FORWARD,)))
    text = 'The LinGlo paper, figure 4: dot-product attention on the architecture of LinGlo-b0.'
    title = 'Key-only against dot-product attention, LinGlo-b0'
    options = dict(axis='pixels', images=True, autocast=True, least_rounds=3)
    return Group('figure_4', title, text, LINGLO_B0, cases, **options)


def pooling_group(size: tuple[int, int]) -> Group:
    """SAG's global attention at the size of detection, with and without pooled keys and values.

    Args:
        size: height and width of the image, in pixels.
    """
    names = (SAG_SMALL, SAG_SMALL_POOLED, SAG_SMALL_POOLED_MORE)
    text = 'Global attention over all keys and values, or over averages of them in each stage.'
    options = dict(images=True, autocast=True, least_rounds=1)
    case = Case(Size(1, *size), names, (FORWARD,))
    return Group('pooling', 'SAG for detection', text, SAG_SMALL, [case], **options)
