"""The backbones as models of timm: importing this module registers all of them.

``timm.create_model('linglo_b0', features_only=True)`` then returns the feature maps of
:func:`mmvitattn.build_backbone`, and without ``features_only`` a classifier. Libraries that build
on timm find the names, too. ``linglo_b0.tiny_imagenet`` has pretrained weights, which this package
contains; the other names have none.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

try:
    from timm.layers import ClassifierHead
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'mmvitattn.timm needs {error.name}: pip install "mmvitattn[timm]"', name=error.name
    ) from None

from .checkpoint.published import published_path
from .layers.init import trunc_normal_
from .models.base import FeatureInfo
from .zoo import build_backbone, families

FIRST_CONVS: dict[str, str | tuple[str, ...]] = {
    'linglo': 'backbone.stem.0.conv',
    'qna_vit': 'backbone.stem.conv',
    'sag': (),  # one convolution per shift: not one that timm can adapt to other channels
}
CIFAR = dict(
    input_size=(3, 32, 32),
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
    crop_pct=1.0,
)


class BackboneClassifier(nn.Module):
    """A backbone, the mean of its last map, and a linear layer; the interface is timm's.

    The parameters have the names of the classifiers that the configs train, ``backbone.*`` and
    ``head.fc.*``, so ``timm.create_model(NAME, checkpoint_path=FILE)`` reads their weights.

    Args:
        name: name of the backbone.
        out_indices: stages with an output norm; the last one is classified.
        num_classes: outputs; 0 for no linear layer.
        in_chans: channels of the image.
        global_pool: timm's name of the pooling; empty for none.
        drop_rate: dropout before the linear layer.
        options: options of the backbone.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.backbone = build_backbone(
            name, out_indices=out_indices, in_channels=in_chans, **options
        )
        self.feature_info = FeatureInfo(
            dict(info, module=f'backbone.{info["module"]}') for info in self.backbone.stage_info
        )
        last = max(out_indices)
        self.num_features = self.head_hidden_size = self.feature_info.channels()[last]
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )
        self._init_classifier()

    def _init_classifier(self) -> None:
        if self.num_classes > 0:
            trunc_normal_(self.head.fc)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (B, num_features, H', W'), after its output norm."""
        last = len(self.backbone.stages) - 1
        return self._output(self.backbone.forward_stages(x, [last])[last], last, norm=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a map, or the pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def _output(self, x: Tensor, stage: int, norm: bool) -> Tensor:
        norms = self.backbone.norms
        y = norms[str(stage)](x) if norm and str(stage) in norms else x
        return y.permute(0, 3, 1, 2)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of several stages.

        Args:
            x: images.
            indices: stages; a number n stands for the last n, ``None`` for all.
            norm: apply the output norms of the stages that have one.
            stop_early: do not run the stages after the last one of ``indices``.
            output_fmt: layout of the maps, 'NCHW' or 'NHWC'.
            intermediates_only: return only the list.

        Returns:
            The last map, as of :meth:`forward_features`, and the list of maps.

        Raises:
            ValueError: for another ``output_fmt``.
        """
        if output_fmt not in ('NCHW', 'NHWC'):
            raise ValueError(f'output_fmt={output_fmt!r} must be NCHW or NHWC')
        stages, last = feature_take_indices(len(self.feature_info), indices)
        if not (stop_early or intermediates_only):
            last = len(self.backbone.stages) - 1
        maps = self.backbone.forward_stages(x, {*stages, last})
        outputs = [self._output(maps[i], i, norm) for i in stages]
        if output_fmt == 'NHWC':
            outputs = [y.permute(0, 2, 3, 1) for y in outputs]
        return outputs if intermediates_only else (self._output(maps[last], last, True), outputs)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes what is not needed for the maps of some stages.

        Args:
            indices: as for :meth:`forward_intermediates`.
            prune_norm: remove all output norms.
            prune_head: remove pooling and classifier.

        Returns:
            The stages.
        """
        stages, last = feature_take_indices(len(self.feature_info), indices)
        backbone = self.backbone
        backbone.stages, backbone.downsamples = (
            backbone.stages[: last + 1],
            backbone.downsamples[:last],
        )
        if prune_norm:
            backbone.norms.clear()
        if prune_head:
            self.reset_classifier(0, '')
        return stages

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer, and the pooling if one is given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self._init_classifier()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass, to save memory."""
        self.backbone.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides norms and biases."""
        return {f'backbone.{name}' for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Function from the name of a parameter to its group, for layer-wise learning rates.

        Args:
            coarse: group by stages instead of blocks.
        """

        def stage(name: str) -> int:
            part, index, *_ = [*name.split('.')[1:], '', '']
            offsets = dict(stem=0, downsamples=2, stages=1)  # downsamples.i leads to stage i + 1
            if not name.startswith('backbone.') or part not in offsets:
                return len(self.backbone.stages) + 1
            return offsets[part] + (0 if part == 'stem' else int(index))

        return stage if coarse else lambda name: self.backbone.get_layer_depth(name, 'backbone.')[0]


