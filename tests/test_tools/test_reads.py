"""The tools read every checkpoint once, and keep none of them."""

import json
import os
import subprocess
import sys

import pytest
import torch

# Runs a tool; then prints the files that were read, and how many of their dicts are still in use.
COUNTED = """
import gc, json, runpy, sys, weakref
import torch

class Content(dict):
    pass

load, names, contents = torch.load, [], []

def counted(path, *arguments, **options):
    content = Content(load(path, *arguments, **options))
    names.append(str(path))
    contents.append(weakref.ref(content))
    return content

torch.load = counted
sys.argv = sys.argv[1:]
sys.path.insert(0, 'tools')
runpy.run_path(sys.argv[0], run_name='__main__')
gc.collect()
print(json.dumps([names, sum(content() is not None for content in contents)]))
"""


@pytest.fixture
def reads_of(root, small_shapes, tmp_path):
    """Runs a tool on small data; returns the names of the files that it read."""

    def run(tool, *arguments):
        command = [sys.executable, '-c', COUNTED, f'tools/{tool}.py', *map(str, arguments)]
        command += ['--data-root', str(small_shapes / 'imagenet'), '--work-dir', str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ)
        assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
        names, in_use = json.loads(done.stdout.splitlines()[-1])
        assert in_use == 0
        return sorted(os.path.basename(name) for name in names)

    return run


@pytest.mark.slow
def test_evaluation(reads_of, tiny_config, tiny_checkpoint):
    config = tiny_config('classifier')
    checkpoint, _ = tiny_checkpoint(config)
    assert reads_of('test', config, checkpoint) == ['weights.pth']


@pytest.mark.slow
def test_training_and_resuming(reads_of, tiny_config, tiny_checkpoint, tmp_path):
    weights, model = tiny_checkpoint(tiny_config('classifier'))
    torch.save(model.backbone.state_dict(), tmp_path / 'backbone.pth')
    config = tiny_config(
        'classifier', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))
    )
    # MMEngine ignores the backbone's weights where those of the whole model are given.
    with config.open('a') as file:
        file.write(f"model['init_cfg'] = dict(type='Pretrained', checkpoint={str(weights)!r})\n")
    epochs = ('--cfg-options', 'train_cfg.max_epochs={}')
    assert reads_of('train', config, epochs[0], epochs[1].format(1)) == [
        'backbone.pth',
        'weights.pth',
    ]
    resumed = reads_of('train', config, '--resume', epochs[0], epochs[1].format(2))
    assert resumed == ['epoch_1.pth'] and (tmp_path / 'epoch_2.pth').is_file()
