"""The official release's models, read from its own file format and converted.

``checkpoint_mini.pth`` is the release's file. The parameters of the two other recorded models start
with its values; the rest is in ``parameters.npz``. Their inputs start with the same values, too.
"""

import json
import math
import pickle
import tarfile
from argparse import Namespace
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint

from mmvitattn.checkpoint import read_torch_pickle
from mmvitattn.converters import convert_sag
from mmvitattn.converters.sag import detect_arch
from mmvitattn.errors import CheckpointError
from mmvitattn.models import SAGViT
from mmvitattn.ops import force

from .conftest import assert_fills_a_backbone, build_classifier, relative_difference

ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data' / 'sag'
MINI = DATA / 'checkpoint_mini.pth'
TOOL = 'sag_to_mm'
ARGS = Namespace(lr=0.0005, model='tiny_patch0', output_dir='output')
# Heads, and sides of the input.
RECORDED = {'in1k': ((2, 4, 4), 64), 'patch7': ((4,), 112), 'cifar': ((3,), 16)}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The three recorded checkpoints as files."""
    folder = tmp_path_factory.mktemp('sag')
    first = read_torch_pickle(MINI)['model']
    paths = {'in1k': MINI}
    with np.load(DATA / 'parameters.npz') as rest:
        for name, shapes in json.loads((DATA / 'shapes.json').read_text()).items():
            model = OrderedDict()
            for key, shape in shapes.items():
                end = rest.get(f'{name}/{key}', np.zeros(0, np.float32))
                begin = first[key].flatten()[: math.prod(shape) - len(end)] if key in first else []
                values = np.concatenate([np.asarray(begin, np.float32), end])
                model[key] = torch.from_numpy(values).view(shape)
            paths[name] = folder / f'{name}.pth'
            torch.save({'model': model, 'epoch': 3, 'args': ARGS}, paths[name])
    return paths


@torch.no_grad()
@pytest.mark.parametrize('setting', ['', 'reference'])
@pytest.mark.parametrize('name', list(RECORDED))
def test_equals_the_official_release(name, setting, files, run_tool, tmp_path):
    """Logits, patch embedding and each stage's tokens, within 2e-6 of the largest value."""
    (heads, side), dst = RECORDED[name], tmp_path / 'mini.pth'
    output = run_tool(TOOL, files[name], dst, '--num-heads', *heads).stdout
    assert 'dropped: args, epoch' in output
    meta = torch.load(dst, weights_only=True)['meta']
    arch = meta['arch']
    classifier = build_classifier('SAGViT', arch, arch['channels'][-1], meta['num_classes'])
    load_checkpoint(classifier, str(dst), strict=True)
    seen = {}
    backbone = classifier.backbone
    backbone.stem.register_forward_hook(lambda m, i, o: seen.update(embedding=o))
    for i, module in enumerate((*backbone.downsamples, backbone.norms['2'])):
        module.register_forward_pre_hook(lambda m, x, i=i: seen.update({i: x[0].flatten(1, 2)}))
    with np.load(DATA / 'recorded.npz') as file:
        recorded = {key: file[key] for key in file}
    image = recorded['input'].reshape(-1)[: 3 * side * side].reshape(1, 3, side, side)
    with force(setting):
        logits = classifier(torch.from_numpy(image), mode='tensor')
    assert relative_difference(logits, recorded[f'{name}/logits']) < 2e-6
    one_channel = seen['embedding'].flatten(2, 3)[..., 8]
    assert relative_difference(one_channel, recorded[f'{name}/patch_embedding']) < 2e-6
    for i in range(3):
        assert relative_difference(seen[i], recorded[f'{name}/stage_{i}']) < 2e-6


@pytest.mark.parametrize('name', list(RECORDED))
def test_number_of_heads_is_not_needed(name, files, run_tool, tmp_path):
    """No parameter depends on it; if it is unknown, the description omits it."""
    dst = tmp_path / 'mini.pth'
    output = run_tool(TOOL, files[name], dst).stdout
    converted = torch.load(dst, weights_only=True)
    known = name == 'cifar'  # from the shape of the shared keys
    assert ('num_heads' in converted['meta']['arch']) == known
    assert ('add num_heads to arch' in output) != known
    heads = RECORDED[name][0]
    expected, description = convert_sag(
        read_torch_pickle(files[name]), num_heads=heads if len(heads) > 1 else heads[0]
    )
    assert description['arch']['num_heads'] == (heads if len(heads) > 1 else heads * 3)
    assert description['arch']['image_size'] == RECORDED[name][1]
    assert set(converted['state_dict']) == set(expected)
    assert all(torch.equal(converted['state_dict'][key], expected[key]) for key in expected)


def test_fills_a_backbone_with_prefix(tmp_path):
    converted = convert_sag(read_torch_pickle(MINI), num_heads=(2, 4, 4))
    assert_fills_a_backbone(SAGViT, converted, tmp_path / 'mini.pth')


