"""Base class of the backbones: options, checks, freezing, checkpointing, the pyramid loop.

A family subclasses :class:`PyramidBackbone`, sets ``arch_zoo`` and fills four attributes: ``stem``,
``stages`` (one ``nn.Sequential`` of blocks each), ``downsamples`` (index i is the module between
stages i and i+1 and belongs to stage i+1) and, through ``add_output_norms``, ``norms``. Internally,
maps are channels-last, (B, H, W, C): linear layers and LayerNorm then run without copies, and
convolutions read the same memory as (B, C, H, W) maps in channels_last format.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..compat.engine import BaseModule, print_log
from ..errors import OptionError
from ..layers.load_tables import resize_tables
from .options import resolve_out_indices


class FeatureInfo(list):
    """A backbone's outputs in timm's form, one dict each.

    ``num_chs`` is the number of channels, ``reduction`` the stride, ``module`` the name of the
    module.
    """

    def __init__(self, entries: Iterable[dict]) -> None:
        super().__init__(entries)

    def channels(self) -> list[int]:
        """Channels of each output."""
        return [entry['num_chs'] for entry in self]

    def reduction(self) -> list[int]:
        """Stride of each output, in pixels of the image."""
        return [entry['reduction'] for entry in self]

    def module_name(self) -> list[str]:
        """Name of the module that computes each output."""
        return [entry['module'] for entry in self]


class PyramidBackbone(BaseModule):
    """Base class of backbones that return a pyramid of feature maps.

    Args:
        channels: channels of each stage.
        strides: stride of each stage's output relative to the image.
        in_channels: channels of the image.
        out_indices: stages whose outputs are returned, default all; negative ones count from the
            last. Stages after the last returned one are not built.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: keep BatchNorms in evaluation mode while training.
        with_cp: recompute each block in the backward pass to save memory.
        min_size: smallest height and width of an image, in pixels.
        init_cfg: MMEngine's initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        OptionError: for out_indices or frozen_stages that do not exist.
    """

    arch_zoo: Mapping[str, Mapping] = {}
    stage_keys: Sequence[str] = ()  # keys of an arch that are lists with one entry per stage
    no_decay_keys: tuple[str, ...] = ()  # suffixes of parameters without weight decay

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        in_channels: int = 3,
        out_indices: int | Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        min_size: int = 32,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels, self.min_size = in_channels, min_size
        self.out_indices = resolve_out_indices(out_indices, len(channels))
        self.num_stages = max(self.out_indices) + 1
        if not -1 <= frozen_stages <= self.num_stages:
            raise OptionError(
                f'frozen_stages={frozen_stages} must lie in [-1, {self.num_stages}]: -1 none, '
                f'0 the stem, k the stem and the first k of the {self.num_stages} stages in use'
            )
        self.frozen_stages, self.norm_eval, self.with_cp = frozen_stages, norm_eval, with_cp
        self.stage_info = FeatureInfo(  # of all stages
            dict(num_chs=channels[i], reduction=strides[i], module=f'norms.{i}')
            for i in range(len(channels))
        )
        self.feature_info = FeatureInfo(self.stage_info[i] for i in self.out_indices)
        self.stem: nn.Module
        self.stages = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        self.norms = nn.ModuleDict()

    @classmethod
    def resolve_arch(cls, arch: str | Mapping, optional: Sequence[str] = ()) -> dict:
        """Settings of a named or custom architecture.

        Args:
            arch: a name in ``arch_zoo``, or a mapping with the same keys.
            optional: keys that a mapping may omit.

        Returns:
            A copy of the settings.

        Raises:
            OptionError: for an unknown name, missing or unknown keys, or lists of unequal length.
        """
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise OptionError(
                    f'{cls.__name__}: unknown arch {arch!r}; choose one of '
                    f'{", ".join(cls.arch_zoo)}, or give a dict'
                )
            return dict(cls.arch_zoo[arch])
        known = set(next(iter(cls.arch_zoo.values()))) | set(optional)
        missing, unknown = known - set(arch) - set(optional), set(arch) - known
        if missing or unknown:
            raise OptionError(
                f'{cls.__name__}: arch dict lacks {sorted(missing)} and has unknown keys '
                f'{sorted(unknown)}; it takes {sorted(known)}'
            )
        lengths = {key: len(arch[key]) for key in cls.stage_keys if key in arch}
        if len(set(lengths.values())) > 1:
            raise OptionError(
                f'{cls.__name__}: each list of the arch dict needs one entry per stage, got '
                f'{lengths} entries'
            )
        return dict(arch)

    def add_output_norms(self, eps: float = 1e-6) -> None:
        """Adds a LayerNorm for each output, ``norms.<stage>``, and freezes ``frozen_stages``."""
        for index, info in zip(self.out_indices, self.feature_info, strict=True):
            self.norms[str(index)] = nn.LayerNorm(info['num_chs'], eps=eps)
        self._freeze()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature pyramid.

        Args:
            image: (B, in_channels, H, W), of any size with H and W at least ``min_size``.

        Returns:
            One map (B, C_i, H_i, W_i) for each of ``out_indices``, in their order.

        Raises:
            ValueError: for an image of another shape.
        """
        maps = self.forward_stages(image, self.out_indices)
        return tuple(self.norms[str(i)](maps[i]).permute(0, 3, 1, 2) for i in self.out_indices)

    def forward_stages(self, image: Tensor, indices: Collection[int]) -> dict[int, Tensor]:
        """Computes maps without the output norms.

        Args:
            image: as for :meth:`forward`.
            indices: stages to return; stages after the last one are not run.

        Returns:
            The map (B, H_i, W_i, C_i) of each of ``indices``.

        Raises:
            ValueError: for an image of another shape.
        """
        self._check_image(image)
        x, maps = self.stem(image.permute(0, 2, 3, 1)), {}
        for i in range(max(indices) + 1):
            if i > 0:
                x = self.run_block(self.downsamples[i - 1], x)
            x = self.forward_stage(self.stages[i], x)
            if i in indices:
                maps[i] = x
        return maps

    def forward_stage(self, stage: Any, x: Tensor) -> Tensor:
        """Runs the blocks of one of ``stages``."""
        for block in stage:
            x = self.run_block(block, x)
        return x

    def run_block(self, block: nn.Module, *inputs: Tensor | nn.Module) -> Tensor:
        """Runs a block or a down-sampling, recomputed in the backward pass if ``with_cp``.

        Args:
            block: module to run.
            inputs: its arguments: the map, and norms shared by several blocks.
        """
        if self.with_cp and self.training and torch.is_grad_enabled():
            contexts = _recompute_contexts(block)
            return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
        return block(*inputs)

    def train(self, mode: bool = True) -> 'PyramidBackbone':
        """Sets the mode; frozen modules, and BatchNorms with ``norm_eval``, stay in evaluation."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Folds modules for inference where possible, in place; idempotent."""
        for module in self.modules():
            if module is not self and hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy()
        self.train(self.training)  # sets the mode of new modules and freezes them where needed

    def resize_tables(self, state_dict: MutableMapping[str, Tensor], prefix: str = '') -> None:
        """Resizes the tables of a state dict for other windows or images, in place, and logs it.

        Loading the state dict into the backbone, or into a model that contains it, does so.

        Args:
            state_dict: the weights.
            prefix: prefix of the backbone's parameters in the state dict.
        """
        resized = resize_tables(self, state_dict, prefix)
        if resized:
            print_log(f'position tables resized to fit this model: {resized}', 'current')

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if not prefix:
            _keep_backbone(state_dict)
        self.resize_tables(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        The stem is layer 0, each block is one layer (a down-sampling belongs to the block after
        it), and output norms and modules after the backbone are the last layer.

        Args:
            param_name: name of the parameter, with ``prefix``.
            prefix: prefix of the backbone's parameters in the model, e.g. ``'backbone.'``.

        Returns:
            The parameter's depth and the number of layers.
        """
        first_block = [1]
        for stage in self.stages:
            first_block.append(first_block[-1] + len(cast(Sized, stage)))
        last = first_block[-1]
        if not param_name.startswith(prefix):
            return last, last + 1
        part, *rest = param_name[len(prefix) :].split('.')
        if part == 'stem':
            return 0, last + 1
        if part == 'downsamples':
            return first_block[int(rest[0]) + 1], last + 1
        if part == 'stages':
            return first_block[int(rest[0])] + int(rest[1]), last + 1
        return last, last + 1

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, in addition to norms and biases.

        These are position tables, learned queries and similar ones; the method is named as in timm.
        """
        return {name for name, _ in self.named_parameters() if name.endswith(self.no_decay_keys)}

    def _frozen_modules(self) -> Iterator[nn.Module]:
        if self.frozen_stages >= 0:
            yield self.stem
        for i in range(self.frozen_stages):
            yield self.stages[i]
            if i > 0:
                yield self.downsamples[i - 1]
            if i in self.out_indices:
                yield self.norms[str(i)]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def _check_image(self, image: Tensor) -> None:
        name = type(self).__name__
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'{name} takes images (B, {self.in_channels}, H, W), got {tuple(image.shape)}; '
                'set in_channels for other inputs'
            )
        if min(image.shape[2:]) < self.min_size:
            raise ValueError(
                f'{name} takes images of at least {self.min_size} x {self.min_size} pixels, got '
                f'{image.shape[2]} x {image.shape[3]}; resize or pad them'
            )


def _keep_backbone(state_dict: MutableMapping[str, Tensor]) -> None:
    """Reduces the weights of a model with a backbone to the backbone's, in place."""
    prefix = 'backbone.'
    if any(name.startswith(prefix) for name in state_dict):
        for name in list(state_dict):
            weight = state_dict.pop(name)
            if name.startswith(prefix):
                state_dict[name.removeprefix(prefix)] = weight


def _recompute_contexts(block: nn.Module):
    return lambda: (nullcontext(), _running_statistics_paused(block))


@contextmanager
def _running_statistics_paused(block: nn.Module) -> Iterator[None]:
    """Prevents a second update of running statistics when a checkpointed block is recomputed."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
