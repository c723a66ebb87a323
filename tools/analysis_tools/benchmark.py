"""Time and peak memory of our attention, backbones and detectors beside those of others.

``python tools/analysis_tools/benchmark.py attention|backbone|detector|targets``. Writes a table
(``report.md``), everything measured (``report.json``) and a picture of each group to a new folder.
The program starts itself again with settings of the allocator and the number of threads, under
which all contestants run; see ``benchmarking/allocator.py``.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarking import allocator

SUBCOMMANDS = {
    'attention': 'attention layers at given sizes',
    'backbone': 'backbones at the sizes of classification and detection',
    'detector': 'RetinaNet: a training step without the update, and inference',
    'targets': 'every figure that is aimed at, in one run',
}
QUICK_ROUNDS = 2
DETECTION_BATCH, CLASSIFICATION_BATCH = 1, 8


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    for name, text in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('--out-dir', type=Path, help='a new folder; work_dirs/benchmark/...')
        command.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
        command.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
        threads = allocator.default_threads()
        command.add_argument('--threads', type=_count, default=threads, help='CPU threads')
        command.add_argument(
            '--seconds', type=float, default=3.0, help='for the rounds of one case and mode'
        )
        command.add_argument('--rounds', type=_count, help='this many rounds, whatever they take')
        command.add_argument('--only', nargs='+', metavar='GROUP', help='these groups alone')
        command.add_argument('--no-memory', action='store_true', help='no peak memory, no FLOPs')
        command.add_argument('--quick', action='store_true', help='tiny: does everything run?')
        if name in ('backbone', 'detector'):
            batch = DETECTION_BATCH if name == 'detector' else CLASSIFICATION_BATCH
            text = 'images at 224 x 224; larger ones go one by one' if name == 'backbone' else None
            command.add_argument('--batch', type=_count, default=batch, help=text)
    return parser.parse_args()


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return value


def check(args: argparse.Namespace) -> Path:
    """The folder to write to; everything else that can be wrong is found here, too."""
    import importlib.util

    import torch

    from mmvitattn.errors import UsageError

    for name in ('timm', 'matplotlib'):
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f'{name} is not installed; the benchmark needs it: '
                'pip install "mmvitattn[benchmark]", in a clone pip install -e ".[benchmark]"'
            )
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UsageError('--device cuda: torch sees no GPU here; leave it out to run on the CPU')
    default = f'work_dirs/benchmark/{args.command}-{time.strftime("%Y%m%d-%H%M%S")}'
    folder = args.out_dir or Path(default)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f'--out-dir {folder} is there already: name a new or an empty folder')
    return folder


def plan(args: argparse.Namespace) -> tuple[list, list]:
    """Groups to measure and targets to judge.

    Args:
        args: the command line.

    Returns:
        Both lists; the second is empty but for the targets.
    """
    from mmvitattn.errors import UsageError

    targets = []
    if args.command == 'attention':
        from benchmarking import attention

        groups = attention.groups(args.quick, args.device == 'cuda')
    elif args.command == 'backbone':
        from benchmarking import backbone

        groups = backbone.groups(args.quick, args.batch)
    elif args.command == 'detector':
        from benchmarking import detector

        groups = detector.groups(args.quick, args.batch)
    else:
        from benchmarking.targets import Plan

        found = Plan(args.quick)
        groups, targets = found.groups, found.targets
    known = [group.key for group in groups]
    unknown = set(args.only or ()) - set(known)
    if unknown:
        raise UsageError(f'--only {" ".join(sorted(unknown))}: choose of {", ".join(known)}')
    kept = [group for group in groups if group.key in (args.only or known)]
    keys = {group.key for group in kept}
    return kept, [target for target in targets if target.place[0] in keys]


def measure(args: argparse.Namespace, folder: Path) -> int:
    """Measures, writes the report and returns the exit status.

    Args:
        args: the command line.
        folder: where to write.
    """
    import torch
    from benchmarking import plots, report, results, roofline
    from benchmarking.calls import Machine
    from benchmarking.run import Options, run
    from benchmarking.targets import judge

    machine = Machine(torch.device(args.device), getattr(torch, args.dtype))
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as in matrix products
    groups, targets = plan(args)
    folder.mkdir(parents=True, exist_ok=True)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else None)
    options = Options(machine, args.threads, args.seconds, rounds, not args.no_memory)
    measurements = run(groups, options)
    about = report.conditions(options, roofline.measure_rates(machine, args.quick))
    slopes = results.slopes(groups, measurements)
    verdicts = judge(targets, measurements, slopes)
    written = (about, groups, measurements, slopes, verdicts)
    report.write_json(folder / 'report.json', *written)
    text = report.markdown(*written)
    with (folder / 'report.md').open('x') as file:
        file.write(text)
    for group in groups:
        plots.draw(group, measurements, folder / f'{group.key}.png')
    print(text)
    print(f'written to {folder}')
    failed = [m for m in measurements if m.failed]
    for m in failed:
        print(f'{m.group}, {m.case}, {m.mode}, {m.name}: {m.left_out}', file=sys.stderr)
    return 1 if failed else 0


def main() -> None:
    """Runs what the command line asks for."""
    args = parse_args()
    allocator.restart_with(args.threads)
    import logging

    from mmvitattn.errors import usage_errors_exit

    logging.disable(logging.WARNING)
    with usage_errors_exit():
        status = measure(args, check(args))
    raise SystemExit(status)


if __name__ == '__main__':
    main()