def official_form(arch, num_classes=1000):
    """Parameters of zeros with the names and shapes of a published model's."""
    settings = SAGViT.arch_zoo[arch]
    widths, shapes = settings['channels'], {}

    def affine(name, out, *inner):
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = (out, *inner), (out,)

    variants, side = len(settings['shifts']), settings['kernel_size']
    for t in range(variants):
        affine(f'to_patch_embedding.projections.{t}', widths[0], 3, side, side)
    for i, (width, depth) in enumerate(zip(widths, settings['depths'], strict=True)):
        grid = settings['image_size'] // settings['stride'] // 2**i
        positions = (variants, grid**2, width) if i == 0 else (grid**2, width)
        shapes[f'layers.{i}.0.pos_emb'] = positions
        affine(f'layers.{i}.0.norm1', width)
        affine(f'layers.{i}.0.norm2', width)
        kv = 2 * width // settings['num_heads'][i] if settings['shared_kv'] else 2 * width
        for j in range(depth):
            layer, kind = f'layers.{i}.0.layers.{j}', 'odd' if i or j else 'even'
            affine(f'{layer}.0.Wq_{kind}', width, width)
            affine(f'{layer}.0.Wkv_{kind}', kv, width)
            affine(f'{layer}.0.proj', width, width)
            affine(f'{layer}.1.fc1', 4 * width, width)
            affine(f'{layer}.1.fc2', width, 4 * width)
        if i < len(widths) - 1:
            affine(f'layers.{i}.1.conv', widths[i + 1], width, 3, 3)
            affine(f'layers.{i}.1.norm', widths[i + 1])
    affine('norm', widths[-1])
    affine('mlp_head', num_classes, widths[-1])
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize('arch', list(SAGViT.arch_zoo))
def test_knows_the_published_models_by_their_shapes(arch):
    assert detect_arch(official_form(arch)) == arch


@pytest.mark.parametrize('arch', ['tiny', 'small', 'cifar_tiny'])
def test_published_models_convert_whole(arch, monkeypatch):
    monkeypatch.setattr(torch.nn.init, 'trunc_normal_', lambda tensor, *args, **kwargs: tensor)
    model = official_form(arch)
    state_dict, description = convert_sag({'model': model})
    assert description == dict(arch=arch, num_classes=1000, dropped=[])
    assert sum(p.numel() for p in state_dict.values()) == sum(p.numel() for p in model.values())
    again, _ = convert_sag({'model': model}, arch=arch)
    assert set(again) == set(state_dict)
    with pytest.raises(CheckpointError, match='missing|left over|another shape'):
        convert_sag({'model': model}, arch='cifar_small')


def test_other_image_sizes_are_told_by_the_position_tables():
    model = official_form('small')
    for i, grid in enumerate((96, 48, 24)):
        shape = model[f'layers.{i}.0.pos_emb'].shape
        model[f'layers.{i}.0.pos_emb'] = torch.zeros(1).expand(*shape[:-2], grid**2, shape[-1])
    assert detect_arch(model) == dict(SAGViT.arch_zoo['small'], image_size=384)


NORM = 'layers.1.0.norm2.weight'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda model: model.pop(NORM), r'1 parameters are missing \(layers.1.0.norm2.weight\)'),
        (lambda model: model.update(gamma=model[NORM]), r'1 are left over \(gamma\)'),
        (lambda model: model.update({NORM: model[NORM][:3]}), r'norm2.weight \(3,\) for'),
        (lambda model: model.update({NORM: 'text'}), 'norm2.weight is not a tensor'),
        (lambda model: model.pop('mlp_head.bias'), 'mlp_head.bias'),
        (lambda model: model.pop('layers.0.0.layers.0.0.Wkv_even.weight'), 'Wkv_even'),
        (
            lambda model: model.update({'layers.2.0.pos_emb': torch.zeros(15, 32)}),
            r'layers.2.0.pos_emb \(15, 32\)',
        ),
        (
            lambda model: model.pop('to_patch_embedding.projections.9.weight'),
            '9 shifts and kernels of side 4',
        ),
    ],
)
def test_every_parameter_is_used_once_and_fits(change, message):
    checkpoint = read_torch_pickle(MINI)
    change(checkpoint['model'])
    with pytest.raises(CheckpointError, match=message):
        convert_sag(checkpoint)


def test_other_dicts_are_no_checkpoint():
    with pytest.raises(CheckpointError, match='state_dict'):
        convert_sag({'state_dict': {}})
    with pytest.raises(CheckpointError, match=r'layers\.0\.0\.pos_emb'):
        convert_sag({'model': {'fc.weight': torch.zeros(2, 2)}})
    with pytest.raises(ValueError, match='give arch or num_heads'):
        convert_sag(read_torch_pickle(MINI), arch='small', num_heads=2)


@pytest.mark.parametrize('zipped', [True, False])
def test_reads_what_torch_saves(tmp_path, zipped):
    """Both formats of torch.save; the older one ends with torch 1.6."""
    weight = torch.randn(3, 4)
    tree = {
        'model': OrderedDict(weight=weight, part=weight[1:, ::2], half=weight.bfloat16()),
        'parameter': torch.nn.Parameter(weight.clone()),
        'plain': [1, 2.5, None, True, 'text', (3,), {'a': 1 + 2**70}],
        'args': Namespace(lr=0.1, inner=Namespace(sizes=[1, 2])),
    }
    torch.save(tree, tmp_path / 'file', _use_new_zipfile_serialization=zipped)
    read = read_torch_pickle(tmp_path / 'file')
    for name, tensor in tree['model'].items():
        assert (
            torch.equal(read['model'][name], tensor) and read['model'][name].dtype == tensor.dtype
        )
    assert torch.equal(read['parameter'], tree['parameter'])
    assert read['plain'] == tree['plain'] and read['args'] == tree['args']


