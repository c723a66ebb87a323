"""Contestants of ``benchmark.py detector``: RetinaNet with FPN on one image, mmdet's own parts.

All have the same neck and head on maps of strides 8 to 128. SAG has no map of stride 32: the
neck's additional levels make up for it.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)

from .cases import Size, contestant

RETINANET = Path(__file__).resolve().parents[3] / 'configs' / '_base_/models/retinanet_fpn.py'
STRIDE = 32  # to a multiple of which images are padded
# Boxes x1, y1, x2, y2 as shares of the image, small to large, with their labels.
BOXES = (
    ((0.05, 0.10, 0.09, 0.16), 0),
    ((0.30, 0.20, 0.42, 0.45), 17),
    ((0.55, 0.15, 0.95, 0.85), 56),
    ((0.10, 0.60, 0.35, 0.95), 2),
    ((0.70, 0.02, 0.76, 0.10), 79),
)

LINGLO, QNA, SAG = 'RetinaNet, LinGlo-b2', 'RetinaNet, QnA-ViT-tiny', 'RetinaNet, SAG-small'
SWIN, RESNET = 'RetinaNet, Swin-T', 'RetinaNet, ResNet-50'
PVT = 'RetinaNet, PVTv2-B2'


class DetectorStep(nn.Module):
    """A detector on prepared images: losses in training, boxes in evaluation.

    Args:
        backbone: settings of the backbone.
        in_channels: channels of the maps that the backbone gives.
        size: batch and size of the images, before they are padded.
    """

    def __init__(self, backbone: dict, in_channels: Sequence[int], size: Size) -> None:
        super().__init__()
        init_default_scope('mmdet')
        settings = copy.deepcopy(Config.fromfile(RETINANET).model)
        settings.backbone = backbone
        settings.neck.in_channels = list(in_channels)
        self.detector = MODELS.build(settings)
        self.detector.init_weights()
        if not size.training and hasattr(self.detector.backbone, 'switch_to_deploy'):
            self.detector.backbone.switch_to_deploy()
        self.size = size

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Sum of the losses, or all boxes, scores and labels."""
        samples = [self._sample(images) for _ in images]
        if self.training:
            losses = self.detector.loss(images, samples)
            flat = [loss for values in losses.values() for loss in _as_list(values)]
            return torch.stack(flat).sum()
        results = self.detector.predict(images, samples, rescale=False)
        found = [result.pred_instances for result in results]
        return [t for r in found for t in (r.bboxes, r.scores, r.labels)]

    def _sample(self, images: Tensor) -> DetDataSample:
        height, width = self.size.height, self.size.width
        scale = images.new_tensor([width, height, width, height], dtype=torch.float32)
        boxes = images.new_tensor([box for box, _ in BOXES], dtype=torch.float32) * scale
        labels = torch.tensor([label for _, label in BOXES], device=images.device)
        padded = tuple(images.shape[2:])
        meta = dict(img_shape=(height, width), pad_shape=padded, batch_input_shape=padded)
        sample = DetDataSample(metainfo=meta | dict(ori_shape=(height, width), scale_factor=(1, 1)))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        return sample


def _as_list(values: Tensor | list[Tensor]) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else values


def padded_shape(size: Size) -> tuple[int, int, int, int]:
    """Shape (B, 3, H, W) of the images as the detector gets them.

    Args:
        size: batch and size of the images.
    """
    height, width = (n + -n % STRIDE for n in (size.height, size.width))
    return size.batch, 3, height, width


@contestant(LINGLO)
def linglo_b2(size: Size) -> nn.Module:
    """Ours: LinGlo-b2; for inference in its deploy form."""
    backbone = dict(type='mmvitattn.LinGlo', arch='b2', out_indices=(1, 2, 3), drop_path_rate=0.0)
    return DetectorStep(backbone, (128, 320, 512), size)


@contestant(QNA)
def qna_tiny(size: Size) -> nn.Module:
    """Ours: QnA-ViT-tiny."""
    backbone = dict(type='mmvitattn.QnAViT', arch='tiny', out_indices=(1, 2, 3), drop_path_rate=0.0)
    return DetectorStep(backbone, (128, 256, 512), size)


@contestant(SAG)
def sag_small(size: Size) -> nn.Module:
    """Ours: SAG-small with averaged keys and values, as in its detector configs."""
    backbone = dict(
        type='mmvitattn.SAGViT',
        arch='small',
        out_indices=(1, 2),
        kv_pools=(4, 2, 1),
        drop_path_rate=0.0,
    )
    return DetectorStep(backbone, (192, 384), size)


@contestant(SWIN)
def swin_tiny(size: Size) -> nn.Module:
    """Swin-T, mmdet's own."""
    backbone = dict(
        type='SwinTransformer',
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
        convert_weights=False,
    )
    return DetectorStep(backbone, (192, 384, 768), size)


@contestant(PVT)
def pvt_b2(size: Size) -> nn.Module:
    """PVTv2-B2, mmdet's own."""
    backbone = dict(
        type='PyramidVisionTransformerV2',
        embed_dims=64,
        num_layers=(3, 4, 6, 3),
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
    )
    return DetectorStep(backbone, (128, 320, 512), size)


@contestant(RESNET)
def resnet_50(size: Size) -> nn.Module:
    """ResNet-50, mmdet's own, nothing frozen."""
    backbone = dict(type='ResNet', depth=50, num_stages=4, out_indices=(1, 2, 3), frozen_stages=-1)
    return DetectorStep(backbone, (512, 1024, 2048), size)
