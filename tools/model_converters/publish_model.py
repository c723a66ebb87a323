"""Makes a file to publish: ``python tools/model_converters/publish_model.py SRC DST``.

DST ends in .pth or .safetensors; the first eight digits of its SHA-256 are added to its name, as in
the OpenMMLab toolboxes, and loading compares them. It contains the weights as plain tensors and the
checkpoint's description, with the config's text, as plain data, but not the state of the training.
If the training kept an average of the weights (EMA), the average is published.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.checkpoint.writing import check_destination, plain_data, write_atomically
from mmvitattn.cli import add_force_argument, add_trust_argument
from mmvitattn.errors import UsageError, usage_errors_exit

SUFFIXES = ('.pth', '.safetensors')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='checkpoint of a training run')
    parser.add_argument('dst', type=Path, help='file to write, e.g. linglo-b0.safetensors')
    add_force_argument(parser)
    add_trust_argument(parser)
    return parser.parse_args()


def plain_weights(checkpoint: Mapping, source: str) -> dict[str, Tensor]:
    """Copies the weights to tensors that share no memory.

    Raises:
        UsageError: if there are none.
    """
    # MMEngine's EMA hook writes the average as state_dict, and the weights that the training
    # continues with as ema_state_dict.
    state = checkpoint.get('state_dict', checkpoint)
    weights = {
        name.removeprefix('module.'): tensor.detach().cpu().contiguous().clone()
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    if not weights:
        raise UsageError(f'{source} contains no weights: no state_dict, and no tensors by name')
    return weights


def serialized(weights: dict[str, Tensor], meta: dict[str, Any], suffix: str) -> bytes:
    """Content of the file."""
    if suffix == '.pth':
        buffer = io.BytesIO()
        torch.save(dict(state_dict=weights, meta=meta), buffer)
        return buffer.getvalue()
    try:
        from safetensors.torch import save
    except ImportError:
        raise UsageError(
            'safetensors is missing: pip install "mmvitattn[export]", or write .pth'
        ) from None
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
    return save(weights, {**text, 'format': 'pt'})


def publish(args: argparse.Namespace) -> None:
    """Writes the file and describes it.

    Raises:
        UsageError: if a file cannot be used.
    """
    if args.dst.suffix not in SUFFIXES:
        raise UsageError(f'{args.dst} must end in {" or ".join(SUFFIXES)}')
    check_destination(args.dst, force=True)
    checkpoint = load_checkpoint(args.src, args.trust_checkpoint)
    weights = plain_weights(checkpoint, args.src)
    meta = plain_data(checkpoint.get('meta') or {})
    content = serialized(weights, meta, args.dst.suffix)
    digest = hashlib.sha256(content).hexdigest()
    dst = args.dst.with_name(f'{args.dst.stem}-{digest[:8]}{args.dst.suffix}')
    write_atomically(content, check_destination(dst, args.force))
    average = ', the average (EMA) of those in training' if 'ema_state_dict' in checkpoint else ''
    dropped = sorted(set(checkpoint) - {'state_dict', 'meta'}) if 'state_dict' in checkpoint else []
    print(f'{dst}: {len(weights)} tensors{average}, {len(content) / 1e6:.1f} MB')
    print(f'dropped: {", ".join(dropped) or "nothing"}')
    print(f'for the model index:\n    Weights: URL/{dst.name}\n    SHA256: {digest}')


def main() -> None:
    """Publishes the file that the command line names."""
    with usage_errors_exit():
        publish(parse_args())


if __name__ == '__main__':
    main()
