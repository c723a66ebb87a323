"""Converts an official SAG checkpoint (PyTorch) to MMEngine's form.

``python tools/model_converters/sag_to_mm.py sag_small.pth sag_small_mm.pth``

A classifier loads the result whole; a detector or segmentor takes the backbone:
``init_cfg=dict(type='Pretrained', checkpoint='sag_small_mm.pth', prefix='backbone.')``. Nothing in
the file is executed: it may contain tensors, plain data and ``argparse.Namespace``.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse

from mmvitattn.checkpoint import read_torch_pickle
from mmvitattn.cli import add_file_arguments, convert_file, one_or_each
from mmvitattn.converters import convert_sag
from mmvitattn.errors import usage_errors_exit
from mmvitattn.models import SAGViT


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_file_arguments(parser, 'sag_small.pth')
    parser.add_argument(
        '--arch', choices=list(SAGViT.arch_zoo), help='default: inferred from the shapes'
    )
    parser.add_argument(
        '--num-heads',
        type=int,
        nargs='+',
        help='attention heads, one number or one for each stage, stored with the weights; needed '
        'for unpublished models whose heads have their own keys and values',
    )
    return parser.parse_args()


def convert(args: argparse.Namespace) -> None:
    """Converts one file and describes it.

    Raises:
        UsageError: if a file or an option cannot be used.
    """
    heads = one_or_each(args.num_heads)
    description = convert_file(
        args, 'SAG', lambda: convert_sag(read_torch_pickle(args.src), args.arch, heads)
    )
    if not isinstance(description['arch'], str) and 'num_heads' not in description['arch']:
        print('the number of attention heads is not in the file: add num_heads to arch')


def main() -> None:
    """Converts the file that the command line names."""
    with usage_errors_exit(ValueError, ImportError, OSError):
        convert(parse_args())


if __name__ == '__main__':
    main()