class Reduced:
    """Pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Plain:
    """An object of a class of the training code's."""


REFUSED = {
    'print': Reduced(print, ('unpickled',)),
    'posix.system': Reduced(__import__('os').system, ('echo unpickled',)),
    'eval': Reduced(eval, ('print("unpickled")',)),
    'getattr': Reduced(getattr, (Namespace(), 'lr')),
    'argparse.ArgumentParser': Reduced(__import__('argparse').ArgumentParser, ()),
    'torch.hub.load': Reduced(torch.hub.load, ('a', 'b')),
    'numpy': np.float64(76.0),
    'Plain': Plain(),
    'Path': Path('output'),
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', list(REFUSED))
def test_other_objects_are_refused_by_name(kind, zipped, tmp_path, capfd):
    path = tmp_path / 'checkpoint.pth'
    tree = {'model': {}, 'args': Namespace(value=REFUSED[kind])}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f'checkpoint.pth: it contains the object .*{kind}'):
        read_torch_pickle(path)
    assert 'unpickled' not in ''.join(capfd.readouterr())


def opcodes(body):
    """A pickle of the older format, where a file is a few pickles on end."""
    return b'\x80\x02' + body + b'.'


@pytest.mark.parametrize(
    'target',
    ['argparse\nNamespace', 'torch._utils\n_rebuild_tensor_v2', 'collections\nOrderedDict'],
)
def test_listed_classes_and_functions_cannot_be_altered(target, tmp_path):
    """BUILD with a pair sets attributes of the object on the stack."""
    path = tmp_path / 'checkpoint.pth'
    state = b'N}X\x05\x00\x00\x00wrongK\x01s\x86'  # (None, {'wrong': 1})
    path.write_bytes(opcodes(b'c' + target.encode() + b'\n' + state + b'b'))
    with pytest.raises(CheckpointError, match='sets attributes'):
        read_torch_pickle(path)
    assert not hasattr(Namespace, 'wrong') and not hasattr(torch._utils._rebuild_tensor_v2, 'wrong')


def write_script(path):
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path))


def write_tar(path):
    with tarfile.open(path, 'w') as archive:
        archive.add(MINI, 'storages')


BAD_FILES = {
    'truncated': lambda path: path.write_bytes(MINI.read_bytes()[:-1000]),
    'cut in the middle': lambda path: path.write_bytes(MINI.read_bytes()[:300_000]),
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('404: not found'),
    'list': lambda path: torch.save([1, 2], path),
    'plain pickle': lambda path: path.write_bytes(pickle.dumps({'model': {}})),
    'TorchScript': write_script,
    'tar': write_tar,
}


@pytest.mark.filterwarnings('ignore::FutureWarning')  # torch.jit.script
@pytest.mark.parametrize('kind', list(BAD_FILES))
def test_bad_files_give_one_clear_error(kind, tmp_path):
    path = tmp_path / 'checkpoint.pth'
    BAD_FILES[kind](path)
    with pytest.raises(CheckpointError, match='checkpoint.pth: not a PyTorch checkpoint') as info:
        read_torch_pickle(path)
    assert '\n' not in str(info.value)
    assert ('a tar file or a TorchScript program' in str(info.value)) == (
        kind in ('TorchScript', 'tar')
    )


def test_tool_leaves_dst_untouched_on_errors(run_tool, assert_refuses, tmp_path):
    dst, broken, hostile = (tmp_path / name for name in ('out.pth', 'broken', 'hostile'))
    broken.write_bytes(MINI.read_bytes()[:-1])
    torch.save({'model': {}, 'args': REFUSED['print']}, hostile)
    assert_refused = partial(assert_refuses, TOOL)
    assert_refused(broken, dst, message='truncated')
    assert_refused(hostile, dst, message='print, which is refused')
    assert_refused(tmp_path / 'nothing', dst, message='nothing')
    assert_refused(MINI, tmp_path / 'folder' / 'out.pth', message='folder')
    assert not dst.exists()
    dst.write_bytes(b'precious')
    assert_refused(MINI, dst, message='--force')
    assert_refused(hostile, dst, '--force', message='refused')
    assert_refused(MINI, dst, '--force', '--arch', 'small', message='are missing')
    assert_refused(MINI, dst, '--force', '--num-heads', 3, message='num_heads=3')
    assert_refused(MINI, dst, '--force', '--num-heads', 2, 2, message='num_heads')
    assert dst.read_bytes() == b'precious'
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', 'broken', 'hostile'}
    run_tool(TOOL, MINI, dst, '--force')
    assert torch.load(dst, weights_only=True)['meta']['source'] == MINI.name
