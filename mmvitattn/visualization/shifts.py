"""Local attention over shifts: the shifted variants of a picture, and where each patch looks.

A shift of the image by (down, right) pixels makes a patch see what lay that far up and left of it.
"""

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .capture import CapturedLayer, Grid
from .positions import Position
from .scene import NORMAL, SMALL, TINY, Scene, show

PANEL = 2.6  # width of a panel in inches
COLUMNS = 4  # heads side by side
MOST_ARROWS = 16  # on the longer side
VARIANT_COLUMNS = 6
EXCERPT = 24  # least side of the excerpt of the variants, in pixels
EXCERPT_PATCHES = 6  # and in patches
ARROW = '#00327d'
UNSHIFTED = '#dddddd'
# Okabe and Ito's colours for the directions in steps of 45 degrees, from right over down.
DIRECTIONS = (
    *('#E69F00', '#CC79A7', '#56B4E9', '#000000'),
    *('#D55E00', '#009E73', '#0072B2', '#F0E442'),
)


def shift_colours(looks: np.ndarray) -> np.ndarray:
    """Colours (T, 3), RGB in [0, 1], for offsets (T, 2), (right, down) from the patch in pixels.

    The hue is the direction; short offsets are paler.
    """
    lengths = np.hypot(*looks.T)
    sectors = np.round(np.arctan2(looks[:, 1], looks[:, 0]) / (np.pi / 4)).astype(int) % 8
    chosen = np.tile(colors.to_rgb(UNSHIFTED), (len(looks), 1))
    for sector in set(sectors[lengths > 0]):
        inside = np.flatnonzero((sectors == sector) & (lengths > 0))
        inside = inside[np.argsort(lengths[inside], kind='stable')]
        hue = np.array(colors.to_rgb(DIRECTIONS[sector]))
        for strength, t in zip(np.linspace(1, 0.4, len(inside))[::-1], inside, strict=True):
            chosen[t] = 1 - strength * (1 - hue)
    return chosen


def shift_picture(
    picture: np.ndarray, shift: tuple[int, int], border: str, stride: int
) -> np.ndarray:
    """The picture as the embedding of one variant sees it.

    Args:
        picture: (H, W, 3).
        shift: pixels (down, right).
        border: 'reflect' fills with the reflection; any other continues on the opposite side, as
            'extend' and 'roll' do.
        stride: to a multiple of which the picture is padded with zeros on the right and the bottom.

    Returns:
        The shifted picture, of the padded size.
    """
    (down, right), (height, width) = shift, picture.shape[:2]
    padding = ((0, -height % stride), (0, -width % stride), (0, 0))
    if border != 'reflect':
        return np.roll(np.pad(picture, padding), shift, axis=(0, 1))
    around = [(max(n, 0), max(-n, 0)) for n in shift]
    filled = np.pad(picture, (*around, (0, 0)), mode='reflect')
    top, left = max(-down, 0), max(-right, 0)
    return np.pad(filled[top : top + height, left : left + width], padding)


