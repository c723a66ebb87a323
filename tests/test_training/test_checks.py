"""The errors of the tools before any work is done."""

import importlib.util
import os
import sys

import pytest
import torch
from mmengine.config import Config

from mmvitattn.checkpoint.pretrained import drop_pretrained
from mmvitattn.errors import UsageError
from mmvitattn.training import checks

DETECTOR = 'configs/retinanet_linglo_b2_fpn_1x_coco.py'
DEMO = 'configs/demo/retinanet_linglo_b0_fpn_shapes.py'


@pytest.fixture
def tool(root, monkeypatch):
    """Runs the checks of a tool with a command line, in this process; returns the config."""

    def prepare(name, *arguments):
        spec = importlib.util.spec_from_file_location(f'tools_{name}', root / f'tools/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        return module.prepare(module.parse_args())[0]

    monkeypatch.chdir(root)
    return prepare


@pytest.fixture
def coco(tmp_path):
    """An empty folder in COCO's layout."""
    for part in ('annotations', 'train2017', 'val2017'):
        (tmp_path / 'coco' / part).mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / 'coco' / f'annotations/instances_{split}2017.json').write_text('{}')
    return tmp_path / 'coco'


def save(path, **progress):
    """A checkpoint without weights."""
    torch.save(dict(state_dict={}, meta=progress, message_hub={}, optimizer={}), path)
    return path


def test_unknown_config(tool):
    with pytest.raises(UsageError, match='there is no config configs/nothing.py; see configs/'):
        tool('train', 'configs/nothing.py')


def test_missing_data_names_layout_and_command(tool):
    with pytest.raises(UsageError) as caught:
        tool('train', DETECTOR, '--data-root', '/nowhere/coco')
    message = str(caught.value)
    assert '/nowhere/coco/annotations/instances_train2017.json  (train_dataloader)' in message
    assert '/nowhere/coco/val2017  (val_dataloader)' in message
    assert 'annotations/instances_val2017.json' in message
    assert 'expected layout of /nowhere/coco' in message
    assert 'python tools/prepare_data.py coco --root /nowhere/coco' in message


def test_missing_shapes_names_the_command_that_makes_them(tool):
    with pytest.raises(UsageError, match='python tools/prepare_data.py shapes'):
        tool('train', DEMO, '--data-root', '/nowhere')


def test_missing_pretrained_weights(tool, coco, tmp_path):
    options = (DETECTOR, '--data-root', coco, '--work-dir', tmp_path / 'run')
    with pytest.raises(UsageError) as caught:
        tool('train', *options)
    message = str(caught.value)
    assert 'checkpoints/linglo-b2_in1k.pth are not there' in message
    assert 'python tools/train.py configs/linglo_b2_8xb128_in1k.py' in message
    assert '--from-scratch' in message
    assert 'official' not in message  # there are none of LinGlo
    assert not (tmp_path / 'run').exists()  # before any work
    with pytest.raises(UsageError, match='qna_flax_to_mm.py .* checkpoints/qna-vit-tiny_in1k.pth'):
        tool('train', DETECTOR.replace('linglo_b2', 'qna_vit_tiny'), *options[1:])
    cfg = tool('train', *options, '--from-scratch')
    assert cfg.model.backbone.init_cfg is None
    weights = save(tmp_path / 'weights.pth')
    override = f'model.backbone.init_cfg.checkpoint={weights}'
    cfg = tool('train', *options, '--cfg-options', override)
    assert cfg.model.backbone.init_cfg.checkpoint == str(weights)


def test_data_root_moves_data_and_annotations(tool, coco):
    cfg = tool('train', DETECTOR, '--data-root', coco, '--from-scratch')
    assert cfg.train_dataloader.dataset.data_root.rstrip('/') == str(coco)
    assert cfg.test_evaluator.ann_file == f'{coco}/annotations/instances_val2017.json'


