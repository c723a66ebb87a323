"""The backbones and detectors that are compared, and the sizes at which they are compared.

Backbones take images (B, 3, H, W) to feature pyramids, ours with an output norm per stage, timm's
by ``features_only=True``. All have random weights, no classifier and no drop path. LinGlo is in its
training form for training, otherwise in its deploy form.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmvitattn import hub
from mmvitattn.models import LinGlo, QnAViT, SAGViT

from . import BACKWARD, FORWARD, MODES, Builder, Case, Contestant, Group, Size, modules
from .layers import LAYERS, ONE_BY_ONE, forced


def _linglo(arch: str, **options: Any) -> Builder:
    return lambda s: LinGlo(arch, drop_path_rate=0.0, deploy=not s.training, **options)


def _vit(model: Callable[..., nn.Module], arch: str, **options: Any) -> Builder:
    return lambda _: model(arch, drop_path_rate=0.0, **options)


def _plain(build: Builder) -> Builder:
    return lambda s: modules.with_plain_softmax(build(s))


def _timm(name: str, **options: Any) -> Builder:
    def build(_: Size) -> nn.Module:
        import timm

        return timm.create_model(name, features_only=True, **options)

    return build


def _swin(s: Size) -> nn.Module:
    size = (s.height, s.width)
    return _timm('swin_tiny_patch4_window7_224', img_size=size, drop_path_rate=0.0)(s)


def _swin_sdpa(s: Size) -> nn.Module:
    model = _swin(s)
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = True  # type: ignore[assignment]
    return model


def _channels_last(build: Builder) -> Builder:
    return lambda s: modules.ChannelsLast(build(s))


def _exported(build: Builder) -> Builder:
    return lambda s: modules.Exported(build(s))


def _compiled(build: Builder) -> Builder:
    return lambda s: torch.compile(build(s))  # type: ignore[return-value]


_b0_sdpa = _linglo('b0', attention='dot_product')
_small, _tiny = _vit(SAGViT, 'small'), _vit(SAGViT, 'tiny')
_small_one, _tiny_one = (forced(build, ONE_BY_ONE) for build in (_small, _tiny))
_convnext, _resnet = _timm('convnext_tiny'), _timm('resnet50', out_indices=(1, 2, 3, 4))

BACKBONES = {
    'LinGlo-b0': Contestant('Ours', _linglo('b0')),
    'LinGlo-b1': Contestant('Ours', _linglo('b1')),
    'LinGlo-b2': Contestant('Ours', _linglo('b2')),
    'QnA-ViT-tiny': Contestant('Ours', _vit(QnAViT, 'tiny')),
    'QnA-ViT-tiny 7x7': Contestant('Ours, windows of 7 x 7', _vit(QnAViT, 'tiny_7x7')),
    'QnA-ViT-small': Contestant('Ours', _vit(QnAViT, 'small')),
    'SAG-small': Contestant('Ours', _small),
    'SAG-small, one by one': Contestant(
        'embedding and local attention as published', _small_one, 'SAG-small'
    ),
    'SAG-small, one by one, plain softmax': Contestant(
        'global attention as published as well, N x N weights in memory',
        _plain(_small_one),
        'SAG-small',
    ),
    'SAG-small, kv_pools (4, 2, 1)': Contestant(
        'averaged keys and values, as in our detectors; not in the paper',
        _vit(SAGViT, 'small', kv_pools=(4, 2, 1)),
    ),
    'SAG-small, kv_pools (8, 4, 2)': Contestant(
        'pools of twice the side', _vit(SAGViT, 'small', kv_pools=(8, 4, 2))
    ),
    'SAG-tiny': Contestant('Ours', _tiny),
    'SAG-tiny, one by one': Contestant(
        'embedding and local attention as published', _tiny_one, 'SAG-tiny'
    ),
    'Swin-T': Contestant('timm, attention as computed by default', _swin),
    'Swin-T, SDPA': Contestant("timm, attention by PyTorch's SDPA", _swin_sdpa, 'Swin-T'),
    'PVTv2-B2': Contestant('timm', _timm('pvt_v2_b2')),
    'ConvNeXt-T': Contestant('timm', _convnext),
    'ConvNeXt-T, channels_last': Contestant('timm', _channels_last(_convnext), 'ConvNeXt-T'),
    'ResNet-50': Contestant('timm', _resnet),
    'ResNet-50, channels_last': Contestant('timm', _channels_last(_resnet), 'ResNet-50'),
    'SAG-CIFAR-tiny': Contestant('Ours', _vit(SAGViT, 'cifar_tiny', out_indices=-1)),
    'SAG-CIFAR-small': Contestant('Ours', _vit(SAGViT, 'cifar_small', out_indices=-1)),
    'SAG-CIFAR-base': Contestant('Ours', _vit(SAGViT, 'cifar_base', out_indices=-1)),
    "LinGlo-b0, attention='dot_product'": Contestant("by PyTorch's SDPA", _b0_sdpa),
    'LinGlo-b0, plain softmax': Contestant(
        "N x N weights in memory, as in the LinGlo paper's figure 4",
        _plain(_b0_sdpa),
        "LinGlo-b0, attention='dot_product'",
    ),
}

COMPILED_NAMES = ('QnA-ViT-tiny', 'LinGlo-b0', 'SAG-tiny', 'Swin-T')
BACKBONES |= {
    f'{name}, compiled': Contestant('torch.compile', _compiled(BACKBONES[name].build), name)
    for name in COMPILED_NAMES
}
EXPORTED_NAMES = ('LinGlo-b2', 'QnA-ViT-tiny', 'SAG-small')
BACKBONES |= {
    f'{name}, exported': Contestant(
        'ONNX, onnxruntime; the peak includes the export', _exported(BACKBONES[name].build), name
    )
    for name in EXPORTED_NAMES
}
LINEAR_NAMES = ('LinGlo-b0', *EXPORTED_NAMES)
BACKBONES |= {
    f"{name}, PyTorch's linear layers": Contestant(
        'linear layers by MKL', forced(BACKBONES[name].build, 'linear=reference'), name
    )
    for name in LINEAR_NAMES
}

STRIDE = 32  # images are padded to multiples of it, as detectors do
# Boxes x1, y1, x2, y2 as shares of the image, small to large, with their labels.
BOXES = (
    ((0.05, 0.10, 0.09, 0.16), 0),
    ((0.30, 0.20, 0.42, 0.45), 17),
    ((0.55, 0.15, 0.95, 0.85), 56),
    ((0.10, 0.60, 0.35, 0.95), 2),
    ((0.70, 0.02, 0.76, 0.10), 79),
)


class DetectorStep(nn.Module):
    """RetinaNet on images of a ``size``, padded: losses in training, boxes in evaluation.

    The neck gives maps of strides 8 to 128 for each backbone; SAG's map of stride 32 is one of the
    neck's additional levels.
    """

    def __init__(self, backbone: dict, in_channels: tuple[int, ...], size: Size) -> None:
        super().__init__()
        from mmdet.registry import MODELS
        from mmengine.config import Config
        from mmengine.registry import init_default_scope

        init_default_scope('mmdet')
        base = hub.resources() / 'configs/_base_/models/retinanet_fpn.py'
        settings = copy.deepcopy(Config.fromfile(base).model)
        settings.backbone, settings.neck.in_channels = backbone, list(in_channels)
        self.detector = MODELS.build(settings)
        self.detector.init_weights()
        if not size.training and hasattr(self.detector.backbone, 'switch_to_deploy'):
            self.detector.backbone.switch_to_deploy()
        self.size = size

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Sum of the losses, or all boxes, scores and labels."""
        samples = [self._sample(images) for _ in images]
        if self.training:
            return self.detector.parse_losses(self.detector.loss(images, samples))[0]
        results = self.detector.predict(images, samples, rescale=False)
        found = [result.pred_instances for result in results]
        return [t for r in found for t in (r.bboxes, r.scores, r.labels)]

    def _sample(self, images: Tensor) -> object:
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        height, width = self.size.height, self.size.width
        scale = images.new_tensor([width, height, width, height], dtype=torch.float32)
        boxes = images.new_tensor([box for box, _ in BOXES], dtype=torch.float32) * scale
        labels = torch.tensor([label for _, label in BOXES], device=images.device)
        padded = tuple(images.shape[2:])
        meta = dict(img_shape=(height, width), pad_shape=padded, batch_input_shape=padded)
        sample = DetDataSample(metainfo=meta | dict(ori_shape=(height, width), scale_factor=(1, 1)))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        return sample


