"""Parameters and multiply-adds of a config's model, or the tables of the model zoo.

``python tools/analysis_tools/get_flops.py CONFIG [--shape H W] [--deploy]`` or ``... --table``.
Every matrix product and convolution is counted, attention's included; nothing is computed (the
model runs on PyTorch's meta device). GFLOPs are multiply-adds / 1e9, as in the papers.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import copy
import logging
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference.build import construct_model, read_model_config
from mmvitattn.layers import QnALayer
from mmvitattn.ops import force

# The forms that are counted: those of the papers. The fast ones save products.
AS_PUBLISHED = (
    'key_only_attention=plain,learned_query_attention=offset_loop,local_shift_attention=reference'
)
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# The papers' figures. LinGlo: RetinaNet parameters (M), AP, Semantic FPN's, mIoU, top-1.
LINGLO = {
    'linglo_b0': (13.0, 38.0, 7.6, 37.3, 72.5),
    'linglo_b1': (23.8, 41.5, 17.8, 42.5, 79.7),
    'linglo_b2': (35.1, 44.7, 29.1, 45.2, 82.7),
}
LINGLO_TABLE_2 = {'linglo_b0': 3.4, 'linglo_b1': 13.1, 'linglo_b2': 25.4}  # parameters (M)
# Others: side of the picture, parameters (M), GFLOPs, top-1 of the classifier, images a second on
# one GPU that the paper does not name.
CLASSIFIERS = {
    'qna_vit_tiny_8xb128_in1k': (224, 16, 2.5, 81.7, '-'),
    'qna_vit_tiny_7x7_8xb128_in1k': (224, 16, 2.6, 82.0, '-'),
    'qna_vit_small_8xb128_in1k': (224, 25, 4.4, 83.2, '-'),
    'qna_vit_base_8xb128_in1k': (224, 56, 9.7, 83.7, '-'),
    'sag_tiny_8xb92_in1k': (224, 9.9, 3.1, 76.0, 797.2),
    'sag_small_8xb64_in1k': (224, 22.0, 7.6, 82.2, 298.9),
    'sag_tiny_8xb92_cifar10': (32, 10.2, '-', '97.00', 1700.2),
    'sag_small_8xb40_cifar10': (32, 36.2, '-', 97.64, 807.6),
    'sag_base_8xb20_cifar10': (32, 115.8, '-', 97.75, 276.8),
    'sag_tiny_8xb92_cifar100': (32, '-', '-', '81.80', 1700.2),
    'sag_small_8xb40_cifar100': (32, '-', '-', 83.66, 807.6),
    'sag_base_8xb20_cifar100': (32, '-', '-', '84.70', 276.8),
}


def build(config: Path, deploy: bool) -> nn.Module:
    """The model of a config, without weights."""
    model = construct_model(read_model_config(config))
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
    window_products = []
    for layer in module.modules():
        if isinstance(layer, QnALayer):  # its products are no matrix products
            layer.register_forward_hook(
                lambda layer, inputs, output: window_products.append(
                    output[..., 0].numel()
                    * layer.kernel_size**2
                    * layer.num_queries
                    * layer.channels
                )
            )
    with force(AS_PUBLISHED), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 3, *shape, device='meta'))
    return (counter.get_total_flops() / 2 + sum(window_products)) / 1e9


def linglo_table() -> str:
    """LinGlo in its deploy form; RetinaNet and Semantic FPN with their heads."""
    lines = [
        '| backbone | params (M) | GFLOPs, 224 x 224 | RetinaNet params (M): ours / paper '
        '| Semantic FPN params (M): ours / paper | paper: top-1 | paper: AP | paper: mIoU |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name, (retinanet, ap, semantic_fpn, miou, top1) in LINGLO.items():
        classifier = build(CONFIGS / f'{name}_8xb128_in1k.py', deploy=True)
        detector = build(CONFIGS / f'retinanet_{name}_fpn_1x_coco.py', deploy=True)
        segmenter = build(CONFIGS / f'semfpn_{name}_40k_ade20k.py', deploy=True)
        lines.append(
            f'| {name} | {parameters(classifier.backbone):.2f} '
            f'| {multiply_adds(classifier.backbone, (224, 224)):.2f} '
            f'| {parameters(detector):.1f} / {retinanet} '
            f'| {parameters(segmenter):.1f} / {semantic_fpn} | {top1} | {ap} | {miou} |'
        )
    return '\n'.join(lines)


def linglo_heads() -> str:
    """LinGlo's classifiers with and without the classification head."""
    lines = [
        '| model | deploy form: backbone / with head (M) '
        '| training form: backbone / with head (M) | paper, table 2 (M) |',
        '|---|---|---|---|',
    ]
    for name, printed in LINGLO_TABLE_2.items():
        forms = [build(CONFIGS / f'{name}_8xb128_in1k.py', deploy) for deploy in (True, False)]
        counts = (f'{parameters(m.backbone):.2f} / {parameters(m):.2f}' for m in forms)
        lines.append(f'| {name} | {" | ".join(counts)} | {printed} |')
    return '\n'.join(lines)


def classifier_table() -> str:
    """Classifiers with their heads."""
    lines = [
        '| classifier | input | params (M): ours / paper | GFLOPs: ours / paper | paper: top-1 '
        '| paper: images/s, one GPU |',
        '|---|---|---|---|---|---|',
    ]
    for name, (side, params, gflops, top1, speed) in CLASSIFIERS.items():
        model = build(CONFIGS / f'{name}.py', deploy=True)
        lines.append(
            f'| {name} | {side} | {parameters(model):.2f} / {params} '
            f'| {multiply_adds(model.backbone, (side, side)):.2f} / {gflops} | {top1} '
            f'| {speed} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', type=Path)
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), default=(224, 224))
    parser.add_argument('--deploy', action='store_true', help='fold what can be folded first')
    parser.add_argument(
        '--table',
        nargs='?',
        const='models',
        choices=('models', 'linglo_heads'),
        help="print the tables of the model zoo, or LinGlo's parameters with and without the head",
    )
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit(ValueError):  # e.g. an image that is too small for the backbone
        if args.table == 'linglo_heads':
            print(linglo_heads())
            return
        if args.table:
            print(linglo_table(), classifier_table(), sep='\n\n')
            return
        if args.config is None:
            raise UsageError('name a config, or give --table')
        model = build(args.config, args.deploy)
        height, width = args.shape
        flops = multiply_adds(model.backbone, (height, width))
    print(f'parameters, whole model   {parameters(model):8.2f} M')
    print(f'parameters, backbone      {parameters(model.backbone):8.2f} M')
    decimals = 2 if flops >= 0.1 else 3
    print(f'multiply-adds, backbone   {flops:8.{decimals}f} G at {height} x {width}')


if __name__ == '__main__':
    main()
