"""Sets of rows, one for each ablation of a paper, as ``configs/ablations/*.yml`` name them."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mmvitattn.errors import UsageError
from mmvitattn.inference.build import construct_model, read_model_config

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
COUNTED = ('backbone', 'model')


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: as the paper's table calls it.
        config: its file.
        params: parameters in millions as the paper prints them, ``None`` where it does not.
        paper: the paper's figure of the set's metric, likewise.
    """

    name: str
    config: Path
    params: float | str | None = None
    paper: float | str | None = None

    @property
    def folder(self) -> str:
        """The name with underscores for what does not belong in a path."""
        return re.sub(r'[^\w.+=-]+', '_', self.name).strip('_')

    @property
    def shown_config(self) -> str:
        """The config as a command takes it: from the folder above ``configs``, if it lies there."""
        path = self.config.resolve()
        inside = path.is_relative_to(CONFIGS)
        return path.relative_to(CONFIGS.parent).as_posix() if inside else str(self.config)


@dataclass(frozen=True)
class RowSet:
    """The rows of one table.

    Attributes:
        name: of the set, for the command line.
        title: what is compared, with the paper's number of the table.
        counted: of what ``params`` are: the 'backbone' (as used for inference) or the 'model'.
        metric: what the paper's figures are, ``None`` where there are none.
        rows: in the order of the table.
    """

    name: str
    title: str
    counted: str
    metric: str | None
    rows: tuple[Row, ...]


def read_sets(folder: Path) -> dict[str, RowSet]:
    """Reads every file of rows.

    Args:
        folder: holds the ``.yml`` files.

    Returns:
        The sets by name.

    Raises:
        UsageError: if there are none, or one is not as it should be; the message names the place.
    """
    sets: dict[str, RowSet] = {}
    for file in sorted(folder.glob('*.yml')):
        try:
            content = yaml.safe_load(file.read_text(encoding='utf-8'))
        except yaml.YAMLError as error:
            raise UsageError(f'{file} is no YAML: {" ".join(str(error).split())}') from None
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
        raise UsageError(f'{place}: counted is {entry["counted"]}; choose of {", ".join(COUNTED)}')
    if not isinstance(entry['rows'], Sequence) or not entry['rows']:
        raise UsageError(f'{place}: rows is to be a list of at least one row')
    rows = []
    for number, values in enumerate(entry['rows'], start=1):
        where = f'{place}, row {number}'
        _check_keys(values, ('name', 'config'), ('params', 'paper'), where)
        name, config = str(values['name']), file.parent / values['config']
        row = Row(name, config, values.get('params'), values.get('paper'))
        if not row.folder or row.folder.lower() in {other.folder.lower() for other in rows}:
            raise UsageError(f'{where}: the name {name!r} is empty or that of another row')
        rows.append(row)
    return RowSet(set_name, entry['title'], entry['counted'], entry.get('metric'), tuple(rows))


def _check_keys(entry: Any, needed: Sequence[str], allowed: Sequence[str], place: str) -> None:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    missing = [key for key in needed if key not in keys]
    unknown = sorted(map(str, keys - {*needed, *allowed}))
    if missing or unknown:
        parts = [f'lacks {", ".join(missing)}'] if missing else []
        parts += [f'has no use for {", ".join(unknown)}'] if unknown else []
        raise UsageError(f'{place} {" and ".join(parts)}')


def choose(wanted: Iterable[str] | None, known: Mapping[str, Any], kind: str) -> list:
    """What some names stand for.

    Args:
        wanted: the names; ``None`` or empty for all.
        known: what there is, by name.
        kind: 'set' or 'row', for the message.

    Returns:
        The values, in the order of the names.

    Raises:
        UsageError: if there is no such name.
    """
    wanted = list(dict.fromkeys(wanted or known))
    for name in wanted:
        if name not in known:
            similar = {key.lower(): key for key in known}
            near = difflib.get_close_matches(name.lower(), similar, n=1, cutoff=0.4)
            hint = f'did you mean {similar[near[0]]!r}? ' if near else ''
            raise UsageError(f'there is no {kind} {name!r}; {hint}there are: {", ".join(known)}')
    return [known[name] for name in wanted]


def construct_on_meta(cfg: Mapping, deploy: bool = False) -> nn.Module:
    """The model of a config on PyTorch's meta device, where nothing is computed.

    Args:
        cfg: the config.
        deploy: fold what can be folded for inference.
    """
    with torch.device('meta'):
        model = construct_model(cfg)
        if deploy and hasattr(model.backbone, 'switch_to_deploy'):
            model.backbone.switch_to_deploy()
    return model


def count_parameters(row: Row, counted: str) -> float:
    """Millions of parameters of a row.

    Args:
        row: the row.
        counted: 'backbone' or 'model', both in the form that inference uses.
    """
    model = construct_on_meta(read_model_config(row.config), deploy=True)
    counted_part = model.backbone if counted == 'backbone' else model
    return sum(p.numel() for p in counted_part.parameters()) / 1e6


def list_text(sets: Mapping[str, RowSet]) -> str:
    """Each set with its title and its rows, for the terminal."""
    blocks = [
        f'{s.name}\n  {s.title}\n  rows: {", ".join(row.name for row in s.rows)}'
        for s in sets.values()
    ]
    return '\n\n'.join(blocks)


def set_table(row_set: RowSet) -> str:
    """A set as Markdown: parameters counted here, beside what the paper prints."""
    header = ['row', 'config', f'{row_set.counted} params (M): ours / paper']
    if row_set.metric:
        header.append(f'paper: {row_set.metric}')
    lines = []
    for row in row_set.rows:
        params = f'{count_parameters(row, row_set.counted):.2f} / {printed(row.params)}'
        cells = [row.name, f'`{row.shown_config}`', params]
        lines.append([*cells, printed(row.paper)] if row_set.metric else cells)
    return f'**{row_set.title}**\n\n{markdown_table(header, lines)}'


def printed(value: float | str | None) -> str:
    """A figure of the paper, a dash where there is none."""
    return '-' if value is None else str(value)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        header: heads of the columns.
        rows: as many cells each.
    """
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
