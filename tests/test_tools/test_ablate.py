"""The ablations' rows: counted, trained alike, compared."""

import importlib.util
import json
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from mmvitattn.errors import UsageError
from mmvitattn.models import LinGlo
from mmvitattn.training.run_logs import read_run

TOOL = 'analysis_tools/ablate.py'
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


@pytest.fixture(autouse=True)
def ablating_is_found(monkeypatch, root):
    """Its parts lie beside the tool."""
    monkeypatch.syspath_prepend(root / 'tools/analysis_tools')


@pytest.fixture
def rows_dir(tmp_path, root):
    return write_rows(tmp_path / 'rows', root)


@pytest.fixture
def ablate(main_of, capsys):
    """Runs the tool; returns exit status, what it printed, and what it complained about."""

    def run(*arguments):
        capsys.readouterr()
        status = main_of(TOOL, *arguments)
        return status, *capsys.readouterr()

    return run


def table_cells(text):
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def count(arch):
    """Parameters of a backbone in the form that inference uses."""
    return sum(p.numel() for p in LinGlo(arch, out_indices=-1, deploy=True).parameters())


@pytest.mark.parametrize('counted', ['backbone', 'model'])
def test_table_against_independent_counts(counted, tmp_path, root, ablate):
    rows_dir = write_rows(tmp_path / 'rows', root, counted)
    status, printed, _ = ablate('table', 'tiny', '--sets-dir', rows_dir)
    assert status == 0 and '**Tiny, table 1: widths**' in printed
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
    _, printed, _ = ablate('table', '--sets-dir', rows_dir)
    *_, header, _, row = table_cells(printed)
    assert header[-1] == 'model params (M): ours / paper' and len(header) == 3
    assert row[:2] == ['FPN', '`configs/retinanet_linglo_b0_fpn_1x_coco.py`']
    ours, paper = row[2].split(' / ')
    assert (f'{float(ours):.1f}', paper) == ('12.9', '13.0')  # as in docs/model_zoo.md


def test_list(rows_dir, ablate):
    status, printed, _ = ablate('list', '--sets-dir', rows_dir)
    assert status == 0
    assert 'tiny\n  Tiny, table 1: widths\n  rows: narrow, w/o wide\n' in printed


# Training: one comparison for most tests.


def options(rows_dir, data, out_dir, **changed):
    chosen = dict(data_root=data / 'imagenet', epochs=2, image_size=32, batch_size=7)
    chosen |= dict(sets_dir=rows_dir, out_dir=out_dir, **changed)
    return [x for key, value in chosen.items() for x in (f'--{key.replace("_", "-")}', value)]


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory, small_shapes):
    """Rows and the folder of their comparison, both rows trained for two epochs, with seed 3."""
    folder = tmp_path_factory.mktemp('ablate')
    rows_dir = write_rows(folder / 'rows', root)
    spec = importlib.util.spec_from_file_location('ablate', root / 'tools' / TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / 'tools/analysis_tools')
        arguments = options(rows_dir, small_shapes, folder / 'out', seeds=3)
        patch.setattr(sys, 'argv', ['ablate', 'train', 'tiny', *map(str, arguments)])
        tool.main()
    return rows_dir, folder / 'out'


def results_of(out_dir):
    """Of the last comparison."""
    folder = max((out_dir / 'results').iterdir())
    return json.loads((folder / 'results.json').read_text()), folder


def curves_of(data, row):
    (run,) = next(r for r in data['rows'] if r['name'] == row)['runs']
    return run['loss'], run['top1']


