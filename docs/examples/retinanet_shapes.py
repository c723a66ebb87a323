"""Trains torchvision's RetinaNet with a backbone of this package, in plain PyTorch.

Usage: ``python retinanet_shapes.py [BACKBONE [STEPS]]``; the embedded data set is created first.
"""

import json
import sys
from collections import defaultdict

import torch
from torch import nn
from torchvision.io import read_image
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_convert, box_iou

import mmvitattn
from mmvitattn.datasets.shapes import write_shapes

backbone_name = sys.argv[1] if len(sys.argv) > 1 else 'linglo_b0'
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100


class BackboneWithFPN(nn.Module):
    """A backbone and a feature pyramid, as torchvision's detectors take them."""

    def __init__(self, name: str, out_channels: int = 128) -> None:
        super().__init__()
        self.backbone = mmvitattn.build_backbone(name, out_indices=(-3, -2, -1))
        self.fpn = FeaturePyramidNetwork(self.backbone.feature_info.channels(), out_channels)
        self.out_channels = out_channels

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps by name, from fine to coarse."""
        return self.fpn({str(i): y for i, y in enumerate(self.backbone(image))})


def read(folder, split):
    """Pictures and their boxes and labels, as torchvision's detectors take them."""
    coco = json.loads((folder / f'annotations/instances_{split}.json').read_text())
    objects = defaultdict(list)
    for entry in coco['annotations']:
        objects[entry['image_id']].append(entry)
    for picture in coco['images']:
        entries = objects[picture['id']]
        boxes = torch.tensor([entry['bbox'] for entry in entries]).float().reshape(-1, 4)
        labels = torch.tensor([entry['category_id'] for entry in entries], dtype=torch.long)
        target = dict(boxes=box_convert(boxes, 'xywh', 'xyxy'), labels=labels)
        yield read_image(str(folder / split / picture['file_name'])) / 255, target


torch.manual_seed(0)
data = write_shapes('data/retinanet_shapes', num_train=400, num_val=40) / 'coco'
train, val = list(read(data, 'train2017')), list(read(data, 'val2017'))
num_classes = 1 + max(int(label) for _, target in train for label in target['labels'])

backbone = BackboneWithFPN(backbone_name)
anchors = AnchorGenerator(tuple((s, 1.4 * s) for s in (16, 32, 64)), ((0.5, 1.0, 2.0),) * 3)
model = RetinaNet(backbone, num_classes, min_size=128, max_size=128, anchor_generator=anchors)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)

for step in range(steps):
    batch = [train[i] for i in torch.randint(len(train), (8,))]
    loss = sum(model(*map(list, zip(*batch, strict=True))).values())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    print(f'step {step}: loss {loss.item():.3f}', flush=True)

model.eval()
with torch.no_grad():
    outputs = model([image for image, _ in val])
found = total = 0
for output, (_, target) in zip(outputs, val, strict=True):
    total += len(target['boxes'])
    if len(output['boxes']) and len(target['boxes']):
        iou = box_iou(target['boxes'], output['boxes'][:10])
        right = target['labels'][:, None] == output['labels'][None, :10]
        found += int(((iou > 0.5) & right).any(dim=1).sum())
print(f'{found} of {total} objects are among the ten best boxes of their picture, by class and box')
