"""Feed-forward network on channels-last maps, with an optional position encoding inside."""

from torch import Tensor, nn

from .init import trunc_normal_


class FFN(nn.Module):
    """Two-layer perceptron at each position: Linear, position encoding, GELU, Linear.

    Args:
        channels: channels C of input and output.
        hidden_channels: channels between the two linear maps.
        position: module on (B, hidden, H, W) maps between the first linear map and the activation,
            e.g. :class:`RPCPE`; ``None`` for none.
        approximate: form of GELU: 'none' (erf) or 'tanh'.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        position: nn.Module | None = None,
        approximate: str = 'none',
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.position = position
        self.activation = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden_channels, channels)
        trunc_normal_(self.fc1)
        trunc_normal_(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the network.

        Args:
            x: (B, H, W, C), contiguous.

        Returns:
            Output of the same shape.
        """
        x = self.fc1(x)
        if self.position is not None:
            # A permuted channels-last map *is* a (B, C, H, W) map in channels_last memory format:
            # the convolution runs on it without a copy.
            x = self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.activation(x))
