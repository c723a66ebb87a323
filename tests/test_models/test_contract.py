"""What every arch of every family promises. A new family is found by itself.

Shapes are those of the whole archs. What is computed is computed on the arch's last two stages, of
one block each; `-m slow` runs the whole archs through the same tests.
"""

import copy
import importlib.util
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mmvitattn import build_backbone, list_backbones
from mmvitattn.layers import RPCPE
from mmvitattn.models.base import PyramidBackbone
from mmvitattn.zoo import families

FAMILIES, TWO_STEPS = families(), Path(__file__).with_name('two_steps.py')
ARCHS = list_backbones()
pytestmark = pytest.mark.usefixtures('quick_start_values')


def loss_of(outputs):
    return sum(output.float().square().mean() * i for i, output in enumerate(outputs, 1))


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a - e).abs().max() <= tolerance * e.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize('name', ARCHS)
def test_pyramid_of_the_whole_arch(name):
    """Channels, strides, and a layer depth for every parameter; nothing is computed."""
    with torch.device('meta'):
        model = build_backbone(name)
        side = model.min_size
        for size in ((side, side), (side + 1, 2 * side + 3), (7 * side, 5 * side - 1)):
            outputs = model(torch.empty(2, 3, *size))
            assert len(outputs) == len(model.out_indices)
            for output, info in zip(outputs, model.feature_info, strict=True):
                grid = [-(-n // info['reduction']) for n in size]
                assert output.shape == (2, info['num_chs'], *grid)
                assert isinstance(model.get_submodule(info['module']), nn.LayerNorm)
    depths = {}
    for parameter, _ in model.named_parameters():
        depth, num_layers = model.get_layer_depth(f'backbone.{parameter}', 'backbone.')
        assert model.get_layer_depth(parameter) == (depth, num_layers)
        depths.setdefault(depth, set()).add(parameter.split('.')[0])
    assert sorted(depths) == list(range(num_layers))
    assert depths[0] == {'stem'} and depths[num_layers - 1] == {'norms'}
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (num_layers - 1, num_layers)


def test_outputs_are_finite_and_normalised(case):
    """Every output has its own LayerNorm, with start values 1 and 0."""
    side = case.backbone.min_size
    for size in ((side, side), (side + 1, 2 * side + 3)):
        for output in case.backbone(torch.randn(2, 3, *size)):
            assert output.isfinite().all()
            assert output.mean(1).abs().max() < 1e-4


def test_gradients_of_padded_images_are_as_large_as_others(case):
    """At the start, LayerNorm multiplies the gradient at a vector of zeros by a thousand."""
    model, side = case.train_copy(), 2 * case.backbone.min_size
    image = torch.randn(2, 3, side, side)
    padded = image.clone()
    padded[0, :, side // 2 :], padded[1, :, :, side // 2 :] = 0, 0
    weights = [torch.randn_like(y) for y in model(image)]
    norms = []
    for x in (image, padded):
        model.zero_grad()
        loss = sum((y * w).mean() for y, w in zip(model(x), weights, strict=True))
        loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
    assert norms[1] < 10 * norms[0]


def test_out_indices(case):
    n, image = case.num_stages, case.image(1)
    everything = case.backbone(image)
    forms = {-1: (n - 1,), 0: (0,), (0, -1): (0, n - 1), (1, 0): (1, 0), (n - 1,): (n - 1,)}
    for out_indices, resolved in forms.items():
        model = case.train_copy(out_indices=out_indices).eval()
        assert model.out_indices == resolved
        assert model.feature_info.module_name() == [f'norms.{i}' for i in resolved]
        assert len(model.stages) == max(resolved) + 1  # stages after the last output are not built
        assert_close(model(image), [everything[i] for i in resolved])
    assert case.family(case.arch, out_indices=list(range(n))).out_indices == tuple(range(n))


@pytest.mark.parametrize('name', FAMILIES)
def test_bad_options_are_named(name):
    cls = FAMILIES[name]
    arch = next(iter(cls.arch_zoo))
    settings, key = cls.arch_zoo[arch], cls.stage_keys[0]
    n = len(settings[key])
    for options, message in (
        (dict(arch='b9'), f"{cls.__name__}: unknown arch 'b9'; choose one of {arch}, "),
        (dict(arch={k: v for k, v in settings.items() if k != key}), rf"lacks \['{key}'\]"),
        (dict(arch=dict(settings, width=3)), r"unknown keys \['width'\]"),
        (dict(arch=dict(settings, **{key: settings[key][1:]})), 'one entry per stage'),
        (dict(out_indices=(n,)), rf'out_indices=\({n},\).*there are {n} stages'),
        (dict(out_indices=(0, -n)), 'must be distinct'),
        (dict(out_indices=()), 'out_indices'),
        (dict(frozen_stages=n + 1), rf'frozen_stages={n + 1} must lie in \[-1, {n}\]'),
        (dict(frozen_stages=-2), 'frozen_stages=-2'),
    ):
        with torch.device('meta'), pytest.raises(ValueError, match=message):
            cls(**{'arch': arch, **options})


@pytest.mark.parametrize('name', ARCHS)
def test_bad_images_are_named(name):
    with torch.device('meta'):
        model = build_backbone(name)
        least = model.min_size
        for shape, message in (
            ((1, 4, 64, 64), r'takes images \(B, 3, H, W\), got \(1, 4, 64, 64\); set in_channels'),
            ((3, 64, 64), r'takes images \(B, 3, H, W\)'),
            ((1, 3, least - 1, 64), f'at least {least} x {least} pixels, got {least - 1} x 64'),
        ):
            with pytest.raises(ValueError, match=message):
                model(torch.empty(shape))
        five = build_backbone(name, in_channels=5, out_indices=0)
        assert five(torch.empty(1, 5, least, least))[0].shape[1] == five.feature_info.channels()[0]


@pytest.mark.parametrize('name', FAMILIES)
def test_options_of_all_backbones(name):
    shared = {'arch', 'drop_path_rate', *inspect.signature(PyramidBackbone).parameters}
    shared -= {'channels', 'strides', 'min_size'}  # determined by the arch
    assert shared <= set(inspect.signature(FAMILIES[name]).parameters)


def test_frozen_stages(case):
    for frozen_stages in (0, 1, case.num_stages):
        model = case.train_copy(frozen_stages=frozen_stages)
        frozen = ('stem.',) if frozen_stages >= 0 else ()
        for k in range(frozen_stages):
            frozen += (f'stages.{k}.', f'downsamples.{k - 1}.', f'norms.{k}.')
        before = {n: b.clone() for n, b in model.named_buffers() if 'running' in n}
        loss = loss_of(model(case.image()))
        if frozen_stages < case.num_stages:
            loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(frozen), name
        for name, buffer in model.named_buffers():
            if name in before:
                assert torch.equal(buffer, before[name]) == name.startswith(frozen), name
        for name, module in model.named_modules():
            if name:
                assert module.training != f'{name}.'.startswith(frozen), name


@pytest.mark.parametrize('name', FAMILIES)
def test_frozen_stages_under_ddp(name, short_arch, tmp_path):
    spec = importlib.util.spec_from_file_location('two_steps', TWO_STEPS)
    two_steps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(two_steps)
    two_steps.train(name, short_arch(name), 0, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_frozen_stages_in_two_processes(name, short_arch, tmp_path):
    command = [sys.executable, str(TWO_STEPS), name, json.dumps(short_arch(name))]
    processes = [subprocess.Popen([*command, str(rank), '2', str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert first and all(torch.equal(first[n], second[n]) for n in first)


def test_recomputing_changes_nothing(case):
    """Outputs, gradients and running statistics, which are updated once and not twice."""
    image, results, calls = case.image(), [], []
    for with_cp in (False, True):
        model = case.train_copy(with_cp=with_cp)
        for module in (model.downsamples[0], *model.stages):
            norm = next(m for m in module.modules() if isinstance(m, nn.LayerNorm))
            norm.register_forward_pre_hook(lambda *_, with_cp=with_cp: calls.append(with_cp))
        outputs = model(image)
        loss_of(outputs).backward()
        gradients = [p.grad for p in model.parameters()]
        results.append([*outputs, *gradients, *(b.float() for b in model.buffers())])
    assert calls.count(True) == 2 * calls.count(False) > 0
    for recomputed, plain in zip(*reversed(results), strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', FAMILIES)
def test_recomputing_under_autocast_changes_no_gradient(name, short_backbone):
    plain, gradients = short_backbone(name).train(), []
    image = torch.randn(2, 3, plain.min_size + 1, plain.min_size + 6)
    for with_cp in (False, True):
        model = short_backbone(name, with_cp=with_cp).train()
        model.load_state_dict(plain.state_dict())
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outputs = model(image)
        loss_of(outputs).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_bfloat16_autocast_is_finite(case):
    model = case.train_copy()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = model(case.image() * 100)
    loss_of(outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('options', [None, {}, dict(prefix='backbone.')])
def test_init_cfg_changes_every_parameter(case, options, tmp_path):
    """From weights of the backbone, or of a model that contains it, with and without a prefix."""
    source = {n: p.detach() + 1 for n, p in case.backbone.named_parameters()}
    state = source
    if options is not None:
        state = {f'backbone.{n}': p for n, p in source.items()} | {'head.weight': torch.ones(2)}
    torch.save({'state_dict': state}, tmp_path / 'file.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), **options or {})
    model = case.build(init_cfg=init_cfg)
    model.init_weights()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, source[name]), name


def test_copies_equal(case, tmp_path):
    """State dict, deep copy, pickle."""
    image = case.image()
    expected = case.backbone(image)
    torch.save(case.backbone.state_dict(), tmp_path / 'file.pth')
    loaded = case.build().eval()
    loaded.load_state_dict(torch.load(tmp_path / 'file.pth', weights_only=True), strict=True)
    copied = copy.deepcopy(case.backbone)
    pickled = pickle.loads(pickle.dumps(case.backbone))
    for twin in (loaded, copied, pickled):
        assert all(torch.equal(a, e) for a, e in zip(twin(image), expected, strict=True))
        assert twin.feature_info.channels() == case.backbone.feature_info.channels()
    with torch.no_grad():
        copied.stem.get_parameter(next(iter(dict(copied.stem.named_parameters())))).add_(1)
    assert all(torch.equal(a, e) for a, e in zip(case.backbone(image), expected, strict=True))


def test_deploy_form_is_equal(case):
    model = case.train_copy()
    with torch.no_grad():
        for _ in range(2):  # statistics that differ from their start values
            model(case.image() * 2 + 1)
    model.eval()
    image = case.image()
    expected = model(image)
    parameters = sum(p.numel() for p in model.parameters())
    for _ in range(2):
        model.switch_to_deploy()
        assert_close(model(image), expected)
    folds = any(isinstance(module, RPCPE) for module in model.modules())
    assert (sum(p.numel() for p in model.parameters()) < parameters) == folds
    if 'deploy' in inspect.signature(case.family).parameters:
        twin = case.build(deploy=True).eval()
        twin.load_state_dict(model.state_dict(), strict=True)
        assert_close(twin(image), model(image))


def compiled_equals_eager(model, backend):
    least = model.min_size
    image = torch.randn(1, 3, least, least + 5)
    torch._dynamo.reset()
    with torch.no_grad():
        actual = torch.compile(model, backend=backend, fullgraph=True)(image)
        assert_close(actual, model(image), 1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize('name', FAMILIES)
def test_compiles_to_one_graph(name, short_backbone):
    compiled_equals_eager(short_backbone(name).eval(), 'eager')


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_compiles_with_inductor(name, short_backbone):
    compiled_equals_eager(short_backbone(name).eval(), 'inductor')


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < '2.4', reason='QnA needs operators (torch 2.4)')
@pytest.mark.parametrize('name', FAMILIES)
def test_one_compiled_training_step_serves_all_sizes(name, short_backbone):
    model = short_backbone(name).train()
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend('aot_eager')
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    # LinGlo has another form for its smallest maps, which is compiled separately.
    for size in ((2, 112, 136), (2, 136, 112), (3, 117, 149), (4, 160, 128), (2, 131, 190)):
        image = torch.randn(size[0], 3, *size[1:])
        outputs = compiled(image), eager(image)
        for actual, expected in zip(*outputs, strict=True):
            assert_close(actual, expected, 1e-4)
        directions = [torch.randn_like(y) for y in outputs[1]]
        for maps in outputs:
            sum((y * d).sum() for y, d in zip(maps, directions, strict=True)).backward()
        for (path, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), path
            assert p.grad is None or (p.grad - q.grad).norm() <= 1e-3 * q.grad.norm(), path
        model.zero_grad()
        eager.zero_grad()
        compilations.add(counter.frame_count)
    assert len(compilations) == 1
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize('name', ARCHS)
def test_whole_arch_compiles_to_one_graph(name):
    compiled_equals_eager(build_backbone(name).eval(), 'eager')
