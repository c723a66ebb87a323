"""Pictures, folders and videos through ``tools/infer.py``, for each task."""

import json

import cv2
import numpy as np
import pytest
import torch

from mmvitattn.errors import UsageError
from mmvitattn.inference import predictors
from mmvitattn.inference.build import build_predictor, check_device, dataset_meta, read_config

TOOL = 'infer.py'


@pytest.fixture
def write_video(tmp_path):
    def write(name, frames=4):
        writer = cv2.VideoWriter(
            str(tmp_path / name), cv2.VideoWriter_fourcc(*'mp4v'), 10, (80, 64)
        )
        for i in range(frames):
            image = np.full((64, 80, 3), 60, np.uint8)
            image[10:30, 10 + 4 * i : 30 + 4 * i] = 220
            writer.write(image)
        writer.release()
        return tmp_path / name

    return write


def test_detector(run_tool, tiny_config, tiny_checkpoint, write_picture, write_video, tmp_path):
    config = tiny_config('detector')
    checkpoint, _ = tiny_checkpoint(config, meta=dict(dataset_meta=dict(classes=['thing'] * 6)))
    for name in ('in/a/1.png', 'in/b/1.png', 'in/b/1.jpg'):
        write_picture(name)
    (tmp_path / 'in/b/broken.jpg').write_bytes((tmp_path / 'in/b/1.jpg').read_bytes()[:500])
    (tmp_path / 'in/a/notes.txt').write_text('no picture')
    write_video('in/clip.mp4')
    out = tmp_path / 'out'
    options = (config, checkpoint, tmp_path / 'in', '--out-dir', out, '--device', 'cpu')
    printed = run_tool(TOOL, *options, '--batch-size', 2, '--score-thr', 0, status=1).stdout
    assert '4 of 5 files predicted' in printed and 'broken.jpg: ' in printed
    written = {str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()}
    pictures = {'a/1', 'b/1', 'b/1_png'}
    assert written == {f'{p}{e}' for p in pictures for e in ('.png', '.json')} | {
        'clip.mp4',
        'clip.jsonl',
    }
    record = json.loads((out / 'a/1.json').read_text())
    assert record['input'].endswith('in/a/1.png')
    assert (record['width'], record['height']) == (80, 64)
    assert record['detections']
    for found in record['detections']:
        x1, y1, x2, y2 = found['box']
        assert -1 <= x1 <= x2 <= 81 and -1 <= y1 <= y2 <= 65
        assert found['label'] == 'thing' and 0 <= found['score'] <= 1
    frames = [json.loads(line) for line in (out / 'clip.jsonl').read_text().splitlines()]
    assert [frame['frame'] for frame in frames] == [0, 1, 2, 3]
    assert frames[3]['seconds'] == 0.3 and 'detections' in frames[0]
    video = cv2.VideoCapture(str(out / 'clip.mp4'))
    assert sum(video.read()[0] for _ in range(6)) == 4
    done = run_tool(TOOL, *options, status=2)  # nothing is written over
    assert 'exists and is not an empty folder' in done.stderr


