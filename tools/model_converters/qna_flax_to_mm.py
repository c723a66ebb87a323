"""Converts an official QnA-ViT checkpoint (JAX/Flax msgpack) to MMEngine's form.

``python tools/model_converters/qna_flax_to_mm.py checkpoint_0 qna_vit_tiny.pth``

A classifier loads the result whole; a detector or segmentor takes the backbone:
``init_cfg=dict(type='Pretrained', checkpoint='qna_vit_tiny.pth', prefix='backbone.')``. Needs
msgpack: ``pip install "mmvitattn[convert]"``.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from mmvitattn.converters import convert_qna_vit, read_flax_msgpack
from mmvitattn.engine.errors import UsageError, usage_errors_exit
from mmvitattn.models import QnAViT


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', help='released checkpoint, e.g. checkpoint_0')
    parser.add_argument('dst', help='file to write, e.g. qna_vit_tiny.pth')
    parser.add_argument(
        '--arch', choices=list(QnAViT.arch_zoo), help='default: told by the shapes in the file'
    )
    parser.add_argument(
        '--window',
        type=int,
        nargs='+',
        help='new window sides of window self-attention, one or one a stage; bias tables are '
        'resized. Give the backbone the same window_sizes',
    )
    parser.add_argument(
        '--kernel-size',
        type=int,
        nargs='+',
        help='the same for learned-query attention and kernel_sizes',
    )
    parser.add_argument('--force', action='store_true', help='overwrite an existing DST')
    return parser.parse_args()


def save_atomically(checkpoint: dict, dst: Path) -> None:
    """Writes beside ``dst`` and renames: ``dst`` is never half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f'.{dst.name}.', dir=dst.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            torch.save(checkpoint, file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, dst)
    except BaseException:
        os.unlink(temporary)
        raise


def convert(args: argparse.Namespace) -> None:
    """Converts one file and says what it held.

    Raises:
        UsageError: if a file or an option cannot be used.
    """
    dst = Path(args.dst)
    if dst.exists() and not args.force:
        raise UsageError(f'{dst} exists; remove it, or overwrite it with --force')
    if dst.is_dir() or not dst.parent.is_dir():
        raise UsageError(f'{dst} cannot be written: it is a folder, or its folder is missing')
    # One number stands for all stages.
    window, kernel_size = (
        sizes[0] if sizes is not None and len(sizes) == 1 else sizes
        for sizes in (args.window, args.kernel_size)
    )
    try:
        source = read_flax_msgpack(args.src)
        state_dict, description = convert_qna_vit(source, args.arch, window, kernel_size)
        meta = dict(description, source=Path(args.src).name)
        save_atomically(dict(state_dict=state_dict, meta=meta), dst)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(str(error)) from None
    print(f'{dst}: {len(state_dict)} parameters of QnA-ViT {description["arch"]}')
    print(f'dropped: {", ".join(description["dropped"]) or "nothing"}')


def main() -> None:
    """Converts the file that the command line names."""
    with usage_errors_exit():
        convert(parse_args())


if __name__ == '__main__':
    main()