def _detector(in_channels: tuple[int, ...], **backbone: object) -> Builder:
    backbone.setdefault('out_indices', (1, 2, 3))
    return lambda s: DetectorStep(backbone, in_channels, s)


_linglo_b2 = dict(type='mmvitattn.LinGlo', arch='b2', drop_path_rate=0.0)
_qna_tiny = dict(type='mmvitattn.QnAViT', arch='tiny', drop_path_rate=0.0)
_sag_small = dict(type='mmvitattn.SAGViT', arch='small', drop_path_rate=0.0, kv_pools=(4, 2, 1))
_swin_t = dict(
    type='SwinTransformer',
    **dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7),
    **dict(drop_path_rate=0.0, convert_weights=False),
)
_pvt_b2 = dict(
    type='PyramidVisionTransformerV2', embed_dims=64, num_layers=(3, 4, 6, 3), drop_path_rate=0.0
)
_resnet_50 = dict(type='ResNet', depth=50, num_stages=4, frozen_stages=-1)

DETECTORS = {
    'RetinaNet, LinGlo-b2': Contestant(
        'Ours; in its deploy form for inference', _detector((128, 320, 512), **_linglo_b2)
    ),
    'RetinaNet, QnA-ViT-tiny': Contestant('Ours', _detector((128, 256, 512), **_qna_tiny)),
    'RetinaNet, SAG-small': Contestant(
        'Ours; averaged keys and values, as in its detector configs',
        _detector((192, 384), out_indices=(1, 2), **_sag_small),
    ),
    'RetinaNet, Swin-T': Contestant('mmdet', _detector((192, 384, 768), **_swin_t)),
    'RetinaNet, PVTv2-B2': Contestant('mmdet', _detector((128, 320, 512), **_pvt_b2)),
    'RetinaNet, ResNet-50': Contestant(
        'mmdet, nothing frozen', _detector((512, 1024, 2048), **_resnet_50)
    ),
}
CONTESTANTS: dict[str, Contestant] = {**LAYERS, **BACKBONES, **DETECTORS}

