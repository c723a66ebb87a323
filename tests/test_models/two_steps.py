"""Run by test_contract.py: two training steps of a backbone under DDP.

``python two_steps.py FAMILY ARCH_AS_JSON RANK WORLD_SIZE FOLDER``; the gradients go to a file. The
second step raises if a parameter had no gradient in the first.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from mmvitattn.zoo import families


def train(family, arch, rank, world_size, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world_size
    )
    try:
        backbone = families()[family](arch, frozen_stages=1).train()
        model = DistributedDataParallel(backbone)
        torch.manual_seed(rank)
        for _ in range(2):
            images = torch.randn(2, 3, backbone.min_size, backbone.min_size)
            sum(y.square().mean() for y in model(images)).backward()
        gradients = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}
        torch.save(gradients, Path(folder) / f'{rank}.pth')
    finally:
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    torch.set_num_threads(1)
    family, arch, rank, world_size, folder = sys.argv[1:]
    train(family, json.loads(arch), int(rank), int(world_size), folder)
