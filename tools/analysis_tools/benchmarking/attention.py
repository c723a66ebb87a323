"""``benchmark.py attention``: single layers at given sizes."""

from dataclasses import replace

from .cases import MODES, Case, Group, Size
from .layers import (
    DOT_PRODUCT,
    HALO,
    KEY_ONLY,
    KEY_ONLY_FOLDED,
    KEY_ONLY_PLAIN,
    QNA,
    QNA_EXACT,
    SAG,
    SAG_ONE_BY_ONE,
    SASA,
    SASA_LAST,
    SDPA,
    SWIN,
    SWIN_SHIFTED,
    UNFOLD,
    UNFOLD_LAST,
)

CHANNELS, QNA_HEADS = 64, 8  # of QnA-ViT-tiny's first stage
MAP, DENSE_MAP = (56, 56), (200, 334)  # strides 4 of 224 x 224 and 800 x 1333
OURS, UNFOLDS, WINDOWS = (QNA, QNA_EXACT), (UNFOLD, UNFOLD_LAST), (SWIN, SWIN_SHIFTED)
SASAS = (SASA, SASA_LAST)
KEY_ONLYS = (KEY_ONLY, KEY_ONLY_PLAIN, KEY_ONLY_FOLDED)
QUADRATIC = (SDPA, DOT_PRODUCT)
GLOBAL_SIDES = (28, 56, 112, 224, 448)
LARGEST_SASA = 11  # window side; beyond, a call takes seconds and gigabytes
LARGEST_QUADRATIC = 112  # side of a map whose N x N weights take 0.6 GB

WINDOW_TEXT = (
    'QnA has 2 queries and 8 heads; unfold attention has as many heads, Swin windows of 7 x 7 '
    'whatever k is and 32 channels a head, HaloNet blocks of 8 x 8 with a halo of k // 2.'
)


def groups(quick: bool, on_gpu: bool) -> list[Group]:
    """What ``benchmark.py attention`` measures.

    Args:
        quick: small sizes and few cases.
        on_gpu: larger batches, and the contestants of :mod:`.gpu`.
    """
    batch, dense_batch = (128, 8) if on_gpu else (8, 1)
    if quick:
        return [
            window_group('window', (13, 15), batch=1, kernel_sizes=(3, 7), channels=16),
            global_group(sides=(7, 14)),
            sag_group({'small': 32, 'tiny': 32, 'CIFAR': 16}, batch=1),
        ]
    dense = window_group('dense_map', DENSE_MAP, dense_batch, (3, 7, 11), sasa=on_gpu)
    found = [
        window_group('window', MAP, batch),
        dense,
        global_group(),
        sag_group({'small': 224, 'tiny': 224, 'CIFAR': 32}, batch),
    ]
    return _with_gpu_contestants(found, batch, dense_batch) if on_gpu else found


def window_group(
    key: str,
    grid: tuple[int, int],
    batch: int,
    kernel_sizes: tuple[int, ...] = (3, 7, 11, 15),
    channels: int = CHANNELS,
    sasa: bool = True,
) -> Group:
    """Local attention at one map size over window sides.

    Args:
        key: the group's.
        grid: height and width of the map.
        batch: images.
        kernel_sizes: window sides.
        channels: channels.
        sasa: whether stand-alone self-attention takes part, up to 11 x 11.
    """
    cases = []
    for k in kernel_sizes:
        sasas = SASAS if sasa and k <= LARGEST_SASA else ()
        names = (*OURS, *UNFOLDS, *sasas, HALO, *WINDOWS)
        cases.append(Case(Size(batch, *grid, channels, QNA_HEADS, k), names))
    title = f'Local attention, {grid[0]} x {grid[1]} x {channels}, batch {batch}'
    rounds = 3 if grid[0] > MAP[0] else 5
    options = dict(axis='window side', least_rounds=rounds)
    return Group(key, title, WINDOW_TEXT, UNFOLD, cases, **options)


def global_group(sides: tuple[int, ...] = GLOBAL_SIDES, channels: int = CHANNELS) -> Group:
    """Global attention over map sizes.

    Args:
        sides: sides of the square maps; the quadratic forms run up to 112 x 112.
        channels: channels, in one head, as in LinGlo's first stage.
    """
    cases = [
        Case(
            Size(1, side, side, channels),
            (*KEY_ONLYS, *(QUADRATIC if side <= LARGEST_QUADRATIC else ())),
        )
        for side in sides
    ]
    text = f'One head; dot-product attention up to {LARGEST_QUADRATIC} x {LARGEST_QUADRATIC} alone.'
    title = f'Global attention, {channels} channels, batch 1'
    return Group('global', title, text, SDPA, cases, axis='positions')


def sag_group(sides: dict[str, int], batch: int, modes: tuple[str, ...] = MODES) -> Group:
    """SAG's embedding and local attention against the published form.

    Args:
        sides: side of the images of each architecture.
        batch: images.
        modes: of 'forward' and 'forward+backward'.
    """
    cases = [
        Case(Size(batch, side, side, arch=arch), (SAG, SAG_ONE_BY_ONE), modes)
        for arch, side in sides.items()
    ]
    text = 'From images to the output of the local attention, 10 or (CIFAR) 18 shifts.'
    title = 'SAG: shifted embedding and local attention'
    return Group('sag', title, text, SAG_ONE_BY_ONE, cases, images=True)


def _with_gpu_contestants(found: list[Group], batch: int, dense_batch: int) -> list[Group]:
    from . import gpu  # flex_attention and torch.compile are of no use without one

    more = {
        'window': (gpu.COMPILED_UNFOLD, gpu.COMPILED_STACK, gpu.COMPILED_SASA, gpu.FLEX),
        'dense_map': (gpu.COMPILED_UNFOLD, gpu.COMPILED_STACK, gpu.COMPILED_SASA, gpu.FLEX),
        'global': (gpu.COMPILED_KEY_ONLY,),
        'sag': (gpu.COMPILED_SAG,),
    }
    extended = [
        replace(
            group,
            cases=[replace(case, names=(*case.names, *more[group.key])) for case in group.cases],
        )
        for group in found
    ]
    names = (gpu.SUM, gpu.SUM_LOOP, gpu.SUM_UNFOLD, gpu.SUM_COMPILED)
    cases = []
    for (height, width), images in ((MAP, batch), (DENSE_MAP, dense_batch)):
        for k in (3, 7):
            grid = (images, height, width)
            shapes = ((*grid, 2, QNA_HEADS), (*grid, QNA_HEADS, CHANNELS // QNA_HEADS))
            cases.append(Case(Size(*grid, CHANNELS, QNA_HEADS, k), names, shapes=shapes))
    text = 'From scores and values to the output, without projections.'
    return [*extended, Group('window_sum', 'QnA: the bare window sum', text, gpu.SUM_UNFOLD, cases)]
