"""Parameters and multiply-adds of a config's model, or the README's table.

``python tools/analysis_tools/get_flops.py CONFIG [--shape H W] [--deploy]`` or ``... --table``.
Every matrix product and convolution is counted, attention's included; nothing is computed (the
model runs on PyTorch's meta device). GFLOPs are multiply-adds / 1e9, as in the papers.
"""

import argparse
import copy
import logging
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.engine import preflight
from mmvitattn.engine.errors import UsageError, usage_errors_exit

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# name, and the paper's: RetinaNet parameters (M), its AP, Semantic FPN's, its mIoU, top-1
PAPER = {
    'linglo_b0': (13.0, 38.0, 7.6, 37.3, 72.5),
    'linglo_b1': (23.8, 41.5, 17.8, 42.5, 79.7),
    'linglo_b2': (35.1, 44.7, 29.1, 45.2, 82.7),
}


def build(config: Path, deploy: bool) -> nn.Module:
    """The model of a config, without weights."""
    if not config.is_file():
        raise UsageError(f'there is no config {config}; see configs/')
    cfg = Config.fromfile(config)
    preflight.drop_pretrained(cfg)
    init_default_scope(cfg.default_scope)
    settings = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(settings).eval()
    if deploy and hasattr(model.backbone, 'switch_to_deploy'):
        model.backbone.switch_to_deploy()
    return model


def parameters(module: nn.Module) -> float:
    """Millions of parameters."""
    return sum(p.numel() for p in module.parameters()) / 1e6


@torch.no_grad()
def multiply_adds(module: nn.Module, shape: tuple[int, int]) -> float:
    """Billions of multiply-adds for one image of that height and width."""
    module = copy.deepcopy(module).to('meta')
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, *shape, device='meta'))
    return counter.get_total_flops() / 2e9


def table() -> str:
    """The README's table of models."""
    lines = [
        '| backbone | params (M) | GFLOPs, 224 x 224 | RetinaNet params (M): ours / paper '
        '| Semantic FPN params (M): ours / paper | paper: top-1 | paper: AP | paper: mIoU |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name, (retinanet, ap, semantic_fpn, miou, top1) in PAPER.items():
        models = {
            form: build(next(CONFIGS.glob(pattern)), deploy=True)
            for form, pattern in (
                ('classifier', f'{name}_8x*_in1k.py'),
                ('detector', f'retinanet_{name}_fpn_1x_coco.py'),
                ('segmenter', f'semfpn_{name}_40k_ade20k.py'),
            )
        }
        backbone = models['classifier'].backbone
        lines.append(
            f'| {name} | {parameters(backbone):.2f} | {multiply_adds(backbone, (224, 224)):.2f} '
            f'| {parameters(models["detector"]):.1f} / {retinanet} '
            f'| {parameters(models["segmenter"]):.1f} / {semantic_fpn} | {top1} | {ap} | {miou} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', type=Path)
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), default=(224, 224))
    parser.add_argument('--deploy', action='store_true', help='fold what can be folded first')
    parser.add_argument('--table', action='store_true', help="print the README's table")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        if args.table:
            print(table())
            return
        if args.config is None:
            raise UsageError('name a config, or give --table')
        model = build(args.config, args.deploy)
    height, width = args.shape
    print(f'parameters, whole model   {parameters(model):8.2f} M')
    print(f'parameters, backbone      {parameters(model.backbone):8.2f} M')
    flops = multiply_adds(model.backbone, (height, width))
    print(f'multiply-adds, backbone   {flops:8.2f} G at {height} x {width}')


if __name__ == '__main__':
    main()
