"""Training sharded over processes (FSDP2) is that of processes that hold everything."""

import copy
import os
import re
import socket

import pytest
import torch
import torch.distributed.fsdp

from mmvitattn import build_backbone
from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.errors import UsageError
from mmvitattn.models import LinGlo
from mmvitattn.training.sharding import ShardedStrategy

SHARDED, WHOLE = 'configs/demo/linglo_b0_shapes_fsdp.py', 'configs/demo/linglo_b0_shapes.py'
CAN_SHARD = hasattr(torch.distributed.fsdp, 'fully_shard')
needs_fully_shard = pytest.mark.skipif(not CAN_SHARD, reason='this PyTorch has no fully_shard')
LAYER_DECAY = "optim_wrapper.constructor='mmvitattn.LayerDecayOptimWrapperConstructor'"


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def train(run_tool, small_shapes, tmp_path):
    """Trains on processes, two iterations an epoch; returns loss and norm of each step."""

    def run(config, name, epochs, *options, processes=2, status=0, flag=None):
        launcher = ('-m', 'torch.distributed.run', f'--nproc_per_node={processes}')
        done = run_tool(
            'train',
            *(config, '--launcher', 'pytorch', '--work-dir', tmp_path / name),
            *('--data-root', small_shapes / 'imagenet', *([flag] if flag else [])),
            *('--cfg-options', f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=100'),
            'train_dataloader.batch_size=8',
            *('default_hooks.logger.interval=1', 'log_processor.window_size=1', *options),
            env={'OMP_NUM_THREADS': '1'},
            launcher=(*launcher, '--master_addr=127.0.0.1', f'--master_port={free_port()}'),
            status=status,
        )
        log = done.stdout + done.stderr
        steps = re.findall(r'Epoch\(train\).*?(?:grad_norm: (\S+) .*)?loss: (\S+)', log)
        return log, [(float(norm or 0), float(loss)) for norm, loss in steps]

    return run


@pytest.fixture
def last_checkpoint(tmp_path):
    def read(name, epoch):
        return load_checkpoint(tmp_path / name / f'epoch_{epoch}.pth')

    return read


def largest_difference(one, other):
    """Of tensors in nested dicts, relative to their size."""
    assert one.keys() == other.keys()
    found = [0.0]
    for key, value in one.items():
        if isinstance(value, dict):
            found.append(largest_difference(value, other[key]))
        elif isinstance(value, torch.Tensor):
            assert value.shape == other[key].shape and value.dtype == other[key].dtype
            scale = value.abs().max().clamp(min=1e-8)
            found.append(((value - other[key]).abs().max() / scale).item())
    return max(found)


def assert_same_steps(one, other, scalars, tolerance):
    for name in scalars:
        steps = [c['message_hub']['log_scalars'][f'train/{name}'].data[0] for c in (one, other)]
        assert len(steps[0]) == 20 and steps[1] == pytest.approx(steps[0], rel=tolerance), name


@pytest.mark.slow
@needs_fully_shard
def test_sharded_with_layer_decay_and_resumed_is_as_whole(train, last_checkpoint):
    options = (LAYER_DECAY, 'optim_wrapper.paramwise_cfg.decay_rate=0.9')
    train(WHOLE, 'whole', 10, *options)
    train(SHARDED, 'sharded', 4, *options)
    log, _ = train(SHARDED, 'sharded', 10, *options, flag='--resume')
    assert 'resumed epoch: 4' in log
    whole, sharded = last_checkpoint('whole', 10), last_checkpoint('sharded', 10)
    assert_same_steps(whole, sharded, ('loss', 'base_lr'), tolerance=1e-6)
    assert len(whole['state_dict']) > 300 and len(whole['optimizer']['state']) > 100
    weights, others = whole['state_dict'], sharded['state_dict']
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert weights.keys() == others.keys()
    assert largest_difference(whole['optimizer']['state'], sharded['optimizer']['state']) < 1e-6
    assert len({group['lr'] for group in sharded['optimizer']['param_groups']}) > 5


@pytest.mark.slow
@needs_fully_shard
def test_clipped_by_the_norm_over_all_processes(train, last_checkpoint):
    """The norm's last bit depends on the order of its sum; training multiplies the difference."""
    clip = 'optim_wrapper.clip_grad.max_norm=2.0'
    _, steps = train(WHOLE, 'whole', 10, clip)
    assert len(steps) == 20 and min(norm for norm, _ in steps) > 2
    train(SHARDED, 'sharded', 10, clip)
    whole, sharded = last_checkpoint('whole', 10), last_checkpoint('sharded', 10)
    assert_same_steps(whole, sharded, ('loss', 'grad_norm'), tolerance=1e-4)


@pytest.mark.slow
@needs_fully_shard
def test_other_numbers_of_processes_resume(train, last_checkpoint):
    train(SHARDED, 'run', 1)
    log, steps = train(SHARDED, 'run', 2, processes=3, flag='--resume')
    assert 'processes was 2 and is 3' in log and all(loss < 3 for _, loss in steps)
    log, steps = train(WHOLE, 'run', 3, flag='--resume')  # not sharded any more
    assert 'resumed epoch: 2' in log
    state = last_checkpoint('run', 3)['state_dict']
    backbone = LinGlo('b0', out_indices=-1)  # one that knows nothing of processes
    prefix, before = 'backbone.', backbone.stages[0][0].attention.key.weight.clone()
    backbone.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    assert not torch.equal(backbone.stages[0][0].attention.key.weight, before)


@pytest.mark.slow
@needs_fully_shard
def test_in_bfloat16(train, last_checkpoint):
    # Above all norms: the order in which a norm is summed changes the last bits of what is clipped
    # by it, and then other values are rounded up to bfloat16 (clipping is tested in float32).
    clip = 'optim_wrapper.clip_grad.max_norm=1000.0'
    _, expected = train(WHOLE, 'whole', 2, clip, flag='--amp')
    _, steps = train(SHARDED, 'sharded', 2, clip, flag='--amp')
    assert steps[0] == expected[0]
    for (norm, loss), (other_norm, other_loss) in zip(expected, steps, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-3)
        assert other_norm == pytest.approx(norm, rel=1e-2)
    state = last_checkpoint('sharded', 2)['state_dict']
    assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}


