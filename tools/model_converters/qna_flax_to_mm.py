"""Converts an official QnA-ViT checkpoint (JAX/Flax msgpack) to MMEngine's form.

``python tools/model_converters/qna_flax_to_mm.py checkpoint_0 qna_vit_tiny.pth``

A classifier loads the result whole; a detector or segmentor takes the backbone:
``init_cfg=dict(type='Pretrained', checkpoint='qna_vit_tiny.pth', prefix='backbone.')``. The tool
prints the options of the backbone, and the neck, that a classifier's config needs. Needs
msgpack: ``pip install "mmvitattn[convert]"``.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse

from mmvitattn.cli import Converted, add_file_arguments, convert_file, one_or_each
from mmvitattn.converters import convert_qna_vit, read_flax_msgpack
from mmvitattn.converters.qna_vit_settings import read_official_config
from mmvitattn.errors import usage_errors_exit
from mmvitattn.models import QnAViT


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_file_arguments(parser, 'checkpoint_0')
    parser.add_argument(
        '--arch', choices=list(QnAViT.arch_zoo), help='default: inferred from the shapes'
    )
    parser.add_argument(
        '--window',
        type=int,
        nargs='+',
        help='new window sizes of window self-attention, one or one for each stage; bias tables '
        'are resized. Set the same window_sizes in the backbone',
    )
    parser.add_argument(
        '--kernel-size',
        type=int,
        nargs='+',
        help='the same for learned-query attention and kernel_sizes',
    )
    parser.add_argument(
        '--config',
        metavar='FILE.json',
        help="the release's model configuration, if the file does not determine the model; "
        'replaces --arch',
    )
    return parser.parse_args()


def convert(args: argparse.Namespace) -> None:
    """Converts one file and describes it.

    Raises:
        UsageError: if a file or an option cannot be used.
    """
    window, kernel_size = one_or_each(args.window), one_or_each(args.kernel_size)

    def converted() -> Converted:
        config = None if args.config is None else read_official_config(args.config)
        checkpoint = read_flax_msgpack(args.src)
        return convert_qna_vit(checkpoint, args.arch, window, kernel_size, config)

    description = convert_file(args, 'QnA-ViT', converted)
    for part in ('backbone', 'neck'):
        print(f'{part} = {description[part]}')


def main() -> None:
    """Converts the file that the command line names."""
    with usage_errors_exit(ValueError, ImportError, OSError):
        convert(parse_args())


if __name__ == '__main__':
    main()
