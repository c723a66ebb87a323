"""Compares time and peak memory of our attention, backbones and detectors with those of others.

``python tools/analysis_tools/benchmark.py attention|backbone|detector|compiled|exported|targets``.
Writes a table (``report.md``), everything measured (``report.json``) and a picture of each group to
a new folder.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import importlib.util
import json
import logging
import sys
from pathlib import Path

import torch

from mmvitattn.benchmark import Group, layers, machine, models, report, targets
from mmvitattn.benchmark.measure import Options, run
from mmvitattn.errors import UsageError, usage_errors_exit

SUBCOMMANDS = {
    'attention': 'attention layers at given sizes',
    'backbone': 'backbones at the sizes of classification and detection',
    'detector': 'RetinaNet: a training step without the update, and inference',
    'compiled': 'backbones under torch.compile and in eager mode; compiles for minutes',
    'exported': 'backbones as ONNX files in onnxruntime and in PyTorch, on a CPU',
    'targets': 'every figure that is aimed at, in one run',
}
BATCHES = {'backbone': 8, 'compiled': 8, 'exported': 8, 'detector': 1}
QUICK_ROUNDS = 2


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.set_defaults(compare=None)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, text in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('--out-dir', type=Path, help='a new folder; work_dirs/benchmark/...')
        command.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
        command.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
        threads = machine.default_threads()
        command.add_argument('--threads', type=_count, default=threads, help='CPU threads')
        command.add_argument(
            '--seconds', type=float, default=3.0, help='for the rounds of one case and mode'
        )
        command.add_argument('--rounds', type=_count, help='number of rounds, however long')
        command.add_argument('--only', nargs='+', metavar='GROUP', help='only these groups')
        command.add_argument('--no-memory', action='store_true', help='no peak memory, no FLOPs')
        command.add_argument('--quick', action='store_true', help='tiny sizes, to try everything')
        if name == 'targets':
            text = 'report.json of an earlier run: names what is slower, measured twice; status 1'
            command.add_argument('--compare', type=Path, metavar='FILE', help=text)
        if name in BATCHES:
            text = 'images; backbones above 224 x 224 take one at a time'
            command.add_argument('--batch', type=_count, default=BATCHES[name], help=text)
        if name == 'backbone':
            text = "images in LinGlo's figure 4; default: the paper's 16 on a GPU, else 1"
            command.add_argument('--figure-4-batch', type=_count, metavar='N', help=text)
            text = 'sides of its images, in pixels; default: 224 448 896 1344'
            command.add_argument(
                '--figure-4-sides', type=_side, nargs='+', metavar='SIDE', help=text
            )
    return parser.parse_args()


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return value


def _side(text: str) -> int:
    value = int(text)
    if value < 32:
        raise argparse.ArgumentTypeError('must be at least 32, for LinGlo')
    return value


def check(args: argparse.Namespace) -> Path:
    """Checks the command line and the machine; returns the folder to write to.

    Raises:
        UsageError: for whatever the user has to mend before anything can be measured.
    """
    for name in ('timm', 'matplotlib'):
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f'{name} is not installed; the benchmark needs it: pip install -e ".[benchmark]"'
            )
    if args.command == 'exported':
        if args.device != 'cpu' or args.dtype != 'float32':
            raise UsageError('exported: onnxruntime runs the files on a CPU, in float32')
        for name in ('onnx', 'onnxruntime'):
            if importlib.util.find_spec(name) is None:
                raise UsageError(f'{name} is not installed: pip install -e ".[export]"')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UsageError('--device cuda: torch finds no GPU; leave it out to run on the CPU')
    if args.compare:
        args.compare = read_targets(args.compare)
    return report.choose_folder(args.out_dir, f'benchmark/{args.command}-')


def read_targets(path: Path) -> list[dict]:
    """The targets in the report.json of an earlier run.

    Raises:
        UsageError: if there are none.
    """
    try:
        found = json.loads(path.read_text())['targets']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'--compare {path}: not the report of a benchmark ({error})') from None
    if not found:
        raise UsageError(f'--compare {path}: it has no targets; `benchmark.py targets` writes some')
    return found


def plan(args: argparse.Namespace) -> tuple[list[Group], list[targets.Target]]:
    """Groups to measure, and targets to judge; only the command ``targets`` has any.

    Raises:
        UsageError: if ``--only`` names a group that does not exist.
    """
    aims: list[targets.Target] = []
    if args.command == 'attention':
        groups = layers.attention_groups(args.quick, args.device == 'cuda')
    elif args.command == 'backbone':
        figure_4 = (args.figure_4_batch, args.figure_4_sides)
        groups = models.backbone_groups(args.quick, args.batch, args.device == 'cuda', *figure_4)
    elif args.command == 'detector':
        groups = models.detector_groups(args.quick, args.batch)
    elif args.command == 'compiled':
        groups = [models.compiled_group(args.quick, args.batch)]
    elif args.command == 'exported':
        groups = [models.exported_group(args.quick, args.batch)]
    else:
        found = targets.Plan(args.quick)
        groups, aims = found.groups, found.targets
    known = [group.key for group in groups]
    only = set(args.only or known)
    if only - set(known):
        unknown = ' '.join(sorted(only - set(known)))
        raise UsageError(f'--only {unknown}: choose from {", ".join(known)}')
    return [g for g in groups if g.key in only], [t for t in aims if t.place[0] in only]


def measure(args: argparse.Namespace, folder: Path) -> int:
    """Measures, writes the report and returns the status: 1 if one failed or became slower."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.backends.cudnn.allow_tf32 = False  # full float32 precision, as in matrix products
    groups, aims = plan(args)
    folder.mkdir(parents=True, exist_ok=True)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else None)
    options = Options(device, dtype, args.threads, args.seconds, rounds, not args.no_memory)
    measurements = run(groups, options)
    conditions = report.conditions(options, machine.measure_rates(device, dtype, args.quick))
    slopes = targets.slopes(groups, measurements)
    verdicts = targets.judge(aims, measurements, slopes)
    results = report.Results(conditions, groups, measurements, slopes, verdicts)
    text = report.as_markdown(results)
    for name, content in {'report.json': report.as_json(results), 'report.md': text}.items():
        with (folder / name).open('x') as file:
            file.write(content)
    for group in groups:
        report.draw(group, results.of(group), folder / f'{group.key}.png')
    print(text)
    print(f'written to {folder}')
    failed = [m for m in measurements if m.failed]
    for m in failed:
        print(f'{m.group}, {m.case}, {m.mode}, {m.name}: {m.left_out}', file=sys.stderr)
    earlier = args.compare or ()
    found = targets.find_slower(verdicts, earlier)
    slower = targets.confirm_slower(found, groups, options, earlier)
    for line in slower:
        print(f'slower than before, measured twice: {line}', file=sys.stderr)
    return 1 if failed or slower else 0


def main() -> None:
    """Runs what the command line asks for."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        status = measure(args, check(args))
    raise SystemExit(status)


if __name__ == '__main__':
    main()
