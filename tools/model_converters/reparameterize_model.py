"""Folds a checkpoint into its deploy form, with equal outputs and fewer parameters.

``python tools/model_converters/reparameterize_model.py CONFIG CHECKPOINT DST`` accepts checkpoints
of classifiers, detectors and segmenters. LinGlo's position encoding becomes one convolution in each
block; a config with ``backbone=dict(deploy=True)`` loads the result. The outputs of both forms are
compared before anything is written.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import logging

import torch
from torch import Tensor, nn

from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.checkpoint.writing import check_destination, plain_data, save_atomically
from mmvitattn.cli import add_force_argument, add_trust_argument
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference.build import build_model, read_model_config
from mmvitattn.layers import RPCPE

TOLERANCE = 1e-4


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint of the training form')
    parser.add_argument('dst', help='file to write, e.g. linglo-b2-deploy.pth')
    add_force_argument(parser)
    add_trust_argument(parser)
    return parser.parse_args()


def fold(backbone: nn.Module, source: str) -> float:
    """Folds a backbone in place.

    Returns:
        The largest difference of its outputs, over the largest value of the same output.

    Raises:
        UsageError: if nothing can be folded.
    """
    side = getattr(backbone, 'min_size', 32)
    images = torch.randn(2, backbone.in_channels, 3 * side, 4 * side + 5)
    names, expected = set(backbone.state_dict()), _unfolded_outputs(backbone, images)
    if hasattr(backbone, 'switch_to_deploy'):
        backbone.switch_to_deploy()
    if set(backbone.state_dict()) == names:
        raise UsageError(
            f'{source}: nothing can be folded: {type(backbone).__name__} has only one form, or the '
            'checkpoint has the deploy form already'
        )
    with torch.no_grad():
        actual = backbone(images)
    return max(
        ((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True)
    )


@torch.no_grad()
def _unfolded_outputs(backbone: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Outputs of the unfolded form: in evaluation mode, our modules fold in each call."""
    parts = [m for m in backbone.modules() if isinstance(m, RPCPE) and not m.deployed]
    for module in parts:
        module.forward = module.forward_branches
    outputs = backbone(images)
    for module in parts:
        del module.forward
    return outputs


def reparameterize(args: argparse.Namespace) -> None:
    """Writes the folded checkpoint, or nothing if there is an error.

    Raises:
        UsageError: if a file cannot be used, or the outputs differ.
    """
    dst = check_destination(args.dst, args.force)
    cfg = read_model_config(args.config)
    checkpoint = load_checkpoint(args.checkpoint, args.trust_checkpoint)
    model = build_model(cfg, checkpoint, args.checkpoint)
    before = sum(p.numel() for p in model.parameters())
    difference = fold(model.backbone, args.checkpoint)
    if not difference <= TOLERANCE:  # also where it is NaN
        raise UsageError(
            f'{args.checkpoint}: the outputs differ by {difference:.1e} after folding, more than '
            f'{TOLERANCE:g}; nothing is written'
        )
    meta = dict(plain_data(checkpoint.get('meta') or {}), deploy=True)
    save_atomically(dict(state_dict=model.state_dict(), meta=meta), dst)
    after = sum(p.numel() for p in model.parameters())
    print(f'{dst}: {before / 1e6:.2f} M parameters became {after / 1e6:.2f} M')
    print(f'largest difference of the outputs: {difference:.1e} of the largest value')


def main() -> None:
    """Folds the checkpoint that the command line names."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        reparameterize(args)


if __name__ == '__main__':
    main()
