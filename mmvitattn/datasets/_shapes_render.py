"""Draws the pictures of the "shapes" data set: textures, outlines, occlusion.

Until the last step, colours are BGR in [0, 1] in double precision: processors differ in the last
bits of a sine, which would change 8-bit pixels in single precision. Shapes are drawn on a grid
``SUPERSAMPLE`` times finer than the picture, for antialiased edges and sub-pixel outlines in the
labels.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

# Alphabetical, so that class folders, COCO categories and mask labels agree on the index.
SHAPE_CLASSES = ('circle', 'cross', 'rectangle', 'ring', 'star', 'triangle')
BACKGROUND_CLASSES = ('bricks', 'checks', 'clouds', 'dots', 'gradient', 'stripes')
FILLS = ('checks', 'clouds', 'flat', 'gradient', 'stripes')

SUPERSAMPLE = 4
MIN_VISIBLE_SHARE = 0.7  # of a shape, so that people recognise it
MIN_VISIBLE_AREA = 24 / 128**2  # of the picture
MIN_CONTRAST = 0.4  # weighted colour distance between a shape and its surroundings
PLACEMENT_TRIES = 30
LUMA_WEIGHTS = np.sqrt(3 * np.array([0.114, 0.587, 0.299]))


@dataclass
class Scene:
    """One rendered picture and its labels.

    ``owner`` is the visible shape at each position of the supersampled grid: 0 is the background
    and ``k`` is the ``k``-th shape drawn.
    """

    image: np.ndarray  # BGR (size, size, 3), uint8
    background: np.ndarray  # index into BACKGROUND_CLASSES per pixel, (size, size), uint8
    owner: np.ndarray  # uint8
    categories: list[int] = field(default_factory=list)  # into SHAPE_CLASSES, farthest first


def render_scene(rng: np.random.Generator, size: int, shapes: list[tuple[int, float]]) -> Scene:
    """Draws shapes on a textured background, each in front of the previous ones.

    A shape is not drawn if no position is found for which all shapes are visible; the first shape
    is always drawn.

    Args:
        rng: Random number generator.
        size: Side of the square picture in pixels.
        shapes: Category index and extent (longer side of the upright box, in pixels) of each.
    """
    canvas, background = _draw_background(rng, size)
    owner = np.zeros((size * SUPERSAMPLE,) * 2, np.uint8)
    scene = Scene(canvas, background, owner)
    areas: list[int] = []
    centres: list[tuple[np.ndarray, float]] = []
    for category, extent in shapes:
        mask = _draw_mask(rng, SHAPE_CLASSES[category], extent)
        for _ in range(PLACEMENT_TRIES):
            centre = _draw_centre(rng, size, extent, centres)
            corner = np.round(centre * SUPERSAMPLE).astype(int) - np.array(mask.shape) // 2
            rows, cols, visible = _clip_to(owner.shape, corner, mask)
            if not _leaves_all_visible(owner, areas, rows, cols, visible, int(mask.sum())):
                continue
            areas.append(int(mask.sum()))
            centres.append((centre, extent))
            scene.categories.append(category)
            owner[rows, cols][visible] = len(areas)
            _paint(rng, canvas, owner == len(areas), extent)
            break
    scene.image = _photograph(rng, canvas)
    return scene


def _draw_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One texture, or two that meet along a wavy border; returns colours and labels."""
    kinds = rng.permutation(len(BACKGROUND_CLASSES))[:2]
    layers = []
    for kind in kinds:
        period = size * rng.uniform(0.07, 0.18)
        pattern = draw_texture(rng, BACKGROUND_CLASSES[kind], (size, size), period)
        dark = rng.uniform(0.1, 0.8, 3)
        light = np.clip(dark + rng.uniform(0.06, 0.18) + rng.uniform(-0.05, 0.05, 3), 0, 1)
        layers.append(_blend(dark, light, pattern if rng.random() < 0.5 else 1 - pattern))
    if rng.random() < 0.4:
        return layers[0], np.full((size, size), kinds[0], np.uint8)
    along, across = _rotated_grid(rng, (size, size), rng.uniform(0, 2 * np.pi))
    height, length, offset = size * rng.uniform([0, 0.4, -0.2], [0.06, 1, 0.2])
    border = across + height * np.sin(along * (2 * np.pi / length)) + offset
    canvas = _blend(layers[0], layers[1], np.clip(border + 0.5, 0, 1))
    return canvas, np.where(border > 0, kinds[1], kinds[0]).astype(np.uint8)


