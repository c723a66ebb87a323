from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmvitattn.errors import UnreadableError, UsageError
from mmvitattn.inference.media import (
    VideoReader,
    check_out_dir,
    find_inputs,
    name_outputs,
    read_image,
    write_video,
)


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path, monkeypatch):
    for name in ('b.JPG', 'sub/a.png', 'sub/clip.MP4', 'notes.txt', 'weights.pth'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'in' / name).touch()
    (tmp_path / 'picture.odd').touch()
    monkeypatch.chdir(tmp_path)
    found = find_inputs(['picture.odd', 'in', tmp_path / 'in/b.JPG', 'in/sub/../b.JPG'])
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        *('picture.odd', 'in/b.JPG', 'in/sub/a.png', 'in/sub/clip.MP4'),
    ]
    with pytest.raises(UsageError, match='there is no input gone'):
        find_inputs(['in', 'gone'])
    (tmp_path / 'bare').mkdir()
    with pytest.raises(UsageError, match='bare: the folder contains no images'):
        find_inputs(['bare'])


def test_no_result_has_the_name_of_another():
    files = [
        Path('/data', name)
        for name in (
            'a/1.jpg',
            'b/1.jpg',
            'b/1.png',
            'b/1.PNG',
            'b/1_png.jpg',
            'b/A.jpg',
            'b/a.jpg',
        )
    ]
    names = name_outputs(files, ['.png', '.labels.png'])
    results = [f'{name}{ending}'.lower() for name in names.values() for ending in ('.png',)]
    assert len(set(results)) == len(files)
    assert str(names[files[0]]) == 'a/1' and str(names[files[1]]) == 'b/1'
    assert str(names[files[2]]) == 'b/1_png'
    # What one picture's label map is called may be another picture's name.
    files = [Path('/data/x.jpg'), Path('/data/x.labels.png'), Path('/data/other.jpg')]
    names = name_outputs(files, ['.png', '.labels.png'])
    assert [str(names[f]) for f in files] == ['x', 'x.labels_png', 'other']


def test_pictures_are_turned_as_their_exif_data_says(tmp_path):
    image = Image.new('RGB', (30, 20), (200, 30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / 'turned.jpg', exif=exif)
    read = read_image(tmp_path / 'turned.jpg')
    assert read.shape == (30, 20, 3) and abs(int(read[0, 0, 2]) - 200) < 5  # BGR


@pytest.mark.parametrize('name', ['grey.png', 'alpha.png', 'palette.png', 'deep.png', 'x.bmp'])
def test_every_kind_becomes_three_channels_of_8_bits(name, tmp_path):
    rng = np.random.default_rng(0)
    if name == 'palette.png':
        Image.new('P', (8, 9), 3).save(tmp_path / name)
    elif name == 'deep.png':
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 65535, (9, 8), np.uint16))
    else:
        channels = dict(grey=1, alpha=4, x=3)[name.split('.')[0]]
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (9, 8, channels), np.uint8))
    image = read_image(tmp_path / name)
    assert image.shape == (9, 8, 3) and image.dtype == np.uint8


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.webp'])
def test_cut_off_pictures_are_noticed(suffix, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / f'whole{suffix}'), image)
    content = (tmp_path / f'whole{suffix}').read_bytes()
    cut = tmp_path / f'cut{suffix}'
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError):
        read_image(cut)
    cut.write_bytes(b'')
    with pytest.raises(UnreadableError):
        read_image(cut)


@pytest.mark.parametrize('size', [(48, 64), (45, 63)])
def test_videos_pass_through_frame_by_frame(size, tmp_path):
    frames = (np.full((*size, 3), level, np.uint8) for level in (50, 120, 200))
    write_video(tmp_path / 'video.mp4', 12.0, frames)
    reader = VideoReader(tmp_path / 'video.mp4')
    assert reader.rate == pytest.approx(12.0) and reader.length == 3
    frames = list(reader)
    assert [round(frame.mean() / 10) for frame in frames] == [5, 12, 20]
    assert all(abs(a - b) <= 1 for f in frames for a, b in zip(f.shape, size, strict=False))


def test_broken_videos_are_noticed(tmp_path):
    path = tmp_path / 'video.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    for level in range(0, 250, 5):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    content = path.read_bytes()
    assert len(list(VideoReader(path))) == 50
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match='of 50 frames can be read'):
        list(VideoReader(path))
    path.write_bytes(b'no video')
    with pytest.raises(UnreadableError, match='not a video that can be read'):
        VideoReader(path)


def test_existing_results_are_kept(tmp_path):
    check_out_dir(tmp_path / 'new')
    check_out_dir(tmp_path)
    (tmp_path / 'old.png').touch()
    for path in (tmp_path, tmp_path / 'old.png'):
        with pytest.raises(UsageError, match='exists and is not an empty folder'):
            check_out_dir(path)
