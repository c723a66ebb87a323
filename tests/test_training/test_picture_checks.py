"""Pictures that cannot be decoded are named before a training, or skipped up to a limit."""

import shutil

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader

from mmvitattn.errors import PictureError, UsageError
from mmvitattn.training.picture_checks import check_pictures, guard_loading

DEMO = 'configs/demo/retinanet_linglo_b0_fpn_shapes.py'


@pytest.fixture
def broken(root, small_shapes, tmp_path):
    """Data sets by split; training picture 3 is text."""
    folder = shutil.copytree(small_shapes / 'coco', tmp_path / 'coco')
    (folder / 'train2017/000000000003.jpg').write_text('no picture')
    cfg = Config.fromfile(root / DEMO)
    init_default_scope('mmdet')
    found = {}
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        found[split] = [DATASETS.build(dict(dataset, data_root=str(folder)))]
    return found, folder


def test_all_pictures_are_decoded(broken):
    datasets, folder = broken
    picture = folder / 'train2017/000000000002.jpg'
    picture.write_bytes(picture.read_bytes()[:-900])  # OpenCV fills the rest with grey
    check_pictures(datasets, every=False)  # only looks whether the files exist
    with pytest.raises(UsageError) as caught:
        check_pictures(datasets, every=True)
    message = str(caught.value)
    assert message.startswith('2 of 40 pictures')
    assert '000000000002.jpg cannot be decoded' in message and '000000000003.jpg' in message
    (folder / 'val2017/000000000001.jpg').unlink()
    with pytest.raises(UsageError, match=r'val2017/000000000001.jpg is missing'):
        check_pictures(datasets, every=False)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_picture_ends_the_run_with_its_name(broken, workers):
    datasets, _ = broken
    guard_loading(datasets, limit=0)
    loader = DataLoader(datasets['train'][0], num_workers=workers, collate_fn=list)
    with pytest.raises(PictureError) as caught:
        list(loader)
    message = str(caught.value)
    assert 'train2017/000000000003.jpg cannot be loaded' in message
    assert '--skip-bad-pictures 1' in message and 'Traceback' not in message


@pytest.mark.parametrize('workers', [0, 2])
def test_bad_pictures_are_skipped_up_to_the_limit(broken, workers):
    datasets, folder = broken
    skipped = guard_loading(datasets, limit=1)
    loader = DataLoader(datasets['train'][0], num_workers=workers, collate_fn=list)
    for _ in range(2):  # the same picture counts once
        assert len(list(loader)) == 32
    assert skipped.count == 1
    (folder / 'train2017/000000000004.jpg').write_text('no picture')
    with pytest.raises(PictureError, match='--skip-bad-pictures 2'):
        list(loader)


def test_nothing_is_skipped_in_validation(broken):
    datasets, folder = broken
    guard_loading(datasets, limit=5)
    (folder / 'val2017/000000000002.jpg').write_text('no picture')
    assert datasets['val'][0][0] is not None
    with pytest.raises(PictureError, match=r'val2017/000000000002.jpg'):
        datasets['val'][0][1]


def test_command_line(run_tool, broken, tmp_path):
    options = ('--data-root', broken[1], '--work-dir', tmp_path / 'run')
    done = run_tool('train', DEMO, *options, '--check-pictures', status=2)
    assert 'error: 1 of 40 pictures' in done.stderr and 'decoding pictures' in done.stderr
    done = run_tool('train', DEMO, *options, '--skip-bad-pictures', -1, status=2)
    assert 'choose 0 or more' in done.stderr