def test_comparison_is_what_the_logs_say(trained):
    data, folder = results_of(trained[1])
    header, _, *lines = table_cells((folder / 'report.md').read_text())
    assert [row['name'] for row in data['rows']] == list(ARCHS)
    for row, line in zip(data['rows'], lines, strict=True):
        (run,) = row['runs']
        log = read_run(run['work_dir'])
        loss, top1 = (log.curves[key].values for key in ('loss', 'accuracy/top1'))
        assert (run['loss'], run['top1'], run['seed']) == (loss, top1, 3)
        assert len(loss) == len(top1) == 2
        seconds = sum(log.curves['time'].values) * 5  # five batches of at most 7 for 30 pictures
        assert run['seconds'] == pytest.approx(seconds)
        assert run['images_per_second'] == pytest.approx(60 / seconds)
        cells = dict(zip(header, line, strict=True))
        assert cells['backbone params (M)'] == f'{count(ARCHS[row["name"]]) / 1e6:.2f}'
        assert cells['top-1, last epoch'] == f'{top1[-1]:.1f}'
        assert cells['best top-1'] == f'{max(top1):.1f}'
        assert cells['train loss, last epoch'] == f'{loss[-1]:.3f}'
        paper = '-' if row['paper'] is None else str(row['paper'])
        assert cells["the paper's own: top-1 elsewhere"] == paper
    assert data['settings']['validation_pictures'] == 6
    assert data['hardware']['torch'] and 'train tiny' in data['command']


def test_mean_loss_is_that_of_every_batch(trained):
    """The log has one point an epoch, the mean of its five batches."""
    run = read_run(trained[1] / 'narrow/seed_3')
    assert run.iterations_per_epoch == 5
    assert run.curves['loss'].iterations == [5, 10]
    assert run.curves['accuracy/top1'].iterations == [5, 10]


def test_rows_share_data_schedule_and_seed(trained):
    """The recorded configs differ in the model alone."""
    found = {}
    for row in ('narrow', 'w_o_wide'):
        (file,) = (trained[1] / row / 'seed_3').glob('*/vis_data/config.py')
        found[row] = cfg = Config.fromfile(file).to_dict()
        for name in ('experiment_name', 'work_dir'):
            assert row in cfg.pop(name)
        cfg['visualizer'].pop('name')
        cfg['model'].pop('backbone')
        cfg['model']['head'].pop('in_channels')
    assert found['narrow'] == found['w_o_wide']
    assert found['narrow']['randomness'] == dict(seed=3)
    constructor = found['narrow']['optim_wrapper']['constructor']
    assert constructor == 'mmvitattn.WeightDecayOptimWrapperConstructor'
    assert found['narrow']['model']['head']['num_classes'] == 6


