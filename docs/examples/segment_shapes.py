"""Trains a segmenter in plain PyTorch, with a backbone of this package and torchvision's FCN head.

Usage: ``python segment_shapes.py [BACKBONE [STEPS]]``; the embedded data set is created first.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, interpolate
from torchvision.io import read_image
from torchvision.models.segmentation.fcn import FCNHead

import mmvitattn
from mmvitattn.datasets.shapes import SEGMENTATION_CLASSES, write_shapes

backbone_name = sys.argv[1] if len(sys.argv) > 1 else 'linglo_b0'
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100

torch.manual_seed(0)
data = write_shapes('data/segment_shapes', num_train=64, num_val=1) / 'ade/ADEChallengeData2016'
images = sorted(Path(data, 'images/training').glob('*.jpg'))
masks = sorted(Path(data, 'annotations/training').glob('*.png'))

backbone = mmvitattn.build_backbone(backbone_name, out_indices=-2)
head = FCNHead(backbone.feature_info.channels()[0], len(SEGMENTATION_CLASSES))
optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3)

for step in range(steps):
    batch = torch.randint(len(images), (4,)).tolist()
    image = torch.stack([read_image(str(images[i])) for i in batch]) / 255
    target = torch.cat([read_image(str(masks[i])) for i in batch]).long() - 1  # -1: ignored
    logits = interpolate(head(backbone(image)[0]), image.shape[2:], mode='bilinear')
    loss = cross_entropy(logits, target, ignore_index=-1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f'step {step}: loss {loss.item():.3f}')