def draw_variants(scene: Scene, layer: CapturedLayer, position: Position) -> Figure:
    """The variants of the patch at a position (x, y) and of those around it (SAG, figure 1)."""
    step, (rows, columns) = layer.grid.step, layer.inputs.shape[-3:-1]
    row, column = layer.grid.nearest(*position, rows, columns)
    patches = min(max(EXCERPT_PATCHES, -(-EXCERPT // step)), rows, columns)
    first_row = min(max(row - patches // 2, 0), rows - patches)
    first_column = min(max(column - patches // 2, 0), columns - patches)
    left, top, side = first_column * step, first_row * step, patches * step
    panels = 1 + len(layer.shifts)
    lines = -(-panels // VARIANT_COLUMNS)
    size = (0.7 * PANEL * VARIANT_COLUMNS, (0.7 * PANEL + 0.25) * lines + 0.5)
    caption = 'outlined: one patch; the unshifted variant attends to all of them, itself included'
    figure = scene._replace(caption=caption).figure(
        f'SAG: the {len(layer.shifts)} variants of a picture, shifted by pixels (down, right)', size
    )
    axes = figure.subplots(lines, VARIANT_COLUMNS, squeeze=False).flat
    for ax in axes:
        ax.set_axis_off()
    show(axes[0], scene.picture)
    axes[0].set_title('picture and excerpt', fontsize=NORMAL)
    axes[0].add_patch(Rectangle((left, top), side, side, fill=False, ec='red', lw=1.5))
    for ax, shift in zip(axes[1:panels], layer.shifts, strict=True):
        show(ax, shift_picture(scene.picture, shift, layer.border, step))
        ax.set_xlim(left, left + side)
        ax.set_ylim(top + side, top)
        ax.hlines(range(top, top + side + 1, step), left, left + side, color='white', lw=0.5)
        ax.vlines(range(left, left + side + 1, step), top, top + side, color='white', lw=0.5)
        corner = (column * step, row * step)
        ax.add_patch(Rectangle(corner, step, step, fill=False, ec='red', lw=1.5))
        ax.set_title(str(shift), fontsize=NORMAL)
    return figure


def draw_shifts(scene: Scene, layer: CapturedLayer) -> Figure:
    """Where each patch looks: for each head the strongest shift, and the mean of all below it."""
    looks = -np.array(layer.shifts)[:, ::-1]  # (right, down) in pixels
    weights = layer.weights()[:, 0].numpy()  # (T, H, W, h)
    heads = weights.shape[-1]
    columns, blocks = min(heads, COLUMNS), -(-heads // COLUMNS)
    height = PANEL * scene.aspect + 0.35
    figure = scene.figure(
        f'SAG: where each patch looks, {layer.title}; equal weights would be {1 / len(looks):.2f}',
        (PANEL * (columns + 1) + 0.4, 2 * blocks * height + 0.6),
    )
    axes = figure.subplots(2 * blocks, columns + 1, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    show(axes[0, 0], scene.picture)
    axes[0, 0].set_title('picture', fontsize=NORMAL)
    _draw_legend(axes[1, 0], looks)
    means = np.einsum('tyxh,tc->hyxc', weights, looks)
    longest = np.hypot(means[..., 0], means[..., 1]).max()
    for head in range(heads):
        row, column = 2 * (head // COLUMNS), 1 + head % COLUMNS
        strongest, mean = axes[row : row + 2, column]
        show(strongest, scene.grey)
        drawn = shift_colours(looks)[weights[..., head].argmax(axis=0)]
        extent = layer.grid.extent(*drawn.shape[:2])
        strongest.imshow(drawn, alpha=0.9, extent=extent, interpolation='nearest')
        strength = weights[..., head].max(axis=0).mean()
        strongest.set_title(f'head {head + 1}: strongest, weight {strength:.2f}', fontsize=NORMAL)
        show(mean, scene.grey)
        _draw_arrows(mean, means[head], longest, layer.grid)
        mean.set_title(f'head {head + 1}: mean, up to {longest:.1f} px', fontsize=NORMAL)
    return figure


def _draw_arrows(ax: Axes, means: np.ndarray, longest: float, grid: Grid) -> None:
    """Mean offsets (H, W, 2), averaged over squares of patches where there are many."""
    side = -(-max(means.shape[:2]) // MOST_ARROWS)
    rows, columns = (n // side for n in means.shape[:2])
    kept = means[: rows * side, : columns * side]
    arrows = kept.reshape(rows, side, columns, side, 2).mean(axis=(1, 3))
    middle = (side - 1) / 2
    x = grid.left + grid.step * (side * np.arange(columns) + middle)
    y = grid.top + grid.step * (side * np.arange(rows) + middle)
    scale = longest / (0.95 * side * grid.step)  # the longest reaches the next arrow
    ax.quiver(
        x, y, arrows[..., 0], arrows[..., 1], color=ARROW, width=0.007, headwidth=3.5, headlength=4,
        angles='xy', scale_units='xy', scale=max(scale, TINY),
    )  # fmt: skip


def _draw_legend(ax: Axes, looks: np.ndarray) -> None:
    """The colour of each shift, at the offset where it makes a patch look."""
    for (x, y), colour in zip(looks, shift_colours(looks), strict=True):
        ax.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, color=colour, ec='0.3', lw=0.5))
    ax.plot(0, 0, 'k+', markersize=6)
    low, high = looks.min(axis=0) - 0.6, looks.max(axis=0) + 0.6
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    ax.set_aspect('equal')
    ax.set_title('colours: where it looks,\npixels from the patch (+)', fontsize=NORMAL)
    ax.set_axis_on()
    ax.set_xticks(range(looks[:, 0].min(), looks[:, 0].max() + 1))
    ax.set_yticks(range(looks[:, 1].min(), looks[:, 1].max() + 1))
    ax.tick_params(labelsize=SMALL, length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
