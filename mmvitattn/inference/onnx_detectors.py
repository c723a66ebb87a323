"""Detectors from the normalised image to final boxes, with operators that ONNX has.

The results are those of mmdet's own post-processing. Differences in form: the candidates of a level
are chosen in two steps (the best positions, then the best classes there), which gives the same
candidates in much less time; and non-maximum suppression treats a batch at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ..compat.onnx import minimum
from ..errors import UsageError

Outputs = dict[str, Tensor]
NMS_OPTIONS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
MAX_LOG_RATIO = 4.135166556742356  # log(1000 / 16), mmdet's limit of box sizes


def detector_outputs(model: Any) -> Any:
    """Chooses how a detector is exported.

    Args:
        model: mmdet's detector.

    Returns:
        A function from the padded image (B, 3, H', W') and its height and width before padding to
        the final and the raw outputs.

    Raises:
        UsageError: if this kind of detector is not supported.
    """
    from mmdet.models.dense_heads import DETRHead, RetinaHead, RPNHead
    from mmdet.models.detectors import DETR, SingleStageDetector, TwoStageDetector
    from mmdet.models.roi_heads import StandardRoIHead

    if isinstance(model, DETR) and type(model.bbox_head) is DETRHead:
        return DETRDetector(model)
    if isinstance(model, SingleStageDetector) and type(model.bbox_head) is RetinaHead:
        return DenseDetector(model)
    if isinstance(model, TwoStageDetector) and (type(model.rpn_head), type(model.roi_head)) == (
        RPNHead,
        StandardRoIHead,
    ):
        return TwoStage(model)
    raise UsageError(
        f'{type(model).__name__}: only RetinaNet, Faster R-CNN, Mask R-CNN and DETR can be '
        'exported as a whole; export the backbone: --backbone-only'
    )


class DenseDetector:
    """RetinaNet: ``boxes``, ``scores``, ``labels``, and ``batch_index`` of each detection."""

    batched = True

    def __init__(self, model: Any) -> None:
        self.model, self.head = model, model.bbox_head
        check_head(self.head, self.head.test_cfg)

    def __call__(self, image: Tensor, height: Any, width: Any) -> tuple[Outputs, Outputs]:
        """See :func:`detector_outputs`."""
        cfg = self.head.test_cfg
        logits, deltas = self.head(self.model.extract_feat(image))
        levels = [
            candidates(self.head, i, *level, cfg.get('nms_pre', -1))
            for i, level in enumerate(zip(logits, deltas, strict=True))
        ]
        parts = [torch.cat(part, dim=1) for part in zip(*levels, strict=True)]
        deltas_of, anchors, chosen, labels = parts
        boxes = decode(self.head.bbox_coder, anchors, deltas_of, height, width)
        batch_index, boxes, scores, labels = suppress(
            boxes, chosen.sigmoid(), labels, cfg, cfg.get('score_thr', 0.0), cfg.max_per_img
        )
        found = dict(boxes=boxes, scores=scores, labels=labels, batch_index=batch_index)
        return found, _raw(logits, deltas)


class TwoStage:
    """Faster and Mask R-CNN: ``boxes``, ``scores``, ``labels`` and, with a mask head, ``masks``.

    ``masks`` are probabilities (N, 28, 28) over the area of each box. The batch size is 1.
    """

    batched = False

    def __init__(self, model: Any) -> None:
        self.model, self.rpn, self.roi = model, model.rpn_head, model.roi_head
        check_head(self.rpn, self.rpn.test_cfg)
        check_nms(self.roi.test_cfg.nms)
        check_coder(self.roi.bbox_head.bbox_coder)
        for part in ('bbox_roi_extractor', 'mask_roi_extractor')[: 1 + self.roi.with_mask]:
            kind = type(getattr(self.roi, part)).__name__
            if kind != 'SingleRoIExtractor' or self.roi.with_shared_head:
                raise UsageError(
                    f'{kind} cannot be exported: use SingleRoIExtractor without a shared head'
                )

    def __call__(self, image: Tensor, height: Any, width: Any) -> tuple[Outputs, Outputs]:
        """See :func:`detector_outputs`."""
        maps = self.model.extract_feat(image)
        logits, deltas = self.rpn(maps)
        proposals = self._proposals(logits, deltas, height, width)
        boxes, scores, labels = self._classified(maps, proposals, height, width)
        found = dict(boxes=boxes, scores=scores, labels=labels)
        if self.roi.with_mask:
            pooled = pool_regions(self.roi.mask_roi_extractor, maps, boxes)
            masks = self.roi.mask_head(pooled)
            if not self.roi.mask_head.class_agnostic:
                size = (-1, 1, *masks.shape[2:])
                masks = masks.gather(1, labels[:, None, None, None].expand(size))
            found['masks'] = masks[:, 0].sigmoid()
        return found, _raw(logits, deltas)

    def _proposals(self, logits: Any, deltas: Any, height: Any, width: Any) -> Tensor:
        """(N, 4) boxes of the first stage; each level is suppressed separately."""
        cfg = self.rpn.test_cfg
        levels = []
        for i, level in enumerate(zip(logits, deltas, strict=True)):
            *kept, labels = candidates(self.rpn, i, *level, cfg.nms_pre)
            levels.append((*kept, labels + i))
        deltas_of, anchors, chosen, level_of = (
            torch.cat(part, dim=1) for part in zip(*levels, strict=True)
        )
        boxes = decode(self.rpn.bbox_coder, anchors, deltas_of, height, width)
        return suppress(boxes, chosen.sigmoid(), level_of, cfg, 0.0, cfg.max_per_img)[1]

    def _classified(self, maps: Any, proposals: Tensor, height: Any, width: Any) -> list[Tensor]:
        """Boxes, scores and labels of the second stage."""
        head, cfg = self.roi.bbox_head, self.roi.test_cfg
        logits, deltas = head(pool_regions(self.roi.bbox_roi_extractor, maps, proposals))
        classes = head.num_classes
        scores = logits.softmax(dim=1)[:, :classes]
        deltas = deltas.reshape(-1, 1 if head.reg_class_agnostic else classes, 4)
        deltas = deltas.expand(-1, classes, -1)
        boxes = proposals[:, None].expand(-1, classes, -1)
        boxes = decode(
            head.bbox_coder, boxes.flatten(0, 1)[None], deltas.flatten(0, 1)[None], height, width
        )
        labels = torch.zeros_like(scores, dtype=torch.long) + torch.arange(classes)
        options = dict(nms=cfg.nms)  # here mmdet keeps empty boxes
        found = suppress(
            boxes, scores.reshape(1, -1), labels.reshape(1, -1), options, cfg.score_thr,
            cfg.max_per_img,
        )  # fmt: skip
        return list(found[1:])


class DETRDetector:
    """DETR: as :class:`DenseDetector`, with the same number of detections for each image."""

    batched = True

    def __init__(self, model: Any) -> None:
        self.model, self.head = model, model.bbox_head
        if self.head.loss_cls.use_sigmoid:
            raise UsageError('DETR with sigmoid scores cannot be exported')

    def __call__(self, image: Tensor, height: Any, width: Any) -> tuple[Outputs, Outputs]:
        """See :func:`detector_outputs`."""
        from mmdet.structures import DetDataSample

        size = image.shape[2:]
        sample = DetDataSample(metainfo=dict(batch_input_shape=size, img_shape=size))
        queries = self.model.forward_transformer(self.model.extract_feat(image), [sample])
        logits, boxes = (maps[-1] for maps in self.head(**queries))
        raw = dict(raw_logits=logits, raw_boxes=boxes)
        scores, labels = logits.softmax(dim=2)[..., :-1].max(dim=2)
        number = logits.shape[1]
        scores, order = scores.topk(min(self.head.test_cfg.get('max_per_img', number), number))
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        limits = _limits(boxes, height, width)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        boxes = torch.cat([centre - half, centre + half], dim=2).clamp(0, 1) * limits
        batch_index = torch.arange(image.shape[0], device=image.device)[:, None].expand_as(order)
        found = dict(
            boxes=boxes.flatten(0, 1),
            scores=scores.flatten(),
            labels=labels.gather(1, order).flatten(),
            batch_index=batch_index.flatten(),
        )
        return found, raw


def check_head(head: Any, cfg: Any) -> None:
    """Checks that a dense head has the form that is exported.

    Raises:
        UsageError: with the reason, if not.
    """
    check_nms(cfg.nms)
    check_coder(head.bbox_coder)
    if not head.use_sigmoid_cls or getattr(head.loss_cls, 'custom_cls_channels', False):
        raise UsageError(f'{type(head).__name__}: only heads with sigmoid scores can be exported')


def check_nms(cfg: Any) -> None:
    """Checks that the suppression is the plain one, which ONNX has.

    Raises:
        UsageError: if not.
    """
    if cfg.get('type', 'nms') != 'nms' or set(cfg) - NMS_OPTIONS:
        raise UsageError(f'nms={dict(cfg)} cannot be exported: set type="nms" and iou_threshold')


def check_coder(coder: Any) -> None:
    """Checks how boxes are encoded.

    Raises:
        UsageError: if :func:`decode` does not know it.
    """
    if type(coder).__name__ != 'DeltaXYWHBBoxCoder' or coder.add_ctr_clamp:
        raise UsageError(f'{type(coder).__name__} cannot be exported: use DeltaXYWHBBoxCoder')


def candidates(
    head: Any, level: int, logits: Tensor, deltas: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best pairs of anchor and class of one level.

    The best ``number`` pairs belong to at most ``number`` anchors, which are those with the highest
    logits; so the other anchors are discarded first.

    Args:
        head: mmdet's anchor head.
        level: index of the level.
        logits: (B, A * classes, H, W).
        deltas: (B, A * 4, H, W).
        number: how many pairs are kept; all if it is not positive.

    Returns:
        Deltas (B, K, 4), anchors (B, K, 4), logits (B, K) and classes (B, K).
    """
    anchors = head.prior_generator.single_level_grid_priors(
        logits.shape[2:], level, dtype=logits.dtype, device=logits.device
    )
    classes = head.cls_out_channels
    logits = logits.permute(0, 2, 3, 1).reshape(logits.shape[0], -1, classes)
    deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)
    kept = logits.shape[1] if number <= 0 else minimum(number, logits.shape[1])
    best, position = logits.amax(dim=2).topk(kept, dim=1)
    label = torch.zeros_like(position)
    if classes > 1:
        logits = logits.gather(1, position[..., None].expand(-1, -1, classes))
        pairs = kept * classes if number <= 0 else minimum(number, kept * classes)
        best, pair = logits.flatten(1).topk(pairs, dim=1)
        label = pair % classes
        position = position.gather(1, torch.div(pair, classes, rounding_mode='floor'))
    return deltas.gather(1, position[..., None].expand(-1, -1, 4)), anchors[position], best, label


