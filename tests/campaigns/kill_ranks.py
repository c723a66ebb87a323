"""Kills processes of a distributed training; it restarts, resumes, and ends as one left alone.

``python tests/campaigns/kill_ranks.py --kills 10``

``tools/dist_train.sh`` trains a tiny classifier on two CPU processes. Each time that the run has
written a new checkpoint, one of the two gets SIGKILL after a random time of up to two seconds.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.datasets.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = {base!r}
arch = dict(channels=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 2, 2), ffn_ratios=(2,) * 4)
backbone = dict(_delete_=True, type='mmvitattn.LinGlo', arch=arch, out_indices=-1)
model = dict(backbone=backbone, head=dict(in_channels=32))
train_dataloader = dict(batch_size=4, num_workers=1)
train_cfg = dict(max_epochs={epochs}, val_interval=1000)
"""


def start(config, work_dir, data, restarts):
    """Starts a run; returns the process of torchrun, whose output goes to a file."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = str(listener.getsockname()[1])
    env = dict(os.environ, PYTHON=sys.executable, PORT=port, MAX_RESTARTS=str(restarts))
    env |= dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    command = [str(ROOT / 'tools/dist_train.sh'), str(config), '2', '--work-dir', str(work_dir)]
    with Path(f'{work_dir}.log').open('wb') as log:
        return subprocess.Popen(
            [*command, '--data-root', str(data)], env=env, stdout=log, stderr=log, cwd=ROOT
        )


def ranks(torchrun):
    """The processes that torchrun has started."""
    children = Path(f'/proc/{torchrun.pid}/task/{torchrun.pid}/children')
    return [int(pid) for pid in children.read_text().split()]


def tensors(tree, name=''):
    """Every tensor in dicts and lists, by its place."""
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    parts = (
        tensors(v, f'{name}.{k}') for k, v in items if isinstance(v, dict | list | torch.Tensor)
    )
    return {key: value for part in parts for key, value in part.items()}


def kill_ranks(folder, kills, epochs, seed=0, timeout=1500):
    """Trains once undisturbed and once with kills.

    Returns:
        The number of kills, of compared tensors, and the names of those that differ.
    """
    config, data = folder / 'tiny.py', write_shapes(folder / 'shapes', num_train=32, num_val=8)
    base = str(ROOT / 'configs/demo/linglo_b0_shapes.py')
    config.write_text(CONFIG.format(base=base, epochs=epochs))
    whole = start(config, folder / 'whole', data / 'imagenet', 0)
    assert whole.wait(timeout) == 0, (folder / 'whole.log').read_text()[-4000:]
    rng, killed, last = random.Random(seed), 0, folder / 'killed' / 'last_checkpoint'
    run, seen, deadline = start(config, folder / 'killed', data / 'imagenet', kills), 0, 0
    deadline = time.monotonic() + timeout
    while run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        if killed < kills and last.exists() and last.stat().st_mtime_ns > seen:
            time.sleep(rng.uniform(0, 2))
            alive = ranks(run)
            if len(alive) == 2:
                victim = rng.randrange(2)
                os.kill(alive[victim], 9)
                killed += 1
                print(f'kill {killed}: rank {victim} after {last.read_text()}', flush=True)
            while alive and set(alive) & set(ranks(run)) and run.poll() is None:
                time.sleep(0.02)
            seen = last.stat().st_mtime_ns
    log = (folder / 'killed.log').read_text()
    assert run.wait(1) == 0, log[-4000:]
    ends = [
        load_checkpoint((folder / name / 'last_checkpoint').read_text())
        for name in ('whole', 'killed')
    ]
    first, second = (
        tensors({key: end[key] for key in ('state_dict', 'optimizer')}) for end in ends
    )
    assert first.keys() == second.keys()
    return killed, len(first), [n for n in first if not torch.equal(first[n], second[n])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--epochs', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killed, compared, differing = kill_ranks(Path(folder), args.kills, args.epochs, args.seed)
    print(f'{killed} kills; {compared - len(differing)} of {compared} tensors bit-identical')
    sys.exit(killed < args.kills or bool(differing))


if __name__ == '__main__':
    main()
