"""Training with weights, gradients and optimizer state sharded over the processes (FSDP)."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_distributed
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..errors import UsageError
from ..registry import STRATEGIES


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """MMEngine's FSDPStrategy that can also resume, and run on CPUs if PyTorch can.

    Norms, biases and tables keep their own weight decay, and checkpoints are those of an unsharded
    model.

    Args:
        units: names of classes whose modules are gathered as a whole: the blocks of the backbone,
            e.g. ``['LinGloBlock']``. Smaller units do not work: the attention layers read the
            weights of their linear maps instead of calling them, and only a call gathers weights.
        model_wrapper: further arguments of MMFullyShardedDataParallel, e.g. ``mixed_precision``.
        state_dict_cfg: 'full' for one file, 'local' for a folder with a file for each process, from
            which the tools cannot resume.
        kwargs: see MMEngine's FSDPStrategy.

    Raises:
        UsageError: when training starts: if there is only one process, or no GPU and a PyTorch that
            needs one; if gradients are clipped by their norm, since each process has only a part of
            it; if learning rates depend on layers, whose names sharding changes.
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
            # Offloading from CPU to CPU would make the gathered moments of Adam share memory.
            self.optim_state_dict_config.offload_to_cpu = False

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Builds and wraps model and optimizer; see MMEngine's FSDPStrategy."""
        _check_environment()
        _check_optimizer(kwargs.get('optim_wrapper'))
        return super().prepare(*args, **kwargs)

    def optim_state_dict(self) -> dict:
        """The optimizer's state and the settings that MMEngine logs as ``base_lr``."""
        return {
            **super().optim_state_dict(),
            'base_param_settings': self.optim_wrapper.base_param_settings,
        }

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the optimizer's state; MMEngine's own method fits only torch 2.0.

        Args:
            state_dict: from :meth:`optim_state_dict`.
        """
        base = state_dict.pop('base_param_settings', None)
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict({**state, 'base_param_settings': base})


def wrap_classes(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, names: Collection[str]
) -> bool:
    """An ``auto_wrap_policy`` for FSDP by names of classes, which a config file can contain.

    Args:
        module: part of the model.
        recurse: whether FSDP asks to visit the children, rather than to make the part a unit.
        nonwrapped_numel: number of parameters of the part outside of its own units.
        names: classes of which each module is a unit.

    Returns:
        Whether to do what FSDP asks.
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
            f'torch {torch.__version__} shards only on GPUs, and there is none here'
        ) from None


def _check_optimizer(optim_wrapper: Any) -> None:
    if not isinstance(optim_wrapper, dict):
        return
    clip_grad = optim_wrapper.get('clip_grad') or {}
    if clip_grad and clip_grad.get('type', 'norm') == 'norm':
        raise UsageError(
            f'optim_wrapper.clip_grad={dict(clip_grad)}: with sharding, each process would clip '
            'by the norm of its own part; set it to None'
        )
    if 'LayerDecay' in str(optim_wrapper.get('constructor')):
        raise UsageError(
            f'optim_wrapper.constructor={optim_wrapper["constructor"]!r}: it finds layers by '
            'names that sharding changes; leave it out'
        )
