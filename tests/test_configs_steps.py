"""Every config builds, and gives a loss, gradients and a prediction on synthetic pictures."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmvitattn.checkpoint.pretrained import drop_pretrained

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# The smallest config of each task and family; the others take minutes together.
REPRESENTATIVES = {
    'linglo_b0_8xb128_in1k',
    'qna_vit_tiny_8xb128_in1k',
    'sag_tiny_8xb92_in1k',
    'sag_tiny_8xb92_cifar10',
    'retinanet_linglo_b0_fpn_1x_coco',
    'retinanet_qna_vit_tiny_fpn_1x_coco',
    'retinanet_sag_tiny_fpn_1x_coco',
    'mask-rcnn_qna_vit_tiny_fpn_1x_coco',
    'detr_qna_vit_tiny_150e_coco',
    'detr_r50_150e_coco',
    'semfpn_linglo_b0_40k_ade20k',
    'semfpn_qna_vit_tiny_40k_ade20k',
    'semfpn_sag_tiny_40k_ade20k',
    'upernet_linglo_b2_160k_ade20k',
    'demo/linglo_b0_shapes',
    'demo/retinanet_linglo_b0_fpn_shapes',
    'demo/semfpn_linglo_b0_shapes',
}


def each_config():
    patterns = ('*.py', 'demo/*.py', 'ablations/*.py')
    for path in sorted(path for pattern in patterns for path in CONFIGS.glob(pattern)):
        name = str(path.relative_to(CONFIGS).with_suffix(''))
        quick = name in REPRESENTATIVES or name.startswith('ablations/linglo_')
        marks = () if quick else pytest.mark.slow
        yield pytest.param(path, id=name, marks=marks)


def load(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    drop_pretrained(cfg)
    if cfg.model.type == 'DINO':
        cfg.model.num_queries = 50  # the small pictures have fewer positions than 900
    elif cfg.model.type == 'Mask2Former':
        cfg.model.data_preprocessor.batch_augments = None  # which pads to 1024 x 1024
    return cfg


def build(cfg):
    settings = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        settings.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(settings)
    model.init_weights()
    return model


def detection_sample(cfg, meta):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 60.0]])
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3]))
    if has_masks(cfg):
        masks = np.zeros((2, *meta['img_shape']), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        instances.masks = BitmapMasks(masks, *meta['img_shape'])
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = instances
    return sample


def has_masks(cfg):
    return 'panoptic_head' in cfg.model or 'mask_head' in cfg.model.get('roi_head', {})


def segmentation_sample(cfg, meta):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    classes = cfg.model.decode_head.num_classes
    mask = np.random.default_rng(0).integers(0, classes, (1, *meta['img_shape']))
    sample = SegDataSample(metainfo=meta)
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(mask))
    return sample


def classification_sample(cfg, meta):
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=meta).set_gt_label(1)


def batch_for(cfg, model):
    """Two small pictures with ground truth, as the toolbox's pipeline packs them."""
    task = cfg.default_scope
    size = (64, 96) if task == 'mmdet' else (64, 64)
    if str(cfg.model.backbone.get('arch')).startswith('cifar'):
        size = (32, 32)  # a token a pixel
    if task == 'mmseg':
        model.data_preprocessor.size = size
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
    samples = dict(
        mmdet=detection_sample, mmseg=segmentation_sample, mmpretrain=classification_sample
    )
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    return dict(
        inputs=images if task == 'mmpretrain' else list(images),
        data_samples=[samples[task](cfg, meta) for _ in range(2)],
    )


@pytest.mark.parametrize('path', each_config())
def test_training_step_and_prediction(path):
    cfg = load(path)
    torch.manual_seed(0)
    model = build(cfg).train()
    data = batch_for(cfg, model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model(**model.data_preprocessor(copy.deepcopy(data), training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    optimizer.backward(total)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert cfg.model.backbone.type == 'ResNet'  # whose first stages mmdet freezes
            continue
        # distributed training refuses parameters that no loss reaches
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith('backbone.') for name in changed)
    assert any(not name.startswith('backbone.') for name in changed)
    check_prediction(cfg, model.eval(), data)


def check_prediction(cfg, model, data):
    with torch.no_grad():
        batch = model.data_preprocessor(copy.deepcopy(data), training=False)
        predictions = model(**batch, mode='predict')
    assert len(predictions) == 2
    for sample in predictions:
        if cfg.default_scope == 'mmdet':
            found = sample.pred_instances
            assert found.bboxes.shape == (len(found.scores), 4)
            if has_masks(cfg):
                assert found.masks.shape == (len(found.scores), 64, 96)
        elif cfg.default_scope == 'mmseg':
            assert sample.pred_sem_seg.data.shape == (1, 64, 64)
        else:
            assert sample.pred_score.sum().item() == pytest.approx(1, abs=1e-4)


def test_representatives_exist():
    names = {str(path.relative_to(CONFIGS).with_suffix('')) for path in CONFIGS.rglob('*.py')}
    assert names >= REPRESENTATIVES


def test_predicted_boxes_have_masks():
    """What random weights leave out: a Mask R-CNN without compiled ops that finds something."""
    cfg = load(CONFIGS / 'mask-rcnn_qna_vit_tiny_fpn_1x_coco.py')
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    torch.manual_seed(0)
    model = build(cfg).eval()
    data = batch_for(cfg, model)
    with torch.no_grad():
        first, _ = model(**model.data_preprocessor(data, training=False), mode='predict')
    found = first.pred_instances
    assert len(found) == 5 and found.masks.dtype == torch.bool and found.masks.any()


def test_new_layers_start_from_xavier():
    cfg = load(CONFIGS / 'retinanet_linglo_b0_fpn_1x_coco.py')
    head = build(cfg).bbox_head
    weight = head.cls_convs[0].conv.weight
    bound = (6 / (2 * 256 * 9)) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert head.retina_cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.retina_cls.bias.sigmoid().mean().item() == pytest.approx(0.01, rel=1e-3)
    cfg = load(CONFIGS / 'semfpn_linglo_b0_40k_ade20k.py')
    weight = build(cfg).decode_head.scale_heads[0][0].conv.weight
    bound = (6 / (9 * (256 + 128))) ** 0.5
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