def test_a_run_is_not_written_over(tool, coco, tmp_path):
    options = (DETECTOR, '--data-root', coco, '--from-scratch', '--work-dir', tmp_path)
    checkpoint = save(tmp_path / 'epoch_1.pth', epoch=1, iter=8)
    (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
    with pytest.raises(UsageError, match='--resume; keep it and start another: --work-dir'):
        tool('train', *options)
    assert tool('train', *options, '--resume').resume is True
    assert tool('train', *options, '--resume', checkpoint).load_from == str(checkpoint)
    elsewhere = tmp_path / 'other' / 'epoch_1.pth'
    elsewhere.parent.mkdir()
    elsewhere.touch()
    with pytest.raises(UsageError, match='already contains the checkpoints'):
        tool('train', *options, '--resume', elsewhere)


def test_a_resumed_run_needs_no_pretrained_weights(tool, coco, tmp_path):
    options = (DETECTOR, '--data-root', coco, '--work-dir', tmp_path / 'run', '--resume')
    with pytest.raises(UsageError, match='pretrained weights'):
        tool('train', *options)  # nothing to resume: the run starts
    (tmp_path / 'run').mkdir()
    record = tmp_path / 'run' / 'last_checkpoint'
    record.write_text(str(save(tmp_path / 'run' / 'epoch_1.pth', epoch=1, iter=8)))
    assert tool('train', *options).model.backbone.init_cfg is None


def test_resuming_falls_back_to_the_newest_good_checkpoint(tool, coco, tmp_path, capsys):
    run = tmp_path / 'run'
    options = (DETECTOR, '--data-root', coco, '--work-dir', run, '--resume')
    run.mkdir()
    for time, epoch in enumerate((1, 2, 3, 'best'), start=1):
        path = save(run / f'epoch_{epoch}.pth', epoch=epoch, iter=8)
        os.utime(path, (time, time))
    weights = dict(state_dict={}, meta=dict(epoch=3, iter=8), message_hub={})
    torch.save(weights, run / 'epoch_best.pth')  # newest, but without the optimizer's state
    (run / 'epoch_3.pth').write_bytes((run / 'epoch_3.pth').read_bytes()[:-100])
    for last in (str(run / 'epoch_3.pth'), '', 'gone.pth'):
        (run / 'last_checkpoint').write_text(last)
        assert tool('train', *options).load_from == str(run / 'epoch_2.pth')
        warning = capsys.readouterr().err
        assert 'epoch_3.pth: not a PyTorch checkpoint, or truncated' in warning
        assert f'resuming from {run / "epoch_2.pth"} instead' in warning
    for path in run.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(UsageError, match='run has no checkpoint that can be resumed') as info:
        tool('train', *options)
    assert all(path.name in str(info.value) for path in run.glob('*.pth'))


def test_only_a_training_is_resumed(tool, coco, tmp_path):
    weights = save(tmp_path / 'weights.pth')
    options = (DETECTOR, '--data-root', coco, '--work-dir', tmp_path / 'run')
    with pytest.raises(UsageError, match='weights.pth contains no state of a training'):
        tool('train', *options, '--resume', weights)
    override = ('--from-scratch', '--cfg-options', f'load_from={weights}')
    assert tool('train', *options, *override).load_from == str(weights)
    with pytest.raises(UsageError, match='there is no checkpoint gone.pth'):
        tool('train', *options, *override[:2], 'load_from=gone.pth')


def test_lists_of_initialisations_are_looked_through():
    weights = dict(type='Pretrained', checkpoint='gone.pth')
    other = dict(type='Constant', layer='Conv2d', val=0)
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[other, weights]))))
    with pytest.raises(UsageError, match='gone.pth'):
        checks.check_pretrained(cfg, 'config.py')
    drop_pretrained(cfg)
    assert cfg.model.backbone.init_cfg == [other]


def test_missing_checkpoints(tool, coco):
    with pytest.raises(UsageError, match='--resume: there is no checkpoint gone.pth'):
        tool('train', DETECTOR, '--data-root', coco, '--resume', 'gone.pth')
    with pytest.raises(UsageError, match='there is no checkpoint gone.pth'):
        tool('test', DETECTOR, 'gone.pth')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_on_cpus_is_bfloat16(tool, coco):
    options = (DETECTOR, '--data-root', coco, '--from-scratch', '--amp')
    assert tool('train', *options).optim_wrapper.type == 'mmvitattn.CPUAmpOptimWrapper'
    with pytest.raises(UsageError, match="dtype='float16' needs a GPU"):
        tool('train', *options, '--cfg-options', 'optim_wrapper.dtype=float16')


def test_auto_scale_lr(tool, coco):
    cfg = tool('train', DETECTOR, '--data-root', coco, '--from-scratch', '--auto-scale-lr')
    assert cfg.auto_scale_lr.enable and cfg.auto_scale_lr.base_batch_size == 16


def test_test_options(tool, coco, tmp_path):
    checkpoint = save(tmp_path / 'weights.pth')
    options = (DETECTOR, checkpoint, '--data-root', coco)
    cfg = tool('test', *options, '--tta', '--show-dir', tmp_path / 'pictures')
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'RetinaNet'
    assert cfg.test_dataloader.dataset.pipeline[1].type == 'TestTimeAug'
    assert cfg.default_hooks.visualization.test_out_dir == str(tmp_path / 'pictures')
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures' / 'old.png').touch()
    with pytest.raises(UsageError, match='the folder is not empty'):
        tool('test', *options, '--show-dir', tmp_path / 'pictures')
    cfg = tool('test', *options, '--out', tmp_path / 'predictions.pkl')
    assert [metric.type for metric in cfg.test_evaluator] == ['CocoMetric', 'DumpDetResults']
    with pytest.raises(UsageError, match='must end in .pkl'):
        tool('test', *options, '--out', 'predictions.json')
    (tmp_path / 'old.pkl').touch()
    with pytest.raises(UsageError, match='the file exists'):
        tool('test', *options, '--out', tmp_path / 'old.pkl')


def test_wrapped_datasets_are_looked_through(tmp_path):
    inner = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='gone.json')
    for dataset in (
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ConcatDataset', datasets=[inner]),
    ):
        cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
        with pytest.raises(UsageError, match=r'gone\.json'):
            checks.check_data(cfg, ('train',))


def test_remote_weights_are_left_to_mmengine():
    init_cfg = dict(type='Pretrained', checkpoint='https://example.org/weights.pth')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init_cfg))))
    checks.check_pretrained(cfg, 'config.py')


def test_errors_end_the_tool_with_status_2(run_tool):
    done = run_tool('test', DETECTOR, 'gone.pth', status=2)
    assert done.stderr.splitlines()[-1] == 'error: there is no checkpoint gone.pth'
    assert 'Traceback' not in done.stderr


def test_a_wrong_option_of_the_model_is_shown_without_traceback(run_tool, small_shapes, tmp_path):
    config, folders = 'configs/demo/linglo_b0_shapes.py', (small_shapes / 'imagenet', tmp_path)
    options = ('--data-root', folders[0], '--work-dir', folders[1])
    done = run_tool('train', config, *options, '--cfg-options', 'model.backbone.arch=b7', status=2)
    assert "error: LinGlo: unknown arch 'b7'; choose one of b0, b1, b2" in done.stderr
