"""Checkpoints are read without executing anything that they contain."""

import builtins
import http.server
import importlib
import os
import pickle
import threading
from collections import OrderedDict, defaultdict, deque
from functools import partial
from pathlib import Path

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmvitattn.checkpoint import load_checkpoint, use_safe_loading
from mmvitattn.errors import UsageError

DETECTOR = 'configs/demo/retinanet_linglo_b0_fpn_shapes.py'


@pytest.fixture
def loaders(monkeypatch):
    """Restores MMEngine's loaders afterwards."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(mmengine_checkpoint, 'load_from_http', mmengine_checkpoint.load_from_http)


def message_hub():
    hub = MessageHub('checkpoint test')
    for value in (1.5, 2.5, 4.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('eta', np.float64(3.25))
    hub.update_info('best', torch.tensor(1.0))
    return hub.state_dict()


SCHEDULES = [
    dict(type='LinearLR', start_factor=0.1, end=5),
    dict(type='MultiStepLR', milestones=[8, 8, 11]),
    dict(type='CosineAnnealingLR', T_max=10),
    dict(type='PolyLR', power=0.9, end=10),
]


@pytest.mark.parametrize('settings', SCHEDULES, ids=lambda settings: settings['type'])
def test_reads_the_state_of_every_schedule_of_the_configs(settings, tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = PARAM_SCHEDULERS.build(dict(settings, optimizer=optimizer))
    torch.save(dict(param_schedulers=[schedule.state_dict()]), tmp_path / 'last.pth')
    assert load_checkpoint(tmp_path / 'last.pth')['param_schedulers'] == [schedule.state_dict()]


@pytest.mark.parametrize('zipped', [True, False])
def test_reads_what_mmengine_writes(tmp_path, zipped):
    path = tmp_path / 'epoch_1.pth'
    weight = torch.randn(3, 4)
    arrays = dict(
        numbers=np.arange(6, dtype='>i4').reshape(2, 3).T,
        names=np.array(['a', 'bcd']),
        flags=np.array([[True], [False]]),
        half=np.float16(0.5),
        whole=np.int64(7),
    )
    plain = dict(
        sets={1, 2}, frozen=frozenset('ab'), raw=b'\x00\xff', number=1 + 2j, part=slice(1, 2)
    )
    types = dict(
        counts=defaultdict(int, a=1),
        last=deque([1, 2], maxlen=2),
        config=ConfigDict(a=dict(b=[1, dict(c=2)])),
        dtype=torch.bfloat16,
        device=torch.device('cpu'),
        methods=[HistoryBuffer.mean, HistoryBuffer.current],
    )
    state_dict = OrderedDict(weight=weight, part=weight[1:, ::2], half=weight.bfloat16())
    state_dict['noted'] = torch.ones(2)
    state_dict['noted'].note = 'kept by fully sharded training, and dropped here'
    state_dict._metadata = OrderedDict(version=1)
    torch.save(
        dict(
            meta=dict(arrays=arrays, plain=plain, types=types),
            state_dict=state_dict,
            message_hub=message_hub(),
            optimizer=dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1)]),
        ),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    read = load_checkpoint(path)
    for name, array in arrays.items():
        found = read['meta']['arrays'][name]
        # NumPy itself turns what it unpickles to the machine's byte order
        assert np.array_equal(found, array) and found.dtype == array.dtype.newbyteorder('=')
    assert read['meta']['plain'] == plain
    assert read['meta']['types'] == types
    assert isinstance(read['meta']['types']['config'].a.b[1], ConfigDict)
    assert all(torch.equal(read['state_dict'][name], state_dict[name]) for name in state_dict)
    assert read['state_dict']._metadata == OrderedDict(version=1)
    loss = read['message_hub']['log_scalars']['train/loss']
    assert loss.statistics('mean') == pytest.approx(8 / 3)
    assert isinstance(read['message_hub']['runtime_info']['eta'], np.float64)


class Call:
    """Pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Filled:
    """Pickled as an object that gets a state."""

    def __init__(self, make, arguments, state):
        self.reduced = make, arguments, state

    def __reduce__(self):
        return self.reduced


def touch(path):
    return f'open({str(path)!r}, "w").close()'


