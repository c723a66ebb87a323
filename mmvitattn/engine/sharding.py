"""Training with weights, gradients and optimizer state sharded over the processes (FSDP)."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_distributed
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..registry import STRATEGIES
from .errors import UsageError


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """MMEngine's FSDPStrategy, which also resumes, and runs on CPUs where PyTorch can.

    Norms, biases and tables keep their own weight decay, and checkpoints are those of a model that
    is not sharded.

    Args:
        units: names of classes whose modules are gathered as one: the blocks of the backbone, e.g.
            ``['LinGloBlock']``. Smaller parts do not do: the attention layers read the weights of
            their linear maps instead of calling these, and only a call gathers what is sharded.
        model_wrapper: further arguments of MMFullyShardedDataParallel, e.g. ``mixed_precision``.
        state_dict_cfg: 'full' for one file, 'local' for a folder with a file a process, from
            which the tools do not resume.
        kwargs: see MMEngine's FSDPStrategy.

    Raises:
        UsageError: when training starts, where there is one process alone, or CPUs with a PyTorch
            that needs GPUs; for gradients clipped by their norm, of which each process knows a part
            alone; for layer-wise learning rates, which tell layers by names that sharding changes.
    """

    def __init__(
        self,
        *,
        units: Sequence[str] = (),
        model_wrapper: dict | None = None,
        state_dict_cfg: str | dict = 'full',
        **kwargs: Any,
    ) -> None:
        wrapper = dict(type='MMFullyShardedDataParallel', use_orig_params=True)
        if units:
            wrapper['auto_wrap_policy'] = partial(wrap_classes, names=frozenset(units))
        if not torch.cuda.is_available():
            wrapper['device_id'] = 'cpu'
        wrapper.update(model_wrapper or {})
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)
        if not torch.cuda.is_available():
            # Moved to where they are, the gathered moments of Adam would share memory.
            self.optim_state_dict_config.offload_to_cpu = False

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Builds and wraps the model and what trains it; see MMEngine's."""
        _check_environment()
        _check_optimizer(kwargs.get('optim_wrapper'))
        return super().prepare(*args, **kwargs)

    def optim_state_dict(self) -> dict:
        """The optimizer's state, and what MMEngine logs as ``base_lr``."""
        return {
            **super().optim_state_dict(),
            'base_param_settings': self.optim_wrapper.base_param_settings,
        }

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the optimizer's state; MMEngine passes arguments in the order of torch 2.0.

        Args:
            state_dict: of :meth:`optim_state_dict`.
        """
        base = state_dict.pop('base_param_settings', None)
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict({**state, 'base_param_settings': base})


def wrap_classes(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, names: Collection[str]
) -> bool:
    """An ``auto_wrap_policy`` by names of classes, which a config file can hold.

    Args:
        module: part of the model that is asked about.
        recurse: whether the question is to look into the part, rather than to make it a unit.
        nonwrapped_numel: parameters of the part, those of its own units left out.
        names: classes whose modules are a unit each.

    Returns:
        The answer.
    """
    return recurse or type(module).__name__ in names


def _check_environment() -> None:
    if not is_distributed():
        raise UsageError(
            'sharding needs several processes: tools/dist_train.sh CONFIG NUM_PROCESSES, or '
            'tools/slurm_train.sh'
        )
    if torch.cuda.is_available():
        return
    try:
        torch.cpu.Stream(priority=0)  # FSDP's first step
    except TypeError:
        raise UsageError(
            f'torch {torch.__version__} shards on GPUs alone, and there is none here'
        ) from None


def _check_optimizer(optim_wrapper: Any) -> None:
    if not isinstance(optim_wrapper, dict):
        return
    clip_grad = optim_wrapper.get('clip_grad') or {}
    if clip_grad and clip_grad.get('type', 'norm') == 'norm':
        raise UsageError(
            f'optim_wrapper.clip_grad={dict(clip_grad)}: sharded, each process would clip by the '
            'norm of its own part; set it to None'
        )
    if 'LayerDecay' in str(optim_wrapper.get('constructor')):
        raise UsageError(
            f'optim_wrapper.constructor={optim_wrapper["constructor"]!r}: it tells layers by names '
            'that sharding changes; leave it out'
        )
