"""Checks the kernels on a GPU and measures there: ``make gpu``, some 9 minutes.

Needs PyTorch, Triton and timm, and nothing of the OpenMMLab packages. Writes ``gpu.md`` and
``gpu.json`` to a new folder, again after each part; what fails is listed, and the run goes on. When
the time is up, the cases that are left are not run; the report says how many.

With ``--quick`` and TRITON_INTERPRET=1, tiny sizes run on a CPU, to try everything.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import dataclasses
import json
import logging
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mmvitattn.benchmark import BACKWARD, FORWARD, Case, Group, Size, gpu, layers, machine, models
from mmvitattn.benchmark import report as tables
from mmvitattn.benchmark.measure import Measurement, Options, run
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.ops import triton_support

DTYPES = (torch.bfloat16, torch.float32)  # the order in which they are measured
COMPILES = ('compiled', 'flex_attention')  # parts of the names of contestants that compile


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out-dir', type=Path, help='a new folder; work_dirs/gpu/...')
    parser.add_argument('--minutes', type=float, default=9.0, help='after which nothing is begun')
    parser.add_argument('--quick', action='store_true', help='tiny sizes, to try everything')
    return parser.parse_args()


def check(args: argparse.Namespace) -> tuple[torch.device, Path]:
    """The device, and the folder to write to.

    Raises:
        UsageError: if there is no GPU or no Triton, or the folder is not empty.
    """
    if triton_support.UNAVAILABLE is not None:
        raise UsageError(f'the kernels cannot run: {triton_support.UNAVAILABLE}')
    interpreted = args.quick and triton_support.INTERPRETED
    if not interpreted and not torch.cuda.is_available():
        raise UsageError(
            'torch finds no GPU; TRITON_INTERPRET=1 with --quick tries everything on a CPU'
        )
    folder = tables.choose_folder(args.out_dir, 'gpu/')
    return torch.device('cpu' if interpreted else 'cuda'), folder


def plan(quick: bool) -> list[Group]:
    """Groups in the order of their importance: what has to be compiled, which is slow, last."""
    if quick:
        names = ('LinGlo-b0', 'SAG-tiny')
        return [*layers.attention_groups(quick=True, on_gpu=False), backbones(1, 64, names, 1, 64)]
    attention = layers.attention_groups(quick=False, on_gpu=True)
    peers = ('Swin-T, SDPA', 'PVTv2-B2', 'ConvNeXt-T', 'ResNet-50')
    ours = (*models.LINGLOS, *models.QNAS, *models.SAG_POOLED[:1])
    by_kernels = [_with(group, compiling=False) for group in attention]
    dense = backbones(8, 800, (*ours, *peers), 2, 1344)
    plain = [by_kernels[0], backbones(128, 224, (*ours, 'SAG-small', *peers), 128, 224)]
    return [*plain, by_kernels[1], dense, *by_kernels[2:], *(_with(g, True) for g in attention)]


def backbones(
    batch: int, height: int, names: Sequence[str], trained_batch: int, width: int
) -> Group:
    """Inference and training of backbones at one image size."""
    size = Size(batch, height, width)
    cases = [
        Case(size, names, (FORWARD,)),
        Case(dataclasses.replace(size, batch=trained_batch), names, (BACKWARD,)),
    ]
    baseline = next((name for name in names if name.startswith('Swin')), names[-1])
    title = f'Backbones at {height} x {width}'
    return models.backbone_group(f'backbones_{height}', title, cases, baseline)


def _with(group: Group, compiling: bool) -> Group:
    """A group with only the contestants that compile, and those to compare with, or without."""
    kept = []
    for case in group.cases:
        chosen = [n for n in case.names if any(part in n for part in COMPILES) == compiling]
        if compiling and chosen:
            baseline = [name for name in case.names if name == group.baseline]
            chosen = [case.names[0], *baseline, *chosen]
        if chosen:
            kept.append(dataclasses.replace(case, names=tuple(dict.fromkeys(chosen))))
    title = group.title + (', torch.compile' if compiling else '')
    key = group.key + ('_compiled' if compiling else '')
    return dataclasses.replace(group, key=key, title=title, cases=kept)


class Report:
    """What has been found so far, written to a folder after each part."""

    def __init__(self, folder: Path, device: torch.device, groups: list[Group], quick: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.groups = folder, groups
        self.checks: list[gpu.Check] = []
        self.measured: dict[torch.dtype, list[Measurement]] = defaultdict(list)
        self.options = {
            dtype: Options(
                device, dtype, seconds=1.0, rounds=1 if quick else None, measures_memory=not quick
            )
            for dtype in DTYPES
        }
        self.rates = {dtype: machine.measure_rates(device, dtype, quick) for dtype in DTYPES}
        self.left = 0

    def write(self) -> None:
        """Writes both files anew."""
        content: dict[str, object] = {'checks': [check._asdict() for check in self.checks]}
        text = [*self._about(), *self._checks()]
        for dtype, measured in self.measured.items():
            groups = [g for g in self.groups if any(m.group == g.key for m in measured)]
            conditions = tables.conditions(self.options[dtype], self.rates[dtype])
            results = tables.Results(conditions, groups, measured, [], [])
            name = str(dtype).removeprefix('torch.')
            content[name] = json.loads(tables.as_json(results))
            text += [f'## {name}', '', tables.as_markdown(results).replace('\n## ', '\n### ')]
        (self.folder / 'gpu.json').write_text(json.dumps(content, indent=1) + '\n')
        (self.folder / 'gpu.md').write_text('\n'.join(text))

    def _about(self) -> Iterator[str]:
        device = self.options[DTYPES[0]].device
        yield from ('# Measurements on a GPU', '')
        yield (
            f'By `make gpu`: {machine.device_name(device)}, torch {torch.__version__}, CUDA '
            f'{torch.version.cuda}, Python {platform.python_version()}.'
        )
        if self.left:
            yield f'The time was up: {self.left} cases were not run.'
        yield ''

    def _checks(self) -> Iterator[str]:
        failed = [check for check in self.checks if not check.passed]
        yield from ('## Kernels against the reference in float64', '')
        yield f'{len(self.checks) - len(failed)} of {len(self.checks)} checks passed.'
        yield from ('', '| op | type | checks | largest error | allowed |', '|---|---|---|---|---|')
        by_op = defaultdict(list)
        for each in self.checks:
            by_op[each.what.split(',')[0], each.dtype, each.bound].append(each.error)
        for (op, dtype, bound), errors in by_op.items():
            yield f'| {op} | {dtype} | {len(errors)} | {max(errors):.1e} | {bound:g} |'
        yield ''
        for each in failed:
            reason = each.message or f'error {each.error:.1e}'
            yield f'- failed: {each.what}, {each.dtype}: {reason}'
        yield ''


def measure(args: argparse.Namespace) -> int:
    """Checks and measures; 1 if anything failed."""
    end = time.monotonic() + 60 * args.minutes
    device, folder = check(args)
    torch.backends.cudnn.allow_tf32 = False  # full float32 precision, as in matrix products
    report = Report(folder, device, plan(args.quick), args.quick)
    report.checks.extend(gpu.run_checks(device, args.quick))
    report.write()
    for group in report.groups:
        for dtype in DTYPES:
            for case in group.cases:
                if time.monotonic() > end:
                    report.left += 1
                    continue
                one = dataclasses.replace(group, cases=[case])
                report.measured[dtype] += run([one], report.options[dtype])
            report.write()
    print((folder / 'gpu.md').read_text())
    print(f'written to {folder}')
    failed = any(m.failed for measured in report.measured.values() for m in measured)
    return int(failed or not all(check.passed for check in report.checks))


def main() -> None:
    """Runs the checks and the measurements."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        raise SystemExit(measure(args))


if __name__ == '__main__':
    main()
