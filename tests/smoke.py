"""Shows that an installation works: a training step of a backbone and, with mmdet, of a detector.

``make smoke`` runs it in a new environment. It needs only what the package requires.
"""

import platform
from importlib import metadata
from importlib.util import find_spec

import torch

import mmvitattn


def train_backbone() -> None:
    """One step of SGD on random pictures has to change the weights."""
    backbone = mmvitattn.build_backbone('linglo_b0').train()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in backbone.parameters()]
    loss = sum((x - torch.rand_like(x)).square().mean() for x in backbone(torch.rand(2, 3, 64, 96)))
    loss.backward()
    optimizer.step()
    pairs = zip(before, backbone.parameters(), strict=True)
    assert loss.isfinite() and any(not torch.equal(old, new) for old, new in pairs)
    print(f'backbone: one step, loss {loss:.4f}')


def train_detector() -> None:
    """Builds a demo model of each toolbox; one step of MMEngine and a prediction with the last."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, init_default_scope

    from mmvitattn.hub import get_config

    for name in ('linglo_b0', 'semfpn_linglo_b0', 'retinanet_linglo_b0_fpn'):
        cfg = get_config(f'demo/{name}_shapes')
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        print(f'{cfg.default_scope}: built {type(model).__name__}')
    model.train()
    data = demo_mm_inputs(2, (3, 64, 96), num_items=[3, 3], num_classes=6)
    losses = model.train_step(data, build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses['loss'].isfinite()
    assert len(model.eval().test_step(data)) == 2
    print(f'detector: one step, loss {losses["loss"]:.4f}')


def main() -> None:
    """Prints the versions, and 'ok' if all steps succeed."""
    print(f'Python {platform.python_version()}, {platform.platform()}')
    print(f'mmvitattn {mmvitattn.__version__} from {mmvitattn.__file__}')
    for distribution in sorted(metadata.distributions(), key=lambda d: d.name.lower()):
        if distribution.name.startswith(('torch', 'numpy', 'opencv', 'mm', 'onedl')):
            print(f'{distribution.name}=={distribution.version}')
    train_backbone()
    if find_spec('mmdet'):
        train_detector()
    print('ok')


if __name__ == '__main__':
    main()
