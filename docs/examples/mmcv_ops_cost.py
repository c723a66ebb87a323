"""Time and peak memory of the replacements of mmcv's compiled ops, at the sizes of detectors.

Usage: ``python docs/examples/mmcv_ops_cost.py [--device cuda] [--scale 1.0]``, with an mmcv that
has no compiled ops. Prints a table: median of five runs, and memory above that of the inputs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import mmvitattn  # noqa: F401  (registers the replacements)
from mmvitattn.benchmark.machine import peak_on_cpu, return_freed_memory

LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))  # of an image of 800 x 1333


def calls(device: str, scale: float) -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Each op, with its inputs, by a description."""
    from mmcv.ops import deform_conv2d, roi_pool, soft_nms
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    torch.manual_seed(0)
    levels = [tuple(max(2, round(n * scale)) for n in level) for level in LEVELS]
    positions = sum(rows * columns for rows, columns in levels)
    shapes = torch.tensor(levels, device=device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    value = torch.randn(1, positions, 8, 32, device=device)
    places = torch.rand(1, positions, 8, 4, 4, 2, device=device)
    weights = torch.rand(1, positions, 8, 4, 4, device=device)
    rows, columns = levels[0]
    maps = torch.randn(1, 256, rows, columns, device=device)
    offsets = torch.randn(1, 18, rows, columns, device=device)
    kernel = torch.randn(256, 256, 3, 3, device=device)
    corners = torch.rand(1000, 2, device=device) * 300 * scale
    boxes = torch.cat([corners, corners + 8 + torch.rand(1000, 2, device=device) * 200], 1)
    rois = torch.cat([boxes.new_zeros(1000, 1), boxes], 1)
    return {
        f'deformable attention, {positions:,} queries, 4 levels, 4 points': (
            lambda v, p, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, p, w, 64),
            [value, places, weights],
        ),
        f'deformable convolution 3 x 3, 256 channels, {rows} x {columns}': (
            lambda x, o, k: deform_conv2d(x, o, k, 1, 1, 1, 1, 1),
            [maps, offsets, kernel],
        ),
        'roi_pool 7 x 7, 1,000 boxes': (lambda x: roi_pool(x, rois, 7, 1 / 8), [maps]),
        'soft_nms, 1,000 boxes (no gradient)': (
            lambda b: soft_nms(b, b[:, 0] / 1000, 0.3)[0],
            [boxes],
        ),
    }


def measure(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Milliseconds, median of five runs after one, and MiB."""
    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if device == 'cpu':
        return_freed_memory()
        peak = peak_on_cpu(call) or 0
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        peak = torch.cuda.max_memory_allocated() - before
    return statistics.median(times) * 1e3, peak / 2**20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--scale', type=float, default=1.0, help='of the sides of all maps')
    args = parser.parse_args()
    print('| op | forward, ms | MiB | forward + backward, ms | MiB |')
    print('|---|---|---|---|---|')
    for text, (op, inputs) in calls(args.device, args.scale).items():
        with torch.no_grad():
            cells = list(measure(lambda: op(*inputs), args.device))  # noqa: B023
        if 'no gradient' not in text:
            leaves = [x.detach().requires_grad_() for x in inputs]
            cells += measure(
                lambda: torch.autograd.grad(op(*leaves).sum(), leaves),  # noqa: B023
                args.device,
            )
        cells_text = [f'{cell:,.0f}' for cell in cells] + ['-'] * (4 - len(cells))
        print(f'| {text} | ' + ' | '.join(cells_text) + ' |', flush=True)


if __name__ == '__main__':
    main()
