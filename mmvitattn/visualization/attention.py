"""All figures of a backbone's attention."""

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure
from torch import Tensor, nn

from ..layers import KeyOnlyAttention, LocalShiftAttention, QnALayer
from .capture import CapturedLayer, capture_attention
from .positions import Position, default_positions
from .saliency import draw_saliency, draw_saliency_overview
from .scene import Scene
from .shifts import draw_shifts, draw_variants
from .windows import draw_windows, draw_windows_overview


def draw_attention(
    backbone: nn.Module, image: Tensor, scene: Scene, positions: Sequence[Position] | None = None
) -> Iterator[tuple[str, Figure]]:
    """Draws the attention weights of a backbone for one image.

    Args:
        backbone: a backbone of this package, in evaluation mode.
        image: the normalised image, (1, C, H, W); padding on the right and the bottom is not
            drawn.
        scene: the same image as background of the figures.
        positions: centres (x, y) of the windows or of the patch to draw, in pixels of ``scene``;
            default: strong corners.

    Returns:
        File names without suffix and figures, each drawn when it is requested: for key-only
        attention an overview and one figure per stage, for learned-query attention an overview and
        one figure per layer, for local attention over shifts one figure of the attention and one of
        the shifted variants at the first position.

    Raises:
        ValueError: if the backbone rejects the image.
    """
    layers = capture_attention(backbone, image)  # here, so that errors are raised by the call
    return _draw(layers, scene, positions or default_positions(scene.picture))


def _draw(
    layers: Sequence[CapturedLayer], scene: Scene, positions: Sequence[Position]
) -> Iterator[tuple[str, Figure]]:
    key_only = [x for x in layers if isinstance(x.layer, KeyOnlyAttention)]
    if key_only:
        yield 'saliency', draw_saliency_overview(scene, key_only)
    for stage in dict.fromkeys(layer.stage for layer in key_only):
        inside = [layer for layer in key_only if layer.stage == stage]
        yield f'saliency_stage{stage}', draw_saliency(scene, inside)
    learned_query = [x for x in layers if isinstance(x.layer, QnALayer)]
    if learned_query:
        yield 'windows', draw_windows_overview(scene, learned_query, positions)
    for layer in learned_query:
        yield f'windows_{layer.file_name}', draw_windows(scene, layer, positions)
    for layer in layers:
        if isinstance(layer.layer, LocalShiftAttention):
            yield 'shifts', draw_shifts(scene, layer)
            yield 'variants', draw_variants(scene, layer, positions[0])