def test_segmenter(run_tool, tiny_config, tiny_checkpoint, write_picture, tmp_path):
    config = tiny_config('segmenter')
    checkpoint, _ = tiny_checkpoint(config)
    write_picture('in/large.png', 64, 100)
    write_picture('in/tiny.png', 16, 16)  # below what the backbone takes
    write_picture('in/other.png')
    options = ('--out-dir', tmp_path / 'out', '--device', 'cpu', '--batch-size', 3)
    printed = run_tool(TOOL, config, checkpoint, tmp_path / 'in', *options, status=1).stdout
    assert '2 of 3 files predicted' in printed and 'at least 32 x 32 pixels' in printed
    record = json.loads((tmp_path / 'out/large.json').read_text())
    labels = cv2.imread(str(tmp_path / 'out' / record['label_map']), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (64, 100) and labels.dtype == np.uint8
    names = ['circle', 'cross', 'rectangle', 'ring', 'star', 'triangle']  # the config's
    names += ['bricks', 'checks', 'clouds', 'dots', 'gradient', 'stripes']
    shares = {found['label']: found['share'] for found in record['classes']}
    assert shares == {
        names[k]: pytest.approx((labels == k).mean(), abs=1e-6) for k in np.unique(labels)
    }
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    arguments = (config, checkpoint, tmp_path / 'in', '--out-dir', tmp_path / 'new')
    done = run_tool(TOOL, *arguments, '--score-thr', 0.5, status=2)
    assert 'segmentations have no scores' in done.stderr


def test_classifier_from_deploy_weights(
    run_tool, tiny_config, tiny_checkpoint, write_picture, tmp_path
):
    """Also one by one or together, the predictions are the model's."""
    config = tiny_config('classifier')
    meta = dict(dataset_meta=dict(classes=list('abcdef')))
    checkpoint, model = tiny_checkpoint(config, meta=meta, deploy=True)
    files = [write_picture('x.png', 90, 60), write_picture('y.png', 60, 60)]
    options = ('--out-dir', tmp_path / 'out', '--device', 'cpu', '--batch-size', 2)
    run_tool(TOOL, config, checkpoint, *files, *options)
    for file in files:
        image = torch.from_numpy(cv2.resize(cv2.imread(str(file)), (64, 64))).permute(2, 0, 1)
        with torch.no_grad():
            scores = model.predict(
                model.data_preprocessor(dict(inputs=image[None]), False)['inputs']
            )[0].pred_score
        labels = json.loads((tmp_path / f'out/{file.stem}.json').read_text())['labels']
        assert [found['label'] for found in labels] == [
            'abcdef'[k] for k in scores.argsort(descending=True)[:5]
        ]
        assert labels[0]['score'] == pytest.approx(scores.max().item(), abs=1e-4)
    run_tool(TOOL, config, checkpoint, *files, '--amp', '--out-dir', tmp_path / 'amp', *options[2:])
    half = json.loads((tmp_path / f'amp/{file.stem}.json').read_text())['labels'][0]['score']
    assert half == pytest.approx(scores.max().item(), abs=0.02) and half != labels[0]['score']


def test_errors_come_before_any_work(run_tool, tiny_config, write_picture, tmp_path):
    config, picture = tiny_config('classifier'), write_picture('x.png')
    (tmp_path / 'empty').mkdir()
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'backbone.stem.0.conv.weight': torch.zeros(8, 3, 5, 5)}), other)
    out = ('--out-dir', tmp_path / 'out')
    for arguments, message in {
        ('gone.py', other, picture): 'there is no config gone.py',
        (config, 'gone.pth', picture): 'there is no checkpoint gone.pth',
        (config, other, tmp_path / 'gone.jpg'): 'there is no input',
        (config, other, tmp_path / 'empty'): 'contains no images or videos',
        (config, other, picture, '--batch-size', 0): '--batch-size 0: give at least 1',
        (config, other, picture, '--device', 'nowhere'): '--device nowhere: there is no such',
        (config, other, picture): 'weights are missing or have another shape',
    }.items():
        done = run_tool(TOOL, *arguments, *out, status=2)
        assert message in done.stderr
    assert not (tmp_path / 'out').exists()


def test_class_names_come_from_checkpoint_or_config(tiny_config):
    cfg = read_config(tiny_config('detector'))
    known = dataset_meta(cfg, {})
    assert known['classes'][:2] == ['circle', 'cross'] and len(set(known['palette'])) == 6
    saved = dict(meta=dict(dataset_meta=dict(CLASSES=('a', 'b'), PALETTE=[[1, 2, 3], [4, 5, 6]])))
    assert dataset_meta(cfg, saved) == dict(classes=['a', 'b'], palette=[(1, 2, 3), (4, 5, 6)])
    text = dict(meta=dict(dataset_meta=json.dumps(dict(classes=['c']))))  # as safetensors keep it
    assert dataset_meta(cfg, text)['classes'] == ['c']


def test_cifar_pictures_are_given_as_the_data_set_gives_them(root, monkeypatch):
    """RGB of 32 x 32: no step of the pipeline would turn or resize them."""
    cfg = read_config(root / 'configs/sag_tiny_8xb92_cifar10.py')
    predictor = build_predictor(cfg, None)
    image = np.zeros((96, 64, 3), np.uint8)
    image[..., 0] = 200  # blue
    packed = predictor.pack(image)
    assert packed['inputs'].shape == (3, 32, 32) and packed['inputs'][2].min() == 200
    assert (predictor.shown(packed)[..., 2] == 200).all()
    assert predictor.name(3) == 'cat'
    monkeypatch.setattr(predictors, 'MAX_PIXELS', 1000)
    with pytest.raises(ValueError, match='resize the image first'):
        predictor.pack(image)


def test_device():
    assert check_device('cpu') == 'cpu' and check_device(None)
    with pytest.raises(UsageError, match='--device cuda:99'):
        check_device('cuda:99')
