"""Loads checkpoints into models for inference: whole models or backbones, deploy form or not."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError

COUNTER = 'num_batches_tracked'  # of BatchNorm; inference does not read it


def load_model_weights(model: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Loads a checkpoint into the whole model that it was saved from.

    The backbone is switched to the deploy form if the checkpoint has that form, and position tables
    for other windows or image sizes are resized.

    Args:
        model: the model, in training form.
        checkpoint: content of the file: a dict with ``state_dict``, or a state dict.
        source: name of the file, for the message.

    Raises:
        CheckpointError: if a weight of the model is missing or has another shape.
    """
    _load(model, getattr(model, 'backbone', model), _state_dict(checkpoint), source)


def load_backbone_weights(backbone: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Loads a backbone's weights from a checkpoint of a whole model or of a backbone.

    Output norms, which differ from task to task, may be missing, weights of stages that the
    backbone does not have are ignored, and position tables for other windows or image sizes are
    resized.

    Args:
        backbone: the backbone, in training form.
        checkpoint: content of the file: a dict with ``state_dict``, or a state dict.
        source: name of the file, for the message.

    Raises:
        CheckpointError: if a weight of the backbone is missing, has another shape, or a stage of
            the checkpoint has more weights than the backbone's.
    """
    state, prefix = _state_dict(checkpoint), 'backbone.'
    if any(name.startswith(prefix) for name in state):
        state = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    _load(backbone, backbone, state, source, optional=('norms.',))
    lists = ('stages', 'downsamples')
    parts = [f'{name}.{i}.' for name in lists for i in range(len(getattr(backbone, name)))]
    built, known = ('stem.', *parts), backbone.state_dict()
    left_over = [name for name in state if name.startswith(built) and name not in known]
    if left_over:
        raise CheckpointError(
            f'{source} does not fit the backbone: {len(left_over)} weights are left over, e.g. '
            f'{", ".join(left_over[:3])}'
        )


def _state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    state = checkpoint.get('state_dict', checkpoint)
    return {n.removeprefix('module.'): v for n, v in state.items() if isinstance(v, Tensor)}


def _load(
    model: nn.Module,
    backbone: Any,
    state: dict[str, Tensor],
    source: str,
    optional: tuple[str, ...] = (),
) -> None:
    if hasattr(backbone, 'resize_tables'):
        backbone.resize_tables(state, '' if backbone is model else 'backbone.')
    total, misfits = len(model.state_dict()), list(_misfits(model, state, optional))
    if misfits and hasattr(backbone, 'switch_to_deploy'):
        backbone.switch_to_deploy()
        misfits = misfits if any(_misfits(model, state, optional)) else []
    if misfits:
        raise CheckpointError(
            f'{source} does not fit the config: {len(misfits)} of {total} '
            f'weights are missing or have another shape, e.g. {", ".join(misfits[:3])}'
        )
    model.load_state_dict(state, strict=False)


def _misfits(
    model: nn.Module, state: dict[str, Tensor], optional: tuple[str, ...]
) -> Iterator[str]:
    for name, weight in model.state_dict().items():
        if name in state and state[name].shape != weight.shape:
            yield f'{name} {tuple(state[name].shape)}, the model has {tuple(weight.shape)}'
        elif name not in state and not name.endswith(COUNTER) and not name.startswith(optional):
            yield name
