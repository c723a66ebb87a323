"""The checkpoint hook's order of writing and removing, and its estimate of the space needed."""

from types import SimpleNamespace

import pytest
from torch import nn

from mmvitattn.training import checkpoint_hook
from mmvitattn.training.checkpoint_hook import SafeCheckpointHook


@pytest.fixture
def run(tmp_path):
    """The part of a runner that the hook uses; ``save_checkpoint`` writes an empty file."""
    warnings = []
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        model=nn.Linear(1000, 1000, bias=False),  # 4 MB, with Adam's moments 12 MB
        hooks=[],
        epoch=0,
        iter=0,
        max_epochs=5,
        train_loop=None,
        val_loop=None,
        message_hub=SimpleNamespace(runtime_info={}, update_info=lambda *_: None),
        logger=SimpleNamespace(info=lambda *_: None, warning=warnings.append),
        save_checkpoint=lambda folder, name, *_, **__: (tmp_path / name).touch(),
        warnings=warnings,
    )
    yield runner


@pytest.mark.parametrize(
    ('free', 'options', 'warned'),
    [
        (40e6, dict(max_keep_ckpts=2), None),
        (30e6, dict(max_keep_ckpts=2), 'need about 36,000,000'),  # three while the third is written
        (50e6, {}, 'need about 60,000,000'),
        (50e6, dict(interval=2), None),
        (38e6, dict(max_keep_ckpts=2, save_best='ap', rule='greater'), 'need about 40,000,000'),
    ],
)
def test_space_is_compared_before_training(free, options, warned, run, monkeypatch):
    usage = SimpleNamespace(free=int(free))
    monkeypatch.setattr(checkpoint_hook.shutil, 'disk_usage', lambda _: usage)
    hook = SafeCheckpointHook(**dict(dict(interval=1), **options))
    hook.before_train(run)
    hook.signals.restore()
    assert [warned in text for text in run.warnings] == ([True] if warned else [])


def test_old_checkpoints_are_removed_after_the_new_one_is_written(run, tmp_path):
    hook = SafeCheckpointHook(interval=1, max_keep_ckpts=1)
    (tmp_path / '.epoch_1.pth.abc.tmp').touch()  # of a process that was killed
    (tmp_path / 'interrupted.pth').touch()
    hook.before_train(run)
    hook.signals.restore()
    assert [path.name for path in tmp_path.iterdir()] == ['interrupted.pth']

    def files():
        return sorted(path.name for path in tmp_path.glob('*.pth'))

    hook.after_train_epoch(run)
    assert files() == ['epoch_1.pth']
    run.epoch, write = 1, run.save_checkpoint
    run.save_checkpoint = lambda *_, **__: (_ for _ in ()).throw(OSError('full'))
    with pytest.raises(OSError, match='full'):
        hook.after_train_epoch(run)
    assert files() == ['epoch_1.pth']
    run.epoch, run.save_checkpoint = 2, write
    hook.after_train_epoch(run)
    assert files() == ['epoch_3.pth']
