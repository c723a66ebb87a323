"""Reads mutated files: each gives a clear error or a correct reading, and nothing else happens.

``python tests/campaigns/fuzz.py --count 2000 torch_zip torch_legacy flax safetensors``

Each case runs in a forked process. It fails if it raises anything but a UsageError, crashes, takes
more than 10 s, or more memory than 4 times the file and 1 GB, or writes a file. The seed of a case
is printed with it; ``--first CASE --count 1`` repeats it.
"""

import argparse
import io
import json
import logging
import math
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.logging import MessageHub
from PIL import Image

from mmvitattn.checkpoint import load_backbone_weights, load_checkpoint, read_torch_pickle
from mmvitattn.converters import convert_qna_vit, convert_sag, read_flax_msgpack
from mmvitattn.datasets.layouts import LAYOUTS
from mmvitattn.errors import UsageError
from mmvitattn.inference.media import read_image
from mmvitattn.models import LinGlo

DATA = Path(__file__).resolve().parents[1] / 'data'
SECONDS, MEMORY, AT_ONCE = 10, 2**30, 100
ARCH = dict(channels=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4)
VALUES = [None, True, -1, 0, 10**30, 1e308, math.nan, '', 'x' * 300, '../../up', [], {}, [[[]]]]
WRITES = ('os.rename', 'os.remove', 'os.mkdir', 'os.link', 'os.symlink', 'os.chmod', 'os.truncate')
RUNS = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'socket.connect', 'os.fork')


def mutate(content, rng):
    """Changes some bytes, cuts, repeats or inserts some; often close to text, as in headers."""
    data, places = bytearray(content), text_places(content)
    for _ in range(rng.choice((1, 1, 2, 5, 50))):
        if not data:
            break
        at = rng.randrange(len(data))
        if places and rng.random() < 0.4:
            at = min(max(0, rng.choice(places) + rng.randrange(-12, 24)), len(data) - 1)
        kind, length = rng.randrange(8), rng.choice((1, 2, 4, 8, 64, 4096))
        if kind < 2:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(data), 1 << 30))
            data[at : at + 4] = struct.pack(rng.choice('<>') + 'I', number)
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length]
        elif kind == 6:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        else:
            del data[rng.randrange(len(data)) :]
    return bytes(data)


@cache
def text_places(content):
    return [found.start() for found in re.finditer(rb'[A-Za-z_.]{4,}', content)]


