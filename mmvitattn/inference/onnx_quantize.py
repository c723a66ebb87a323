"""8-bit ONNX files by onnxruntime's static quantisation, and their comparison with float32.

Weights are quantised per channel, activations per tensor with the ranges that a folder of images
shows; the file has pairs of QuantizeLinear and DequantizeLinear around each quantised operation.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData

from ..errors import UnreadableError, UsageError
from . import media

QUANTISED = ('Conv', 'Gemm', 'MatMul')
HEADLINE = ('coco/bbox_mAP', 'mIoU', 'accuracy/top1')
MAX_CALIBRATION = 100  # images
RUNS = 20  # of each file for its latency


def calibration_inputs(folder: Path, model: Any) -> list[np.ndarray]:
    """The network's inputs for the images of a folder.

    Args:
        folder: with images; the first ``MAX_CALIBRATION`` of an even selection are used.
        model: ``Model`` of ``run_onnx.py``.

    Raises:
        UsageError: if it has no images that can be read.
    """
    files = [file for file in media.find_inputs([folder]) if not media.is_video(file)]
    inputs = []
    for file in files[:: max(1, len(files) // MAX_CALIBRATION)][:MAX_CALIBRATION]:
        try:
            inputs.append(model.preprocess(media.read_image(file)))
        except (UnreadableError, ValueError) as error:
            print(f'not used for calibration: {error}')
    if not inputs:
        raise UsageError(f'--int8 {folder}: there are no images that can be read')
    return inputs


def quantise(path: Path, out: Path, inputs: Sequence[np.ndarray]) -> dict[str, list[str]]:
    """Writes a file whose convolutions and linear layers compute with 8 bits.

    Args:
        path: the float32 file.
        out: the file to write.
        inputs: for the ranges of the activations.

    Returns:
        The convolutions and matrix products that stay in float32, by reason.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.remaining, None)
            return None if image is None else {'image': image}

    with TemporaryDirectory() as folder:
        plain, prepared = Path(folder) / 'plain.onnx', Path(folder) / 'prepared.onnx'
        onnx.save(without_choice(onnx.load(path)), plain)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        kept = float_nodes(onnx.load(prepared).graph)
        quantize_static(
            str(prepared),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # without this, CPUs that lack VNNI instructions overflow
            reduce_range=True,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=[name for names in kept.values() for name in names],
        )
    model, source = onnx.load(out), onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    onnx.save(model, out)
    return kept


def float_nodes(graph: Any) -> dict[str, list[str]]:
    """Convolutions and matrix products that are not quantised, by reason."""
    constants = {tensor.name for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    constants |= {name for name, node in producers.items() if node.op_type == 'Constant'}
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    kept: dict[str, list[str]] = {
        'product of two activations (attention)': [],
        'last layer: logits and box offsets need more than 8 bits': [],
    }
    activations, last = kept.values()
    for node in (node for node in graph.node if node.op_type in QUANTISED):
        if not set(node.input[1:2]) & constants:
            activations.append(node.name)
        elif not _reaches(node, consumers):
            last.append(node.name)
    return kept


def without_choice(model: Any) -> Any:
    """Replaces each ``If`` before convolutions by its other branch, in place.

    onnxruntime can neither quantise nor optimise around the choice that QnA-ViT's files contain
    (:mod:`mmvitattn.ops.learned_query.conditional`).

    Args:
        model: ONNX model.

    Returns:
        The model.
    """
    import onnx

    nodes = []
    for node in model.graph.node:
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        if node.op_type != 'If' or all(n.op_type != 'Conv' for n in branches['then_branch'].node):
            nodes.append(node)
            continue
        branch = branches['else_branch']
        model.graph.initializer.extend(branch.initializer)
        nodes.extend(branch.node)
        nodes.extend(
            onnx.helper.make_node('Identity', [inner.name], [outer], f'{node.name}_{outer}')
            for inner, outer in zip(branch.output, node.output, strict=True)
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _reaches(node: Any, consumers: dict[str, list[Any]]) -> bool:
    """Whether another quantised operation follows."""
    waiting, seen = [node], set()
    while waiting:
        for output in waiting.pop().output:
            for follower in consumers.get(output, ()):
                if follower.op_type in QUANTISED:
                    return True
                if follower.name not in seen:
                    seen.add(follower.name)
                    waiting.append(follower)
    return False


def latencies(models: Sequence[Any], inputs: Sequence[np.ndarray]) -> list[float]:
    """Median times of one image in milliseconds, without preprocessing; the models take turns."""
    times = np.zeros((RUNS + 2, len(models)))
    for i, k in np.ndindex(times.shape):
        start = time.perf_counter()
        models[k].session.run(None, {'image': inputs[i % len(inputs)]})
        times[i, k] = 1000 * (time.perf_counter() - start)
    return np.median(times[2:], axis=0).tolist()


def evaluate(cfg: Config, model: Any) -> tuple[str, float]:
    """Metric of an ONNX file on the config's test data.

    Args:
        cfg: the config.
        model: ``Model`` of ``run_onnx.py``.

    Returns:
        Name and value of the metric.

    Raises:
        FileNotFoundError: if the data is missing.
    """
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for data in dataset:
        sample = data['data_samples']
        if sample.get('img_path'):
            image = media.read_image(sample.img_path)
        else:  # CIFAR: RGB
            image = np.ascontiguousarray(data['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
        found = {key: torch.from_numpy(np.array(y)) for key, y in model.predict(image).items()}
        if 'label_map' in found:
            sample.pred_sem_seg = PixelData(data=found['label_map'][None].long())
        elif 'probabilities' in found:
            sample.set_pred_score(found['probabilities'])
        else:
            found['bboxes'] = found.pop('boxes')
            sample.pred_instances = InstanceData(**found)
        evaluator.process([sample])
    metrics = evaluator.evaluate(len(dataset))
    name = next((key for key in HEADLINE if key in metrics), next(iter(metrics)))
    return name, metrics[name]
