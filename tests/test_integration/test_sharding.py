"""Training with everything sharded over two processes (FSDP) is that of two that hold it whole."""

import inspect
import os
import socket

import pytest
import torch

from mmvitattn.engine.checkpoints import load_checkpoint
from mmvitattn.engine.errors import UsageError
from mmvitattn.engine.sharding import ShardedStrategy, wrap_classes
from mmvitattn.models import LinGlo

SHARDED, WHOLE = 'configs/demo/linglo_b0_shapes_fsdp.py', 'configs/demo/linglo_b0_shapes.py'
ON_CPU = 'priority' in inspect.signature(torch.cpu.Stream.__init__).parameters


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def train(run_tool, small_shapes, tmp_path):
    """Trains on two processes, of two iterations an epoch."""
    launcher = ('-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_addr=127.0.0.1')

    def run(config, name, epochs, *options, status=0):
        return run_tool(
            'train',
            *(config, '--launcher', 'pytorch', '--work-dir', tmp_path / name, *options),
            *('--data-root', small_shapes / 'imagenet'),
            *('--cfg-options', f'train_cfg.max_epochs={epochs}', 'train_dataloader.batch_size=8'),
            env={'OMP_NUM_THREADS': '1'},
            launcher=(*launcher, f'--master_port={free_port()}'),
            status=status,
        )

    return run


@pytest.mark.slow
@pytest.mark.skipif(not ON_CPU, reason='this PyTorch shards on GPUs alone')
def test_sharded_and_resumed_is_as_whole_and_uninterrupted(train, tmp_path):
    train(WHOLE, 'whole', 2)
    train(SHARDED, 'sharded', 1)
    log = train(SHARDED, 'sharded', 2, '--resume')
    assert 'resumed epoch: 1' in log.stdout + log.stderr
    whole, sharded = (
        load_checkpoint(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'sharded')
    )
    weights, others = whole['state_dict'], sharded['state_dict']
    assert weights.keys() == others.keys() and len(weights) > 300
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    moments = [c['optimizer']['state'].values() for c in (whole, sharded)]
    sums = [sorted(m['exp_avg'].abs().sum().item() for m in states) for states in moments]
    assert sums[0] == pytest.approx(sums[1]) and len(sums[0]) > 100
    rates = [c['message_hub']['log_scalars']['train/base_lr'].data[0] for c in (whole, sharded)]
    assert rates[0].tolist() == rates[1].tolist()

    backbone = LinGlo('b0', out_indices=-1)  # one that knows nothing of processes
    prefix = 'backbone.'
    state = {k.removeprefix(prefix): v for k, v in others.items() if k.startswith(prefix)}
    before = backbone.stages[0][0].attention.key.weight.clone()
    backbone.load_state_dict(state)
    assert not torch.equal(backbone.stages[0][0].attention.key.weight, before)


@pytest.mark.slow
@pytest.mark.skipif(ON_CPU, reason='this PyTorch shards on CPUs')
def test_without_gpu_an_old_torch_is_told(train):
    done = train(SHARDED, 'sharded', 1, status=None)
    assert done.returncode != 0 and 'shards on GPUs alone' in done.stderr
    assert 'TypeError' not in done.stderr


def test_one_process_is_refused(tmp_path):
    strategy = ShardedStrategy(units=['LinGloBlock'], work_dir=str(tmp_path))
    with pytest.raises(UsageError, match='several processes'):
        strategy.prepare({})


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        (dict(clip_grad=dict(max_norm=5.0)), "clip_grad={'max_norm': 5.0}.*set it to None"),
        (dict(constructor='mmvitattn.LayerDecayOptimWrapperConstructor'), 'leave it out'),
    ],
)
def test_what_sharding_would_falsify_is_refused(setting, message, tmp_path):
    if torch.cuda.is_available() or not ON_CPU:
        pytest.skip('needs a PyTorch that shards on CPUs')
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    try:
        strategy = ShardedStrategy(units=['LinGloBlock'], work_dir=str(tmp_path))
        with pytest.raises(UsageError, match=message):
            strategy.prepare({}, optim_wrapper=setting)
    finally:
        torch.distributed.destroy_process_group()


def test_units_are_the_blocks():
    backbone = LinGlo('b0')
    units = [m for m in backbone.modules() if wrap_classes(m, False, 0, names={'LinGloBlock'})]
    assert units == [block for stage in backbone.stages for block in stage]
    assert all(wrap_classes(m, True, 0, names=()) for m in backbone.modules())


def test_tensors_with_attributes_are_read(tmp_path):
    """FSDP leaves some; a file that names another class in their place is refused."""
    tensor = torch.arange(4.0)
    tensor.mark = True
    torch.save(dict(state_dict=dict(weight=tensor)), tmp_path / 'good.pth')
    read = load_checkpoint(tmp_path / 'good.pth')['state_dict']['weight']
    assert read.tolist() == [0, 1, 2, 3] and not hasattr(read, 'mark')

    class Rebuilt:
        def __reduce__(self):
            rebuild = torch._tensor._rebuild_from_type_v2
            return rebuild, (os.system, torch.Tensor, (f'touch {tmp_path}/run',), {})

    torch.save(dict(state_dict=Rebuilt()), tmp_path / 'bad.pth')
    with pytest.raises(UsageError, match='refused'):
        load_checkpoint(tmp_path / 'bad.pth')
    assert not (tmp_path / 'run').exists()
