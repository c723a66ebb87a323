"""Training with weights, gradients and optimizer state sharded over the processes (FSDP2)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed.fsdp
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_distributed, is_main_process
from torch import Tensor, nn

from ..errors import UsageError
from ..registry import STRATEGIES


@STRATEGIES.register_module()
class ShardedStrategy(DDPStrategy):
    """Shards the model over all processes by PyTorch's ``fully_shard``; needs torch 2.6.

    Parameters keep their names, and gradients their global norm: weight decay, layer-wise learning
    rates and gradient clipping are those of MMEngine's DDPStrategy, and so are the checkpoints: one
    file, which any number of processes can resume, sharded or not. Mixed precision is that of the
    optimizer wrapper (``--amp``).

    Args:
        units: names of classes whose modules are gathered as a whole: the blocks of the backbone,
            e.g. ``['LinGloBlock']``. Smaller units do not work: the attention layers read the
            weights of their linear maps instead of calling them, and only a call gathers weights.
        kwargs: see MMEngine's DDPStrategy.

    Raises:
        UsageError: when training starts: if there is only one process, or torch is too old; if a
            class of ``units`` is not in the model.
    """

    def __init__(self, *, units: str | Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = {units} if isinstance(units, str) else set(units)
        self._gathered: tuple[dict, dict] | None = None

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shards the units, then the rest of the model as one unit."""
        _check_environment()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = self.convert_model(model.to(get_device()))
        mesh = init_device_mesh(next(model.parameters()).device.type, (get_world_size(),))
        found = [m for m in model.modules() if type(m).__name__ in self.units]
        missing = self.units - {type(m).__name__ for m in found}
        if missing:
            raise UsageError(
                f'strategy.units: the model has no module of class {", ".join(sorted(missing))}'
            )
        for module in [*found, model]:
            fully_shard(module, mesh=mesh)
        return model

    def build_optim_wrapper(self, *args: Any, **kwargs: Any) -> Any:
        """See MMEngine's DDPStrategy; the norm of the gradients is that over all processes."""
        wrapper = super().build_optim_wrapper(*args, **kwargs)
        clip = getattr(wrapper, 'clip_func', None)
        if clip is not None:
            wrapper.clip_func = lambda *args, **kwargs: clip(*args, **kwargs).full_tensor()
        return wrapper

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Gathers the state from all processes; the main one writes it."""
        whole = kwargs.get('save_optimizer', True) and hasattr(self, 'optim_wrapper')
        optimizer = self.optim_wrapper.state_dict() if whole else {}
        self._gathered = _gather(self.model.state_dict()), _gather(optimizer)
        try:
            super().save_checkpoint(filename, **kwargs)
        finally:
            self._gathered = None

    def model_state_dict(self) -> dict:
        """The state of the unsharded model, in the main process; all of them call this."""
        return self._gathered[0] if self._gathered else _gather(self.model.state_dict())

    def optim_state_dict(self) -> dict:
        """The state of the unsharded model's optimizer, as :meth:`model_state_dict`."""
        return self._gathered[1] if self._gathered else _gather(self.optim_wrapper.state_dict())

    def load_model_state_dict(self, state_dict: dict, **kwargs: Any) -> None:
        """Loads the state of an unsharded model; see MMEngine's DDPStrategy for the arguments."""
        own = self.model.state_dict()
        super().load_model_state_dict(
            {name: _shard(value, own.get(name)) for name, value in state_dict.items()}, **kwargs
        )

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the state of an unsharded model's optimizer."""
        groups = self.optim_wrapper.optimizer.param_groups
        parameters = [p for group in groups for p in group['params']]
        numbers = [i for group in state_dict['param_groups'] for i in group['params']]
        own = dict(zip(numbers, parameters, strict=True))
        state = {
            number: {key: _shard(value, own[number]) for key, value in moments.items()}
            for number, moments in state_dict['state'].items()
        }
        super().load_optim_state_dict({**state_dict, 'state': state})


def _gather(value: Any) -> Any:
    """Replaces sharded tensors, in dicts of any depth, by whole ones in the main process."""
    if isinstance(value, dict):
        return {key: _gather(item) for key, item in value.items()}
    if not hasattr(value, 'full_tensor'):
        return value
    whole = value.full_tensor()
    return whole.cpu() if is_main_process() else None


def _shard(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, if ``like`` is sharded and has its shape."""
    if not (isinstance(value, Tensor) and hasattr(like, 'full_tensor')):
        return value
    if value.shape != like.shape:  # a number, as the count of steps
        return value
    from torch.distributed.tensor import distribute_tensor

    # every process has read the file: nothing is sent
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def _check_environment() -> None:
    if not is_distributed():
        raise UsageError(
            'sharding needs several processes: tools/dist_train.sh CONFIG NUM_PROCESSES, or '
            'tools/slurm_train.sh'
        )
    if not hasattr(torch.distributed.fsdp, 'fully_shard'):
        raise UsageError(f'sharding needs torch 2.6 or newer; this is {torch.__version__}')
