"""Modules that exist only for the comparison: other papers' layers and slower forms of our own.

Attention layers map (B, H, W, C) to the same shape. Their arguments are those of our layers: the
number of ``channels`` C and of heads ``num_heads`` h, the odd side ``kernel_size`` k of the window.
Unfold attention copies every window out of the map before it attends to it, in one of two layouts,
of which either may be faster: by ``F.unfold``, (B, C, k*k, N), or, with ``channels_last``, as
copies of strided views, (B, H, W, k*k, C).
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvitattn.layers import GlobalAttention, QnALayer
from mmvitattn.layers.global_attention import AttentionProjections
from mmvitattn.ops import force, learned_query_attention, learned_query_scores

from . import Unavailable

MASKED_SCORE = -1e30  # gets softmax weight 0; finite, so that no gradient is NaN
SWIN_WINDOW, SWIN_HEAD = 7, 32  # side of the window; channels of a head
HALO_BLOCK = 8
SMALLEST_FLEX_HEAD = 16  # channels per head that flex_attention's kernels need at least


class Forced(nn.Module):
    """A module with the implementations of our ops forced, as by :func:`mmvitattn.ops.force`.

    Raises:
        Unavailable: if there is no such implementation.
    """

    def __init__(self, module: nn.Module, setting: str) -> None:
        super().__init__()
        self.module, self.setting = module, setting
        try:
            with force(setting):
                pass
        except ValueError:
            raise Unavailable(f'there is no implementation {setting}') from None

    def forward(self, *inputs: Tensor) -> Tensor | list[Tensor]:
        """Runs the module."""
        with force(self.setting):
            return self.module(*inputs)


class ChannelsLast(nn.Module):
    """A model with weights and images in PyTorch's channels_last format."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Runs the model."""
        return self.model(images.contiguous(memory_format=torch.channels_last))


class Exported(nn.Module):
    """A backbone as an ONNX file in onnxruntime, on as many threads as PyTorch; inference only."""

    session: Any = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.counted = model  # for its FLOPs

    def forward(self, images: Tensor) -> list[Tensor]:
        """Runs the file, which the first call exports."""
        if self.session is None:
            self.session = self._export(images)
        outputs = self.session.run(None, {'image': images.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    def _export(self, images: Tensor) -> Any:
        import onnxruntime

        from mmvitattn.inference.onnx_export import Exportable, export_onnx

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model.onnx')
            export_onnx(Exportable(self.counted), path, (2, *images.shape[1:]), {})
            return onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])


def windows_first(x: Tensor, kernel_size: int, fill: float = 0.0) -> Tensor:
    """Windows of a map (B, H, W, C) by ``F.unfold``, (B, C, k*k, H*W)."""
    reach, channels = kernel_size // 2, x.shape[-1]
    x = x.permute(0, 3, 1, 2)
    if fill:
        x = F.pad(x, (reach,) * 4, value=fill)
    columns = F.unfold(x, kernel_size, padding=0 if fill else reach)
    return columns.unflatten(1, (channels, -1))


def windows_last(x: Tensor, kernel_size: int, fill: float = 0.0) -> Tensor:
    """Windows of a map (B, H, W, C) as copies of a strided view, (B, H, W, k*k, C)."""
    reach = kernel_size // 2
    padded = F.pad(x, (0, 0, reach, reach, reach, reach), value=fill)
    view = padded.unfold(1, kernel_size, 1).unfold(2, kernel_size, 1)
    return view.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)


