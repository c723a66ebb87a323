"""Exports a model to ONNX: ``python tools/export_onnx.py CONFIG|NAME [CHECKPOINT]``.

CONFIG is a config file, NAME a backbone of ``mmvitattn.list_backbones()``, e.g. ``linglo_b0``.
Height and width are dynamic, and the batch size except for Mask and Faster R-CNN. The file is
compared with PyTorch at three sizes, including odd ones, before it is moved to its place.

The outputs are final: boxes after non-maximum suppression, label maps, or probabilities. The input
is the normalised image; the file's metadata have the preprocessing and the class names, and
``tools/deploy/run_onnx.py`` runs it on pictures. ``--int8`` writes a quantised file as well.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from mmvitattn import build_backbone
from mmvitattn.checkpoint import load_backbone_weights, load_checkpoint
from mmvitattn.checkpoint.writing import check_destination, written_atomically
from mmvitattn.cli import add_force_argument, add_trust_argument
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference.build import build_model, read_model_config
from mmvitattn.inference.onnx_export import (
    TOLERANCE,
    Exportable,
    check_shapes,
    drop_raw_outputs,
    export_onnx,
    largest_differences,
)
from mmvitattn.inference.onnx_metadata import describe


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
    module, metadata = build(args)
    if not args.checkpoint:
        print('no checkpoint: the weights are random')
    backbone = getattr(module.model, 'backbone', module.model)
    m, channels = getattr(backbone, 'min_size', 32), getattr(backbone, 'in_channels', 3)
    shapes = check_shapes(m, channels)
    with written_atomically(out) as temporary:
        shape = (2, channels, 2 * m + 5, 3 * m + 7)
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


def main() -> None:
    """Exports the model that the command line names."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        export(args)


if __name__ == '__main__':
    main()