@pytest.mark.slow
@needs_fully_shard
def test_a_class_that_the_model_lacks_is_named(train):
    log, _ = train(SHARDED, 'run', 1, 'strategy.units=QnAViTBlock', status=None)
    assert 'the model has no module of class QnAViTBlock' in log


@pytest.mark.slow
@pytest.mark.skipif(CAN_SHARD, reason='this PyTorch shards')
def test_an_old_torch_is_told(train):
    log, _ = train(SHARDED, 'sharded', 1, status=None)
    assert 'sharding needs torch 2.6 or newer; this is 2.1' in log


@needs_fully_shard
@pytest.mark.parametrize(
    ('name', 'unit'),
    [('linglo_b0', 'LinGloBlock'), ('qna_vit_tiny', 'QnAViTBlock'), ('sag_tiny', 'SAGBlock')],
)
def test_blocks_of_every_family_can_be_units(name, unit, tmp_path):
    whole = build_backbone(name, drop_path_rate=0.0)
    sharded, image = copy.deepcopy(whole), torch.randn(2, 3, 64, 70)
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    try:
        with pytest.raises(UsageError, match='the model has no module of class Block$'):
            ShardedStrategy(units=['Block', unit], work_dir=str(tmp_path))._wrap_model(sharded)
        sharded = ShardedStrategy(units=unit, work_dir=str(tmp_path))._wrap_model(sharded)
        for model in (whole, sharded):
            sum(y.square().mean() * i for i, y in enumerate(model(image), 1)).backward()
        gradients = [p.grad.full_tensor() for p in sharded.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    units = [m for m in sharded.modules() if type(m).__name__ == f'FSDP{unit}']
    assert len(units) > 5
    for own, other in zip(whole.parameters(), gradients, strict=True):
        assert (own.grad - other).abs().max() <= 1e-5 * own.grad.abs().max()


def test_one_process_is_refused(tmp_path):
    strategy = ShardedStrategy(units=['LinGloBlock'], work_dir=str(tmp_path))
    with pytest.raises(UsageError, match='several processes'):
        strategy.prepare(torch.nn.Linear(1, 1))


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