def mutate_pickle(content, rng):
    """Changes the pickle in a zip file of torch, with a correct checksum."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(new, 'w') as archive:
        for name in old.namelist():
            part = old.read(name)
            archive.writestr(name, mutate(part, rng) if name.endswith('data.pkl') else part)
    return new.getvalue()


def mutate_zip(content, rng):
    return (mutate_pickle if rng.random() < 0.5 else mutate)(content, rng)


def mutate_json(content, rng):
    """Changes text or, as often, values."""
    if rng.random() < 0.5:
        return mutate(content, rng)
    root = {'': json.loads(content)}
    for _ in range(rng.choice((1, 1, 3))):
        node, key = root, ''
        while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        value = rng.choice([*VALUES, 'deep'])
        if value == 'deep':
            value = json.loads('[' * 500 + ']' * 500)
        node[key] = value
    return json.dumps(root['']).encode()


def write_torch(zipped):
    torch.manual_seed(0)
    model = LinGlo(ARCH)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    hub = MessageHub(f'fuzz {zipped}')
    hub.update_scalar('train/loss', 1.5)
    meta = dict(epoch=1, iter=8, cfg='model = None', dataset_meta=dict(classes=('a', 'b')))
    buffer = io.BytesIO()
    tree = dict(meta=meta, state_dict=model.state_dict(), message_hub=hub.state_dict())
    tree['optimizer'] = optimizer.state_dict()
    torch.save(tree, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def write_safetensors():
    from safetensors.torch import save

    return save(LinGlo(ARCH).state_dict(), dict(format='pt', classes='["a", "b"]'))


def write_coco():
    images = [dict(id=i, file_name=f'{i}.jpg', width=8, height=8) for i in range(3)]
    annotations = [
        dict(id=i, image_id=i, category_id=1, bbox=[1, 1, 3, 4], area=12, iscrowd=0)
        for i in range(3)
    ]
    tree = dict(images=images, annotations=annotations, categories=[dict(id=1, name='a')])
    return json.dumps(tree).encode()


def write_pictures():
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    pictures = {}
    for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'PPM'):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **(dict(exif=exif) if kind in ('JPEG', 'WEBP') else {}))
        pictures[kind] = buffer.getvalue()
    # 90 million pixels: 270 MB, which Pillow and then OpenCV hold, the latter twice.
    for width, height in ((60_000, 60_000), (9_500, 9_500), (2**31 - 1, 1)):
        pictures[f'PNG {width} x {height}'] = bomb(width, height)
    return pictures


def bomb(width, height):
    """A PNG file that claims a size, and contains as much if that is not too slow to make."""
    rows = zlib.compress(bytes((width * 3 + 1) * height), 1) if width * height < 2e8 else b''
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)), (b'IDAT', rows)]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(part)) + kind + part + struct.pack('>I', zlib.crc32(kind + part))
        for kind, part in (*chunks, (b'IEND', b''))
    )


@cache
def backbone():
    return LinGlo(ARCH)


def load_backbone(path):
    load_backbone_weights(backbone(), load_checkpoint(path), str(path))


def check_coco(path):
    root = path.parent / 'coco'
    for problem in LAYOUTS['coco'].find_problems(root):
        raise UsageError(problem)
    LAYOUTS['coco'].summarize(root)


def check_picture(path):
    image = read_image(path)
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


def name_of_coco(folder):
    """Makes the folders of COCO around the annotation file that is mutated."""
    for part in ('annotations', 'train2017', 'val2017'):
        (folder / 'coco' / part).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        for split in ('train2017', 'val2017'):
            (folder / 'coco' / split / f'{i}.jpg').touch()
    (folder / 'coco/annotations/instances_val2017.json').write_bytes(write_coco())
    return 'coco/annotations/instances_train2017.json'


KINDS = {
    # original files and their readers; how they are mutated; the name of the file
    'torch_zip': (
        lambda: {
            'MMEngine': (write_torch(True), load_backbone),
            'SAG': (
                (DATA / 'sag/checkpoint_mini.pth').read_bytes(),
                lambda path: convert_sag(read_torch_pickle(path)),
            ),
        },
        mutate_zip,
        'weights.pth',
    ),
    'torch_legacy': (
        lambda: {'MMEngine': (write_torch(False), load_backbone)},
        mutate,
        'weights.pth',
    ),
    'flax': (
        lambda: {
            'QnA-ViT': (
                (DATA / 'qna/checkpoint_mini').read_bytes(),
                lambda path: convert_qna_vit(read_flax_msgpack(path)),
            )
        },
        mutate,
        'checkpoint_0',
    ),
    'safetensors': (
        lambda: {'backbone': (write_safetensors(), load_backbone)},
        mutate,
        'weights.safetensors',
    ),
    'coco': (
        lambda: {
            'train': (write_coco(), lambda path: check_coco(path.parents[2] / 'weights')),
        },
        mutate_json,
        name_of_coco,
    ),
    'pictures': (
        lambda: {name: (content, check_picture) for name, content in write_pictures().items()},
        lambda content, rng: content if rng.random() < 0.02 else mutate(content, rng),
        'picture',
    ),
}


class Audit:
    """Notes each file that Python writes, and each process that it starts, while a case runs."""

    def __init__(self):
        self.active, self.found = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if not self.active:
            return
        if event == 'open':
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or '') & set('wax+')
            if writes and path != os.devnull:
                self.found.append(f'opens {path} for writing')
        elif event in WRITES or event in RUNS:
            self.found.append(f'{event} {arguments}')


def memory(key):
    """Bytes that /proc tells of this process."""
    text = Path('/proc/self/status').read_text()
    return int(re.search(rf'{key}:\s+(\d+)', text).group(1)) * 1024


def run_case(content, read, path, audit):
    """Outcome and explanation of one case."""
    path.write_bytes(content)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak of memory
    before, audit.found, audit.active = memory('VmRSS'), [], True
    outcome, text = 'read', ''
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor, which others may use
    signal.alarm(6 * SECONDS)
    try:
        read(path)
    except UsageError as error:
        outcome, text = 'refused', str(error)
    except BaseException as error:
        outcome, text = 'TRACEBACK', repr(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    audit.active = False
    used = memory('VmHWM') - before
    if audit.found:
        return 'WRITES', audit.found[0]
    if used > 4 * len(content) + MEMORY:
        return 'MEMORY', f'{used / 1e6:.0f} MB for {len(content)} bytes; {outcome} {text}'
    return outcome, text


def run_cases(kind, seed, first, last, folder, report):
    """In a process of its own: runs cases one after another, reports each."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.dup2(os.open('errors', os.O_WRONLY | os.O_CREAT), 2)  # what decoders print
    limit = memory('VmSize') + 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    make, change, name = KINDS[kind]
    name = name if isinstance(name, str) else name(folder)
    originals, audit = make(), Audit()
    for source, (content, read) in originals.items():  # also fills caches
        outcome, text = run_case(content, read, folder / name, audit)
        assert outcome == 'read' or (' x ' in source and outcome == 'refused'), (source, text)
    before = set(folder.rglob('*'))
    for case in range(first, last):
        rng = random.Random(f'{kind} {seed} {case}')
        content, read = originals[rng.choice(list(originals))]
        report(case, 'starts', '')
        outcome, text = run_case(change(content, rng), read, folder / name, audit)
        new = set(folder.rglob('*')) - before - {folder / name}
        report(case, 'WRITES' if new else outcome, str(new) if new else text)