LINGLOS = ('LinGlo-b0', 'LinGlo-b1', 'LinGlo-b2')
QNAS = ('QnA-ViT-tiny', 'QnA-ViT-tiny 7x7', 'QnA-ViT-small')
SAG_FORMS = ('SAG-small', 'SAG-small, one by one', 'SAG-small, one by one, plain softmax')
SAG_TINY_FORMS = ('SAG-tiny', 'SAG-tiny, one by one')
SAG_POOLED = ('SAG-small, kv_pools (4, 2, 1)', 'SAG-small, kv_pools (8, 4, 2)')
SWINS, RESNETS = ('Swin-T', 'Swin-T, SDPA'), ('ResNet-50', 'ResNet-50, channels_last')
CONVNEXTS = ('ConvNeXt-T', 'ConvNeXt-T, channels_last')
FIGURE_4 = ('LinGlo-b0', "LinGlo-b0, attention='dot_product'", 'LinGlo-b0, plain softmax')
# Images per second in the SAG paper's tables, on a GPU that it does not name.
CIFAR_RATES = {'SAG-CIFAR-tiny': 1700.2, 'SAG-CIFAR-small': 807.6, 'SAG-CIFAR-base': 276.8}
# The usually faster form of each.
TRAINED = (
    *(*LINGLOS, *QNAS, 'SAG-small', 'SAG-tiny', 'Swin-T', 'PVTv2-B2'),
    *('ConvNeXt-T, channels_last', 'ResNet-50, channels_last'),
)
# One form of each; SAG, whose global attention is quadratic, as in detectors.
DENSE = (*LINGLOS, *QNAS, SAG_POOLED[0], 'Swin-T', 'PVTv2-B2', 'ConvNeXt-T', 'ResNet-50')

