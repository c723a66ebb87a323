"""Writes LinGlo-b0 with another initialisation of its attention, to start a training from.

``python docs/examples/saliency_start.py start.pth --saliency 1 --key 3`` draws the saliency vectors
with a standard deviation of 1 in place of 0.02 and multiplies the key projections by 3. A config
starts from the file with ``init_cfg=dict(type='Pretrained', checkpoint='start.pth')``.
"""

import argparse
from pathlib import Path

import torch

from mmvitattn import build_backbone
from mmvitattn.layers import KeyOnlyAttention


@torch.no_grad()
def main() -> None:
    """Builds the backbone, changes its attention layers and saves it."""
    parser = argparse.ArgumentParser()
    parser.add_argument('out', type=Path)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--saliency', type=float, default=0.02, help='standard deviation')
    parser.add_argument('--key', type=float, default=1, help='factor of the key projections')
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f'{args.out} exists already; name another file')
    torch.manual_seed(args.seed)
    backbone = build_backbone('linglo_b0')
    for layer in backbone.modules():
        if isinstance(layer, KeyOnlyAttention):
            layer.saliency.mul_(args.saliency / 0.02)
            layer.key.weight.mul_(args.key)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(backbone.state_dict(), args.out)


if __name__ == '__main__':
    main()
