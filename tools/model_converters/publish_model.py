"""Makes a file to publish: ``python tools/model_converters/publish_model.py SRC DST``.

DST ends in .pth or .safetensors; the first eight digits of its SHA-256 are added to its name, as in
the OpenMMLab toolboxes, and loading compares them. It contains the weights as plain tensors and the
checkpoint's description, with the config's text, as plain data, but not the state of the training
and the paths of its machine.
If the training kept an average of the weights (EMA), the average is published.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.checkpoint.writing import check_destination, plain_data, write_atomically
from mmvitattn.cli import add_force_argument, add_trust_argument
from mmvitattn.errors import UsageError, usage_errors_exit

SUFFIXES = ('.pth', '.safetensors')
PATHS = re.compile(r'^(load_from|resume|work_dir) = .*\n', re.MULTILINE)  # in a config's text


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='checkpoint of a training run')
    parser.add_argument('dst', type=Path, help='file to write, e.g. linglo-b0.safetensors')
    parser.add_argument('--half', action='store_true', help='write float16 in place of float32')
    add_force_argument(parser)
    add_trust_argument(parser)
    return parser.parse_args()


def plain_weights(checkpoint: Mapping, source: str, half: bool = False) -> dict[str, Tensor]:
    """Copies the weights to tensors that share no memory.

    Args:
        checkpoint: content of the file.
        source: name of the file, for the message.
        half: round those of float32 to float16.

    Raises:
        UsageError: if there are none, or some are too large for float16.
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
    if half:
        floats = [name for name, weight in weights.items() if weight.dtype == torch.float32]
        weights.update((name, weights[name].half()) for name in floats)
        too_large = [name for name in floats if not weights[name].isfinite().all()]
        if too_large:
            raise UsageError(f'--half: values of {too_large[0]} are too large for float16')
    return weights


def serialized(weights: dict[str, Tensor], meta: dict[str, Any], suffix: str) -> bytes:
    """Content of the file."""
    if suffix == '.pth':
        buffer = io.BytesIO()
        torch.save(dict(state_dict=weights, meta=meta), buffer)
        return buffer.getvalue()
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
    weights = plain_weights(checkpoint, args.src, args.half)
    meta = plain_data(checkpoint.get('meta') or {})
    if isinstance(meta.get('cfg'), str):
        meta['cfg'] = PATHS.sub('', meta['cfg'])
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