def decode(coder: Any, anchors: Tensor, deltas: Tensor, height: Any, width: Any) -> Tensor:
    """Boxes (B, N, 4) of anchors and deltas of the same shape, cut at the image's border."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    if not coder.clip_border:
        return boxes
    return torch.minimum(boxes.clamp(min=0), _limits(boxes, height, width))


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Any, score_thr: float, number: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Non-maximum suppression in each group, of which the best ``number`` per image are kept.

    Args:
        boxes: (B, N, 4).
        scores: (B, N).
        groups: (B, N), class or level.
        cfg: mmdet's ``nms`` and ``min_bbox_size``.
        score_thr: candidates need a higher score.
        number: most detections of an image.

    Returns:
        Batch index (K,), boxes (K, 4), scores (K,) and groups (K,): by image, highest score first.
    """
    valid = scores > score_thr
    if cfg.get('min_bbox_size', -1) >= 0:
        valid = valid & ((boxes[..., 2:] - boxes[..., :2]) > cfg['min_bbox_size']).all(dim=2)
    scores = scores.where(valid, torch.zeros_like(scores))
    apart = boxes
    if not cfg['nms'].get('class_agnostic', False):  # as in mmcv, groups are moved apart
        apart = boxes + (groups * (boxes.amax(dim=(1, 2), keepdim=True)[..., 0] + 1))[..., None]
    found = torch.ops.mmvitattn.nms(
        apart, scores[:, None], number, float(cfg['nms']['iou_threshold']), 0.0
    )
    image = found[:, 0]
    index = image * boxes.shape[1] + found[:, 2]
    return image, boxes.flatten(0, 1)[index], scores.flatten()[index], groups.flatten()[index]


