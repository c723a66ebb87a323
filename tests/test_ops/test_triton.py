"""The Triton kernels where nothing runs them: whether they compile, when they are chosen."""

import importlib

import pytest
import torch

from mmvitattn.ops import dispatch, explain, triton_support


def launch_learned_query(queries, heads, dim, kernel_size, stride, dtype):
    scores, values = (torch.empty(1, 16, 16, *shape) for shape in ((queries, heads), (heads, dim)))
    tables = torch.empty(2, kernel_size**2, queries, heads)
    ops, settings = torch.ops.mmvitattn, (kernel_size, stride)
    arguments = (scores, values.to(dtype), *tables, *settings)
    ops.learned_query(*arguments)
    for trained in (True, False):
        grad = values[:, ::stride, ::stride].to(dtype)
        ops.learned_query_backward(grad, *arguments, trained)


def launch_saliency_means(channels, heads, dtype):
    x, vectors = torch.empty(2, 100, channels, dtype=dtype), torch.empty(heads, channels)
    means, maxima, norms = torch.ops.mmvitattn.saliency_means(x, vectors)
    torch.ops.mmvitattn.saliency_means_backward(means, x, vectors, means, maxima, norms)


def launch_pool_variants(variants, channels, heads, dtype):
    x, queries = torch.empty(variants, 10, channels, dtype=dtype), torch.empty(heads, 10, channels)
    means = torch.ops.mmvitattn.pool_variants(x, queries)
    torch.ops.mmvitattn.pool_variants_backward(means, x, queries)


LAUNCHES = [
    (launch_learned_query, (2, 8, 8, 3, 1), torch.float32),
    (launch_learned_query, (2, 8, 8, 7, 2), torch.bfloat16),
    (launch_learned_query, (1, 3, 5, 3, 2), torch.float16),
    (launch_learned_query, (1, 1, 1, 1, 1), torch.float32),
    (launch_saliency_means, (64, 2), torch.bfloat16),
    (launch_saliency_means, (77, 7), torch.float32),
    (launch_pool_variants, (10, 64, 2), torch.bfloat16),
    (launch_pool_variants, (5, 77, 7), torch.float32),
]
POINTERS = {torch.float32: '*fp32', torch.bfloat16: '*bf16', torch.float16: '*fp16'}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Kernels that the operators would launch, with their arguments: nothing is run."""
    if triton_support.UNAVAILABLE is not None:
        pytest.skip(triton_support.UNAVAILABLE)
    if triton_support.INTERPRETED:
        pytest.skip('the interpreter compiles nothing')
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    launches = []

    def record(kernel, grid):
        assert all(0 < size < 2**31 for size in grid)
        return lambda *args, **options: launches.append((kernel, args, options))

    monkeypatch.setattr(JITFunction, '__getitem__', record)
    return launches


def compile_all(recorded):
    """The launched kernels, compiled for an H100: the compiler's own checks are the test."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    results = []
    assert recorded
    for kernel, args, options in recorded:
        num_warps = options.pop('num_warps', 4)
        arguments = dict(zip(kernel.arg_names, args)) | options  # noqa: B905
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            name, value = parameter.name, arguments[parameter.name]
            specialize = not parameter.do_not_specialize  # on the values 1 and multiples of 16
            if parameter.is_constexpr or specialize and isinstance(value, int) and value == 1:
                signature[name], constants[name] = 'constexpr', value
                continue
            is_tensor = torch.is_tensor(value)
            signature[name] = POINTERS[value.dtype] if is_tensor else 'i32'
            if specialize and (value.data_ptr() if is_tensor else value) % 16 == 0:
                attributes[(i,)] = [['tt.divisibility', 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(
            source, target=GPUTarget('cuda', 90, 32), options={'num_warps': num_warps}
        )
        assert compiled.asm['cubin']
        results.append(compiled)
    return results


@pytest.mark.parametrize(
    ('launch', 'settings', 'dtype'),
    LAUNCHES,
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_kernels_compile_for_a_gpu(launch, settings, dtype, recorded):
    launch(*settings, dtype)
    for compiled in compile_all(recorded):
        assert '.local' not in compiled.asm['ptx']  # nothing spills before registers are assigned


@pytest.mark.parametrize('blocks', [(1024, 8), (4096, 8)], ids=str)
@pytest.mark.parametrize(('launch', 'settings', 'dtype'), LAUNCHES[1::4] + LAUNCHES[6:7])
def test_searched_blocks_compile_for_a_gpu(launch, settings, dtype, blocks, recorded, monkeypatch):
    from mmvitattn.ops.triton_blocks import SEARCH_SPACE, Blocks

    assert blocks in SEARCH_SPACE
    for part in ('learned_query', 'key_only', 'shifted'):
        module = importlib.import_module(f'mmvitattn.ops.{part}.triton')
        monkeypatch.setattr(module, 'BLOCKS', Blocks(*blocks))
    launch(*settings, dtype)
    assert {options.get('num_warps', 8) for *_, options in recorded} == {8}
    compile_all(recorded)


AFFINES = [(None, None)] * 4  # not looked at
ARGUMENTS = {
    'key_only_attention': lambda device: [
        torch.empty(1, 32, 4, device=device),
        torch.empty(2, 2, device=device),
        *AFFINES,
    ],
    'learned_query_attention': lambda device: [
        torch.empty(1, 4, 4, 2, 2, device=device),
        torch.empty(1, 4, 4, 2, 3, device=device),
        *(None, None, 3, 1),
    ],
    'local_shift_attention': lambda device: [
        torch.empty(3, 1, 2, 2, 4, device=device),
        *(*AFFINES[:3], 2),
    ],
}


def test_reasons_are_told():
    """Listed on every stack, with the reason against it on the CPU."""
    for op, arguments in ARGUMENTS.items():
        text = explain(op, *arguments('cpu'))
        reason = triton_support.UNAVAILABLE or 'runs on CUDA devices only'
        assert f'triton: {reason};' in text
        with dispatch.force(f'{op}=triton'), pytest.raises(ValueError, match='cannot run'):
            dispatch.chosen(op, *arguments('cpu'))


@pytest.mark.skipif(triton_support.UNAVAILABLE is not None, reason=str(triton_support.UNAVAILABLE))
@pytest.mark.parametrize('op', ARGUMENTS)
def test_chosen_on_cuda(op):
    """For tensors without data, which may be on a device that is not there."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        arguments = ARGUMENTS[op]('cuda')
        assert dispatch.chosen(op, *arguments) == 'triton'
        doubles = [t.double() if torch.is_tensor(t) else t for t in arguments]
        assert 'triton: takes float32' in explain(op, *doubles)
        empty = [t[:0] if torch.is_tensor(t) and t.dim() > 2 else t for t in arguments]
        assert 'triton: the input is empty' in explain(op, *empty)


def test_import_without_triton(run_code):
    """As on a Mac: the ops work, and say what is missing."""
    code = (
        'import sys; sys.modules["triton"] = None\n'
        'import torch; from mmvitattn.ops import explain\n'
        'x, saliency = torch.zeros(1, 4, 2), torch.zeros(1, 2)\n'
        'print(explain("key_only_attention", x, saliency, *[(None, None)] * 4))'
    )
    old = not hasattr(torch.library, 'register_autograd') or torch.version.cuda is None
    reason = triton_support.UNAVAILABLE if old else 'Triton is not installed'
    assert f'(triton: {reason};' in run_code(code)
