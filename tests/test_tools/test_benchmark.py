"""The benchmark's mechanics; nothing here asserts a time."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
import torch

pytest.importorskip('timm')

from mmvitattn.benchmark import (
    Case,
    Contestant,
    Group,
    Size,
    Unavailable,
    layers,
    measure,
    models,
    targets,
)
from mmvitattn.errors import UsageError

TOOL = 'analysis_tools/benchmark.py'
CPU = measure.Options(torch.device('cpu'), measures_memory=False)


def make_group(names, modes=('forward', 'forward+backward'), **size):
    size = Size(**{**dict(batch=2, height=9, width=11, channels=16, heads=2), **size})
    return Group('made', 'Made', '', names[0], [Case(size, names, modes)], 'positions')


def run(*groups, rounds=1, dtype=torch.float32):
    threads = torch.get_num_threads()
    options = measure.Options(CPU.device, dtype, threads, 0.1, rounds, measures_memory=False)
    return measure.run(groups, options)


def output_and_grad(group, name, mode):
    call = measure.Call(group, group.cases[0], name, mode, CPU)
    (output,) = call.outputs()
    if not call.trains:
        return [output]
    torch.manual_seed(1)
    output.backward(torch.randn_like(output))
    return [output, *(tensor.grad for tensor in call.inputs if tensor.requires_grad)]


def twins():
    """Names of layers that must compute the same, with the size at which they are compared."""
    window = [f'unfold, learned queries{end}' for end in ('', ', channels-last')]
    window.append('QnA, loop over offsets')
    for name in window:
        yield name, 'QnA', dict(kernel_size=3)
        yield name, 'QnA', dict(kernel_size=7, height=5)  # a window larger than the map
    yield 'unfold (SASA), channels-last', 'unfold (SASA)', dict(kernel_size=5)
    yield 'key-only, folded', 'key-only, plain', {}
    yield 'dot product, plain softmax', 'SDPA', {}


@pytest.mark.parametrize('mode', ['forward', 'forward+backward'])
@pytest.mark.parametrize('name, twin, size', twins())
def test_layers_that_should_compute_the_same(name, twin, size, mode):
    group = make_group((name, twin), **size)
    ours, theirs = (output_and_grad(group, n, mode) for n in (name, twin))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_half_precision():
    group = layers.attention_groups(quick=True, on_gpu=False)[0]
    found = run(group, dtype=torch.bfloat16)
    assert [m.left_out for m in found] == [None] * len(found)
    assert any(m.difference for m in found)  # it did run in bfloat16


@pytest.mark.parametrize('arch, side', [('small', 32), ('tiny', 40), ('cifar_tiny', 12)])
def test_sag_one_by_one(arch, side):
    group = layers.sag_group({arch: side}, batch=2)
    ours, theirs = (output_and_grad(group, n, 'forward')[0] for n in group.cases[0].names)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_contestants_that_fail_are_named_and_the_others_go_on(monkeypatch):
    def other_weights(size):
        torch.manual_seed(99)
        return layers.LAYERS['key-only'].build(size)

    def missing(size):
        raise Unavailable('it is elsewhere')

    for name, contestant in {
        'other weights': Contestant('Differs', other_weights, same_as='key-only'),
        'broken': Contestant('Raises', lambda size: torch.nn.Linear(size.channels + 1, 1)),
        'missing': Contestant('Cannot be built', missing),
    }.items():
        monkeypatch.setitem(models.CONTESTANTS, name, contestant)
    names = ('key-only', 'other weights', 'broken', 'missing')
    found = {m.name: m for m in run(make_group(names, modes=('forward',)), rounds=3)}
    assert len(found['key-only'].seconds) == 3 and found['key-only'].speedups == [1, 1, 1]
    assert found['other weights'].failed and 'differs' in found['other weights'].left_out
    assert found['broken'].failed and 'RuntimeError' in found['broken'].left_out
    assert found['missing'].left_out == 'it is elsewhere' and not found['missing'].failed


def test_every_round_runs_everything_once_in_changing_order():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'abc'}
    expected = dict.fromkeys('abc', 1.0)  # so slow that a sample is one call
    times = measure.interleave(calls, expected, 0.0, 20, torch.device('cpu'))
    rounds = [''.join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 20 and all(sorted(r) == ['a', 'b', 'c'] for r in rounds)
    assert len(set(rounds)) > 3
    assert all(len(values) == 20 for values in times.values())


MEMORY_SCRIPT = """
import os, signal, torch
from mmvitattn.benchmark import Unavailable, machine

def hold(mebibytes):
    return torch.ones(mebibytes, 1 << 18)

