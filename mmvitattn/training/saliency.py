"""Records whether key-only attention attends: how far its weights are from a plain mean."""

import re
from collections import defaultdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..layers import KeyOnlyAttention
from ..ops.key_only.plain import saliency_weights
from ..registry import HOOKS

STATISTICS = ('contrast', 'gated', 'gradient')


@HOOKS.register_module()
class SaliencyHook(Hook):
    """Logs what key-only attention contributes during training, stage by stage.

    Three numbers, each a mean over the heads and layers of a stage:

    - ``saliency/contrast_stageN``: standard deviation of the saliency weights over the positions,
      relative to their mean; 0 for a plain mean of the keys;
    - ``saliency/gated_stageN``: size (root mean square) of the path through the global context,
      ``(G * V) U1``, relative to that of the keys, which are added to it;
    - ``saliency/gradient_stageN``: size of the gradient of the saliency vectors.

    They go to the log file and, as scalars, to the visualizer's backends, where
    ``tools/analysis_tools/analyze_logs.py RUN --keys 'saliency/*'`` finds them. A model without
    key-only attention costs nothing, and the training itself does not change.

    Args:
        interval: iterations between two measurements; the first iteration is measured as well.
        num_samples: images of a batch that are measured.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 500, num_samples: int = 4) -> None:
        self.interval, self.num_samples = interval, num_samples
        self._handles: list[RemovableHandle] = []
        self._found: dict[str, list[float]] = defaultdict(list)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any | None = None
    ) -> None:
        """Attaches the measurement to the layers for one iteration."""
        wanted = runner.iter == 0 or self.every_n_train_iters(runner, self.interval)
        if not wanted or not is_main_process():
            return
        for name, layer in runner.model.named_modules():
            if isinstance(layer, KeyOnlyAttention):
                found = re.search(r'stages\.(\d+)\.', name)
                stage = f'stage{int(found[1]) + 1}' if found else 'model'
                self._handles.append(layer.register_forward_pre_hook(partial(self._measure, stage)))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Logs the numbers and detaches the measurement."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if not self._found:
            return
        scalars = {key: sum(values) / len(values) for key, values in sorted(self._found.items())}
        self._found.clear()
        runner.visualizer.add_scalars({'iter': runner.iter + 1, **scalars}, step=runner.iter + 1)
        for statistic in STATISTICS:
            values = [f'{v:.3g}' for k, v in scalars.items() if f'/{statistic}_' in k]
            runner.logger.info(f'saliency: {statistic} by stage: {", ".join(values)}')

    def _measure(self, stage: str, layer: KeyOnlyAttention, inputs: tuple[Tensor, ...]) -> None:
        def record(statistic: str, value: Tensor) -> None:
            self._found[f'saliency/{statistic}_{stage}'].append(value.item())

        contrast, gated = describe(layer, inputs[0].detach()[: self.num_samples])
        record('contrast', contrast)
        record('gated', gated)
        if layer.saliency.requires_grad:
            handle = layer.saliency.register_hook(lambda g: record('gradient', _size(g.float())))
            self._handles.append(handle)


@torch.no_grad()
def describe(layer: KeyOnlyAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast of the saliency weights and share of the gated path, see :class:`SaliencyHook`.

    Args:
        layer: the attention layer.
        x: its input, (B, ..., C).

    Returns:
        Both as scalars.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.flatten(1, -2).float()
        keys, values = (
            F.linear(x, module.weight.float(), _float(module.bias))
            for module in (layer.key, layer.value)
        )
        keys = keys.unflatten(-1, layer.saliency.shape)
        weights = saliency_weights(keys, layer.saliency)
        context = torch.einsum('bhn,bnhd->bhd', weights, keys).flatten(1)
        gated = F.linear(values * context[:, None], layer.gate.weight.float())
        contrast = (weights * weights.shape[-1]).std(dim=-1, unbiased=False).mean()
        return contrast, _size(gated) / _size(keys)


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def _size(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