def pool_regions(extractor: Any, maps: Any, boxes: Tensor) -> Tensor:
    """RoIAlign on the level that fits the size of each box.

    Args:
        extractor: mmdet's ``SingleRoIExtractor``.
        maps: of the neck, each (1, C, H, W).
        boxes: (N, 4).

    Returns:
        (N, C, h, w).
    """
    regions = F.pad(boxes, (1, 0))  # batch index 0
    level_of = extractor.map_roi_levels(regions, extractor.num_inputs)
    pooled, order = [], []
    for level, layer in enumerate(extractor.roi_layers):
        index = (level_of == level).nonzero()[:, 0]
        pooled.append(
            torchvision.ops.roi_align(
                maps[level], regions[index], layer.output_size, layer.spatial_scale,
                layer.sampling_ratio, layer.aligned,
            )
        )  # fmt: skip
        order.append(index)
    return torch.cat(pooled)[torch.cat(order).argsort()]


def _limits(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Largest coordinates, (4,)."""
    one = boxes.new_ones(())
    return torch.stack([one * width, one * height] * 2)


def _raw(logits: Any, deltas: Any) -> Outputs:
    pairs = (('logits', logits), ('deltas', deltas))
    return {f'raw_{name}_{i}': y for name, maps in pairs for i, y in enumerate(maps)}
