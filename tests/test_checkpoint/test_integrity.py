"""Damaged files are found by their checksums, and weights that are not numbers are refused."""

import hashlib
import math
import random
import resource

import pytest
import torch
from safetensors.torch import save_file

import mmvitattn
from mmvitattn.checkpoint import integrity, load_checkpoint, read_torch_pickle
from mmvitattn.checkpoint.integrity import hash_in_name
from mmvitattn.checkpoint.writing import save_atomically
from mmvitattn.errors import CheckpointError, UsageError


def flip_bits(content, number, seed):
    """Flips bits in the parts, which torch pads; padding and directory are not what is read."""
    changed, rng = bytearray(content), random.Random(seed)
    for _ in range(number):
        changed[rng.randrange(len(content) // 4, len(content) * 3 // 4)] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize('number', [1, 50])
def test_flipped_bits_are_found(number, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=dict(weight=torch.randn(100, 100))), path)
    content = path.read_bytes()
    for seed in range(20):
        path.write_bytes(flip_bits(content, number, seed))
        for read in (load_checkpoint, read_torch_pickle):  # tools, converters
            with pytest.raises(
                CheckpointError, match=r'the CRC of weights/data/0 is wrong'
            ) as info:
                read(path)
        assert str(path) in str(info.value) and '\n' not in str(info.value)
    assert read_torch_pickle(path, None)['state_dict']['weight'].shape == (100, 100)
    with pytest.raises(CheckpointError, match='CRC'):
        mmvitattn.build_backbone('linglo_b0', pretrained=path)


@pytest.mark.parametrize(
    ('name', 'digits'),
    [
        ('linglo-b0-0a1b2c3d.pth', '0a1b2c3d'),
        ('https://host/a_20220308-c2398f9e.safetensors', 'c2398f9e'),
        ('model-20220308.pth', None),  # a date
        ('linglo-b0.pth', None),
        ('epoch_12345678.pth', None),
    ],
)
def test_a_published_name_contains_the_sum(name, digits):
    assert hash_in_name(name) == digits


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_the_sum_in_the_name_is_compared(suffix, tmp_path):
    """Also of formats without sums of their own."""
    plain, weights = tmp_path / 'plain', dict(weight=torch.randn(100, 100))
    if suffix == 'pth':
        torch.save(dict(state_dict=weights), plain, _use_new_zipfile_serialization=False)
    else:
        save_file(weights, plain)
    content = plain.read_bytes()
    path = tmp_path / f'b0-{hashlib.sha256(content).hexdigest()[:8]}.{suffix}'
    path.write_bytes(content)
    assert torch.equal(load_checkpoint(path)['state_dict']['weight'], weights['weight'])
    path.write_bytes(flip_bits(content, 1, seed=0))
    with pytest.raises(CheckpointError, match=f'not with {hash_in_name(path.name)} as its name'):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match='rename it') as info:
        load_checkpoint(path)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_weights_that_are_not_numbers_are_refused(value, tmp_path):
    path = tmp_path / 'weights.pth'
    weights = dict(good=torch.full((2, 3), 3e38), bad=torch.ones(4), half=torch.ones(2).half())
    weights['count'] = torch.arange(3)
    torch.save(dict(state_dict=weights), path)
    load_checkpoint(path)  # although the sum of 'good' overflows
    weights['bad'][2] = weights['half'][0] = value
    for checkpoint, name in (
        (dict(state_dict=weights), 'bad'),
        (weights, 'bad'),
        (dict(state_dict={}, ema_state_dict=weights), 'ema_state_dict.bad'),
    ):
        torch.save(checkpoint, path)
        with pytest.raises(
            CheckpointError, match=f': 2 of its weights contain .* the first is {name}: '
        ):
            load_checkpoint(path)
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match='contain NaN or infinite'):
        mmvitattn.build_backbone('linglo_b0', pretrained=path)


def test_a_bad_optimizer_state_is_a_warning(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(integrity, 'print_log', lambda text, *_: logged.append(text))
    path = tmp_path / 'epoch_1.pth'
    state = {0: dict(exp_avg=torch.tensor([1.0, math.nan])), 1: dict(exp_avg=torch.ones(2))}
    torch.save(dict(state_dict={}, optimizer=dict(state=state, param_groups=[])), path)
    load_checkpoint(path)
    assert '1 tensors of the optimizer state contain NaN or infinite values' in logged[0]
    assert 'state.0.exp_avg' in logged[0]


@pytest.mark.parametrize(
    'content',
    [dict(state_dict=[torch.ones(1)]), {1: torch.ones(1)}, dict(state_dict={}, meta=3)],
    ids=['list', 'numbers as names', 'meta'],
)
def test_other_contents_are_refused(content, tmp_path):
    torch.save(content, tmp_path / 'weights.pth')
    with pytest.raises(UsageError, match='is not a dict with names as keys'):
        load_checkpoint(tmp_path / 'weights.pth')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_tensor_larger_than_its_file_is_refused(zipped, tmp_path):
    """A view with strides of 0: reading it is quick, but not looking at its elements."""
    path = tmp_path / 'weights.pth'
    wide = dict(weight=torch.zeros(1).expand(1 << 40))
    torch.save(dict(state_dict=wide), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match='that its file cannot hold'):
        load_checkpoint(path)
    torch.save(dict(state_dict=dict(weight=torch.ones(1).expand(9))), path)
    assert load_checkpoint(path)['state_dict']['weight'].sum() == 9


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path, limits = tmp_path / 'weights.pth', resource.getrlimit(resource.RLIMIT_FSIZE)
    save_atomically(dict(a=torch.ones(1)), path)
    content = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            UsageError, match=r'File too large. It needs 4\d,\d{3} bytes, and'
        ) as info:
            save_atomically(dict(a=torch.ones(10_000)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in str(info.value)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == content
