"""Exports backbones and whole models to ONNX, for images of any number and size.

The exporter traces one run. Our own modules take branches that are valid for every size while they
are traced; the few modules of the toolboxes whose trace would hard-code a size are replaced during
the export. The file is then compared with PyTorch at other sizes.
"""

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..models.base import PyramidBackbone

OPSET = 17  # the newest that torch 2.1 writes
TOLERANCE = 1e-4
Shape = tuple[int, int, int, int]


class Exportable(nn.Module):
    """A model with one image as input and named tensors as outputs.

    The outputs are the maps of a backbone, the logits of a classifier or a segmenter (at the size
    of its head), or the raw maps of a single-stage detector's head, level by level.

    Args:
        model: backbone, classifier, segmenter or detector.

    Raises:
        UsageError: for a detector with several stages or with queries.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.eval()  # the wrapper too: the exporter restores the mode of the outermost module
        if _toolbox(model) == 'mmdet':
            from mmdet.models.detectors import SingleStageDetector

            if not isinstance(model, SingleStageDetector):
                raise UsageError(
                    f'{type(model).__name__} cannot be exported: only detectors with one dense '
                    'head can; proposals or queries depend on the image. Export its backbone: '
                    '--backbone-only'
                )

    def named_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """All outputs by name.

        Args:
            image: (B, C, H, W), normalised.
        """
        if isinstance(self.model, PyramidBackbone):
            maps = self.model(image)
            return {f'stage_{i}': y for i, y in zip(self.model.out_indices, maps, strict=True)}
        outputs = self.model(image, mode='tensor')
        if _toolbox(self.model) != 'mmdet':
            return dict(_flatten(outputs, 'logits'))
        names = ['cls_score', 'bbox_pred', *(f'output_{i}' for i in range(2, len(outputs)))]
        pairs = zip(names, outputs, strict=True)
        return {name: y for part, maps in pairs for name, y in _flatten(maps, part)}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs without their names."""
        return tuple(self.named_outputs(image).values())


def _toolbox(model: nn.Module) -> str | None:
    packages = [cls.__module__.partition('.')[0] for cls in type(model).__mro__]
    return next((p for p in packages if p in ('mmdet', 'mmseg', 'mmpretrain')), None)


def _flatten(outputs: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield name, outputs
        return
    for i, part in enumerate(outputs):
        yield from _flatten(part, f'{name}_{i}')


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


def export_onnx(module: Exportable, path: Path, shape: Shape, metadata: Mapping[str, Any]) -> None:
    """Writes the ONNX file; batch, height and width are dynamic.

    Args:
        module: what to export.
        path: the file.
        shape: of the image for the traced run.
        metadata: plain data to write into the file; values are written as JSON.

    Raises:
        UsageError: if PyTorch's exporter cannot express the model.
    """
    import onnx

    image = torch.randn(shape)
    with torch.no_grad():
        outputs = module.named_outputs(image)
    axes = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
    for name, output in outputs.items():
        axes[name] = {0: 'batch'}
        if output.dim() == 4:
            axes[name].update({2: f'{name}_height', 3: f'{name}_width'})
    # The tracing exporter is the same in torch 2.1 and now, and takes seconds where the newer one
    # takes minutes to prove what is valid for all sizes.
    newer = 'dynamo' in inspect.signature(torch.onnx.export).parameters
    options: dict[str, Any] = dict(dynamo=False) if newer else {}
    try:
        with warnings.catch_warnings(), torch.no_grad(), _traceable(module):
            warnings.simplefilter('ignore')  # the comparison reveals hard-coded decisions
            torch.onnx.export(
                module,
                (image,),
                str(path),
                input_names=['image'],
                output_names=list(outputs),
                dynamic_axes=axes,
                opset_version=OPSET,
                **options,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f'PyTorch cannot export this model to ONNX: {reason}') from error
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)


def largest_differences(module: Exportable, path: Path, shapes: Sequence[Shape]) -> list[float]:
    """Compares an ONNX file with PyTorch on random images.

    Args:
        module: what was exported.
        path: the file.
        shapes: of the images.

    Returns:
        For each shape the largest difference, divided by the largest value of the same output.

    Raises:
        UsageError: if onnxruntime cannot run the file, or outputs have other shapes.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    results = []
    try:
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        for shape in shapes:
            image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            actual = session.run(None, {'image': image.numpy()})
            with torch.no_grad():
                expected = module.named_outputs(image)
            pairs = zip(actual, expected.items(), strict=True)
            results.append(max(_difference(n, torch.from_numpy(a), e) for a, (n, e) in pairs))
    except (errors.Fail, errors.InvalidArgument, errors.RuntimeException) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f'onnxruntime cannot run the exported file: {reason}') from error
    return results


def _difference(name: str, actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        raise UsageError(
            f'the exported model returns {name} {tuple(actual.shape)} where PyTorch returns '
            f'{tuple(expected.shape)}: the export has hard-coded a size'
        )
    return ((actual - expected).abs().max() / expected.abs().max()).item()


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
