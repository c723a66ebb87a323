"""All figures of a backbone's attention."""

from collections.abc import Iterator, Sequence
from functools import partial

from matplotlib.figure import Figure
from torch import Tensor, nn

from ..layers import KeyOnlyAttention, LocalShiftAttention, QnALayer
from .capture import CapturedLayer, capture_attention
from .positions import Position, default_positions
from .saliency import draw_overview as draw_saliency_overview
from .saliency import draw_saliency
from .scene import Scene, grid_of
from .shifts import draw_shifts
from .windows import draw_overview as draw_windows_overview
from .windows import draw_windows


def draw_attention(
    backbone: nn.Module, image: Tensor, scene: Scene, positions: Sequence[Position] | None = None
) -> Iterator[tuple[str, Figure]]:
    """Draws what the attention layers of a backbone do with a picture.

    Args:
        backbone: a backbone of this package, in evaluation mode.
        image: the normalised picture, (1, C, H, W); padding on the right and the bottom is not
            drawn.
        scene: the same picture to draw over.
        positions: (x, y) in its pixels, where windows are looked at; default some corners.

    Returns:
        Names for files with figures, drawn one by one: for key-only attention an overview and one
        for each stage, for learned-query attention an overview and one for each layer, for local
        attention over shifts one.

    Raises:
        ValueError: if the backbone refuses the picture.
    """
    return _draw(backbone, image, capture_attention(backbone, image), scene, positions)


def _draw(
    backbone: nn.Module,
    image: Tensor,
    layers: Sequence[CapturedLayer],
    scene: Scene,
    positions: Sequence[Position] | None,
) -> Iterator[tuple[str, Figure]]:
    grids = partial(grid_of, backbone, image_size=image.shape[2:])
    key_only = [x for x in layers if isinstance(x.layer, KeyOnlyAttention)]
    if key_only:
        yield 'saliency', draw_saliency_overview(scene, key_only, grids)
    for stage in dict.fromkeys(layer.stage for layer in key_only):
        inside = [layer for layer in key_only if layer.stage == stage]
        yield f'saliency_stage{stage}', draw_saliency(scene, inside, grids)
    learned_query = [x for x in layers if isinstance(x.layer, QnALayer)]
    positions = positions or default_positions(scene.picture)
    if learned_query:
        yield 'windows', draw_windows_overview(scene, learned_query, positions, grids)
    for layer in learned_query:
        yield f'windows_{layer.file_name}', draw_windows(scene, layer, positions, grids)
    for layer in layers:
        if isinstance(layer.layer, LocalShiftAttention):
            yield 'shifts', draw_shifts(scene, layer, backbone.stem.shifts, grids)