SIDE, SIDES = 224, (224, 448, 896, 1344)
IMAGE, PADDED_IMAGE = (800, 1333), (800, 1344)  # of detectors
LARGEST_TRAINED = 448  # side up to which slopes are measured for training as well
# Sides up to which LinGlo-b0 runs on a CPU: at 896, SDPA takes seconds; at 448, N x N weights take
# 0.6 GB.
LARGEST = {FIGURE_4[1]: 896, FIGURE_4[2]: 448}
BACKBONE_TEXT = (
    'Ours with an output norm per stage, timm models by features_only; no classifier, no drop '
    'path. LinGlo in its deploy form, for forward+backward in its training form.'
)
DETECTOR_TEXT = (
    'RetinaNet with FPN on strides 8 to 128; forward is inference to boxes, forward+backward the '
    'losses of 5 boxes per image and all gradients. Images are padded to multiples of 32.'
)


def backbone_groups(
    quick: bool,
    batch: int,
    on_gpu: bool = False,
    figure_4_batch: int | None = None,
    figure_4_sides: Sequence[int] | None = None,
) -> list[Group]:
    """What ``benchmark.py backbone`` measures; images above 224 x 224 one at a time.

    On a GPU, the groups that repeat a figure or a table of a paper have its batch: 16 images in
    LinGlo's figure 4, 128 for SAG's CIFAR models.
    """
    figure_4_batch = figure_4_batch or (16 if on_gpu and not quick else 1)
    if quick:
        few = ('LinGlo-b0', *SAG_TINY_FORMS, *SWINS, *RESNETS)
        return [
            classification_group(1, 64, few, few),
            _resolution_group((64, 128), ('LinGlo-b0', 'Swin-T', 'PVTv2-B2', 'ConvNeXt-T')),
            _figure_4_group(figure_4_batch, figure_4_sides or (64, 96), on_gpu),
            _cifar_group(1, 8),
            *([] if on_gpu else [_linear_group(1, 64, LINEAR_NAMES[:1])]),
        ]
    peers = (*SWINS, 'PVTv2-B2', *CONVNEXTS, *RESNETS)
    names = (*LINGLOS, *QNAS, *SAG_FORMS, *SAG_TINY_FORMS, *peers)
    return [
        classification_group(batch, SIDE, names, TRAINED),
        _resolution_group(SIDES, DENSE, PADDED_IMAGE),
        _figure_4_group(figure_4_batch, figure_4_sides or SIDES, on_gpu),
        _cifar_group(128 if on_gpu else batch, 32),
        backbone_group(
            'pooling',
            'SAG for detection',
            [Case(Size(1, *PADDED_IMAGE), ('SAG-small', *SAG_POOLED), (FORWARD,))],
            baseline='SAG-small',
            rounds=1,
            text='Global attention over all keys and values, or averages of them in each stage.',
        ),
        *([] if on_gpu else [_linear_group(batch, SIDE, LINEAR_NAMES)]),
    ]


def compiled_group(quick: bool, batch: int) -> Group:
    """What ``benchmark.py compiled`` measures: torch.compile against eager mode."""
    side, names = (64, ('LinGlo-b0',)) if quick else (SIDE, COMPILED_NAMES)
    return _forms_group('compiled', 'Compiled backbones', batch, side, names, 'compiled')


def exported_group(quick: bool, batch: int) -> Group:
    """What ``benchmark.py exported`` measures: ONNX files in onnxruntime against PyTorch."""
    side, names = (64, ('SAG-small',)) if quick else (SIDE, EXPORTED_NAMES)
    modes = (FORWARD,)
    return _forms_group('exported', 'Exported backbones', batch, side, names, 'exported', modes)


def _linear_group(batch: int, side: int, names: tuple[str, ...]) -> Group:
    form = "PyTorch's linear layers"
    return _forms_group('linear', f'Backbones with {form}', batch, side, names, form)


