"""Rows of the papers' ablation tables: listed, counted, and compared in small trainings.

``python tools/analysis_tools/ablate.py list``, ``... table [SET ...]`` or ``... train SET``. The
rows are configs, which the files in ``configs/ablations/*.yml`` put together to sets. ``train``
trains each row's classifier from scratch on the embedded data, all alike but for the model;
repeated with the same settings it goes on where it was, and finished rows are kept.
"""

import argparse
import logging
from datetime import datetime
from pathlib import Path

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.errors import UsageError, usage_errors_exit


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    listing = commands.add_parser('list', help='the sets with their titles and rows')
    table = commands.add_parser('table', help='parameters of the rows beside the papers, Markdown')
    table.add_argument('sets', nargs='*', metavar='SET', help='default: all')
    train = commands.add_parser('train', help='train rows alike and compare them')
    train.add_argument('set', metavar='SET')
    train.add_argument('--rows', nargs='+', metavar='ROW', help='default: all of the set')
    train.add_argument('--data', choices=['shapes', 'cifar10_folder'], default='shapes')
    train.add_argument('--data-root', metavar='DIR', help='folder of the data set')
    train.add_argument('--image-size', type=_count, metavar='N', help="side; default the demo's")
    train.add_argument('--epochs', type=_count, metavar='N')
    train.add_argument('--batch-size', type=_count, metavar='N')
    train.add_argument('--lr', type=_rate, metavar='X', help='highest learning rate of AdamW')
    train.add_argument('--seeds', nargs='+', type=_seed, default=[0], metavar='N')
    train.add_argument('--out-dir', type=Path, metavar='DIR', help='work_dirs/ablations/SET')
    for command in (listing, table, train):
        command.add_argument(
            '--sets-dir', type=Path, metavar='DIR', help='of the .yml files; configs/ablations'
        )
    return parser.parse_args()


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text}: must be at least 0')
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text}: must be above 0')
    return value


def train(args: argparse.Namespace, sets: dict) -> None:
    """Trains and compares what the command line asks for; all checks come first.

    Args:
        args: the command line.
        sets: of :func:`ablating.sets.read_sets`.

    Raises:
        UsageError: for whatever the user has to mend before training can start.
    """
    from ablating import budget, training
    from ablating.sets import choose

    (row_set,) = choose([args.set], sets, 'set')
    rows = choose(args.rows, {row.name: row for row in row_set.rows}, 'row')
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError('--seeds: one is named twice')
    out_dir = args.out_dir or Path('work_dirs/ablations') / row_set.name
    common, settings = budget.common_config(args)
    record = budget.check_folder(out_dir, row_set.name, settings)
    runs = training.plan_runs(rows, args.seeds, common, settings, out_dir)
    training.train_runs(runs, record, out_dir)
    write_comparison(row_set, runs, record, out_dir)


def write_comparison(row_set, runs: list, record: dict, out_dir: Path) -> None:
    """Prints the comparison and writes it to a folder of its own, so that none is written over.

    Args:
        row_set: the set.
        runs: finished ones.
        record: the settings.
        out_dir: of the comparison.
    """
    from ablating import plots, report
    from ablating.budget import as_json

    results = report.collect(row_set, runs, record['training_pictures'])
    data = report.as_data(row_set, record, results, report.command_line())
    text = report.as_markdown(data, row_set, results)
    folder = out_dir / 'results' / f'{datetime.now():%Y%m%d_%H%M%S_%f}'
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text(as_json(data), encoding='utf-8')
    (folder / 'report.md').write_text(text, encoding='utf-8')
    plots.draw(row_set.title, results, folder / 'curves.png')
    print(f'\n{text}\nwritten to {folder}')


def main() -> None:
    """Runs what the command line asks for."""
    args = parse_args()
    logging.disable(logging.WARNING)
    from ablating import sets as rows

    with usage_errors_exit():
        sets = rows.read_sets(args.sets_dir or rows.CONFIGS / 'ablations')
        if args.command == 'list':
            print(rows.list_text(sets))
        elif args.command == 'table':
            chosen = rows.choose(args.sets, sets, 'set')
            print('\n\n'.join(rows.set_table(row_set) for row_set in chosen))
        else:
            logging.disable(logging.INFO)
            train(args, sets)


if __name__ == '__main__':
    main()
