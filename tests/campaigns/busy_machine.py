"""Seconds per training step on a quiet and on a busy machine, with the tools' settings on and off.

Usage: ``python tests/campaigns/busy_machine.py [--seconds 45]``, on a machine with nothing else to
do and the embedded data set in ``data/shapes``. Prints a table; see docs/speed.md, "Busy machines".
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/demo/retinanet_linglo_b0_fpn_shapes.py'
STEP = re.compile(r'Epoch\(train\).* time: ([\d.]+)')
LOADS = {'quiet': (1, 0), 'beside a busy process': (1, 1), 'two trainings': (2, 0)}


def train(folder: Path, settings: str) -> subprocess.Popen:
    """Starts a training that logs each step."""
    options = ['default_hooks.logger.interval=1', 'log_processor.window_size=1']
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(folder)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(('OMP_', 'MALLOC_'))}
    return subprocess.Popen(
        [*command, '--cfg-options', *options],
        **dict(cwd=ROOT, env=env | {'MMVITATTN_PROCESS_SETTINGS': settings}),
        **dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
    )


def measure(settings: str, trainings: int, busy: int, seconds: float) -> float:
    """Median seconds of a step, without the first three of each training."""
    with tempfile.TemporaryDirectory() as folder:
        others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(busy)]
        runs = [train(Path(folder, str(i)), settings) for i in range(trainings)]
        time.sleep(seconds)
        for process in runs + others:
            process.kill()
        logs = [run.communicate()[0] for run in runs]
        time.sleep(2)  # workers end with their pipe
    steps = [s for log in logs for s in list(map(float, STEP.findall(log)))[3:]]
    if not steps:
        raise SystemExit(f'No training reached step 4 in {seconds:g} s:\n{logs[0][-2000:]}')
    return statistics.median(steps)


def main() -> None:
    """Measures all loads with both settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=45)
    args = parser.parse_args()
    if not (ROOT / 'data/shapes').is_dir():
        parser.error(f'{ROOT}/data/shapes is missing: run python tools/prepare_data.py shapes')
    print('| settings | ' + ' | '.join(LOADS) + ' |')
    print('|---|' + '---|' * len(LOADS))
    for settings in ('off', 'on'):
        times = [measure(settings, *load, args.seconds) for load in LOADS.values()]
        cells = [f'{t:.3f} s ({t / times[0]:.2f} x)' for t in times]
        print(f'| {settings} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