def checkpoint_filter(state_dict: dict[str, Any], model: BackboneClassifier) -> dict[str, Any]:
    """Parameters of a checkpoint by their names in the model.

    Args:
        state_dict: weights of a classifier, or of a backbone.
        model: switched to the deploy form if the weights have that form.
    """
    if any('.folded.' in name for name in state_dict):
        model.backbone.switch_to_deploy()
    if any(name.startswith('backbone.') for name in state_dict):
        return state_dict
    return {f'backbone.{name}': value for name, value in state_dict.items()}


def _default_cfg(family: str, arch: Mapping[str, Any]) -> dict[str, Any]:
    """Size, normalisation and class of the data as in the configs, and names of layers."""
    cfg: dict[str, Any] = dict(classifier='head.fc', first_conv=FIRST_CONVS.get(family))
    stride = 32
    if family == 'sag':
        stride = arch['stride'] * 2 ** (len(arch['channels']) - 1)
        cfg.update(CIFAR if arch['image_size'] == 32 else {})
    side = cfg.get('input_size', (3, 224, 224))[-1]
    return dict(cfg, pool_size=(side // stride,) * 2, license='apache-2.0')


def _entrypoint(name: str, num_stages: int) -> Callable[..., nn.Module]:
    """The function that timm calls for a name."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        out_indices: Any = kwargs.pop('out_indices', None) if kwargs.get('features_only') else [-1]
        stages, _ = feature_take_indices(num_stages, out_indices)
        return build_model_with_cfg(
            partial(BackboneClassifier, name, stages),
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter,
            feature_cfg=dict(feature_cls='getter', out_indices=stages, norm=True),
            **kwargs,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f'Classifier or feature extractor with the backbone {name}.'
    return create


ARCHS = {
    f'{family}_{arch}': (family, cls, settings)
    for family, cls in families().items()
    for arch, settings in cls.arch_zoo.items()
}
TAGGED: dict[str, Any] = {
    'linglo_b0.tiny_imagenet': dict(
        _default_cfg('linglo', {}),
        file=str(published_path('linglo-b0_tiny-imagenet')),
        input_size=(3, 64, 64),
        pool_size=(2, 2),
        num_classes=202,
        crop_pct=1.0,
        interpolation='bicubic',
    )
}
# The star, after the tags with weights, makes the name alone mean the model without weights.
default_cfgs = generate_default_cfgs(
    TAGGED | {f'{name}.*': _default_cfg(family, arch) for name, (family, _, arch) in ARCHS.items()}
)
for _name, (_, _cls, _settings) in ARCHS.items():
    globals()[_name] = register_model(_entrypoint(_name, len(_settings[_cls.stage_keys[0]])))
