"""One contestant on one input, ready to be called again and again."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .cases import BACKWARD, CONTESTANTS, Case, Group

SEED = 0


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and in which type everything runs."""

    device: torch.device
    dtype: torch.dtype


class Call:
    """Builds a contestant and its input; calling it runs one forward, or forward and backward.

    Forward: evaluation mode, under inference mode. Forward and backward: training mode, from random
    output gradients to those of all parameters (and of the input, unless that is an image).

    Args:
        group: group of the case.
        case: the case.
        name: the contestant.
        mode: 'forward' or 'forward+backward'.
        machine: device and type.

    Raises:
        Unavailable: if the contestant cannot be built here.
    """

    def __init__(self, group: Group, case: Case, name: str, mode: str, machine: Machine) -> None:
        device, dtype = machine.device, machine.dtype
        self.trains = mode == BACKWARD
        torch.manual_seed(SEED)  # contestants that compute the same get the same weights
        module = CONTESTANTS[name].build(dataclasses.replace(case.size, training=self.trains))
        cast = None if group.autocast else dtype
        self.module = module.to(device, cast).train(self.trains)
        torch.manual_seed(SEED)
        self.inputs = [
            torch.randn(shape).to(device, cast).requires_grad_(self.trains and not group.images)
            for shape in case.input_shapes(group.images)
        ]
        self.autocast = group.autocast and dtype != torch.float32
        self.machine = machine
        self.output_grads: list[Tensor] = []
        self.moved_bytes = 0

    def __call__(self) -> None:
        """Runs it once; gradients are dropped at the end."""
        if not self.trains:
            self.outputs()
            return
        outputs = self.outputs()
        if not self.output_grads:
            self.output_grads = [torch.randn_like(output) for output in outputs]
        torch.autograd.backward(outputs, self.output_grads)
        self.module.zero_grad(set_to_none=True)
        for tensor in self.inputs:
            tensor.grad = None

    def outputs(self) -> list[Tensor]:
        """Runs the forward alone."""
        grads = nullcontext() if self.trains else torch.inference_mode()
        with grads, self._types():
            outputs = list(tensors_of(self.module(*self.inputs)))
        # What must move at least: inputs and outputs, and in the backward their gradients.
        size = sum(t.numel() * t.element_size() for t in (*self.inputs, *outputs))
        self.moved_bytes = size * (2 if self.trains else 1)
        return outputs

    def count_flops(self) -> int:
        """FLOPs of matrix products and convolutions, 2 a multiply-add.

        Of the forward in evaluation mode; forward and backward count as three of it, since the
        backward has two products for each one.
        """
        counter = FlopCounterMode(display=False, custom_mapping=_SDPA_ON_CPU)
        self.module.eval()
        with counter, torch.no_grad(), self._types():  # torch 2.1 does not count in inference mode
            self.module(*(tensor.detach() for tensor in self.inputs))
        self.module.train(self.trains)
        return counter.get_total_flops() * (3 if self.trains else 1)

    def _types(self) -> AbstractContextManager:
        device, dtype = self.machine.device.type, self.machine.dtype
        return torch.autocast(device, dtype) if self.autocast else nullcontext()


def _sdpa_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_, **__) -> int:
    """Of both products, from shapes (B, h, N, d)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# The kernel of the CPU, which PyTorch's counter passes over; torch 2.1 has another.
_SDPA_NAME = '_scaled_dot_product_flash_attention_for_cpu'
_SDPA_ON_CPU = (
    {getattr(torch.ops.aten, _SDPA_NAME): _sdpa_flops}
    if hasattr(torch.ops.aten, _SDPA_NAME)
    else {}
)


def tensors_of(output: object) -> Iterator[Tensor]:
    """The tensors of a module's output, which may be nested lists and tuples."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors_of(item)
