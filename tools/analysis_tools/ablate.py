"""Lists the rows of the papers' ablation tables, and counts their parameters.

``python tools/analysis_tools/ablate.py list`` or ``... table [SET ...]``. Each row is a config; the
files in ``configs/ablations/*.yml`` group the rows into sets, one for each table of a paper.
docs/ablations.md says how to train and compare rows.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn import hub
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference.build import construct_model, read_model_config

COUNTED = ('backbone', 'model')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    listing = commands.add_parser('list', help='the sets with their titles and rows')
    table = commands.add_parser(
        'table', help='parameters of the rows, ours and the papers, as Markdown'
    )
    table.add_argument('sets', nargs='*', metavar='SET', help='default: all')
    for command in (listing, table):
        command.add_argument(
            '--sets-dir',
            type=Path,
            default=hub.resources() / 'configs/ablations',
            metavar='DIR',
            help='folder of the .yml files; default configs/ablations',
        )
    return parser.parse_args()


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str  # as the paper's table calls it
    config: Path
    params: float | str | None = None  # in millions, if the paper prints them
    paper: float | str | None = None  # the paper's figure of the set's metric, if it prints one

    @property
    def shown_config(self) -> str:
        """The config as a command takes it: relative to the folder above ``configs`` if there."""
        path, folder = self.config.resolve(), hub.resources().resolve()
        inside = path.is_relative_to(folder / 'configs')
        return path.relative_to(folder).as_posix() if inside else str(self.config)


@dataclass(frozen=True)
class RowSet:
    """The rows of one table, in its order."""

    name: str  # for the command line
    title: str  # what is compared, with the number of the table in the paper
    counted: str  # what ``params`` counts: the 'backbone' (as used for inference) or the 'model'
    metric: str | None  # what the paper's figures are, if there are any
    rows: tuple[Row, ...]


def read_sets(folder: Path) -> dict[str, RowSet]:
    """Reads every file of rows.

    Args:
        folder: holds the ``.yml`` files.

    Returns:
        The sets by name.

    Raises:
        UsageError: if there are none, or one is invalid; the message names the place.
    """
    sets: dict[str, RowSet] = {}
    for file in sorted(folder.glob('*.yml')):
        try:
            content = yaml.safe_load(file.read_text(encoding='utf-8'))
        except yaml.YAMLError as error:
            raise UsageError(f'{file} is not valid YAML: {" ".join(str(error).split())}') from None
        if not isinstance(content, Mapping) or not isinstance(content.get('sets'), Mapping):
            raise UsageError(f'{file} needs sets: NAME: with title, counted, metric and rows')
        for name, entry in content['sets'].items():
            if name in sets:
                raise UsageError(f'{file}: there is another set {name}; give it another name')
            sets[name] = _read_set(name, entry, file)
    if not sets:
        raise UsageError(f'there are no sets in {folder}: it holds no .yml file of rows')
    return sets


def _read_set(set_name: str, entry: Any, file: Path) -> RowSet:
    place = f'{file}, set {set_name}'
    _check_keys(entry, ('title', 'counted', 'rows'), ('metric',), place)
    if entry['counted'] not in COUNTED:
        choices = ' or '.join(COUNTED)
        raise UsageError(f'{place}: counted is {entry["counted"]}; choose {choices}')
    if not isinstance(entry['rows'], Sequence) or not entry['rows']:
        raise UsageError(f'{place}: rows must be a list of at least one row')
    rows: list[Row] = []
    for number, values in enumerate(entry['rows'], start=1):
        where = f'{place}, row {number}'
        _check_keys(values, ('name', 'config'), ('params', 'paper'), where)
        name, config = str(values['name']), file.parent / values['config']
        if not name or name in {row.name for row in rows}:
            raise UsageError(f'{where}: the name {name!r} is empty or that of another row')
        rows.append(Row(name, config, values.get('params'), values.get('paper')))
    return RowSet(set_name, entry['title'], entry['counted'], entry.get('metric'), tuple(rows))


def _check_keys(entry: Any, needed: Sequence[str], allowed: Sequence[str], place: str) -> None:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    missing = [key for key in needed if key not in keys]
    unknown = sorted(map(str, keys - {*needed, *allowed}))
    if missing or unknown:
        parts = [f'lacks {", ".join(missing)}'] if missing else []
        parts += [f'has unknown keys: {", ".join(unknown)}'] if unknown else []
        raise UsageError(f'{place} {" and ".join(parts)}')


def choose(names: Sequence[str], sets: Mapping[str, RowSet]) -> list[RowSet]:
    """The sets of some names, in their order; all sets if there are no names.

    Raises:
        UsageError: if there is no such set.
    """
    names = list(dict.fromkeys(names or sets))
    for name in names:
        if name not in sets:
            similar = {key.lower(): key for key in sets}
            near = difflib.get_close_matches(name.lower(), similar, n=1, cutoff=0.4)
            hint = f'did you mean {similar[near[0]]!r}? ' if near else ''
            raise UsageError(f'there is no set {name!r}; {hint}there are: {", ".join(sets)}')
    return [sets[name] for name in names]


def count_parameters(config: Path, counted: str) -> float:
    """Millions of parameters of a config's 'backbone' or 'model', in the form for inference."""
    with torch.device('meta'):  # nothing is computed
        model: Any = construct_model(read_model_config(config))
        if hasattr(model.backbone, 'switch_to_deploy'):
            model.backbone.switch_to_deploy()
    counted_part = model.backbone if counted == 'backbone' else model
    return sum(p.numel() for p in counted_part.parameters()) / 1e6


def set_table(row_set: RowSet) -> str:
    """A set as Markdown: parameters counted here, and what the paper prints."""
    header = ['row', 'config', f'{row_set.counted} params (M): ours / paper']
    header += [f'paper: {row_set.metric}'] if row_set.metric else []
    lines = [header, ['---'] * len(header)]
    for row in row_set.rows:
        params, paper = ('-' if value is None else value for value in (row.params, row.paper))
        ours = count_parameters(row.config, row_set.counted)
        cells = [row.name, f'`{row.shown_config}`', f'{ours:.2f} / {params}']
        lines.append([*cells, str(paper)] if row_set.metric else cells)
    table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    return f'**{row_set.title}**\n\n{table}'


def main() -> None:
    """Prints what the command line asks for."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        sets = read_sets(args.sets_dir)
        if args.command == 'table':
            print('\n\n'.join(set_table(row_set) for row_set in choose(args.sets, sets)))
            return
    for row_set in sets.values():
        rows = ', '.join(row.name for row in row_set.rows)
        print(f'{row_set.name}\n  {row_set.title}\n  rows: {rows}\n')


if __name__ == '__main__':
    main()