def call():  # 64 with 32 beside it at the peak; then 48
    a = hold(64)
    b = hold(32)
    del a
    c = hold(16)

def probe():
    kept = hold(100)
    call()
    return machine.peak_on_cpu(call)

def fails():
    raise RuntimeError('it fails')

def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)

print(machine.in_child(1, probe) / 2**20)
for function in (fails, is_killed):
    try:
        machine.in_child(1, function)
    except Unavailable as reason:
        print(reason)
"""


def test_peak_memory_is_what_is_alive_at_once(run_code):
    peak, failed, killed = run_code(MEMORY_SCRIPT).splitlines()
    assert float(peak) == pytest.approx(96, abs=1)
    assert failed == 'failed: RuntimeError: it fails'
    assert killed.startswith('its process was ended by the system')


FAULTS_SCRIPT = """
import resource, torch
from mmvitattn.benchmark import machine
from mmvitattn.process import KEEP_FREED, mallopt

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64, 1 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

machine.return_freed_memory()
print(min(faults() for _ in range(6)))
mallopt(KEEP_FREED)
print(min(faults() for _ in range(6)))  # the first ones extend the heap
"""


def test_freed_memory_is_kept_for_timing_and_returned_for_peaks(run_code):
    returned, kept = map(int, run_code(FAULTS_SCRIPT).split())
    assert kept < 100 < returned


def test_flops_of_both_dot_product_forms():
    positions, channels, batch = 9 * 11, 16, 2
    expected = 2 * batch * (4 * positions * channels**2 + 2 * positions**2 * channels)
    names = ('SDPA', 'dot product, plain softmax')
    group = make_group(names)
    for name in names:
        for mode, factor in (('forward', 1), ('forward+backward', 3)):
            call = measure.Call(group, group.cases[0], name, mode, CPU)
            assert call.count_flops() == factor * expected


def measurement(name, seconds, place=100.0, peak=None):
    return measure.Measurement(
        'made', f'{place:g}', place, 'forward', name, seconds, peak_bytes=peak
    )


def test_slopes():
    group = make_group(('linear', 'quadratic'))
    found = targets.slopes(
        [group],
        [
            measurement(name, [1e-6 * n**power] * 3, n, 1000 * n)
            for name, power in (('linear', 1), ('quadratic', 2))
            for n in (100.0, 400.0, 1600.0)
        ],
    )
    slopes = {(s.name, s.measure): (s.slope, s.first, s.last) for s in found}
    assert slopes['linear', 'time'] == pytest.approx((1, 100, 1600))
    assert slopes['quadratic', 'time'] == pytest.approx((2, 100, 1600))
    assert slopes['quadratic', 'memory'] == pytest.approx((1, 100, 1600))


def test_targets_are_judged_against_the_best_baseline_round_by_round():
    measurements = [
        measurement('ours', [1.0, 2.0, 1.0], peak=10),
        measurement('slow', [9.0, 9.0, 9.0], peak=30),
        measurement('fast', [4.0, 10.0, 3.0], peak=40),
    ]
    place, baselines = ('made', '100'), ('slow', 'fast')

    def verdict(kind, bound, ours='ours'):
        target = targets.Target('it', kind, bound, place, 'forward', ours, baselines)
        return targets.judge([target], measurements, [])[0]

    speed = verdict(targets.SPEED, 4)
    assert (speed.measured, speed.baseline, speed.met) == (4.0, 'fast', True)
    assert verdict(targets.SPEED, 4.1).met is False
    assert verdict(targets.TIME, 0.25).met is True and verdict(targets.TIME, 0.24).met is False
    memory = verdict(targets.MEMORY, 0.3)
    assert (memory.baseline, memory.met) == ('slow', False)
    assert memory.measured == pytest.approx(1 / 3)
    assert verdict(targets.SPEED, 4, ours='absent').met is None


@pytest.mark.parametrize('quick', [True, False])
def test_every_target_is_of_a_case_that_is_measured(quick):
    plan = targets.Plan(quick)
    found = {
        (g.key, c.label, mode, name)
        for g in plan.groups
        for c in g.cases
        for mode in c.modes
        for name in c.names
    }
    for target in plan.targets:
        for name in (target.ours, *target.baselines):
            assert (*target.place, target.mode, name) in found, target


def test_papers_batches_on_a_gpu():
    """No limit on the size there: what does not fit into its memory is left out."""

    def shapes(*arguments):
        groups = {group.key: group for group in models.backbone_groups(False, 8, *arguments)}
        figure_4, (cifar,) = groups['figure_4'].cases, groups['cifar'].cases
        sides = {(case.size.batch, case.size.height): len(case.names) for case in figure_4}
        return sides, (cifar.size.batch, cifar.size.height)

    assert shapes() == ({(1, 224): 3, (1, 448): 3, (1, 896): 2, (1, 1344): 1}, (8, 32))
    assert shapes(True) == ({(16, side): 3 for side in (224, 448, 896, 1344)}, (128, 32))
    assert shapes(True, 4, (64, 2048)) == ({(4, 64): 3, (4, 2048): 3}, (128, 32))


def test_what_does_not_fit_into_the_gpu_is_left_out(monkeypatch):
    def fail(_):
        raise torch.cuda.OutOfMemoryError('out of memory')

    monkeypatch.setitem(measure.CONTESTANTS, 'too large', Contestant('Ours', fail))
    small, large = run(make_group(('key-only', 'too large'), modes=('forward',)))
    assert small.seconds and not large.seconds
    assert large.left_out == 'the memory of the GPU does not suffice' and not large.failed


@pytest.mark.parametrize('quick', [True, False])
def test_every_group_names_contestants_that_exist(quick):
    groups = [
        *layers.attention_groups(quick, on_gpu=False),
        *layers.attention_groups(quick, on_gpu=True),
        *models.backbone_groups(quick, 8),
        *models.backbone_groups(quick, 8, on_gpu=True),
        *models.detector_groups(quick, 1),
        *targets.Plan(quick).groups,
    ]
    for group in groups:
        names = {group.baseline, *(name for case in group.cases for name in case.names)}
        assert names <= set(models.CONTESTANTS), group.key
        assert len({(c.label, mode) for c in group.cases for mode in c.modes}) == sum(
            len(c.modes) for c in group.cases
        ), group.key
    for name, contestant in models.CONTESTANTS.items():
        assert contestant.same_as is None or contestant.same_as in models.CONTESTANTS, name


def report_of(run_tool, folder, *arguments):
    """Runs the tool with tiny sizes; returns the report as printed and as data."""
    options = ('--quick', '--threads', 1, '--out-dir', folder)
    done = run_tool(TOOL, *arguments, *options, process=True)
    text = (folder / 'report.md').read_text()
    assert text in done.stdout
    data = json.loads((folder / 'report.json').read_text())
    for key in data['groups']:
        assert (folder / f'{key}.png').read_bytes().startswith(b'\x89PNG')
    return text, data


@pytest.mark.slow
def test_one_group(run_tool, tmp_path):
    text, data = report_of(run_tool, tmp_path / 'new', 'attention', '--only', 'global')
    assert data['conditions']['allocator']['MMAP_MAX'] == 0
    assert data['conditions']['threads'] == 1
    measured = data['measurements']
    assert {m['name'] for m in measured} >= {'key-only', 'key-only, folded', 'SDPA'}
    assert all(m['left_out'] is None and len(m['seconds']) == 2 for m in measured)
    assert all(m['peak_bytes'] is not None and m['flops'] > 0 for m in measured)
    assert '| 14 x 14 x 64, batch 1 | key-only |' in text and '## Slopes' in text


def test_batches_and_rates_of_the_papers(run_tool, tmp_path):
    options = ('--figure-4-batch', 2, '--figure-4-sides', 64, '--no-memory')
    only = ('backbone', '--only', 'figure_4', 'cifar')
    text, data = report_of(run_tool, tmp_path / 'new', *only, *options)
    assert all(m['seconds'] for m in data['measurements'])
    assert '| 64 x 64, batch 2 | LinGlo-b0, plain softmax |' in text
    base = next(m for m in data['measurements'] if m['name'] == 'SAG-CIFAR-base')
    row = re.search(r'\| SAG-CIFAR-base \| forward \| ([\d.]+) \| 276.8 \|', text)
    assert float(row[1]) == pytest.approx(1 / np.median(base['seconds']), rel=0.01)


def test_refusals_name_the_remedy(monkeypatch, root, tmp_path):
    spec = importlib.util.spec_from_file_location('benchmark_tool', root / 'tools' / TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', [TOOL, 'attention', '--out-dir', str(tmp_path)])
    args = tool.parse_args()
    assert tool.check(args) == tmp_path  # empty
    (tmp_path / 'report.md').touch()
    with pytest.raises(UsageError, match='already exists: name a new'):
        tool.check(args)
    args.only = ['nothing']
    with pytest.raises(UsageError, match='nothing: choose from window, dense_map, global, sag'):
        tool.plan(args)
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(UsageError, match=r'timm is not installed.*\[benchmark\]'):
        tool.check(args)


def test_what_became_slower_by_more_than_the_spread_is_named():
    def find(kind, before, now):
        names = ('measured', 'lower', 'upper')
        target = targets.Target('it', kind, 1.0, ('g', 'c'), 'forward', 'QnA')
        verdict = targets.Verdict(target, **dict(zip(names, now, strict=True)))
        earlier = dict(what='it', **dict(zip(names, before, strict=True)))
        found = targets.find_slower([verdict], [earlier, dict(what='another', measured=9.0)])
        return list(found.values())

    assert find(targets.SPEED, (4.0, 3.8, 4.2), (3.5, 3.3, 3.7)) == ['it: 3.5 times as fast, was 4']
    assert find(targets.SPEED, (4.0, 3.8, 4.2), (3.8, 3.6, 3.9)) == []
    assert find(targets.SPEED, (4.0, 3.8, 4.2), (5.0, 4.9, 5.1)) == []
    assert find(targets.TIME, (0.8, 0.78, 0.82), (0.9, 0.88, 0.92)) == [
        'it: 0.9 of the time, was 0.8'
    ]
    assert find(targets.TIME, (0.8, 0.78, 0.82), (0.7, 0.68, 0.72)) == []
    assert find(targets.MEMORY, (0.10, None, None), (0.11, None, None)) != []
    assert find(targets.MEMORY, (0.10, None, None), (0.102, None, None)) == []
    assert find(targets.SPEED, (None, None, None), (3.5, 3.3, 3.7)) == []


def test_only_what_is_slower_in_a_second_measurement_is_named(monkeypatch):
    def target(what, kind, ours):
        return targets.Target(what, kind, 1.0, ('g', 'c'), 'forward', ours, ('theirs',))

    def measured(name, seconds):
        return measure.Measurement('g', 'c', 1.0, 'forward', name, seconds=[seconds] * 3)

    def run_again(groups, options):
        assert [group.key for group in groups] == ['g'] and not options.measures_memory
        return [measured('theirs', 2.0), measured('slow', 4.0), measured('disturbed', 1.0)]

    monkeypatch.setattr(targets, 'run', run_again)
    slower = {
        target('slow', targets.SPEED, 'slow'): 'slow: first',
        target('disturbed', targets.SPEED, 'disturbed'): 'disturbed: first',
        target('memory', targets.MEMORY, 'slow'): 'memory: first',
    }
    groups = [Group(key, key, '', 'theirs', []) for key in ('g', 'other')]
    before = dict(measured=2.0, lower=2.0, upper=2.0)
    earlier = [dict(before, what=found.what) for found in slower]
    lines = targets.confirm_slower(slower, groups, CPU, earlier)
    assert lines == ['slow: 0.5 times as fast, was 2', 'memory: first']
    monkeypatch.delattr(targets, 'run')  # nothing to measure
    assert targets.confirm_slower({}, groups, CPU, earlier) == []


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'No such file'), ('[]', 'not the report'), ('{"targets": []}', 'it has no targets')],
)
def test_a_report_without_targets_is_refused(run_tool, tmp_path, content, message):
    path = tmp_path / 'report.json'
    if content is not None:
        path.write_text(content)
    done = run_tool(TOOL, 'targets', '--compare', path, status=2)
    assert message in done.stderr and str(path) in done.stderr


def test_onnxruntime_takes_no_bfloat16(run_tool):
    done = run_tool(TOOL, 'exported', '--dtype', 'bfloat16', status=2)
    assert 'in float32' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    'command', ['attention', 'backbone', 'compiled', 'detector', 'exported', 'targets']
)
def test_whole_command(run_tool, tmp_path, command):
    # Memory is measured in a process for each contestant, which takes most of the time.
    _, data = report_of(run_tool, tmp_path / 'new', command, '--no-memory')
    left_out = {m['name']: m['left_out'] for m in data['measurements'] if m['left_out']}
    assert not left_out
    differences = [m['difference'] for m in data['measurements'] if m['difference'] is not None]
    assert differences or command == 'detector'
    assert max(differences, default=0) < 1e-4  # batch norms of few positions round much
    if command == 'targets':
        measured = [target['measured'] is not None for target in data['targets']]
        assert measured == [t['kind'] != targets.MEMORY for t in data['targets']]
        assert len(measured) == 32
        _, data = report_of(run_tool, tmp_path / 'memory', command, '--only', 'window')
        assert all(target['measured'] is not None for target in data['targets'])
        assert targets.MEMORY in {target['kind'] for target in data['targets']}
