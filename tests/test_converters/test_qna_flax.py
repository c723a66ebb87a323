"""The official release's models, read from its own file format and converted.

``checkpoint_mini`` was written by the release, without most of its optimizer state. The recorded
7 x 7 model has the same parameters except for its tables, and its input starts with the other's.
"""

import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint

msgpack = pytest.importorskip('msgpack', reason='extra [convert]')

from mmvitattn.checkpoint.writing import save_atomically  # noqa: E402
from mmvitattn.converters import convert_qna_vit, read_flax_msgpack  # noqa: E402
from mmvitattn.converters.qna_vit_rules import resize_table  # noqa: E402
from mmvitattn.errors import CheckpointError  # noqa: E402
from mmvitattn.models import QnAViT  # noqa: E402

from .conftest import assert_fills_a_backbone, build_classifier, relative_difference  # noqa: E402

ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data' / 'qna'
MINI = DATA / 'checkpoint_mini'
TOOL = 'qna_flax_to_mm'


def pack(tree, chunk_bytes=None):
    """Flax's serialization of a tree of arrays."""

    def encode(value):
        if isinstance(value, complex):
            return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
        code = 1 if isinstance(value, np.ndarray) else 3
        value = np.asarray(value)
        return msgpack.ExtType(
            code, msgpack.packb((value.shape, value.dtype.name, value.tobytes()))
        )

    def chunk(value):
        if isinstance(value, dict):
            return {key: chunk(item) for key, item in value.items()}
        if chunk_bytes is None or not isinstance(value, np.ndarray) or value.nbytes <= chunk_bytes:
            return value
        parts = np.array_split(value.reshape(-1), -(-value.nbytes // chunk_bytes))
        return {
            '__msgpack_chunked_array__': True,
            'shape': {str(i): size for i, size in enumerate(value.shape)},
            'chunks': {str(i): part for i, part in enumerate(parts)},
        }

    return msgpack.packb(chunk(tree), default=encode, strict_types=True)


@pytest.fixture
def checkpoint():
    return read_flax_msgpack(MINI)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The two recorded checkpoints as files."""
    tree = read_flax_msgpack(MINI)
    with np.load(DATA / 'tables_mini_7x7.npz') as tables:
        for name in tables:
            *path, last = name.split('/')
            node = tree['params']
            for part in path:
                node = node[part]
            node[last] = tables[name]
    path = tmp_path_factory.mktemp('qna') / 'checkpoint_mini_7x7'
    path.write_bytes(pack(tree, chunk_bytes=4096))
    return {'mini': MINI, 'mini_7x7': path}


@torch.no_grad()
@pytest.mark.parametrize('name', ['mini', 'mini_7x7'])
def test_equals_the_official_release(name, files, run_tool, tmp_path):
    dst = tmp_path / 'mini.pth'
    output = run_tool(TOOL, files[name], dst).stdout
    assert 'dropped: opt_state, step' in output
    meta = torch.load(dst, weights_only=True)['meta']
    channels = 8 * meta['arch']['base_channels']
    classifier = build_classifier('QnAViT', meta['arch'], channels, num_classes=10)
    load_checkpoint(classifier, str(dst), strict=True)
    with np.load(DATA / 'recorded_models.npz') as file:
        recorded = {key: file[key] for key in file}
    image = recorded['input']
    if name == 'mini':
        image = image.reshape(-1)[: 128 * 128 * 3].reshape(1, 128, 128, 3)
    stages = []
    # The recorded output of a stage is that of its down-sampling block, if it has one.
    for module in (*classifier.backbone.downsamples, classifier.backbone.stages[3][-1]):
        module.register_forward_hook(lambda module, inputs, output: stages.append(output))
    logits = classifier(torch.from_numpy(image).permute(0, 3, 1, 2), mode='tensor')
    assert relative_difference(logits, recorded[f'{name}/logits']) < 2e-6
    for i, stage in enumerate(stages):
        assert relative_difference(stage, recorded[f'{name}/stage_{i}']) < 2e-6
    assert len(stages) == 4


def test_fills_a_backbone_with_prefix(tmp_path, checkpoint):
    assert_fills_a_backbone(QnAViT, convert_qna_vit(checkpoint), tmp_path / 'mini.pth')


def official_form(arch):
    """A checkpoint of zeros with the names and shapes of a published model's."""
    settings = QnAViT.arch_zoo[arch]
    params = {'StemBlock_0': {'conv_1x1': {'kernel': (4, 4, 3, settings['base_channels'])}}}

    def block(channels, in_channels=None):
        in_channels = in_channels or channels
        return {
            'LayerNorm_0': {'scale': (in_channels,), 'bias': (in_channels,)},
            'LayerNorm_1': {'scale': (channels,), 'bias': (channels,)},
            'MlpBlock_0': {
                'Dense_0': {'kernel': (channels, 4 * channels), 'bias': (4 * channels,)},
                'Dense_1': {'kernel': (4 * channels, channels), 'bias': (channels,)},
            },
        }

    def qna(channels, heads, k, in_channels=None):
        in_channels = in_channels or channels
        return {
            'query': (2, channels),
            'Wk': (in_channels, channels),
            'to_v': {'kernel': (in_channels, channels)},
            'to_out': {'kernel': (channels, channels)},
            'rpe_bias': (k * k, 2 * heads),
            'attn_scale_weights': (1, 1, k * k, 2 * heads),
        }

    for i in range(4):
        channels, heads = settings['base_channels'] * 2**i, settings['qna_heads'][i]
        k, w = settings['kernel_sizes'][i], settings['window_sizes'][i]
        lsa = {
            'to_qkv': {'kernel': (channels, 3 * channels)},
            'to_out': {'kernel': (channels, channels)},
            'RelativePositionalEmbedding_0': {
                'rpe_bias': ((2 * w - 1) ** 2, settings['lsa_heads'][i])
            },
        }
        if settings['lsa_depths'][i]:
            params[f'LSAStage_{i}'] = {
                f'MSA_Block_{j + 1}': block(channels) | {'MultiHeadSelfAttention_0': lsa}
                for j in range(settings['lsa_depths'][i])
            }
        depth = settings['qna_depths'][i]
        if i < 3:
            params[f'QnAStage_{i}'] = {
                f'QnA_Block_{j + 1}': block(channels) | {'FusedKQnA_0': qna(channels, heads, k)}
                for j in range(depth)
            }
            params[f'QnAStage_{i}'][f'QnA_Block_{depth + 1}_stride_2'] = block(
                2 * channels, channels
            ) | {
                'FusedKQnA_0': qna(2 * channels, 2 * heads, k, channels),
                'Conv_0': {'kernel': (1, 1, channels, 2 * channels)},
            }
    params['ClassificationHead_0'] = {
        'LayerNorm_0': {'scale': (channels,), 'bias': (channels,)},
        'head_logits': {'kernel': (channels, 1000), 'bias': (1000,)},
    }

    def fill(node):
        if isinstance(node, tuple):
            return np.broadcast_to(np.float32(0), node)
        return {key: fill(value) for key, value in node.items()}

    return dict(params=fill(params), opt_state={}, step=np.int64(0))


@pytest.mark.parametrize('arch', list(QnAViT.arch_zoo))
def test_knows_the_published_models_by_their_shapes(arch, monkeypatch):
    for name in ('trunc_normal_', 'normal_'):  # values do not count
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    state_dict, description = convert_qna_vit(official_form(arch))
    assert description['arch'] == arch
    assert description['num_classes'] == 1000 and description['num_queries'] == 2
    assert state_dict['head.fc.weight'].shape[0] == 1000
    again, _ = convert_qna_vit(official_form(arch), arch=arch)
    assert set(again) == set(state_dict)


def test_other_arch_than_the_files_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match='missing'):
        convert_qna_vit(checkpoint, arch='small')


def test_resized_tables_and_nothing_else(checkpoint, tmp_path):
    """Against the resampling written out: Keys' kernel, half-pixel centres, antialiased."""

    def weights(n, m):
        scale = max(n / m, 1)  # antialiasing widens the kernel when it shrinks
        centres = (np.arange(m) + 0.5) * n / m - 0.5
        t = np.abs(centres[:, None] - np.arange(n)) / scale
        near = 1.5 * t**3 - 2.5 * t**2 + 1
        far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        kernel = np.where(t < 1, near, np.where(t < 2, far, 0))
        return kernel / kernel.sum(1, keepdims=True)

    state_dict, _ = convert_qna_vit(checkpoint)
    resized, description = convert_qna_vit(checkpoint, window_sizes=(4, 4, 6, 3), kernel_sizes=5)
    assert description['window_sizes'] == (4, 4, 6, 3)
    assert set(resized) == set(state_dict)
    sides = {
        'stages.2.0': (7, 11),
        'stages.3.0': (7, 5),
        'stages.0.0': (3, 5),
        'downsamples.1': (3, 5),
    }
    changed = 0
    for name, table in state_dict.items():
        block = name.removeprefix('backbone.').removesuffix('.attention.position_bias')
        if 'position_bias' not in name and 'attention_scale' not in name:
            assert torch.equal(resized[name], table)
        elif block in sides:
            n, m = sides[block]
            w = weights(n, m)
            square = table.reshape(n, n, -1).double().numpy()
            expected = np.einsum('ij,kl,jlc->ikc', w, w, square).reshape(m * m, *table.shape[1:])
            np.testing.assert_allclose(resized[name], expected, atol=1e-5)
            changed += 1
    assert changed == len(sides)
    backbone = QnAViT(description['arch'], out_indices=-1)
    prefixed = {k.removeprefix('backbone.'): v for k, v in resized.items() if 'head' not in k}
    backbone.load_state_dict(prefixed)


def test_resize_keeps_a_table_of_the_same_side():
    table = torch.randn(9, 4)
    assert resize_table(table, 3) is table
    with pytest.raises(CheckpointError, match='not square'):
        resize_table(torch.randn(8, 4), 3)


def edit(checkpoint, path, change):
    node = checkpoint['params']
    for part in path[:-1]:
        node = node[part]
    change(node, path[-1])


NORM = ('QnAStage_1', 'QnA_Block_2', 'LayerNorm_1', 'scale')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda node, key: node.pop(key), 'QnAStage_1/QnA_Block_2/LayerNorm_1/scale'),
        (lambda node, key: node.update(gamma=node[key]), 'left over .*LayerNorm_1/gamma'),
        (lambda node, key: node.update({key: node[key][:3]}), r'scale \(3,\) for'),
        (lambda node, key: node.update({key: 'text'}), 'not an array of floating-point numbers'),
    ],
)
def test_every_parameter_is_used_once_and_fits(change, message, checkpoint):
    edit(checkpoint, NORM, change)
    with pytest.raises(CheckpointError, match=message):
        convert_qna_vit(checkpoint)


