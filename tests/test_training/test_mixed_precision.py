import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from mmvitattn.errors import UsageError
from mmvitattn.training import mixed_precision

SETTINGS = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))


def chosen(monkeypatch, gpu, **options):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    cfg = Config(dict(optim_wrapper=dict(SETTINGS, **options)))
    mixed_precision.use_mixed_precision(cfg)
    return cfg.optim_wrapper


def test_gpus_take_mmengines_wrapper(monkeypatch):
    wrapper = chosen(monkeypatch, gpu=True)
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert chosen(monkeypatch, gpu=True, loss_scale=512.0).loss_scale == 512.0


def test_cpus_compute_in_bfloat16(monkeypatch):
    """Products in bfloat16; weights, gradients and optimizer state in float32."""
    settings = chosen(monkeypatch, gpu=False, dtype='bfloat16', loss_scale='dynamic')
    model, dtypes = nn.Linear(3, 2), []
    init_default_scope('mmengine')
    wrapper = build_optim_wrapper(model, settings)
    start = model.weight.detach().clone()
    with wrapper.optim_context(model):
        y = model(torch.rand(4, 3))
        dtypes.append(y.dtype)
        loss = nn.functional.mse_loss(y.float(), torch.ones(4, 2))
    wrapper.update_params(loss)
    assert dtypes == [torch.bfloat16] and model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, start)
    assert model(torch.rand(4, 3)).dtype == torch.float32


def test_float16_needs_a_gpu(monkeypatch):
    with pytest.raises(UsageError, match="dtype='float16' needs a GPU"):
        chosen(monkeypatch, gpu=False, dtype='float16')


@pytest.mark.parametrize(('fast', 'gpu'), [(False, False), (True, False), (False, True)])
def test_cpus_that_are_slow_in_bfloat16_are_named(monkeypatch, capsys, fast, gpu):
    monkeypatch.setattr(mixed_precision, 'ONEDNN_HAS_BFLOAT16', fast)
    chosen(monkeypatch, gpu=gpu)
    assert ('leave out --amp' in capsys.readouterr().err) == (not fast and not gpu)
