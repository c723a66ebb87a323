"""Exports a model to ONNX: ``python tools/export_onnx.py CONFIG|NAME [CHECKPOINT]``.

CONFIG is a config file, NAME a backbone of ``mmvitattn.list_backbones()``, e.g. ``linglo_b0``.
Height and width are dynamic, and the batch size except for Mask and Faster R-CNN. The file is
compared with PyTorch at three sizes, including odd ones, before it is moved to its place.

The outputs are final: boxes after non-maximum suppression, label maps, or probabilities. The input
is the normalised image; the file's metadata have the preprocessing and the class names, and
``tools/deploy/run_onnx.py`` runs it on pictures. ``--int8`` writes a quantised file as well.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import logging
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mmvitattn import build_backbone
from mmvitattn.checkpoint import load_backbone_weights, load_checkpoint
from mmvitattn.checkpoint.writing import check_destination, written_atomically
from mmvitattn.cli import add_force_argument, add_trust_argument
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference.build import build_model, read_model_config
from mmvitattn.inference.media import find_inputs
from mmvitattn.inference.onnx_export import (
    TOLERANCE,
    Exportable,
    check_shapes,
    drop_raw_outputs,
    export_onnx,
    largest_differences,
)
from mmvitattn.inference.onnx_metadata import describe, load_runner


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', metavar='CONFIG|NAME', help='config file, or name of a backbone')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint; default: random weights')
    parser.add_argument('--out', type=Path, help='file to write; default: the name with .onnx')
    parser.add_argument(
        '--backbone-only', action='store_true', help="export only a config's backbone"
    )
    parser.add_argument(
        '--training-form',
        action='store_true',
        help="do not fold LinGlo's position encoding into single convolutions",
    )
    parser.add_argument(
        '--exporter',
        choices=['auto', 'dynamo', 'torchscript'],
        default='auto',
        help='of PyTorch; default: dynamo (torch.export) if it is available and succeeds',
    )
    parser.add_argument(
        '--int8',
        type=Path,
        metavar='CALIBRATION_FOLDER',
        help='also write NAME.int8.onnx, quantised with the images of this folder, and compare',
    )
    add_force_argument(parser, '--out')
    add_trust_argument(parser)
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[Exportable, dict[str, Any]]:
    """Builds the model to export and the metadata of the file.

    Raises:
        UsageError: if a name or a file cannot be used.
    """
    checkpoint = args.checkpoint and load_checkpoint(args.checkpoint, args.trust_checkpoint)
    metadata = dict(source=Path(args.model).name, checkpoint=Path(args.checkpoint or '').name)
    if not args.model.endswith('.py'):
        try:
            model = backbone = build_backbone(args.model)
        except ValueError as error:
            raise UsageError(f'{error}; a config ends in .py') from None
        if checkpoint:
            load_backbone_weights(backbone, checkpoint, args.checkpoint)
    else:
        cfg = read_model_config(args.model)
        model = build_model(cfg, checkpoint or None, args.checkpoint or '')
        backbone = model.backbone
    if not args.training_form and hasattr(backbone, 'switch_to_deploy'):
        backbone.switch_to_deploy()
    module = Exportable(backbone if args.backbone_only else model)
    if model is not backbone:
        metadata.update(describe(cfg, module, checkpoint))
    return module, metadata


def export(args: argparse.Namespace) -> None:
    """Writes the file, or nothing if there is an error.

    Raises:
        UsageError: if something cannot be used or exported, or PyTorch and onnxruntime disagree.
    """
    out = check_destination(args.out or Path(f'{Path(args.model).stem}.onnx'), args.force)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UsageError(f'{error.name} is missing: pip install "mmvitattn[export]"') from None
    if args.int8 and (args.backbone_only or not args.model.endswith('.py')):
        raise UsageError('--int8 needs a whole model: a config without --backbone-only')
    if args.int8:
        check_destination(int8_path(out), args.force)
        find_inputs([args.int8])
    module, metadata = build(args)
    if not args.checkpoint:
        print('no checkpoint: the weights are random')
    backbone = getattr(module.model, 'backbone', module.model)
    m, channels = getattr(backbone, 'min_size', 32), getattr(backbone, 'in_channels', 3)
    shapes = check_shapes(m, channels)
    with written_atomically(out) as temporary:
        shape = (2, channels, 2 * m + 5, 3 * m + 7)
        print('exporting, which can take minutes', flush=True)
        print('exporter:', export_onnx(module, temporary, shape, metadata, args.exporter))
        differences = largest_differences(module, temporary, shapes)
        print('batch x height x width   largest difference / largest output')
        for (batch, _, height, width), difference in zip(shapes, differences, strict=True):
            print(f'{f"{batch} x {height} x {width}":<24} {difference:.1e}')
        if not max(differences) <= TOLERANCE:  # also where one is NaN
            raise UsageError(
                f'PyTorch and onnxruntime differ by more than {TOLERANCE:g}; nothing is written'
            )
        drop_raw_outputs(temporary)
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB')
    if args.int8:
        export_int8(args, out)


def export_int8(args: argparse.Namespace, path: Path) -> None:
    """Quantises the file and prints metric, size and latency of both.

    Raises:
        UsageError: if the folder has no images.
    """
    from mmvitattn.inference import onnx_quantize

    runner = load_runner()
    out = int8_path(path)
    with written_atomically(out) as temporary:
        inputs = onnx_quantize.calibration_inputs(args.int8, runner.Model(path))
        kept = onnx_quantize.quantise(path, temporary, inputs)
    cfg = read_model_config(args.model)
    print(f'{len(inputs)} images for calibration; in float32 remain:')
    for reason, nodes in kept.items():
        if nodes:
            print(f'  {len(nodes)} x {reason}')
    print(f'{"file":<40} {"metric":>22} {"MB":>8} {"ms":>8}')
    models = [runner.Model(file, threads=1) for file in (path, out)]
    speeds = onnx_quantize.latencies(models, inputs)
    for file, model, speed in zip((path, out), models, speeds, strict=True):
        try:
            with redirect_stdout(StringIO()):
                metric = '{} {:.4f}'.format(*onnx_quantize.evaluate(cfg, model))
        except FileNotFoundError:
            metric = 'no test data here'
        size = file.stat().st_size / 1e6
        print(f'{file.name:<40} {metric:>22} {size:8.1f} {speed:8.1f}')


def int8_path(path: Path) -> Path:
    """Name of the quantised file."""
    return path.with_suffix('.int8.onnx')


def main() -> None:
    """Exports the model that the command line names."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        export(args)


if __name__ == '__main__':
    main()