RECONSTRUCT = np.zeros(1).__reduce__()[0]
OBJECTS = np.dtype('O')
MALICIOUS = {
    # what is pickled, given the file that shows that it ran; what the message names
    'system': (lambda ran: Call(os.system, (f'touch {ran}',)), r'posix\.system'),
    'eval': (lambda ran: Call(builtins.eval, (touch(ran),)), r'\.eval'),
    'exec': (lambda ran: Call(builtins.exec, (touch(ran),)), r'\.exec'),
    'import': (lambda ran: Call(importlib.import_module, ('this',)), r'importlib\.import_module'),
    'partial': (lambda ran: Call(partial, (os.system, f'touch {ran}')), r'functools\.partial'),
    'Path': (lambda ran: Call(Path.touch, (Path(ran),)), r'getattr|pathlib'),
    'getattr': (lambda ran: Call(getattr, (HistoryBuffer, '__init__')), r'getattr'),
    'getattr of data': (lambda ran: Call(getattr, ({}, 'keys')), r'getattr'),
    'setattr': (lambda ran: Call(setattr, (HistoryBuffer, 'mean', 1)), r'\.setattr'),
    'load': (lambda ran: Call(pickle.loads, (b'N.',)), r'pickle\.loads'),
    'codec': (lambda ran: Call(__import__('_codecs').encode, ('a', 'idna')), 'encodes text'),
    'object array': (lambda ran: np.array([Call(os.system, ('true',))], OBJECTS), "'O8'|system"),
    'array of addresses': (
        lambda ran: Filled(RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (1,), OBJECTS, False, b'0')),
        r"'O8'",
    ),
    'short array': (
        lambda ran: Filled(
            RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (9, 9), np.dtype('f8'), False, b'0' * 8)
        ),
        'not numbers or text',
    ),
    'altered type': (
        lambda ran: Filled(np.dtype, ('f8', False, True), (3, '<', None, None, None, 99, -1, 0)),
        'alters the NumPy type',
    ),
    'attributes of an instance': (
        lambda ran: Filled(HistoryBuffer, (), ({}, dict(__class__=OrderedDict))),
        'in an unusual way',
    ),
    'special names': (
        lambda ran: Filled(HistoryBuffer, (), dict(__reduce__=1)),
        'in an unusual way',
    ),
}
PLACES = {
    'top': lambda item: dict(state_dict={}, extra=item),
    'message_hub': lambda item: dict(
        state_dict={}, message_hub=dict(log_scalars=OrderedDict(a=[{'b': (item,)}]))
    ),
    'weights': lambda item: dict(state_dict=OrderedDict(weight=item)),
}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('kind', MALICIOUS)
def test_malicious_files_are_refused_and_nothing_runs(kind, place, tmp_path):
    make, named = MALICIOUS[kind]
    path, ran = tmp_path / 'checkpoint.pth', tmp_path / 'ran'
    torch.save(PLACES[place](make(ran)), path)
    with pytest.raises(UsageError, match=named) as caught:
        load_checkpoint(path)
    assert not ran.exists()
    message = str(caught.value)
    assert str(path) in message and '--trust-checkpoint' in message and '\n' not in message
    assert HistoryBuffer([2], [1]).mean() == 2


@pytest.mark.parametrize(
    'target',
    [
        'mmengine.logging.history_buffer\nHistoryBuffer',
        'collections\nOrderedDict',
        'numpy\ndtype',
        'torch\nSize',
    ],
)
def test_listed_classes_and_functions_cannot_be_altered(target, tmp_path):
    """BUILD with a pair sets attributes of whatever is on the stack."""
    path = tmp_path / 'checkpoint.pth'
    state = b'N}X\x05\x00\x00\x00wrongK\x01s\x86'  # (None, {'wrong': 1})
    path.write_bytes(b'\x80\x02c' + target.encode() + b'\n' + state + b'b.')
    with pytest.raises(UsageError, match='sets attributes'):
        load_checkpoint(path)
    assert not hasattr(HistoryBuffer, 'wrong')


def test_trusted_files_are_read_as_they_are(tmp_path):
    path, ran = tmp_path / 'checkpoint.pth', tmp_path / 'ran'
    torch.save(dict(meta=dict(system=MALICIOUS['system'][0](ran))), path)
    assert load_checkpoint(path, trust=True) == dict(meta=dict(system=0))
    assert ran.exists()


@pytest.mark.parametrize('trust', [False, True])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_damaged_files_give_one_clear_error(tmp_path, suffix, trust):
    path = tmp_path / f'checkpoint{suffix}'
    with pytest.raises(UsageError, match=f'there is no checkpoint .*checkpoint{suffix}'):
        load_checkpoint(path, trust)
    for content in (b'', b'404: not found', b'PK\x03\x04' + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f'checkpoint{suffix}: ') as caught:
            load_checkpoint(path, trust)
        assert '\n' not in str(caught.value)