def test_other_dicts_are_no_checkpoint():
    with pytest.raises(CheckpointError, match='model'):
        convert_qna_vit({'model': {}})
    with pytest.raises(CheckpointError, match='conv_1x1'):
        convert_qna_vit({'params': {'Dense_0': {'kernel': np.zeros((2, 2), np.float32)}}})


def test_reads_what_flax_writes(tmp_path):
    tree = {
        'array': np.arange(12, dtype=np.int32).reshape(3, 4),
        'long': np.random.default_rng(0).normal(size=(5, 7)),
        'empty': np.zeros((0, 3), np.float32),
        'scalar': np.float32(1.5),
        'nested': {'0': {'complex': 1 + 2j, 'none': None, 'text': 'a', 'number': 3}},
    }
    (tmp_path / 'file').write_bytes(pack(tree, chunk_bytes=64))
    read = read_flax_msgpack(tmp_path / 'file')
    for key in ('array', 'long', 'empty'):
        np.testing.assert_array_equal(read[key], tree[key])
        assert read[key].dtype == tree[key].dtype
    assert read['scalar'] == np.float32(1.5) and read['nested'] == tree['nested']


def test_reads_bfloat16(tmp_path):
    values = torch.tensor([1.0, -2.5, 3e38, 1e-3]).bfloat16()
    content = ((4,), 'bfloat16', values.view(torch.int16).numpy().tobytes())
    data = msgpack.packb({'x': msgpack.ExtType(1, msgpack.packb(content))})
    (tmp_path / 'file').write_bytes(data)
    np.testing.assert_array_equal(read_flax_msgpack(tmp_path / 'file')['x'], values.float().numpy())


