"""Segmenters synchronise their BatchNorms on several GPUs, and nowhere else."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmvitattn import cli
from mmvitattn.checkpoint.pretrained import drop_pretrained

CONFIGS = ('semfpn_linglo_b0_40k_ade20k', 'upernet_qna_vit_tiny_160k_ade20k')


def load(root, name):
    cfg = Config.fromfile(root / f'configs/{name}.py')
    drop_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    return cfg


def wrapped(cfg, monkeypatch, distributed):
    """The model as MMEngine's runner would train it."""
    monkeypatch.setattr('mmengine.runner.runner.get_device', lambda: 'cpu')
    monkeypatch.setattr(
        'mmengine.runner.runner.MMDistributedDataParallel', lambda module, **_: module
    )
    monkeypatch.setenv('LOCAL_RANK', '0')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    logger = SimpleNamespace(info=lambda *_: None)
    return Runner.wrap_model(
        SimpleNamespace(cfg=cfg, distributed=distributed, logger=logger), None, model
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_all_norms_are_synchronised_in_distributed_runs(name, root, monkeypatch):
    cfg = load(root, name)
    synced, plain = (wrapped(cfg, monkeypatch, distributed) for distributed in (True, False))
    for model, kind in ((synced, nn.SyncBatchNorm), (plain, nn.BatchNorm2d)):
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms and all(type(norm) is kind for norm in norms)
    plain.load_state_dict(synced.state_dict())  # checkpoints are the same
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain.eval()(image, mode='tensor')
        assert torch.allclose(synced.eval()(image, mode='tensor'), expected, atol=1e-6)


def test_several_processes_on_cpus_keep_their_own(root, monkeypatch):
    """PyTorch's synchronised BatchNorm refuses tensors on CPUs."""
    joined = []
    monkeypatch.setattr('torch.distributed.init_process_group', joined.append)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    cfg = load(root, CONFIGS[0])
    cfg.launcher = 'pytorch'
    assert cfg.sync_bn == 'torch'
    cli.start_processes(cfg)
    assert joined == ['gloo'] and 'sync_bn' not in cfg