def test_safetensors(tmp_path):
    path = tmp_path / 'weights.safetensors'
    weights = dict(a=torch.randn(2, 3), b=torch.arange(3))
    meta = dict(arch='b0', dataset_meta='{"classes": ["cat"]}', note='[sic')
    save_file(weights, path, metadata=meta)
    read = load_checkpoint(path)
    assert all(torch.equal(read['state_dict'][name], weights[name]) for name in weights)
    assert read['meta'] == dict(arch='b0', dataset_meta=dict(classes=['cat']), note='[sic')


def test_mmengine_reads_files_and_addresses_safely(tmp_path, loaders, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    served, ran = tmp_path / 'served', tmp_path / 'ran'
    served.mkdir()
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), served / 'good.pth')
    torch.save(dict(meta=dict(a=MALICIOUS['system'][0](ran))), served / 'bad.pth')
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    try:
        use_safe_loading()
        for place in (served, address):
            model = torch.nn.Module()
            model.weight = torch.nn.Parameter(torch.zeros(2))
            mmengine_checkpoint.load_checkpoint(model, f'{place}/good.pth')
            assert model.weight.tolist() == [1.0, 1.0]
            with pytest.raises(UsageError, match=r'posix\.system'):
                mmengine_checkpoint.load_checkpoint(model, f'{place}/bad.pth')
        monkeypatch.setattr(
            mmengine_checkpoint, 'get_torchvision_models', lambda: dict(bad=f'{address}/bad.pth')
        )
        with pytest.raises(UsageError, match=r'posix\.system'):
            CheckpointLoader.load_checkpoint('torchvision://bad')
        with pytest.raises(UsageError, match='gone.pth cannot be downloaded'):
            CheckpointLoader.load_checkpoint(f'{address}/gone.pth')
        with pytest.raises(UsageError, match='s3://bucket/a.pth: only files and http addresses'):
            CheckpointLoader.load_checkpoint('s3://bucket/a.pth')
        assert not ran.exists()
        use_safe_loading(trust=True)
        CheckpointLoader.load_checkpoint(f'{address}/bad.pth')
        assert ran.exists()
    finally:
        server.shutdown()


def test_mmengine_gets_what_was_read_before_once(tmp_path, loaders):
    path = str(tmp_path / 'gone.pth')
    state_dict = OrderedDict(weight=torch.arange(3.0))
    state_dict._metadata = dict(version=2)
    checkpoint = dict(state_dict=state_dict, param_groups=[torch.ones(2)])
    loaded = {path: checkpoint}
    use_safe_loading(loaded=loaded)
    read = CheckpointLoader.load_checkpoint(path, 'meta')
    assert read is checkpoint and loaded == {}
    assert read['state_dict']._metadata == dict(version=2)
    assert read['state_dict']['weight'].is_meta and read['param_groups'][0].is_meta
    with pytest.raises(UsageError, match='there is no checkpoint'):
        CheckpointLoader.load_checkpoint(path, 'cpu')


@pytest.mark.parametrize('tool', ['test', pytest.param('train', marks=pytest.mark.slow)])
def test_tools_refuse_what_they_do_not_know(tool, run_tool, small_shapes, tmp_path):
    path, arguments, ran = tool_on_malicious_file(tool, small_shapes, tmp_path)
    done = run_tool(*arguments, status=2, process=True)
    assert 'Traceback' not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f'error: {path}: it contains the object os.makedirs, which is refused')
    assert '--trust-checkpoint' in error
    assert not ran.exists()
    assert not list(tmp_path.glob('*/*.log'))  # before any work


@pytest.mark.slow
def test_tools_read_what_they_are_told_to_trust(run_tool, small_shapes, tmp_path):
    _, arguments, ran = tool_on_malicious_file('test', small_shapes, tmp_path)
    done = run_tool(*arguments, '--trust-checkpoint', process=True)
    assert 'coco/bbox_mAP: ' in done.stdout + done.stderr
    assert ran.exists()


def tool_on_malicious_file(tool, small_shapes, tmp_path):
    """The file, a tool's command line with it, and what is there if it ran."""
    path, ran = tmp_path / 'epoch_1.pth', tmp_path / 'ran'
    call = Call(os.makedirs, (str(ran), 0o777, True))
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={}, nested=call)
    torch.save(dict(state_dict={}, meta=dict(epoch=1, iter=4), message_hub=hub), path)
    arguments = [f'tools/{tool}.py', DETECTOR, *(['--resume'] if tool == 'train' else []), path]
    return path, [*arguments, '--data-root', small_shapes / 'coco', '--work-dir', tmp_path], ran
