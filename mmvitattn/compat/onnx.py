"""The two ONNX exporters of PyTorch, and an operator that both translate.

PyTorch 2.1 has only the exporter that traces TorchScript; current versions replace it by one that
is based on ``torch.export`` and needs onnxscript.
"""

import inspect
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

TORCHSCRIPT_OPSET = 17  # the newest that torch 2.1 writes
DYNAMO_OPSET = 20  # the first with Gelu as one operator; needs onnxruntime 1.17
AXES = {0: 'batch', 2: 'height', 3: 'width'}  # of the image

_library = torch.library.Library('mmvitattn', 'FRAGMENT')
_library.define(
    'nms(Tensor boxes, Tensor scores, int max_output, float iou_threshold, float score_threshold)'
    ' -> Tensor'
)


def _nms(
    boxes: Tensor, scores: Tensor, max_output: int, iou_threshold: float, score_threshold: float
) -> Tensor:
    """ONNX's NonMaxSuppression for one class: boxes (B, N, 4), scores (B, 1, N) -> (K, 3)."""
    found = []
    for i in range(len(boxes)):
        kept = (scores[i, 0] > score_threshold).nonzero()[:, 0]
        best = torchvision.ops.nms(boxes[i, kept], scores[i, 0, kept], iou_threshold)
        position = kept[best[:max_output]]
        image = torch.full_like(position, i)
        found.append(torch.stack([image, torch.zeros_like(image), position], dim=1))
    return torch.cat(found)


_library.impl('nms', _nms, 'CompositeExplicitAutograd')
if hasattr(torch.library, 'register_fake'):  # torch.export needs it

    @torch.library.register_fake('mmvitattn::nms', lib=_library)
    def _nms_shape(boxes, scores, max_output, iou_threshold, score_threshold):  # type: ignore
        size = torch.library.get_ctx().new_dynamic_size()
        return boxes.new_empty((size, 3), dtype=torch.long)


def _nms_torchscript(g, boxes, scores, max_output, iou_threshold, score_threshold):  # type: ignore
    from torch.onnx import symbolic_helper

    def constant(value: Any, kind: Any, dtype: torch.dtype) -> Any:
        number = symbolic_helper._maybe_get_const(value, kind)
        return g.op('Constant', value_t=torch.tensor([number], dtype=dtype))

    return g.op(
        'NonMaxSuppression',
        boxes,
        scores,
        constant(max_output, 'i', torch.long),
        constant(iou_threshold, 'f', torch.float32),
        constant(score_threshold, 'f', torch.float32),
    )


torch.onnx.register_custom_op_symbolic('mmvitattn::nms', _nms_torchscript, TORCHSCRIPT_OPSET)


def minimum(limit: int, size: Any) -> Any:
    """The smaller of a number and a size, also where the size is traced or symbolic."""
    if torch.jit.is_tracing():
        return torch.minimum(torch.tensor(limit), torch.as_tensor(size))
    return torch.sym_min(limit, size) if isinstance(size, torch.SymInt) else min(limit, size)


def has_dynamo_exporter() -> bool:
    """Whether the exporter that is based on ``torch.export`` can be used."""
    parameters = inspect.signature(torch.onnx.export).parameters
    return 'custom_translation_table' in parameters and find_spec('onnxscript') is not None


def write_onnx(
    module: nn.Module,
    image: Tensor,
    path: Path,
    outputs: Sequence[str],
    batched: bool,
    dynamo: bool,
) -> None:
    """Exports a module with one image as input; height and width are dynamic.

    Args:
        module: returns a tuple of tensors.
        image: (B, C, H, W) for the traced run.
        path: the file to write.
        outputs: names of the outputs.
        batched: whether the batch size is dynamic, too.
        dynamo: use the exporter that is based on ``torch.export``.

    Raises:
        Exception: of many types, if the exporter cannot express the model.
    """
    axes = {axis: name for axis, name in AXES.items() if axis or batched}
    options: dict[str, Any] = dict(input_names=['image'], output_names=list(outputs))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        if dynamo:
            _write_with_dynamo(module, image, path, axes, options)
            return
        if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
            options['dynamo'] = False
        torch.onnx.export(
            module,
            (image,),
            str(path),
            dynamic_axes={'image': axes},
            opset_version=TORCHSCRIPT_OPSET,
            **options,
        )


def _write_with_dynamo(
    module: nn.Module, image: Tensor, path: Path, axes: dict[int, str], options: dict
) -> None:
    from onnxscript import ir
    from onnxscript import opset20 as op

    def nms(boxes, scores, max_output, iou_threshold, score_threshold):  # type: ignore
        return op.NonMaxSuppression(boxes, scores, max_output, iou_threshold, score_threshold)

    program: Any = torch.onnx.export(
        module,
        (image,),
        dynamo=True,
        verbose=False,
        opset_version=DYNAMO_OPSET,
        dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
        custom_translation_table={torch.ops.mmvitattn.nms.default: nms},
        **options,
    )
    # The exporter leaves constants of branches behind, of which onnxruntime would warn.
    ir.passes.common.RemoveUnusedNodesPass()(program.model)
    program.save(str(path), external_data=False)