def test_picture(trained):
    _, folder = results_of(trained[1])
    pixels = plt.imread(folder / 'curves.png')
    assert pixels.shape[1] > 1000
    colours = {tuple(c) for c in np.round(255 * pixels[..., :3]).astype(int).reshape(-1, 3)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_an_interrupted_comparison_goes_on_to_the_same_figures(
    trained, tmp_path, small_shapes, ablate, monkeypatch
):
    from ablating.training import ProgressHook

    arguments = options(trained[0], small_shapes, tmp_path / 'out', seeds=3, rows='narrow')
    with monkeypatch.context() as patch:

        def interrupt(self, runner, metrics=None):
            raise KeyboardInterrupt

        patch.setattr(ProgressHook, 'after_val_epoch', interrupt)
        with pytest.raises(KeyboardInterrupt):
            ablate('train', 'tiny', *arguments)
    assert not (tmp_path / 'out/results').exists()
    status, printed, _ = ablate('train', 'tiny', *arguments)
    assert status == 0 and 'epoch 2/2' in printed and 'epoch 1/2' not in printed
    data, first = results_of(tmp_path / 'out')
    assert curves_of(data, 'narrow') == curves_of(results_of(trained[1])[0], 'narrow')

    files = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').rglob('*') if p.is_file()}
    status, printed, _ = ablate('train', 'tiny', *arguments)
    assert status == 0 and 'narrow, seed 3: finished before' in printed
    again, second = results_of(tmp_path / 'out')
    assert again['rows'] == data['rows'] and second != first
    assert {p: p.stat().st_mtime_ns for p in files} == files  # nothing is written over


def test_an_epoch_without_accuracy_is_trained_again(trained, tmp_path):
    """A run may end between a checkpoint and the validation that belongs to it."""
    from ablating.sets import Row
    from ablating.training import Run, _checkpoint_to_resume

    source = next((trained[1] / 'narrow/seed_3').glob('*/vis_data/scalars.json'))
    lines = source.read_text().splitlines()
    log = tmp_path / '20250101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (tmp_path / name).touch()
    run = Run(Row('x', None), 0, Config(dict(work_dir=str(tmp_path), train_cfg=dict(max_epochs=2))))
    assert not run.is_finished() and _checkpoint_to_resume(run) is None
    for count, expected in ((1, None), (2, 'epoch_1.pth'), (3, 'epoch_1.pth'), (4, 'epoch_2.pth')):
        log.write_text('\n'.join(lines[:count]) + '\n')
        found = _checkpoint_to_resume(run)
        assert (found and found.name) == expected, count
        assert run.is_finished() == (count == 4)


@pytest.mark.slow
def test_another_seed_and_the_whole_command(trained, tmp_path, small_shapes, run_tool):
    """In a process of its own, as a user runs it; two seeds in one comparison."""
    arguments = options(trained[0], small_shapes, tmp_path / 'out', rows='narrow')
    run_tool(f'tools/{TOOL}', 'train', 'tiny', *arguments, '--seeds', 3, 4)
    data, folder = results_of(tmp_path / 'out')
    three, four = data['rows'][0]['runs']
    assert (three['loss'], three['top1']) == curves_of(results_of(trained[1])[0], 'narrow')
    assert four['loss'] != three['loss']
    assert '±' in (folder / 'report.md').read_text()


def test_several_seeds_give_mean_and_spread(tmp_path):
    from ablating import plots, report
    from ablating.sets import Row, RowSet

    row = Row('r', tmp_path / 'r.py', paper=50.0)
    accuracies = [[10.0, 41.0], [20.0, 40.0], [90.0, 45.0]]
    runs = [report.Figures(s, '', [2.0, 1.0], a, 5.0, 9.0) for s, a in enumerate(accuracies)]
    results = [report.Result(row, 1.0, runs)]
    row_set = RowSet('s', 'S', 'backbone', 'top-1', (row,))
    header, _, line = table_cells(report.comparison_table(row_set, results))
    cells = dict(zip(header, line, strict=True))
    last = np.array(accuracies)[:, -1]
    assert cells['top-1, last epoch'] == f'{last.mean():.1f} ± {last.std(ddof=1):.1f}'
    best = np.array(accuracies).max(1)
    assert cells['best top-1'] == f'{best.mean():.1f} ± {best.std(ddof=1):.1f}'
    plots.draw('S', results * 9, tmp_path / 'curves.png')  # more rows than colours
    with pytest.raises(FileExistsError):
        plots.draw('S', results, tmp_path / 'curves.png')


def test_standard_error_is_the_spread_of_accuracies():
    from ablating.report import standard_error

    drawn = np.random.default_rng(0).binomial(180, 0.45, 20_000) / 180 * 100
    assert standard_error(45.0, 180) == pytest.approx(drawn.std(), rel=0.02)


@pytest.mark.parametrize('data, side', [('shapes', 48), ('shapes', 64), ('cifar10_folder', 16)])
def test_pictures_have_the_size_asked_for(data, side, root, write_picture):
    from ablating import budget

    cfg = Config.fromfile(root / 'configs' / budget.DEMOS[data])
    init_default_scope('mmpretrain')
    assert budget._set_image_size(cfg, side) == side
    old = 128 if data == 'shapes' else 32
    file = write_picture('picture.png', old, old)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        steps = Compose(loader.dataset.pipeline)
        picture = steps(dict(img_path=str(file), gt_label=0))['inputs']
        assert picture.shape == (3, side, side)


# What is refused.


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['table', 'tinny'], "there is no set 'tinny'; did you mean 'tiny'? there are: tiny, det"),
        (['train', 'zzz'], "there is no set 'zzz'; there are: tiny, detectors"),
        (['train', 'tiny', '--rows', 'w/o'], "there is no row 'w/o'; did you mean 'w/o wide'?"),
        (['train', 'tiny', '--seeds', 1, 1], '--seeds: one is named twice'),
        (['train', 'tiny', '--data-root', '/nowhere'], 'python tools/prepare_data.py shapes'),
    ],
)
def test_refusals(arguments, message, rows_dir, ablate):
    status, _, complaint = ablate(*arguments, '--sets-dir', rows_dir)
    assert status == 2 and complaint.startswith('error: ') and message in complaint


