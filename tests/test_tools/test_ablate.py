"""The rows of the ablation tables: listed and counted."""

import functools

import pytest

from mmvitattn.models import LinGlo

ARCHS = {
    'narrow': dict(
        channels=(8, 8, 16, 24), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4
    ),
    'w/o wide': dict(
        channels=(8, 8, 16, 40), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4
    ),
}
YML = """
sets:
  tiny:
    title: "Tiny, table 1: widths"
    counted: {counted}
    metric: top-1 elsewhere
    rows:
      - {{name: narrow, config: narrow.py, params: 0.1, paper: 12.5}}
      - {{name: w/o wide, config: wide.py}}
  detectors:
    title: "No classifiers"
    counted: model
    metric: null
    rows:
      - {{name: FPN, config: {root}/configs/retinanet_linglo_b0_fpn_1x_coco.py, params: 13.0}}
"""


def write_rows(folder, root, counted='backbone'):
    folder.mkdir(exist_ok=True)
    for file, arch in zip(('narrow', 'wide'), ARCHS.values(), strict=True):
        backbone = dict(_delete_=True, type='mmvitattn.LinGlo', arch=arch, out_indices=-1)
        (folder / f'{file}.py').write_text(
            f'_base_ = {str(root / "configs/linglo_b0_8xb128_in1k.py")!r}\n'
            f'model = dict(backbone={backbone!r}, head=dict(in_channels={arch["channels"][-1]}))\n'
        )
    (folder / 'rows.yml').write_text(YML.format(counted=counted, root=root))
    return folder


@pytest.fixture
def rows_dir(tmp_path, root):
    return write_rows(tmp_path / 'rows', root)


@pytest.fixture
def ablate(run_tool):
    return functools.partial(run_tool, 'ablate')


def table_cells(text):
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def count(arch):
    """Parameters of a backbone in the form that inference uses."""
    return sum(p.numel() for p in LinGlo(arch, out_indices=-1, deploy=True).parameters())


@pytest.mark.parametrize('counted', ['backbone', 'model'])
def test_table_against_independent_counts(counted, tmp_path, root, ablate):
    rows_dir = write_rows(tmp_path / 'rows', root, counted)
    printed = ablate('table', 'tiny', '--sets-dir', rows_dir).stdout
    assert '**Tiny, table 1: widths**' in printed
    header, _, *rows = table_cells(printed)
    assert header == [
        *('row', 'config', f'{counted} params (M): ours / paper', 'paper: top-1 elsewhere')
    ]
    for (name, _, params, _), arch in zip(rows, ARCHS.values(), strict=True):
        head = 1000 * arch['channels'][-1] + 1000 if counted == 'model' else 0
        assert params.split(' / ')[0] == f'{(count(arch) + head) / 1e6:.2f}', name
    assert [row[0] for row in rows] == list(ARCHS)
    assert [row[2].split(' / ')[1] for row in rows] == ['0.1', '-']
    assert [row[3] for row in rows] == ['12.5', '-']


def test_a_set_without_metric_has_no_column_for_it(rows_dir, ablate):
    printed = ablate('table', '--sets-dir', rows_dir).stdout
    *_, header, _, row = table_cells(printed)
    assert header[-1] == 'model params (M): ours / paper' and len(header) == 3
    assert row[:2] == ['FPN', '`configs/retinanet_linglo_b0_fpn_1x_coco.py`']
    ours, paper = row[2].split(' / ')
    assert (f'{float(ours):.1f}', paper) == ('12.9', '13.0')  # the README's


def test_list(rows_dir, ablate):
    printed = ablate('list', '--sets-dir', rows_dir).stdout
    assert 'tiny\n  Tiny, table 1: widths\n  rows: narrow, w/o wide\n' in printed


def test_an_unknown_set(rows_dir, ablate):
    message = "there is no set 'tinny'; did you mean 'tiny'? there are: tiny, detectors"
    assert message in ablate('table', 'tinny', '--sets-dir', rows_dir, status=2).stderr
    done = ablate('table', 'zzz', '--sets-dir', rows_dir, status=2)
    assert done.stderr == "error: there is no set 'zzz'; there are: tiny, detectors\n"


@pytest.mark.parametrize(
    'text, message',
    [
        ('sets: [', 'rows.yml is not valid YAML'),
        ('rows: []', 'needs sets: NAME'),
        ('sets: {a: {title: T, counted: model}}', 'set a lacks rows'),
        ('sets: {a: {title: T, counted: head, rows: [{name: r, config: c}]}}', 'counted is head'),
        ('sets: {a: {title: T, counted: model, rows: []}}', 'at least one row'),
        (
            'sets: {a: {title: T, counted: model, rows: [{name: r, config: c, top1: 3}]}}',
            'set a, row 1 has unknown keys: top1',
        ),
        (
            'sets: {a: {title: T, counted: model, rows: [{name: r, config: c}, '
            '{name: r, config: d}]}}',
            'row 2: the name',
        ),
    ],
)
def test_damaged_files_of_rows_are_named(text, message, ablate, tmp_path):
    (tmp_path / 'rows.yml').write_text(text)
    assert message in ablate('list', '--sets-dir', tmp_path, status=2).stderr


def test_no_sets(ablate, tmp_path):
    assert 'there are no sets in' in ablate('list', '--sets-dir', tmp_path, status=2).stderr
