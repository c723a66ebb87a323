"""Checkpoints into models for inference: whole models or backbones, deploy form or not."""

from collections.abc import Mapping

from torch import Tensor, nn

from .errors import UsageError

PARTS = ('stages', 'downsamples')
COUNTER = 'num_batches_tracked'  # of BatchNorms; inference does not read it


def load_model_weights(model: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Loads a checkpoint into the whole model it was saved from.

    The backbone takes the deploy form if the checkpoint has it.

    Args:
        model: the model, in training form.
        checkpoint: what the file holds: ``state_dict`` and more, or a state dict.
        source: name of the file, for the message.

    Raises:
        UsageError: if a weight of the model is missing or has another shape.
    """
    _load(model, getattr(model, 'backbone', model), _state_dict(checkpoint), source)


def load_backbone_weights(backbone: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Loads a backbone's weights from a checkpoint of a whole model or of the backbone alone.

    Output norms, which differ from task to task, may be missing, and stages that the backbone does
    not have may be left over.

    Args:
        backbone: the backbone, in training form.
        checkpoint: what the file holds: ``state_dict`` and more, or a state dict.
        source: name of the file, for the message.

    Raises:
        UsageError: if a weight of the backbone is missing, has another shape or is left over.
    """
    state = _state_dict(checkpoint)
    prefix = 'backbone.'
    if any(name.startswith(prefix) for name in state):
        state = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    _load(backbone, backbone, state, source, optional=('norms.',))
    parts = [f'{p}.{i}.' for p in PARTS for i in range(len(getattr(backbone, p)))]
    built = ('stem.', *parts)
    left_over = [n for n in state if n.startswith(built) and n not in backbone.state_dict()]
    if left_over:
        raise UsageError(
            f'{source} does not fit the backbone: {len(left_over)} weights are left over, e.g. '
            f'{", ".join(left_over[:3])}'
        )


def _state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    state = checkpoint.get('state_dict', checkpoint)
    weights = {name.removeprefix('module.'): v for name, v in state.items()}
    return {name: v for name, v in weights.items() if isinstance(v, Tensor)}


def _load(
    model: nn.Module,
    backbone: nn.Module,
    state: dict[str, Tensor],
    source: str,
    optional: tuple[str, ...] = (),
) -> None:
    total, misfits = len(model.state_dict()), _misfits(model, state, optional)
    if misfits and hasattr(backbone, 'switch_to_deploy'):
        backbone.switch_to_deploy()
        if not _misfits(model, state, optional):
            misfits = []
    if misfits:
        raise UsageError(
            f'{source} does not fit the config: {len(misfits)} of {total} '
            f'weights are missing or have another shape, e.g. {", ".join(misfits[:3])}'
        )
    model.load_state_dict(state, strict=False)


def _misfits(model: nn.Module, state: dict[str, Tensor], optional: tuple[str, ...]) -> list[str]:
    misfits = []
    for name, weight in model.state_dict().items():
        if name in state and state[name].shape != weight.shape:
            shapes = f'{tuple(state[name].shape)}, the model has {tuple(weight.shape)}'
            misfits.append(f'{name} {shapes}')
        elif name not in state and not name.endswith(COUNTER) and not name.startswith(optional):
            misfits.append(name)
    return misfits