@pytest.mark.parametrize('flag, value', [('--epochs', 0), ('--lr', 'nan'), ('--seeds', -1)])
def test_bad_numbers(flag, value, rows_dir, ablate):
    status, _, complaint = ablate('train', 'tiny', flag, value, '--sets-dir', rows_dir)
    assert status == 2 and f'argument {flag}: {value}: must be' in complaint


def test_rows_that_cannot_be_trained(rows_dir, small_shapes, tmp_path, ablate):
    arguments = options(rows_dir, small_shapes, tmp_path / 'out')
    status, _, complaint = ablate('train', 'detectors', *arguments)
    assert status == 2 and 'row FPN' in complaint and 'has no classifier' in complaint
    arguments = options(rows_dir, small_shapes, tmp_path / 'out', image_size=16)
    status, _, complaint = ablate('train', 'tiny', *arguments)
    assert status == 2 and 'row narrow: the model cannot take pictures of 16 x 16' in complaint
    assert 'at least 32 x 32' in complaint
    assert not (tmp_path / 'out').exists()  # before any work


def test_other_settings_or_models_never_meet_in_one_folder(
    trained, root, small_shapes, tmp_path, ablate
):
    rows_dir, out_dir = trained
    before = sorted(out_dir.rglob('*'))
    changed = options(rows_dir, small_shapes, out_dir, seeds=3, image_size=64, lr=2e-3)
    status, _, complaint = ablate('train', 'tiny', *changed)
    assert status == 2 and 'image_size was 32 and is 64; lr was 0.001 and is 0.002' in complaint
    assert '--out-dir DIR' in complaint
    others = write_rows(tmp_path / 'rows', root)
    config = others / 'narrow.py'
    config.write_text(config.read_text().replace("'ffn_ratios': (2, 2", "'ffn_ratios': (2, 3"))
    status, _, complaint = ablate('train', 'tiny', *options(others, small_shapes, out_dir, seeds=3))
    assert status == 2 and '(row narrow)' in complaint and 'backbone was' in complaint
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken/notes').touch()
    taken = options(rows_dir, small_shapes, tmp_path / 'taken')
    status, _, complaint = ablate('train', 'tiny', *taken)
    assert status == 2 and 'name a new or an empty folder' in complaint
    assert sorted(out_dir.rglob('*')) == before


@pytest.mark.parametrize(
    'text, message',
    [
        ('sets: [', 'rows.yml is no YAML'),
        ('rows: []', 'needs sets: NAME'),
        ('sets: {a: {title: T, counted: model}}', 'set a lacks rows'),
        ('sets: {a: {title: T, counted: head, rows: [{name: r, config: c}]}}', 'counted is head'),
        ('sets: {a: {title: T, counted: model, rows: []}}', 'at least one row'),
        (
            'sets: {a: {title: T, counted: model, rows: [{name: r, config: c, top1: 3}]}}',
            'set a, row 1 has no use for top1',
        ),
        (
            'sets: {a: {title: T, counted: model, rows: [{name: r/, config: c}, '
            '{name: R, config: d}]}}',
            'row 2: the name',
        ),
    ],
)
def test_damaged_files_of_rows_are_named(text, message, tmp_path):
    from ablating.sets import read_sets

    (tmp_path / 'rows.yml').write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_sets(tmp_path)


def test_no_sets(tmp_path):
    from ablating.sets import read_sets

    with pytest.raises(UsageError, match='there are no sets in'):
        read_sets(tmp_path)
