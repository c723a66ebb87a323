"""What the machine can do: rates of a large copy, a matrix product and a depth-wise convolution.

A time cannot be shorter than its bytes over the first or its multiply-adds over the second.
"""

import torch
import torch.nn.functional as F

from . import timing
from .calls import Machine


def measure_rates(machine: Machine, quick: bool) -> dict[str, float]:
    """Median rates of this machine, in the type of the run.

    Args:
        machine: device and type.
        quick: small sizes.

    Returns:
        ``copy_bytes`` (read and written), ``matmul_flops`` and ``depthwise_flops``, per second;
        two FLOPs are one multiply-add.
    """
    device, dtype = machine.device, machine.dtype
    on_gpu = device.type == 'cuda'
    numel = (1 << 30 if on_gpu else 1 << 26) >> (6 if quick else 0)
    side = (8192 if on_gpu else 2048) >> (2 if quick else 0)
    source = torch.randn(numel, device=device).to(dtype)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    channels, size, kernel = 64, 112, 7
    batch = (128 if on_gpu else 4) if not quick else 1
    x = torch.randn(batch, channels, size, size, device=device).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, kernel, kernel, device=device).to(dtype)
    product = torch.empty_like(a)
    work = {
        'copy_bytes': (lambda: target.copy_(source), 2 * numel * source.element_size()),
        'matmul_flops': (lambda: torch.mm(a, b, out=product), 2 * side**3),
        'depthwise_flops': (
            lambda: F.conv2d(x, weight, padding=kernel // 2, groups=channels),
            2 * x.numel() * kernel**2,
        ),
    }
    rates = {}
    with torch.inference_mode():
        for name, (call, amount) in work.items():
            timing.warm_up(call, device)
            times = [timing.sample(call, 1, device) for _ in range(3 if quick else 9)]
            rates[name] = amount / timing.quartiles(times)[0]
    return rates


def describe(rates: dict[str, float]) -> str:
    """The rates in one sentence.

    Args:
        rates: of :func:`measure_rates`.
    """
    return (
        f'copy {rates["copy_bytes"] / 1e9:.1f} GB/s (read + written), matrix product '
        f'{rates["matmul_flops"] / 1e9:.0f} GFLOP/s, depth-wise 7 x 7 convolution '
        f'{rates["depthwise_flops"] / 1e9:.0f} GFLOP/s'
    )
