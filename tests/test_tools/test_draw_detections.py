import json
import pickle

import cv2
import pytest
import torch

TOOL = 'analysis_tools/draw_detections.py'


@pytest.fixture
def detections(write_picture, tmp_path):
    """Predictions and annotations of three pictures, two of the same name."""
    names = ['a/1.png', 'b/1.png', 'overview.png']
    results, images, annotations = [], [], []
    for number, name in enumerate(names):
        path = write_picture(f'in/{name}')
        instances = dict(
            bboxes=torch.tensor([[20.0, 16, 40, 32]]), scores=torch.tensor([0.9]),
            labels=torch.tensor([0]),
        )  # fmt: skip
        results.append(dict(img_path=str(path), img_id=number, pred_instances=instances))
        images.append(dict(id=number, file_name=name, width=80, height=64))
        annotations.append(
            dict(id=number + 1, image_id=number, category_id=1, bbox=[20, 16, 20, 16], iscrowd=0)
            | dict(area=320)
        )
    (tmp_path / 'predictions.pkl').write_bytes(pickle.dumps(results))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='square')])
    (tmp_path / 'annotations.json').write_text(json.dumps(content))
    return tmp_path / 'predictions.pkl', tmp_path / 'annotations.json'


def test_every_picture_is_drawn_and_nothing_written_over(main_of, detections, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main_of(TOOL, *detections, out) == 0
    drawn = sorted(str(p.relative_to(out)) for p in out.rglob('*.png'))
    assert drawn == ['a/1.png', 'b/1.png', 'overview.png', 'overview_png.png']
    picture = cv2.imread(str(out / 'a/1.png'))
    assert picture.shape[1] == 2 * 384 + 6  # true beside predicted
    assert main_of(TOOL, *detections, out) == 2
    assert 'exists and is not an empty folder' in capsys.readouterr().err


def test_errors(main_of, detections, tmp_path, capsys):
    (tmp_path / 'none.pkl').write_bytes(pickle.dumps([]))
    for predictions, message in {
        tmp_path / 'gone.pkl': 'there is no file',
        tmp_path / 'none.pkl': 'holds no predictions',
    }.items():
        assert main_of(TOOL, predictions, detections[1], tmp_path / 'out') == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
