"""Contestants of ``benchmark.py backbone``: feature pyramids from images (B, 3, H, W).

Ours with an output norm a stage; timm's by ``features_only=True``. No classifier anywhere, no drop
path, random weights. For training LinGlo is in its training form, else in its deploy form.
"""

import torch
from torch import nn

from mmvitattn.layers import GlobalAttention
from mmvitattn.models import LinGlo, QnAViT, SAGViT

from .cases import Size, contestant
from .layers import ONE_BY_ONE
from .peers import DotProductAttention, Forced

LINGLO_B0, LINGLO_B1, LINGLO_B2 = 'LinGlo-b0', 'LinGlo-b1', 'LinGlo-b2'
QNA_TINY, QNA_TINY_7, QNA_SMALL = 'QnA-ViT-tiny', 'QnA-ViT-tiny 7x7', 'QnA-ViT-small'
SAG_SMALL, SAG_TINY = 'SAG-small', 'SAG-tiny'
SAG_SMALL_ONE, SAG_TINY_ONE = 'SAG-small, one by one', 'SAG-tiny, one by one'
SAG_SMALL_PUBLISHED = 'SAG-small, one by one, plain softmax'
SAG_SMALL_POOLED = 'SAG-small, kv_pools (4, 2, 1)'
SAG_SMALL_POOLED_MORE = 'SAG-small, kv_pools (8, 4, 2)'
SWIN, SWIN_SDPA, PVT = 'Swin-T', 'Swin-T, SDPA', 'PVTv2-B2'
CONVNEXT, CONVNEXT_LAST = 'ConvNeXt-T', 'ConvNeXt-T, channels_last'
RESNET, RESNET_LAST = 'ResNet-50', 'ResNet-50, channels_last'
B0_DOT_PRODUCT, B0_SDPA = 'LinGlo-b0, plain softmax', "LinGlo-b0, attention='dot_product'"


@contestant(LINGLO_B0)
def linglo_b0(size: Size) -> nn.Module:
    """Ours: LinGlo-b0."""
    return _linglo('b0', size)


@contestant(LINGLO_B1)
def linglo_b1(size: Size) -> nn.Module:
    """Ours: LinGlo-b1."""
    return _linglo('b1', size)


@contestant(LINGLO_B2)
def linglo_b2(size: Size) -> nn.Module:
    """Ours: LinGlo-b2."""
    return _linglo('b2', size)


def _linglo(arch: str, size: Size, **options: str) -> nn.Module:
    return LinGlo(arch, drop_path_rate=0.0, deploy=not size.training, **options)


@contestant(QNA_TINY)
def qna_tiny(size: Size) -> nn.Module:
    """Ours: QnA-ViT-tiny."""
    return QnAViT('tiny', drop_path_rate=0.0)


@contestant(QNA_TINY_7)
def qna_tiny_7x7(size: Size) -> nn.Module:
    """Ours: QnA-ViT-tiny with windows of 7 x 7."""
    return QnAViT('tiny_7x7', drop_path_rate=0.0)


@contestant(QNA_SMALL)
def qna_small(size: Size) -> nn.Module:
    """Ours: QnA-ViT-small."""
    return QnAViT('small', drop_path_rate=0.0)


@contestant(SAG_SMALL)
def sag_small(size: Size) -> nn.Module:
    """Ours: SAG-small."""
    return SAGViT('small', drop_path_rate=0.0)


@contestant(SAG_SMALL_ONE, same_as=SAG_SMALL)
def sag_small_one_by_one(size: Size) -> nn.Module:
    """SAG-small with embedding and local attention as published."""
    return Forced(sag_small(size), ONE_BY_ONE)


@contestant(SAG_SMALL_PUBLISHED, same_as=SAG_SMALL)
def sag_small_published(size: Size) -> nn.Module:
    """The same with the release's global attention, too, whose N x N weights exist."""
    return _with_plain_softmax(sag_small_one_by_one(size))


@contestant(SAG_SMALL_POOLED)
def sag_small_pooled(size: Size) -> nn.Module:
    """SAG-small with averaged keys and values, as in our detectors; no part of the paper."""
    return SAGViT('small', drop_path_rate=0.0, kv_pools=(4, 2, 1))


@contestant(SAG_SMALL_POOLED_MORE)
def sag_small_pooled_more(size: Size) -> nn.Module:
    """The same with twice the pools."""
    return SAGViT('small', drop_path_rate=0.0, kv_pools=(8, 4, 2))


@contestant(SAG_TINY)
def sag_tiny(size: Size) -> nn.Module:
    """Ours: SAG-tiny."""
    return SAGViT('tiny', drop_path_rate=0.0)


@contestant(SAG_TINY_ONE, same_as=SAG_TINY)
def sag_tiny_one_by_one(size: Size) -> nn.Module:
    """SAG-tiny with embedding and local attention as published."""
    return Forced(sag_tiny(size), ONE_BY_ONE)


@contestant(SWIN)
def swin(size: Size) -> nn.Module:
    """Swin-T (timm), attention as timm computes it by default."""
    options = dict(img_size=(size.height, size.width), drop_path_rate=0.0)
    return _timm('swin_tiny_patch4_window7_224', **options)


@contestant(SWIN_SDPA, same_as=SWIN)
def swin_sdpa(size: Size) -> nn.Module:
    """Swin-T (timm), attention by PyTorch's SDPA."""
    model = swin(size)
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = True
    return model


@contestant(PVT)
def pvt(size: Size) -> nn.Module:
    """PVTv2-B2 (timm)."""
    return _timm('pvt_v2_b2')


@contestant(CONVNEXT)
def convnext(size: Size) -> nn.Module:
    """ConvNeXt-T (timm)."""
    return _timm('convnext_tiny')


@contestant(CONVNEXT_LAST, same_as=CONVNEXT)
def convnext_last(size: Size) -> nn.Module:
    """ConvNeXt-T (timm) in the channels_last format."""
    return ChannelsLast(convnext(size))


@contestant(RESNET)
def resnet(size: Size) -> nn.Module:
    """ResNet-50 (timm)."""
    return _timm('resnet50', out_indices=(1, 2, 3, 4))


@contestant(RESNET_LAST, same_as=RESNET)
def resnet_last(size: Size) -> nn.Module:
    """ResNet-50 (timm) in the channels_last format."""
    return ChannelsLast(resnet(size))


def _timm(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, features_only=True, **options)


class ChannelsLast(nn.Module):
    """A model with weights and images in PyTorch's channels_last format.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Runs the model."""
        return self.model(images.contiguous(memory_format=torch.channels_last))


@contestant(B0_SDPA)
def linglo_b0_sdpa(size: Size) -> nn.Module:
    """LinGlo-b0 with attention='dot_product', which is PyTorch's scaled_dot_product_attention."""
    return _linglo('b0', size, attention='dot_product')


@contestant(B0_DOT_PRODUCT, same_as=B0_SDPA)
def linglo_b0_dot_product(size: Size) -> nn.Module:
    """The same with a plain softmax, as in the LinGlo paper's figure 4."""
    return _with_plain_softmax(linglo_b0_sdpa(size))


def _with_plain_softmax(model: nn.Module) -> nn.Module:
    """The model with its SDPA layers replaced, in place."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is GlobalAttention:
                plain = DotProductAttention(layer.channels, layer.num_heads)
                plain.load_state_dict(layer.state_dict())
                setattr(module, name, plain)
    return model