class UnfoldSelfAttention(AttentionProjections):
    """Stand-alone self-attention (SASA) by unfolding keys and values.

    As in the paper's release, positions outside the map take part with zero keys and values.
    """

    def __init__(
        self, channels: int, num_heads: int, kernel_size: int, channels_last: bool
    ) -> None:
        super().__init__(channels, num_heads)
        self.kernel_size, self.channels_last = kernel_size, channels_last
        self.position_bias = nn.Parameter(torch.zeros(kernel_size**2, num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer."""
        heads, dim = self.num_heads, self.channels // self.num_heads
        query = self.query(x) * dim**-0.5
        key, value = self.key_value(x).chunk(2, dim=-1)
        if self.channels_last:
            key = windows_last(key, self.kernel_size).unflatten(-1, (heads, dim))
            scores = (query.unflatten(-1, (heads, dim))[:, :, :, None] * key).sum(-1)
            weights = (scores + self.position_bias).softmax(dim=3)
            value = windows_last(value, self.kernel_size).unflatten(-1, (heads, dim))
            return self.out((weights[..., None] * value).sum(3).flatten(-2))
        query = query.flatten(1, 2).mT.unflatten(1, (heads, dim))  # (B, h, d, N)
        key = windows_first(key, self.kernel_size).unflatten(1, (heads, dim))
        scores = (query[:, :, :, None] * key).sum(2)
        weights = (scores + self.position_bias.T[..., None]).softmax(dim=2)  # (B, h, k*k, N)
        value = windows_first(value, self.kernel_size).unflatten(1, (heads, dim))
        y = (weights[:, :, None] * value).sum(3).flatten(1, 2)
        return self.out(y.mT.unflatten(1, x.shape[1:3]))


class UnfoldLearnedQuery(QnALayer):
    """:class:`~mmvitattn.layers.QnALayer` by unfolding scores and values."""

    def __init__(
        self, channels: int, num_heads: int, kernel_size: int, channels_last: bool
    ) -> None:
        super().__init__(channels, num_heads, kernel_size)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer."""
        query = self.query.unflatten(-1, (self.num_heads, -1))
        scores = learned_query_scores(x, query, self.key.weight, self.normalize_queries)
        bias, scale = self.position_bias, self.attention_scale
        assert bias is not None and scale is not None
        value = self.value(x).unflatten(-1, query.shape[1:])
        y = unfold_learned_query(scores, value, bias, scale, self.kernel_size, self.channels_last)
        return self.out(y.flatten(-2))


def unfold_learned_query(
    scores: Tensor,
    values: Tensor,
    bias: Tensor,
    scale: Tensor,
    kernel_size: int,
    channels_last: bool,
) -> Tensor:
    """:func:`mmvitattn.ops.learned_query_attention` of stride 1, by unfolding.

    Scores are (B, H, W, q, h), values and result (B, H, W, h, d), bias and scale (k*k, q, h).
    """
    grid, queries, heads = scores.shape[1:3], scores.shape[3:], values.shape[3:]
    scores, values = scores.flatten(-2), values.flatten(-2)
    bias, scale = bias.flatten(1), scale.flatten(1)  # (k*k, q*h)
    if channels_last:
        weights = (windows_last(scores, kernel_size, MASKED_SCORE) + bias).softmax(dim=3) * scale
        weights = weights.unflatten(-1, queries).sum(-2).to(values.dtype)  # (B, H, W, k*k, h)
        value = windows_last(values, kernel_size).unflatten(-1, heads)
        return (weights[..., None] * value).sum(3)
    weights = windows_first(scores, kernel_size, MASKED_SCORE) + bias.T[..., None]
    weights = (weights.softmax(dim=2) * scale.T[..., None]).unflatten(1, queries).sum(1)
    weights = weights.to(values.dtype)  # (B, h, k*k, N); the scores are in float32
    value = windows_first(values, kernel_size).unflatten(1, heads)
    return (weights[:, :, None] * value).sum(3).permute(0, 3, 1, 2).unflatten(1, grid)


class WindowSum(nn.Module):
    """The op inside QnA without projections: ours, or (``unfolds``) by copies of windows."""

    def __init__(self, num_heads: int, kernel_size: int, unfolds: bool = False) -> None:
        super().__init__()
        table = (kernel_size**2, 2, num_heads)
        self.bias = nn.Parameter(0.1 * torch.randn(table))
        self.scale = nn.Parameter(torch.randn(table))
        self.kernel_size, self.unfolds = kernel_size, unfolds

    def forward(self, scores: Tensor, values: Tensor) -> Tensor:
        """Scores (B, H, W, q, h) and values (B, H, W, h, d) to (B, H, W, h, d)."""
        args = (scores, values, self.bias, self.scale, self.kernel_size)
        if self.unfolds:
            return unfold_learned_query(*args, channels_last=True)
        return learned_query_attention(*args)


class DotProductAttention(AttentionProjections):
    """Softmax attention between all positions, with its N x N weights in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer."""
        query, key, value = _split_heads(self, x)
        weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(x.shape))


def _split_heads(layer: AttentionProjections, x: Tensor) -> list[Tensor]:
    """Query, key and value of a map, each (B, h, N, d)."""
    tokens, heads = x.flatten(1, 2), (layer.num_heads, layer.channels // layer.num_heads)
    projected = (layer.query(tokens), *layer.key_value(tokens).chunk(2, dim=-1))
    return [y.unflatten(-1, heads).transpose(1, 2) for y in projected]


def with_plain_softmax(model: nn.Module) -> nn.Module:
    """Replaces each :class:`GlobalAttention` by :class:`DotProductAttention`, in place."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is GlobalAttention:
                plain = DotProductAttention(layer.channels, layer.num_heads)
                plain.load_state_dict(layer.state_dict())
                setattr(module, name, plain)
    return model


class FlexNeighbourhood(AttentionProjections):
    """Attention of each position to the k x k window around it by ``flex_attention``.

    Has fewer heads where they would be too small for the kernels; ``grid`` is (H, W).

    Raises:
        Unavailable: if PyTorch has no flex_attention.
    """

    def __init__(
        self, channels: int, num_heads: int, kernel_size: int, grid: tuple[int, int]
    ) -> None:
        try:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        except ImportError:
            raise Unavailable('this torch has no flex_attention') from None
        super().__init__(channels, max(1, min(num_heads, channels // SMALLEST_FLEX_HEAD)))
        reach, width, positions = kernel_size // 2, grid[1], grid[0] * grid[1]

        def is_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            rows = (query // width - key // width).abs() <= reach
            return rows & ((query % width - key % width).abs() <= reach)

        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.mask = create_block_mask(is_near, None, None, positions, positions, device=device)
        self.attend = torch.compile(flex_attention)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer."""
        query, key, value = _split_heads(self, x)
        y = self.attend(query, key, value, block_mask=self.mask)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class SwinAttention(nn.Module):
    """Attention of timm's Swin block: 7 x 7 windows, relative bias, by PyTorch's SDPA.

    Computes the masks once, for maps of ``grid`` (H, W); every second block is ``shifted``.
    """

    def __init__(self, channels: int, grid: tuple[int, int], shifted: bool) -> None:
        from timm.models.swin_transformer import SwinTransformerBlock

        super().__init__()
        heads, shift = max(1, channels // SWIN_HEAD), SWIN_WINDOW // 2 if shifted else 0
        block: Any = SwinTransformerBlock(
            channels, grid, heads, window_size=SWIN_WINDOW, shift_size=shift
        )
        block.attn.fused_attn = True  # SDPA, which timm does not use here by default
        block.mlp = block.norm1 = block.norm2 = nn.Identity()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer."""
        return self.block._attn(x)


class HaloAttention(nn.Module):
    """timm's HaloNet attention: blocks of 8 x 8 attend to themselves and a halo of k // 2."""

    def __init__(self, channels: int, num_heads: int, kernel_size: int) -> None:
        from timm.layers.halo_attn import HaloAttn

        super().__init__()
        self.attention = HaloAttn(
            channels, num_heads=num_heads, block_size=HALO_BLOCK, halo_size=kernel_size // 2
        )

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer; pads the map to whole blocks."""
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 0, -width % HALO_BLOCK, 0, -height % HALO_BLOCK))
        y = self.attention(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y[:, :height, :width]
