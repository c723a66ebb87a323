"""Records a new user's first session as docs/first_steps.md.

``python docs/make_first_steps.py PHOTOGRAPH`` runs all commands of the page in an empty folder and
writes the page with their output. PyTorch and the OpenMMLab packages are those of the Python that
runs this script: nothing is downloaded.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(r'\d+%\||it/s|picture/s|file/s')
NOISE = re.compile(r'Warning|warnings\.warn|^Could not import|\[notice\]|^$')

CONFIG = """\
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[124] * 3, std=[58] * 3, size=(128, 128), seg_pad_val=255
    ),
    backbone=dict(type='mmvitattn.LinGlo', arch='b0', out_indices=1),
    decode_head=dict(type='FCNHead', in_channels=64, in_index=0, channels=64, num_classes=12),
    test_cfg=dict(mode='whole'),
)
train_dataloader = test_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root='data/shapes/ade/ADEChallengeData2016',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        reduce_zero_label=True,  # 0 in a mask is ignored
        metainfo=dict(
            classes='circle cross rectangle ring star triangle '
            'bricks checks clouds dots gradient stripes'.split(),
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
"""

PAGE = """\
# First steps

A recorded session that starts in an empty folder with a clone of this repository in `mmvitattn/`.
[make_first_steps.py](make_first_steps.py) ran all commands below in this order; progress bars and
most of the logs are omitted.

## Install

First install PyTorch and torchvision, both from the same index; here they and the OpenMMLab
packages were already installed. The wheel includes the configs and tools.

@WHEEL@

@INSTALL@

`[onedl]` installs the maintained forks of the OpenMMLab packages, `[openmmlab]` the original
packages for torch 2.1; `[export]` adds ONNX. The tools can be run in any folder:

@TOOLS@

## A config of your own

Three statements set the toolbox, the model and the data; nothing is inherited. Save this as
`segmenter.py`:

<!-- file: segmenter.py -->
```python
@CONFIG@
```

## Data

Generate a small data set in the formats of COCO, ADE20K and ImageNet:

@DATA@

## Train

The remaining settings are given on the command line here; usually they are in the config. Training
takes a minute or two on CPUs:

@TRAIN@

## Evaluate

The mean IoU in percent on the validation pictures, low after so short a training; `run/` contains
the config as it was trained:

@TEST@

## Predict

Segment your own photograph, `photo.jpg`:

@INFER@

@RESULT@

`photo.png` shows the classes drawn over the photograph, `photo.labels.png` contains the class of
each pixel, and `photo.json` the area of each class. This segmenter was trained only on generated
shapes; in the photograph, its largest class is @LARGEST@.

## Export

@EXPORT@

Batch size, height and width of the file are dynamic; the table shows the differences from PyTorch
at three sizes.

Next: [detection](detection.md), [segmentation](segmentation.md) and
[classification](classification.md) with real data, or [your own code](embedding.md).
"""


class Session:
    """Runs commands in one folder and keeps them with the last lines that they print.

    Args:
        folder: where they run.
        env: their environment.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def run(self, command: str, lines: int = 4, only: str = '') -> str:
        """The block of a command and its output.

        Args:
            command: for bash.
            lines: how many lines of the output are shown, the last ones.
            only: regular expression; lines without a match are left out.
        """
        shown = command.replace(' \\\n    ', ' ')
        print(f'$ {shown}', flush=True)
        done = subprocess.run(
            ['bash', '-c', f'set -e; {command}'],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
        )
        output = f'{done.stderr}\n{done.stdout}'
        if done.returncode:
            raise SystemExit(f'{output[-4000:]}\nfailed: {command}')
        kept = [
            line.replace(str(self.folder), '~').rstrip()
            for line in re.split(r'[\r\n]+', output)
            if not PROGRESS.search(line) and not NOISE.search(line) and re.search(only, line)
        ]
        return '\n'.join([f'```bash\n{command}\n```', '', '```text', *kept[-lines:], '```'])


def make_environment(folder: Path) -> dict[str, str]:
    """A virtual environment with links to this Python's packages, except this one.

    Packages that are installed in it do not change the originals.
    """
    subprocess.run([sys.executable, '-m', 'venv', folder / '.venv'], check=True)
    packages = folder / '.stack'
    packages.mkdir()
    for site in {str(d.locate_file('')) for d in distributions()}:
        for path in Path(site).iterdir():
            link = packages / path.name
            if 'mmvitattn' not in path.name and path.name != 'pip' and not link.is_symlink():
                link.symlink_to(path)
    (own,) = (folder / '.venv/lib').glob('python*/site-packages')
    for old in (*own.glob('setuptools*'), own / 'pkg_resources', own / '_distutils_hack'):
        shutil.rmtree(old, ignore_errors=True)  # Python 3.11's own, older than torch wants
    (own / 'distutils-precedence.pth').unlink(missing_ok=True)
    (own / 'stack.pth').write_text(f'{packages}\n')
    keep = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    return {
        **keep,
        'PATH': f'{folder}/.venv/bin:{os.environ["PATH"]}',
        'PIP_NO_INDEX': '1',
        'PIP_NO_BUILD_ISOLATION': '0',  # as pip reads it: without isolation
        'PIP_DISABLE_PIP_VERSION_CHECK': '1',
        'PYTHONWARNINGS': 'ignore',
    }


def copy_clone(target: Path) -> None:
    """The files that git knows or would add."""
    listed = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def record(session: Session, num_train: int, epochs: int) -> str:
    """The page."""
    run, folder = session.run, session.folder
    installed = {d.metadata['Name'] for d in distributions()}
    stack = 'onedl' if 'onedl-mmengine' in installed else 'openmmlab'
    blocks = dict(WHEEL=run('pip wheel --no-deps -w dist ./mmvitattn', lines=1))
    (wheel,) = (folder / 'dist').iterdir()
    blocks['INSTALL'] = run(f"pip install 'dist/{wheel.name}[{stack},export]'", lines=1)
    blocks['TOOLS'] = run('mmvitattn', lines=30)
    (folder / 'segmenter.py').write_text(CONFIG)
    blocks['DATA'] = run(f'mmvitattn prepare_data shapes --num-train {num_train}', lines=1)
    blocks['TRAIN'] = run(
        'mmvitattn train segmenter.py --work-dir run --cfg-options \\\n'
        f'    train_cfg.by_epoch=True train_cfg.max_epochs={epochs} \\\n'
        '    optim_wrapper.optimizer.type=AdamW optim_wrapper.optimizer.lr=1e-3 \\\n'
        '    test_cfg.type=TestLoop test_evaluator.type=IoUMetric',
        lines=4,
        only=r'Epoch\(train\)',
    )
    checkpoint = f'run/epoch_{epochs}.pth'
    prefix = 'test_dataloader.dataset.data_prefix'
    blocks['TEST'] = run(
        f'mmvitattn test run/segmenter.py {checkpoint} --cfg-options \\\n'
        f'    {prefix}.img_path=images/validation \\\n'
        f'    {prefix}.seg_map_path=annotations/validation',
        lines=1,
        only='mIoU',
    )
    blocks['INFER'] = run(f'mmvitattn infer segmenter.py {checkpoint} photo.jpg', lines=1)
    blocks['RESULT'] = run('ls predictions', lines=9)
    blocks['EXPORT'] = run(
        f'mmvitattn export_onnx segmenter.py {checkpoint} --out segmenter.onnx', lines=6
    )
    result = json.loads((folder / 'predictions/photo.json').read_text())
    largest = max(result['classes'], key=lambda c: c['share'])
    blocks['LARGEST'] = f'{largest["label"]}, {100 * largest["share"]:.0f} % of the picture'
    blocks['CONFIG'] = CONFIG.rstrip()
    return re.sub(r'@([A-Z]+)@', lambda m: blocks[m[1]], PAGE)


def main() -> None:
    """Records the session."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photograph', type=Path)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/first_steps.md')
    parser.add_argument('--num-train', type=int, default=200)
    parser.add_argument('--epochs', type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_clone(folder / 'mmvitattn')
        shutil.copy(args.photograph, folder / 'photo.jpg')
        session = Session(folder, make_environment(folder))
        args.out.write_text(record(session, args.num_train, args.epochs))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
