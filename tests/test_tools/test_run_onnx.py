"""``run_onnx.py`` without PyTorch gives the results of ``infer.py``, for pictures of all kinds."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from mmvitattn.inference.onnx_metadata import load_runner

pytest.importorskip('onnx', reason='extra [export]')
pytest.importorskip('onnxruntime', reason='extra [export]')
WITHOUT = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmvitattn')
BLOCKED = (
    f'import runpy, sys; sys.modules.update(dict.fromkeys({WITHOUT}))\n'
    'sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
)


@pytest.fixture
def run_alone(root, tmp_path):
    """Runs a copy of the file in another folder, where nothing of PyTorch can be imported."""

    def run(*arguments, status=0):
        (tmp_path / 'product').mkdir(exist_ok=True)
        copy = shutil.copy(root / 'tools/deploy/run_onnx.py', tmp_path / 'product')
        command = [sys.executable, '-c', BLOCKED, copy, *map(str, arguments)]
        env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path / 'product', env=env
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def pictures(tmp_path):
    """Pictures of odd sizes and all kinds of pixels, a video, and three unusable files."""
    folder, random = tmp_path / 'pictures', np.random.default_rng(0)
    for name in ('odd', 'kinds', 'bad'):
        (folder / name).mkdir(parents=True)

    def noise(height, width, channels=3):
        small = random.integers(0, 256, (height // 9 + 2, width // 9 + 2, channels), np.uint8)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)

    for height, width in ((61, 143), (97, 65), (200, 75)):
        cv2.imwrite(str(folder / f'odd/{height}.png'), noise(height, width))
    video = cv2.VideoWriter(
        str(folder / 'odd/clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (80, 64)
    )
    for frame in noise(4 * 64, 80).reshape(4, 64, 80, 3):
        video.write(frame)
    video.release()
    cv2.imwrite(str(folder / 'kinds/grey.png'), noise(70, 90, 1))
    cv2.imwrite(str(folder / 'kinds/rgba.png'), noise(70, 90, 4))
    cv2.imwrite(str(folder / 'kinds/deep.png'), noise(70, 90).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(noise(64, 120)).save(folder / 'kinds/turned.jpg', exif=exif)
    cv2.imwrite(str(folder / 'bad/line.png'), noise(1, 4000))
    (folder / 'bad/text.jpg').write_text('no picture')
    broken = (folder / 'kinds/turned.jpg').read_bytes()
    (folder / 'bad/broken.jpg').write_bytes(broken[: len(broken) // 2])
    return folder


def records(folder):
    return {str(p.relative_to(folder)): json.loads(p.read_text()) for p in folder.rglob('*.json')}


def share_found(expected, actual):
    """Share of the detections that are in both lists."""
    near = [
        any(
            e['label_id'] == a['label_id']
            and abs(e['score'] - a['score']) < 2e-3
            and np.allclose(e['box'], a['box'], atol=0.1)
            for a in actual
        )
        for e in expected
    ]
    return np.mean(near)


@pytest.mark.parametrize(
    'task',
    [
        'detector',
        pytest.param('segmenter', marks=pytest.mark.slow),
        pytest.param('classifier', marks=pytest.mark.slow),
    ],
)
def test_same_results_without_torch(
    task, run_tool, run_alone, tiny_config, tiny_checkpoint, pictures, tmp_path
):
    config, model = tiny_config(task), tmp_path / 'model.onnx'
    checkpoint, _ = tiny_checkpoint(config, meta=dict(dataset_meta=dict(classes=list('abcdef'))))
    if task == 'segmenter':
        checkpoint, _ = tiny_checkpoint(config)
    if task == 'detector':
        with config.open('a') as file:  # drawing more takes long
            file.write("model['test_cfg']['max_per_img'] = 20\n")
    run_tool('export_onnx.py', config, checkpoint, '--out', model, '--exporter', 'torchscript')
    ours, alone = tmp_path / 'ours', tmp_path / 'alone'
    threshold = ('--score-thr', 0.0) if task == 'detector' else ()
    options = (pictures, '--out-dir', ours, '--device', 'cpu', *threshold)
    printed = run_tool('infer.py', config, checkpoint, *options, status=1).stdout
    failed = run_alone(model, pictures, '--out-dir', alone, *threshold, status=1).stdout
    bad = {'text.jpg', 'broken.jpg'} | ({'line.png'} if task != 'classifier' else set())
    for lines in (printed.split('failed:\n')[1], failed.split('failed:\n')[1]):
        lines = lines.splitlines()
        assert len(lines) == len(bad) and all(any(name in x for x in lines) for name in bad)
    expected, actual = records(ours), records(alone)
    assert set(expected) == set(actual) and len(expected) == 10 - len(bad)
    assert {p.name for p in ours.rglob('*.png')} == {p.name for p in alone.rglob('*.png')}
    for name, e in expected.items():
        a = actual[name]
        assert {key: a[key] for key in ('input', 'width', 'height')} == {
            key: e[key] for key in ('input', 'width', 'height')
        }
        drawings = [cv2.imread(str(f / name).replace('.json', '.png')) for f in (ours, alone)]
        assert drawings[0].shape == drawings[1].shape
        if task == 'detector':
            assert len(e['detections']) == len(a['detections']) > 10
            assert share_found(e['detections'], a['detections']) >= 0.85
        elif task == 'segmenter':
            maps = [
                cv2.imread(str((f / name).parent / e['label_map']), cv2.IMREAD_UNCHANGED)
                for f in (ours, alone)
            ]
            assert maps[0].shape == maps[1].shape and (maps[0] == maps[1]).mean() > 0.995
        else:
            assert [x['label'] for x in e['labels']] == [x['label'] for x in a['labels']]
            assert e['labels'][0]['score'] == pytest.approx(a['labels'][0]['score'], abs=1e-3)
    frames = [
        [json.loads(line) for line in (f / 'odd/clip.jsonl').read_text().splitlines()]
        for f in (ours, alone)
    ]
    assert len(frames[0]) == len(frames[1]) == 4
    for e, a in zip(*frames, strict=True):
        assert list(e) == list(a) and (e['frame'], e['seconds']) == (a['frame'], a['seconds'])
    clip = cv2.VideoCapture(str(alone / 'odd/clip.mp4'))
    assert sum(clip.read()[0] for _ in range(6)) == 4
    assert (expected['kinds/turned.json']['width'], expected['kinds/turned.json']['height']) == (
        64,
        120,
    )


def test_errors(run_alone, tmp_path):
    """One line each, before anything is written."""
    onnx = pytest.importorskip('onnx')
    value = onnx.helper.make_tensor_value_info('image', onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node('Identity', ['image'], ['y'])
    out = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph([node], 'g', [value], [out]),
        opset_imports=[onnx.helper.make_opsetid('', 17)],
        ir_version=8,
    )
    onnx.save(foreign, tmp_path / 'foreign.onnx')
    (tmp_path / 'text.onnx').write_text('no model')
    (tmp_path / 'x.png').write_bytes(b'')
    results = ('--out-dir', tmp_path / 'out')
    for arguments, message in {
        (tmp_path / 'foreign.onnx', tmp_path / 'x.png'): 'not a whole model exported by mmvitattn',
        (tmp_path / 'text.onnx', tmp_path / 'x.png'): 'text.onnx: ',
        (tmp_path / 'foreign.onnx', tmp_path / 'gone.png'): 'there is no input',
        (tmp_path / 'foreign.onnx', tmp_path / 'product'): 'contains no images or videos',
    }.items():
        error = run_alone(*arguments, *results, status=2).stderr
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('height', 'width', 'resize', 'result'),
    [
        (97, 65, [], (97, 65)),
        (1, 33, [], 'at least 32 x 32'),
        (4, 33, [dict(type='scale', size=[64, 64], keep_ratio=False)], (64, 64)),
        (6000, 8000, [dict(type='scale', size=[1333, 800], keep_ratio=True)], (800, 1067)),
        (6000, 8000, [], 'resize the image first'),
        (2, 5000, [dict(type='scale', size=[128, 128], keep_ratio=True)], 'too elongated'),
        (50, 90, [dict(type='edge', edge='short', size=64)], (64, 115)),
        (50, 90, [dict(type='crop', size=[56, 40])], (40, 56)),
    ],
)
def test_sizes(height, width, resize, result):
    """Of the network's input, or the reason against the picture."""
    runner = load_runner()
    model = object.__new__(runner.Model)
    options = dict(interpolation='bilinear', backend='cv2')
    steps = [{**options, **step} for step in resize]
    normalisation = dict(mean=[10, 20, 30], std=[2, 2, 2], channels='rgb')
    model.meta = dict(resize=steps, pad_divisor=1, min_size=32, **normalisation)
    image = np.full((height, width, 3), (30, 20, 10), np.uint8)  # BGR
    if isinstance(result, str):
        with pytest.raises(runner.UserError, match=result):
            model.preprocess(image)
    else:
        inputs = model.preprocess(image)
        assert inputs.shape == (1, 3, *result) and inputs.dtype == np.float32
        assert not inputs.any()  # the mean was subtracted from the right channels


@pytest.mark.parametrize('density', [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_are_those_of_coco(density):
    from pycocotools import mask as coco_mask

    mask = np.random.default_rng(1).random((37, 53)) < density
    mask[5:20, 7:40] |= density > 0
    encoded = load_runner().run_lengths(mask)
    assert encoded['size'] == [37, 53]
    decoded = coco_mask.decode(dict(encoded, counts=encoded['counts'].encode()))
    assert (decoded == mask).all()
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()
    assert encoded['counts'] == expected
