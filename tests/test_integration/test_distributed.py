"""Two processes train as one with twice the batch."""

import json
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['mmvitattn', 'mean_loss'])
custom_hooks = [dict(type='RecordMeanLoss', out_file={out_file!r})]
model = dict(backbone=dict(norm_eval=True, frozen_stages=0))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size={batch_size},
    num_workers=0,
    persistent_workers=False,
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.05, weight_decay=0.0))
param_scheduler = []
train_cfg = dict(max_epochs=1, val_interval=2)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def test_losses_equal_one_process_with_twice_the_batch(small_shapes, run_tool, tmp_path, root):
    base = str(root / 'configs/demo/retinanet_linglo_b0_fpn_shapes.py')
    env = {'PYTHONPATH': str(Path(__file__).parent), 'OMP_NUM_THREADS': '1'}
    losses = {}
    for processes, batch_size in ((1, 8), (2, 4)):
        out_file, config = tmp_path / f'{processes}.json', tmp_path / f'config_{processes}.py'
        config.write_text(CONFIG.format(base=base, out_file=str(out_file), batch_size=batch_size))
        arguments = [config, '--work-dir', tmp_path / f'run_{processes}']
        arguments += ['--data-root', small_shapes / 'coco']
        launcher = ()
        if processes > 1:
            launcher = ('-m', 'torch.distributed.run', f'--nproc_per_node={processes}')
            launcher += ('--master_addr=127.0.0.1', f'--master_port={free_port()}')
            arguments += ['--launcher', 'pytorch']
        run_tool('train', *arguments, env=env, launcher=launcher)
        losses[processes] = json.loads(out_file.read_text())
    print('losses of one and of two processes:', losses)
    assert len(losses[1]) == 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert len({round(loss, 4) for loss in losses[1]}) == 4  # it trains