def draw_texture(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], period: float
) -> np.ndarray:
    """A pattern of values in [0, 1], with edges smoothed over one pixel.

    Args:
        rng: Random number generator for orientation, phase and noise.
        kind: One of ``BACKGROUND_CLASSES``, or ``'flat'``.
        shape: Height and width in pixels.
        period: Length in pixels after which the pattern repeats.
    """
    u, v = _rotated_grid(rng, shape, rng.uniform(0, 2 * np.pi))
    if kind == 'flat':
        return np.full(shape, 0.5)
    if kind == 'gradient':
        return _normalise(u + rng.uniform(-0.006, 0.006) * (u * u + v * v))
    if kind == 'clouds':
        return _draw_clouds(rng, shape)
    if kind == 'stripes':
        return _square_wave(u, period)
    if kind == 'checks':
        a, b = _square_wave(u, 1.4 * period), _square_wave(v, 1.4 * period)
        return a * b + (1 - a) * (1 - b)
    if kind == 'dots':
        period *= 0.6  # smaller than any shape of class "circle"
        row = np.floor(v / period)
        du = (u + 0.5 * period * (row % 2)) % period - period / 2
        distance = np.hypot(du, v % period - period / 2)
        return np.clip(rng.uniform(0.25, 0.36) * period - distance + 0.5, 0, 1)
    if kind == 'bricks':
        return _draw_bricks(rng, shape, period)
    raise ValueError(f'unknown texture {kind!r}')


def _rotated_grid(
    rng: np.random.Generator, shape: tuple[int, ...], angle: float
) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.indices(shape, np.float64)
    y -= shape[0] / 2 + rng.uniform(-8, 8)
    x -= shape[1] / 2 + rng.uniform(-8, 8)
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _square_wave(u: np.ndarray, period: float) -> np.ndarray:
    # Near its zeros, sin(2 pi u / p) * p / (2 pi) is the distance to the edge in pixels.
    return np.clip(np.sin(u * (2 * np.pi / period)) * (period / (2 * np.pi)) + 0.5, 0, 1)


