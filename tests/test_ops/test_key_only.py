import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvitattn.ops import force, key_only_attention
from mmvitattn.ops.reference import key_only_attention as reference


def make_arguments(batch, positions, heads, dim, bias=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)

    channels = heads * dim
    affines = [
        (randn(channels, channels, scale=channels**-0.5), randn(channels) if bias else None)
        for _ in range(4)
    ]
    return randn(batch, positions, channels), randn(heads, dim), *affines


def tensors_of(arguments):
    flat = []
    for argument in arguments:
        flat += (
            [t for t in argument if t is not None] if isinstance(argument, tuple) else [argument]
        )
    return flat


def test_reference_equals_the_equations_in_numpy():
    """Equations 2 to 4 for one head, written out position by position."""
    x, saliency, *affines = make_arguments(1, 5, 1, 4)

    def projection(weight, bias):
        return lambda t: t @ weight.numpy().T + bias.numpy()

    key, value, gate, out = (projection(*affine) for affine in affines)
    keys, values = key(x[0].numpy()), value(x[0].numpy())
    exponentials = np.exp(keys @ saliency[0].numpy() / math.sqrt(4))
    attention = exponentials / exponentials.sum()
    context = sum(attention[i] * keys[i] for i in range(5))
    expected = [out(gate(context * values[i]) + keys[i]) for i in range(5)]
    np.testing.assert_allclose(reference(x, saliency, *affines)[0], np.stack(expected), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(['plain', 'folded']),
    batch=st.integers(1, 3),
    positions=st.integers(1, 40),
    heads=st.integers(1, 4),
    dim=st.integers(1, 9),
    bias=st.booleans(),
)
def test_equals_reference_forward_and_gradients(name, batch, positions, heads, dim, bias):
    arguments = make_arguments(batch, positions, heads, dim, bias)
    leaves = [t.requires_grad_() for t in tensors_of(arguments)]
    expected = reference(*arguments)
    with force(name):
        actual = key_only_attention(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(actual, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    x, saliency, key, value, gate, out = make_arguments(2, 5, 2, 3)
    leaves = [x, saliency, *key, *value, *gate, *out]
    for leaf in leaves:
        leaf.requires_grad_()

    def run(x, saliency, *rest):
        return key_only_attention(x, saliency, rest[0:2], rest[2:4], rest[4:6], rest[6:8])

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize('scale', [1, 1e2, 1e4])
def test_float32_close_to_float64_for_scores_of_any_size(scale):
    arguments = make_arguments(2, 33, 2, 8)
    arguments[1].mul_(scale)  # the scores grow with the saliency vectors
    expected = reference(*arguments)
    single = [tuple(t.float() for t in a) if isinstance(a, tuple) else a.float() for a in arguments]
    difference = (key_only_attention(*single) - expected).abs().max() / expected.abs().max()
    # float32 scores of size s are known to s * 6e-8 only, and a softmax passes that on
    assert difference < max(1e-5, scale * 1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision_is_finite_for_huge_scores(dtype, autocast):
    arguments = make_arguments(2, 49, 2, 8, dtype=torch.float32)
    arguments[1].mul_(1e4)
    if autocast and dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('CPU autocast supports only bfloat16 in this torch')
    if not autocast:
        arguments = [
            tuple(t.to(dtype) for t in a) if isinstance(a, tuple) else a.to(dtype)
            for a in arguments
        ]
    leaves = [t.requires_grad_() for t in tensors_of(arguments)]
    if not autocast and dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('no float16 matrix product on the CPU in this torch')
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        y = key_only_attention(*arguments)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_bad_shapes_are_named():
    x, *rest = make_arguments(1, 4, 2, 3)
    with pytest.raises(ValueError, match=r'heads \* head_dim = 2 \* 3.*\(1, 4, 5\)'):
        key_only_attention(x[..., :5], *rest)


def test_forced_reference_is_used():
    arguments = make_arguments(1, 4, 1, 2)
    with force('reference'):
        assert torch.equal(key_only_attention(*arguments), reference(*arguments))


MEMORY_PROBE = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_key_only import make_arguments
from mmvitattn.ops import key_only_attention

def resident(entry):
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1])

arguments = make_arguments(16, 8, 1, 32, dtype=torch.float32)
key_only_attention(*arguments)
x = torch.rand(16, {positions}, 32)
Path('/proc/self/clear_refs').write_text('5')  # resets the high-water mark
before = resident('VmRSS')
with torch.no_grad():
    key_only_attention(x, *arguments[1:])
print(resident('VmHWM') - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads the high-water mark of Linux')
def test_memory_grows_linearly_with_positions():
    peaks = []
    for side in (56, 112, 224):
        code = MEMORY_PROBE.format(tests=str(Path(__file__).parent), positions=side * side)
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    print('peak over the input, KiB, at 56^2, 112^2, 224^2:', peaks)
    # four times the positions: linear is a factor of 4, quadratic one of 16
    assert peaks[1] < 6 * peaks[0]
    assert peaks[2] < 6 * peaks[1]
