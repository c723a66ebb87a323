"""Exports backbones and whole models to ONNX, for images of any height and width.

The few modules of the toolboxes whose export would hard-code a size are replaced during the export.
The file is then compared with PyTorch at other sizes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat.onnx import AXES, has_dynamo_exporter, write_onnx
from ..errors import UsageError
from ..models.base import PyramidBackbone
from .onnx_detectors import detector_outputs

TOLERANCE = 1e-4
AGREEMENT = 0.9  # share of equal detections and pixels; random weights have many near-ties
Shape = tuple[int, int, int, int]


class Exportable(nn.Module):
    """A model with one image as input and named tensors as outputs.

    A backbone returns its maps, a classifier ``probabilities`` (B, classes), a segmenter ``labels``
    (B, H, W), a detector what :mod:`.onnx_detectors` says. Padding to the size that the model needs
    is part of it, so an image has any size.

    Args:
        model: backbone, classifier, segmenter or detector.

    Raises:
        UsageError: for a model of a kind that cannot be exported.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.eval()  # the wrapper too: the exporter restores the mode of the outermost module
        self.task = TASKS.get(_toolbox(model) or '', 'features')
        self.detector = detector_outputs(model) if self.task == 'detection' else None
        self.batched = self.detector is None or self.detector.batched
        self.divisor = _pad_divisor(model, self.task)
        if self.task == 'classification' and 'MultiLabel' in type(self.model.head).__name__:
            raise UsageError('classifiers with several labels per image cannot be exported')

    def all_outputs(self, image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The final outputs, and the raw ones that they are computed from, by name.

        Args:
            image: (B, C, H, W), normalised.
        """
        if isinstance(self.model, PyramidBackbone):
            maps = self.model(image)
            names = [f'stage_{i}' for i in self.model.out_indices]
            return dict(zip(names, maps, strict=True)), {}
        height, width = image.shape[2:]
        if self.divisor > 1:
            image = F.pad(image, (0, -width % self.divisor, 0, -height % self.divisor))
        if self.detector is not None:
            return self.detector(image, height, width)
        outputs = self.model(image, mode='tensor')
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        if self.task == 'segmentation':
            labels = self._label_map(logits, image, height, width)
            return dict(labels=labels), dict(raw_logits=logits)
        if self.task == 'classification':
            return dict(probabilities=logits.softmax(dim=1)), {}
        return dict(output=logits), {}

    def _label_map(self, logits: Tensor, image: Tensor, height: Any, width: Any) -> Tensor:
        head = self.model.decode_head
        logits = F.interpolate(
            logits, size=image.shape[2:], mode='bilinear', align_corners=head.align_corners
        )[..., :height, :width]
        if logits.shape[1] == 1:
            return (logits[:, 0].sigmoid() > head.threshold).to(torch.uint8)
        return logits.argmax(dim=1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All outputs without their names."""
        results, raw = self.all_outputs(image)
        return (*results.values(), *raw.values())


TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}


def _toolbox(model: nn.Module) -> str | None:
    packages = [cls.__module__.partition('.')[0] for cls in type(model).__mro__]
    return next((p for p in packages if p in TASKS), None)


def _pad_divisor(model: Any, task: str) -> int:
    """What the padded height and width are a multiple of when the toolbox predicts."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if task != 'segmentation':
        return getattr(preprocessor, 'pad_size_divisor', 1) or 1
    if model.test_cfg.get('mode', 'whole') != 'whole':
        raise UsageError('segmentation in windows cannot be exported: test_cfg=dict(mode="whole")')
    return (getattr(preprocessor, 'test_cfg', None) or {}).get('size_divisor') or 1


def check_shapes(min_size: int, channels: int = 3) -> list[Shape]:
    """The shapes at which a file is compared with PyTorch, including odd sizes.

    Args:
        min_size: smallest height and width that the model accepts.
        channels: channels of the images.
    """
    m = min_size
    return [
        (1, channels, 7 * m, 7 * m),
        (2, channels, 4 * m + 1, 6 * m + 3),
        (3, channels, m, 2 * m),
    ]


def export_onnx(
    module: Exportable,
    path: Path,
    shape: Shape,
    metadata: Mapping[str, Any],
    exporter: str = 'auto',
) -> str:
    """Writes the ONNX file with the final and the raw outputs; height and width are dynamic.

    Args:
        module: what to export. The batch size is dynamic as well if it is ``batched``.
        path: the file.
        shape: of the image for the traced run.
        metadata: plain data to write into the file; values are written as JSON.
        exporter: 'dynamo', PyTorch's exporter that is based on ``torch.export``; 'torchscript', the
            older one; 'auto', the former if it can be used and succeeds.

    Returns:
        The name of the exporter, with the reason if 'auto' did not choose the newer one.

    Raises:
        UsageError: if PyTorch's exporter cannot express the model.
    """
    import onnx

    image = torch.randn(shape if module.batched else (1, *shape[1:]))
    with torch.no_grad():
        results, raw = module.all_outputs(image)
    note = 'torchscript'
    with _traceable(module):
        if exporter == 'dynamo' or exporter == 'auto' and has_dynamo_exporter():
            try:
                write_onnx(module, image, path, [*results, *raw], module.batched, dynamo=True)
                note = 'dynamo'
            except Exception as error:  # of torch.export, torch.onnx, onnxscript
                if exporter == 'dynamo':
                    raise UsageError(f'torch.export cannot express it: {_reason(error)}') from error
                note = f'torchscript (torch.export cannot express it: {_reason(error)})'
        if note != 'dynamo':
            try:
                write_onnx(module, image, path, [*results, *raw], module.batched, dynamo=False)
            except (RuntimeError, ValueError, TypeError) as error:
                raise UsageError(
                    f'PyTorch cannot export this model to ONNX: {_reason(error)}'
                ) from error
    model = onnx.load(path)
    _name_axes(model.graph, 'detections' if module.detector else 'batch')
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
    return note


def _name_axes(graph: Any, first: str) -> None:
    """Names the dynamic axes; the exporters' names are numbers, or equal for different sizes."""
    del graph.value_info[:]
    for axis, dim in enumerate(graph.input[0].type.tensor_type.shape.dim):
        if not dim.HasField('dim_value'):
            dim.dim_param = AXES[axis]
    for output in graph.output:
        for axis, dim in enumerate(output.type.tensor_type.shape.dim):
            if not dim.HasField('dim_value'):
                name = 'batch' if output.name.startswith('raw_') else first
                dim.dim_param = f'{output.name}_{axis}' if axis else name


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else ""}'