class Executed:
    def __reduce__(self):
        return (print, ('unpickled',))


BAD_FILES = {
    'truncated': lambda: MINI.read_bytes()[:-1000],
    'cut in the middle': lambda: MINI.read_bytes()[:300_000],
    'empty': lambda: b'',
    'trailing bytes': lambda: MINI.read_bytes() + b'x',
    'pickle': lambda: pickle.dumps(Executed()),
    'list': lambda: msgpack.packb([1, 2]),
    'unknown extension': lambda: msgpack.packb({'x': msgpack.ExtType(9, b'\x01')}),
    'object array': lambda: msgpack.packb(
        {'x': msgpack.ExtType(1, msgpack.packb(((1,), 'object', bytes(8))))}
    ),
    'text array': lambda: msgpack.packb(
        {'x': msgpack.ExtType(1, msgpack.packb(((1,), 'S8', bytes(8))))}
    ),
    'short array': lambda: msgpack.packb(
        {'x': msgpack.ExtType(1, msgpack.packb(((3,), 'float32', bytes(8))))}
    ),
    'negative shape': lambda: msgpack.packb(
        {'x': msgpack.ExtType(1, msgpack.packb(((-1, -2), 'float32', bytes(8))))}
    ),
    'missing chunk': lambda: msgpack.packb(
        {'x': {'__msgpack_chunked_array__': True, 'shape': {'0': 3}, 'chunks': {'1': 0}}}
    ),
    'deep': lambda: b'\x81\xa1a' * 100_000 + b'\xc0',
}


