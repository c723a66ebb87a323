"""Linear layer in the faster of two ways."""

from torch import Tensor, nn

from ..ops.linear import linear


class Linear(nn.Linear):
    """As :class:`torch.nn.Linear`, computed by :func:`mmvitattn.ops.linear.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C')."""
        return linear(x, self.weight, self.bias)