def drop_raw_outputs(path: Path) -> None:
    """Removes the outputs that only the comparison needs."""
    import onnx

    model = onnx.load(path)
    kept = [output for output in model.graph.output if not output.name.startswith('raw_')]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, path)


def largest_differences(module: Exportable, path: Path, shapes: Sequence[Shape]) -> list[float]:
    """Compares an ONNX file with PyTorch on random images.

    Discrete outputs (label maps, and detections after suppression) can differ where two values are
    nearly equal: of them, a share of ``AGREEMENT`` has to be equal.

    Args:
        module: what was exported.
        path: the file, with the raw outputs.
        shapes: of the images; the batch is 1 where the file's is.

    Returns:
        For each shape the largest difference of a continuous output, divided by the largest value
        of the same output.

    Raises:
        UsageError: if onnxruntime cannot run the file, outputs have other shapes, or discrete ones
            differ.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    largest = []
    try:
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        for shape in shapes:
            shape = shape if module.batched else (1, *shape[1:])
            image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            outputs = map(torch.from_numpy, session.run(None, {'image': image.numpy()}))
            with torch.no_grad():
                results, raw = module.all_outputs(image)
            actual = dict(zip([*results, *raw], outputs, strict=True))
            if 'boxes' in results:
                _check_detections(actual, results)
                results = {}
            pairs = [(name, actual[name], y) for name, y in {**results, **raw}.items()]
            largest.append(max(_difference(*pair) for pair in pairs))
    except (errors.Fail, errors.InvalidArgument, errors.RuntimeException) as error:
        raise UsageError(f'onnxruntime cannot run the exported file: {_reason(error)}') from error
    return largest


def _difference(name: str, actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        raise UsageError(
            f'the exported model returns {name} {tuple(actual.shape)} where PyTorch returns '
            f'{tuple(expected.shape)}: the export has hard-coded a size'
        )
    if not expected.is_floating_point():
        _check_agreement(name, (actual == expected).float().mean().item())
        return 0.0
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _check_detections(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Looks for each detection of PyTorch in the file's."""
    names = [name for name in ('batch_index', 'labels', 'scores', 'boxes') if name in expected]
    a, e = (torch.column_stack([x[name] for name in names]) for x in (actual, expected))
    largest = e.abs().amax(dim=0) if len(e) else torch.ones(e.shape[1])
    far = (a[None] - e[:, None]).abs() > 10 * TOLERANCE * largest
    found = (~far).all(dim=2)
    count = max(len(a), len(e))
    _check_agreement('detections', found.any(dim=1).sum().item() / count if count else 1.0)


def _check_agreement(name: str, share: float) -> None:
    if not share >= AGREEMENT:
        raise UsageError(
            f'only {share:.0%} of the {name} of PyTorch and onnxruntime are equal; nothing is '
            'written'
        )


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Replaces ``forward`` of modules of the toolboxes that compute with sizes in Python."""
    replaced = []
    for module in model.modules():
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            forward = _adaptive_average
        elif type(module).__name__ == 'Upsample' and type(module).__module__.startswith('mmseg.'):
            forward = _upsample
        else:
            continue
        module.forward = MethodType(forward, module)  # type: ignore[method-assign]
        replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _upsample(self: Any, x: Tensor) -> Tensor:
    """Upsampling by a factor; mmseg's own converts the size with ``int``."""
    options = dict(mode=self.mode, align_corners=self.align_corners)
    return F.interpolate(x, size=self.size or None, scale_factor=self.scale_factor, **options)


def _adaptive_average(self: nn.AdaptiveAvgPool2d, x: Tensor) -> Tensor:
    """Adaptive average pooling as two matrix products."""
    rows, columns = nn.modules.utils._pair(self.output_size)
    return _averages(x.shape[2], rows, x) @ x @ _averages(x.shape[3], columns, x).t()


def _averages(size: int, bins: int, x: Tensor) -> Tensor:
    """Weights (bins, size) of the averages along one axis."""
    options: dict[str, Any] = dict(device=x.device, dtype=x.dtype)
    position = torch.arange(size, **options)
    length = torch.ones_like(position).sum()
    index = torch.arange(bins, **options)[:, None]
    first, end = (index * length / bins).floor(), ((index + 1) * length / bins).ceil()
    inside = ((position >= first) & (position < end)).to(x.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