def _forms_group(
    key: str,
    title: str,
    batch: int,
    side: int,
    names: tuple[str, ...],
    form: str,
    modes: tuple[str, ...] = MODES,
) -> Group:
    """Each of ``names``, and after it another form of the same backbone."""
    both = tuple(contestant for name in names for contestant in (name, f'{name}, {form}'))
    title = f'{title} at {side} x {side}, batch {batch}'
    return backbone_group(key, title, [Case(Size(batch, side, side), both, modes)])


def backbone_group(
    key: str,
    title: str,
    cases: list[Case],
    baseline: str = 'Swin-T',
    axis: str = '',
    rounds: int = 3,
    text: str = BACKBONE_TEXT,
) -> Group:
    """A group of backbones; arguments as for :class:`Group`."""
    return Group(key, title, text, baseline, cases, axis, True, True, rounds)


def classification_group(
    batch: int, side: int, names: tuple[str, ...], trained: tuple[str, ...] = ()
) -> Group:
    """Backbones on a batch of square images; those in ``trained`` run the backward as well."""
    size, title = Size(batch, side, side), f'Backbones at {side} x {side}, batch {batch}'
    cases = [Case(size, names, (FORWARD,))]
    cases += [Case(size, trained, (BACKWARD,))] if trained else []
    return backbone_group('classification', title, cases, rounds=4)


def _resolution_group(
    sides: tuple[int, ...], names: tuple[str, ...], *others: tuple[int, int]
) -> Group:
    """Backbones over sides of square images, and at other sizes (H, W), one image at a time."""
    cases = [
        Case(Size(1, side, side), names, MODES if side <= LARGEST_TRAINED else (FORWARD,))
        for side in sides
    ]
    cases += [Case(Size(1, *other), names, (FORWARD,)) for other in others]
    return backbone_group('resolution', 'Backbones over image sizes', cases, axis='pixels')


def _figure_4_group(batch: int, sides: Sequence[int], on_gpu: bool) -> Group:
    """Dot-product attention up to the sides in ``LARGEST``, on a GPU as its memory allows."""
    cases = []
    for side in sides:
        names = tuple(name for name in FIGURE_4 if on_gpu or side <= LARGEST.get(name, side))
        cases.append(Case(Size(batch, side, side), names, (FORWARD,)))
    text = 'The LinGlo paper, figure 4: dot-product attention in the architecture of LinGlo-b0.'
    title = 'Key-only against dot-product attention, LinGlo-b0'
    return backbone_group('figure_4', title, cases, FIGURE_4[0], 'pixels', text=text)


def _cifar_group(batch: int, side: int) -> Group:
    """SAG's CIFAR models; the paper states their throughput for batches of 128."""
    cases = [Case(Size(batch, side, side), tuple(CIFAR_RATES), (FORWARD,))]
    title = f"SAG's CIFAR models at {side} x {side}, batch {batch}"
    text = 'Classifiers without the linear layer; the rates of the paper are for one GPU.'
    group = backbone_group('cifar', title, cases, 'SAG-CIFAR-tiny', rounds=1, text=text)
    return replace(group, paper_rates=CIFAR_RATES)


def detector_groups(quick: bool, batch: int) -> list[Group]:
    """What ``benchmark.py detector`` measures."""
    if quick:
        names = ('RetinaNet, LinGlo-b2', 'RetinaNet, SAG-small', 'RetinaNet, Swin-T')
        return [detector_group((96, 125), batch, names)]
    return [detector_group(IMAGE, batch, tuple(DETECTORS))]


def detector_group(
    image: tuple[int, int], batch: int, names: tuple[str, ...], modes: tuple[str, ...] = MODES
) -> Group:
    """Detectors on images of a size (H, W)."""
    padded = (batch, 3, *(n + -n % STRIDE for n in image))
    cases = [Case(Size(batch, *image), names, modes, shapes=(padded,))]
    title = f'RetinaNet, {image[0]} x {image[1]}, batch {batch}'
    return backbone_group('detector', title, cases, 'RetinaNet, Swin-T', text=DETECTOR_TEXT)
