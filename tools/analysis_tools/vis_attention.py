"""Pictures of what the attention does: ``vis_attention.py IMAGE CONFIG [CHECKPOINT]``.

LinGlo: the saliency map of each head in each stage. QnA-ViT: the effective weights in the windows
at some positions, for each head of each layer. SAG: what each patch attends to, for each head, and
the shifted variants of the patches around a position. The picture goes through the config's test
pipeline first. Without CHECKPOINT the weights are random.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from tqdm import tqdm

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.cli import add_model_options
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference import media
from mmvitattn.inference.build import build_predictor, check_device, read_config
from mmvitattn.visualization import Scene, draw_attention, has_attention
from mmvitattn.visualization.positions import read_positions, to_network

DPI = 110


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('image', type=Path)
    parser.add_argument('config', help='config of a detector, a segmenter or a classifier')
    parser.add_argument('checkpoint', nargs='?', help='of the model or only of its backbone')
    parser.add_argument(
        '--out-dir', type=Path, default=Path('attention'), help='new or empty; default %(default)s'
    )
    parser.add_argument(
        '--positions',
        nargs='+',
        metavar='X,Y',
        help='centres of windows (QnA-ViT) or of the patch (SAG, the first one) to draw, in pixels '
        'of IMAGE; default some corners',
    )
    add_model_options(parser)
    return parser.parse_args()


def check(args: argparse.Namespace) -> Config:
    """The config, once the other arguments are in order.

    Raises:
        UsageError: if an argument is wrong.
    """
    cfg = read_config(args.config, args.cfg_options)
    media.check_out_dir(args.out_dir)
    if not args.image.is_file():
        raise UsageError(f'there is no picture {args.image}')
    return cfg


def draw(args: argparse.Namespace, cfg: Config) -> Iterator[tuple[str, Figure]]:
    """Names and figures.

    Raises:
        UsageError: if the picture or the checkpoint cannot be used, or a position lies outside.
    """
    image = media.read_image(args.image)
    checkpoint, weights = None, 'random weights'
    if args.checkpoint:
        checkpoint = load_checkpoint(args.checkpoint, args.trust_checkpoint)
        weights = Path(args.checkpoint).name
    given = read_positions(args.positions, *image.shape[1::-1]) if args.positions else []
    torch.manual_seed(0)
    device = check_device(args.device)
    predictor = build_predictor(cfg, checkpoint, args.checkpoint, device, backbone_only=True)
    model = predictor.model
    if not has_attention(model.backbone):
        raise UsageError(f'{args.config}: its backbone is not LinGlo, QnA-ViT or SAG')
    packed = predictor.pack(image)
    scene = Scene(predictor.shown(packed), f'{Path(args.config).stem}, {weights}')
    positions = [to_network(p, packed['data_samples'], scene.picture.shape[:2]) for p in given]
    inputs = model.data_preprocessor(predictor.collate([packed]), False)['inputs']
    try:
        return draw_attention(model.backbone, inputs, scene, positions)
    except ValueError as error:  # e.g. too small for the backbone
        raise UsageError(f'{args.image}: {error}') from None


def main() -> None:
    """Draws what the command line names."""
    args = parse_args()
    logging.disable(logging.WARNING)  # the toolboxes' notes on their registries
    with usage_errors_exit():
        figures = draw(args, check(args))
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if not args.checkpoint:
        print('no checkpoint: the weights are random, the pictures show no trained model')
    for name, figure in tqdm(figures, desc=f'drawing to {args.out_dir}', unit='picture'):
        figure.savefig(args.out_dir / f'{name}.png', dpi=DPI)


if __name__ == '__main__':
    main()