def _draw_clouds(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(shape)
    for octave in range(5):
        coarse = rng.random((3 * 2**octave,) * 2)
        total += 0.62**octave * cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return _normalise(total)


def _draw_bricks(rng: np.random.Generator, shape: tuple[int, ...], period: float) -> np.ndarray:
    u, v = _rotated_grid(rng, shape, rng.uniform(-0.25, 0.25) + rng.integers(2) * np.pi / 2)
    length = 2.2 * period
    row = np.floor(v / period)
    u = u + 0.5 * length * (row % 2)
    to_joint = np.minimum(_to_multiple(u, length), _to_multiple(v, period))
    tones = rng.uniform(0.55, 1, (16, 16))
    tone = tones[row.astype(int) % 16, np.floor(u / length).astype(int) % 16]
    return tone * np.clip(to_joint - 0.06 * period, 0, 1)


def _to_multiple(u: np.ndarray, period: float) -> np.ndarray:
    remainder = u % period
    return np.minimum(remainder, period - remainder)


def _normalise(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-6)


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours between ``first`` (share 0) and ``second`` (share 1)."""
    share = share[..., None]
    return first * (1 - share) + second * share


def _draw_mask(rng: np.random.Generator, kind: str, extent: float) -> np.ndarray:
    """The whole shape on the supersampled grid, cropped to its upright box."""
    outlines = _draw_outlines(rng, kind)
    aspect = rng.uniform(0.45, 1) if kind == 'rectangle' else rng.uniform(0.72, 1)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    transform = np.array([[cos, sin], [-sin * aspect, cos * aspect]])
    outlines = [outline @ transform for outline in outlines]
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    scale = extent * SUPERSAMPLE / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int)
    mask = np.zeros((height, width), np.uint8)
    points = [np.round((outline - low) * scale - 0.5).astype(np.int32) for outline in outlines]
    return cv2.fillPoly(mask, points, 1).astype(bool)  # even-odd: a second outline is a hole


def _draw_outlines(rng: np.random.Generator, kind: str) -> list[np.ndarray]:
    """Corner points of a shape at arbitrary scale; a second outline is a hole."""
    if kind == 'circle':
        return [_on_circle(np.arange(72) / 72)]
    if kind == 'ring':
        outer = _on_circle(np.arange(72) / 72)
        return [outer, outer * rng.uniform(0.48, 0.68)]
    if kind == 'rectangle':
        return [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)]
    if kind == 'triangle':
        return [_on_circle((np.arange(3) + rng.uniform(-0.12, 0.12, 3)) / 3)]
    if kind == 'star':
        radius = np.where(np.arange(10) % 2, rng.uniform(0.36, 0.48), 1.0)
        return [_on_circle(np.arange(10) / 10) * radius[:, None]]
    if kind == 'cross':
        a = rng.uniform(0.26, 0.38)
        arm = np.array([[a, a], [1, a], [1, -a]])
        quarter = np.array([[0, -1], [1, 0]])  # row vectors: clockwise on screen
        arms = [arm @ np.linalg.matrix_power(quarter, k) for k in range(4)]
        return [np.concatenate(arms)]
    raise ValueError(f'unknown shape {kind!r}')


def _on_circle(turns: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)


def _draw_centre(
    rng: np.random.Generator, size: int, extent: float, others: list[tuple[np.ndarray, float]]
) -> np.ndarray:
    """A (row, column) centre, with probability 1/2 close enough to another shape to overlap it."""
    margin = 0.42 * extent  # a small part may lie outside the picture
    if not others or rng.random() < 0.5:
        return rng.uniform(margin, size - margin, 2)
    centre, other = others[rng.integers(len(others))]
    reach = rng.uniform(0.5, 0.95) * (extent + other) / 2
    angle = rng.uniform(0, 2 * np.pi)
    offset = reach * np.array([np.sin(angle), np.cos(angle)])
    return np.clip(centre + offset, margin, size - margin)


def _clip_to(
    shape: tuple[int, int], corner: np.ndarray, mask: np.ndarray
) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of a grid that a mask covers, and the part of the mask inside the grid."""
    start = np.maximum(corner, 0)
    stop = np.minimum(corner + mask.shape, shape)
    (top, left), (bottom, right) = start - corner, stop - corner
    return slice(start[0], stop[0]), slice(start[1], stop[1]), mask[top:bottom, left:right]


def _leaves_all_visible(
    owner: np.ndarray, areas: list[int], rows: slice, cols: slice, mask: np.ndarray, area: int
) -> bool:
    """Whether drawing ``mask`` keeps it and every earlier shape recognisable."""
    bins = len(areas) + 1
    visible = cv2.calcHist([owner], [0], None, [bins], [0, bins])[1:, 0]
    hidden = np.bincount(owner[rows, cols][mask], minlength=bins)[1:]
    visible = np.append(visible - hidden, mask.sum())
    needed = np.maximum(MIN_VISIBLE_SHARE * np.append(areas, area), MIN_VISIBLE_AREA * owner.size)
    return bool((visible >= needed).all())


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, extent: float) -> None:
    """Fills a supersampled mask on the canvas with a shaded, textured, contrasting colour."""
    size = canvas.shape[0]
    alpha = cv2.resize(mask.astype(np.float64), (size, size), interpolation=cv2.INTER_AREA)
    x, y, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    margin = 3
    window = (
        slice(max(y - margin, 0), y + height + margin),
        slice(max(x - margin, 0), x + width + margin),
    )
    alpha, target = alpha[window], canvas[window]
    touched = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    first, second = _contrasting_colours(rng, target[touched & (alpha < 1)])
    kind = FILLS[rng.integers(len(FILLS))]
    period = max(extent * rng.uniform(0.15, 0.4), 4)
    fill = _blend(first, second, draw_texture(rng, kind, alpha.shape, period))
    light = draw_texture(rng, 'gradient', alpha.shape, period) - 0.5
    fill = fill * (1 + rng.uniform(0.1, 0.35) * light[..., None])
    canvas[window] = _blend(target, np.clip(fill, 0, 1), alpha)


def _contrasting_colours(
    rng: np.random.Generator, surroundings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two colours for a fill, both different from most pixels around it."""
    candidates = rng.uniform(0.04, 0.96, (24, 2, 3))
    candidates[:, 1] = candidates[:, 0] + 0.25 * (candidates[:, 1] - candidates[:, 0])
    around = surroundings[:: max(len(surroundings) // 48, 1)]
    distance = np.linalg.norm((candidates[:, :, None] - around) * LUMA_WEIGHTS, axis=-1)
    contrast = np.quantile(distance, 0.15, axis=2).min(axis=1)
    good = np.flatnonzero(contrast >= MIN_CONTRAST)
    first, second = candidates[good[0] if len(good) else contrast.argmax()]
    return first, second


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Applies uneven light, exposure and sensor noise, then converts to uint8."""
    light = draw_texture(rng, 'gradient', canvas.shape[:2], 1) - 0.5
    canvas = canvas * (1 + rng.uniform(0, 0.3) * light[..., None])
    canvas = np.clip(canvas, 0, 1) ** rng.uniform(0.85, 1.2)
    canvas = canvas + rng.uniform(0.008, 0.035) * rng.standard_normal(canvas.shape)
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