def fuzz(kind, count, seed=0, first=0):
    """Runs cases of a kind.

    Returns:
        How many had each outcome, and the failures as text.

    Raises:
        RuntimeError: if something fails outside the cases; an original that cannot be read, say.
    """
    outcomes, failures, end = Counter(), [], first + count
    with tempfile.TemporaryDirectory() as folder:
        while first < end:
            reads, writes = os.pipe()
            child = os.fork()
            if not child:
                try:
                    os.chdir(folder)
                    run_cases(
                        *(kind, seed, first, min(first + AT_ONCE, end), Path(folder)),
                        lambda *line, to=writes: os.write(to, f'{json.dumps(line)}\n'.encode()),
                    )
                except BaseException:
                    os.write(writes, f'{json.dumps((-1, "", traceback.format_exc()))}\n'.encode())
                finally:
                    os._exit(0)
            os.close(writes)
            current, done = first - 1, True
            with os.fdopen(reads) as lines:
                for line in lines:
                    current, outcome, text = json.loads(line)
                    if current < 0:  # not a case: the campaign itself
                        raise RuntimeError(text)
                    done = outcome != 'starts'
                    if done:
                        outcomes[outcome] += 1
                        if outcome.isupper():
                            failures.append(f'{kind} {seed} {current}: {outcome} {text[:300]}')
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if not done or current < first:
                outcome = 'HANG' if status in (-signal.SIGALRM, -signal.SIGPROF) else 'CRASH'
                outcomes[outcome] += 1
                current = max(current, first)
                failures.append(f'{kind} {seed} {current}: {outcome}, status {status}')
            first = current + 1
    return outcomes, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kinds', nargs='*', help=f'of {", ".join(KINDS)}; default: all')
    parser.add_argument('--count', type=int, default=2000)
    parser.add_argument('--first', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    failed = 0
    for kind in args.kinds or KINDS:
        start = time.monotonic()
        outcomes, failures = fuzz(kind, args.count, args.seed, args.first)
        counts = ', '.join(f'{number} {outcome}' for outcome, number in sorted(outcomes.items()))
        print(f'{kind}: {counts} ({time.monotonic() - start:.0f} s)', flush=True)
        print(*failures[:20], sep='\n', end='\n' if failures else '', flush=True)
        failed += len(failures)
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    cv2.setNumThreads(1)
    main()