@pytest.mark.parametrize('kind', list(BAD_FILES))
def test_bad_files_give_one_clear_error(kind, tmp_path, capsys):
    path = tmp_path / 'checkpoint_1'
    path.write_bytes(BAD_FILES[kind]())
    with pytest.raises(CheckpointError, match='checkpoint_1: not a Flax msgpack checkpoint'):
        read_flax_msgpack(path)
    assert capsys.readouterr().out == ''


def test_missing_msgpack_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'msgpack', None)
    with pytest.raises(ImportError, match=r'mmvitattn\[convert\]'):
        read_flax_msgpack(MINI)


def test_tool_leaves_dst_untouched_on_errors(assert_refuses, tmp_path, monkeypatch):
    dst, broken = tmp_path / 'out.pth', tmp_path / 'broken'
    broken.write_bytes(MINI.read_bytes()[:-1])
    assert_refused = partial(assert_refuses, TOOL)
    assert_refused(broken, dst, message='truncated')
    assert_refused(tmp_path / 'nothing', dst, message='nothing')
    assert_refused(MINI, tmp_path / 'folder' / 'out.pth', message='folder')
    assert not dst.exists()
    dst.write_bytes(b'precious')
    assert_refused(MINI, dst, message='--force')
    assert_refused(broken, dst, '--force', message='truncated')
    assert_refused(MINI, dst, '--force', '--arch', 'small', message='are missing')
    assert_refused(MINI, dst, '--force', '--kernel-size', 4, message='kernel_size=4')
    assert_refused(MINI, dst, '--force', '--window', 4, 4, message='window_sizes')
    monkeypatch.setitem(sys.modules, 'msgpack', None)
    assert_refused(MINI, dst, '--force', message='mmvitattn[convert]')
    assert dst.read_bytes() == b'precious'
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', 'broken'}


def test_tool_overwrites_with_force_and_resizes(run_tool, tmp_path):
    dst = tmp_path / 'out.pth'
    dst.write_bytes(b'old')
    options = ('--force', '--window', '4', '4', '6', '3', '--kernel-size', '5')
    run_tool(TOOL, MINI, dst, *options, process=True)
    saved = torch.load(dst, weights_only=True)
    assert saved['meta']['kernel_sizes'] == (5, 5, 5, 5)
    assert saved['meta']['source'] == 'checkpoint_mini'
    assert saved['state_dict']['backbone.stages.2.0.attention.position_bias'].shape == (121, 2)
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth'}


def test_nothing_remains_of_an_interrupted_write(tmp_path, monkeypatch):
    def interrupted(checkpoint, file):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({}, tmp_path / 'out.pth')
    assert not list(tmp_path.iterdir())
