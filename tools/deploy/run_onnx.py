"""Predicts with an exported ONNX file: ``python run_onnx.py MODEL.onnx INPUT...``.

INPUT is an image, a video, a folder or the number of a camera. The results are those of
``tools/infer.py``: a drawing and a JSON file for each image, a PNG file with the class of each
pixel for segmentation, an MP4 file and a line of JSON for each frame of a video.

This file needs neither PyTorch nor mmvitattn and can be copied into other projects:
``pip install onnxruntime numpy opencv-python pillow``. The settings of the model are in the
metadata of the ONNX file. In Python: ``Model('model.onnx').predict(cv2.imread('image.jpg'))``.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image

IMAGES = {'.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
VIDEOS = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}
CV2_FILTERS = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC,
    area=cv2.INTER_AREA,
    lanczos=cv2.INTER_LANCZOS4,
)
SIDE_DRAWN = 384  # smaller images are enlarged so that captions fit
TOP = 5  # labels of a classification
MAX_PIXELS = 4096 * 4096  # of the network's input; more would need tens of gigabytes


class UserError(ValueError):
    """Wrong input; the message names the value and the remedy."""


class Model:
    """An ONNX file written by mmvitattn's ``tools/export_onnx.py``.

    Args:
        path: the file.
        providers: of onnxruntime, e.g. ``['CUDAExecutionProvider']``; default: the CPU.
        threads: of the CPU; 0 for onnxruntime's choice.

    Raises:
        UserError: if it cannot be read or is of another origin.
    """

    def __init__(self, path, providers=('CPUExecutionProvider',), threads=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=list(providers)
            )
        except Exception as error:  # onnxruntime has no common type
            raise UserError(f'{path}: {str(error).splitlines()[0]}') from None
        properties = self.session.get_modelmeta().custom_metadata_map
        self.meta = {key: json.loads(value) for key, value in properties.items()}
        if 'resize' not in self.meta or self.meta['task'] == 'features':
            raise UserError(f'{path} is not a whole model exported by mmvitattn')
        self.task, self.names = self.meta['task'], self.meta['classes']
        self.outputs = [output.name for output in self.session.get_outputs()]

    def preprocess(self, image):
        """Resizes and normalises an image.

        Args:
            image: BGR, (H, W, 3), uint8.

        Returns:
            The input of the network (1, 3, H', W'), float32.

        Raises:
            UserError: if the image is too small or too large.
        """
        for step in self.meta['resize']:
            image = crop(image, step['size']) if step['type'] == 'crop' else resize(image, step)
        divisor, least = self.meta['pad_divisor'], self.meta['min_size']
        if -(-min(image.shape[:2]) // divisor) * divisor < least:
            raise UserError(f'the image must have at least {least} x {least} pixels')
        if image.shape[0] * image.shape[1] > MAX_PIXELS:
            raise UserError(f'more than {MAX_PIXELS} pixels: resize the image first')
        if self.meta['channels'] == 'rgb':
            image = image[..., ::-1]
        mean, std = (np.float32(self.meta[key]) for key in ('mean', 'std'))
        return np.ascontiguousarray(((image - mean) / std).transpose(2, 0, 1)[None])

    def predict(self, image):
        """Predicts for one image.

        Args:
            image: BGR, (H, W, 3), uint8.

        Returns:
            For detection ``boxes`` (N, 4) in pixels of the image, ``scores``, ``labels`` and, if
            the model has them, ``masks`` (N, H, W); for segmentation ``label_map`` (H, W); for
            classification ``probabilities``.

        Raises:
            UserError: if the image is too small or too large.
        """
        inputs = self.preprocess(image)
        outputs = self.session.run(self.outputs, {'image': inputs})
        found = dict(zip(self.outputs, outputs, strict=True))
        height, width = image.shape[:2]
        network_height, network_width = inputs.shape[2:]
        if self.task == 'classification':
            return dict(probabilities=found['probabilities'][0])
        if self.task == 'segmentation':
            rows = ((np.arange(height) + 0.5) * network_height / height).astype(int)
            columns = ((np.arange(width) + 0.5) * network_width / width).astype(int)
            return dict(label_map=found['labels'][0][rows[:, None], columns])
        found.pop('batch_index', None)
        factors = [width / network_width, height / network_height]
        found['boxes'] = found['boxes'] * np.float32(factors * 2)
        if 'masks' in found:
            pairs = zip(found['masks'], found['boxes'], strict=True)
            found['masks'] = np.array(
                [paste(mask, box, height, width) for mask, box in pairs], bool
            ).reshape(-1, height, width)
        return found

    def describe(self, found, score_thr):
        """The prediction as plain data, in the form of ``tools/infer.py``."""
        if self.task == 'classification':
            order = np.argsort(-found['probabilities'], kind='stable')[:TOP]
            labels = [
                dict(self._named(k), score=round(float(found['probabilities'][k]), 4))
                for k in order
            ]
            return dict(labels=[labels[0], *(x for x in labels[1:] if x['score'] > score_thr)])
        if self.task == 'segmentation':
            values, counts = np.unique(found['label_map'], return_counts=True)
            order, total = np.argsort(-counts, kind='stable'), counts.sum()
            shares = [(values[i], round(float(counts[i] / total), 6)) for i in order]
            return dict(classes=[dict(self._named(k), share=share) for k, share in shares])
        detections = []
        for i in np.flatnonzero(found['scores'] > score_thr):
            detection = dict(
                self._named(found['labels'][i]),
                score=round(float(found['scores'][i]), 4),
                box=[round(float(x), 2) for x in found['boxes'][i]],
            )
            if 'masks' in found:
                detection['mask'] = run_lengths(found['masks'][i])
            detections.append(detection)
        return dict(detections=detections)

    def _named(self, label):
        label = int(label)
        name = self.names[label] if label < len(self.names) else f'class {label}'
        return dict(label=name, label_id=label)

    def _colour(self, label):
        """BGR."""
        palette = self.meta['palette']
        return tuple(palette[label % len(palette)][::-1]) if palette else (0, 200, 0)

    def draw(self, image, found, score_thr):
        """The image with the prediction drawn on it, BGR; small images are enlarged."""
        factor = max(1, -(-SIDE_DRAWN // max(image.shape[:2])))
        drawn = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        if self.task == 'classification':
            for i, label in enumerate(self.describe(found, score_thr)['labels']):
                write(drawn, f'{label["label"]} {label["score"]:.2f}', (4, 20 + 22 * i))
            return drawn
        if self.task == 'segmentation':
            labels = found['label_map'].repeat(factor, 0).repeat(factor, 1)
            for label in np.unique(labels):
                blend(drawn, labels == label, self._colour(label), 0.5)
            for label in np.unique(labels):
                write(drawn, self._named(label)['label'], middle(labels == label))
            return drawn
        order = np.argsort(found['scores'], kind='stable')  # highest score last, on top
        for i in order[found['scores'][order] > score_thr]:
            colour, label = self._colour(found['labels'][i]), self._named(found['labels'][i])
            if 'masks' in found:
                blend(drawn, found['masks'][i].repeat(factor, 0).repeat(factor, 1), colour, 0.6)
            x1, y1, x2, y2 = (round(float(x) * factor) for x in found['boxes'][i])
            cv2.rectangle(drawn, (x1, y1), (x2, y2), colour, 2)
            text = f'{label["label"]}: {100 * found["scores"][i]:.1f}'
            write(drawn, text, (max(x1, 0), max(y1 - 4, 14)))
        return drawn


def resize(image, step):
    """Resizes as the test pipeline of the training did.

    Raises:
        UserError: if a side would have no pixels.
    """
    height, width = image.shape[:2]
    size = step['size']
    if step['type'] == 'edge':  # the shorter, longer, ... side gets this length
        by_width = dict(short=width < height, long=width > height, width=True, height=False)
        if by_width[step['edge']]:
            size = (size, int(size * height / width))
        else:
            size = (int(size * width / height), size)
    elif step['keep_ratio']:
        sides = max(height, width), min(height, width)
        scale = min(max(size) / sides[0], min(size) / sides[1])
        size = (int(width * scale + 0.5), int(height * scale + 0.5))
    if min(size) < 1:
        raise UserError(f'{width} x {height} pixels are too elongated for this model')
    if step['backend'] == 'pillow':
        kind = getattr(Image.Resampling, step['interpolation'].upper())
        return np.array(Image.fromarray(image).resize(tuple(size), kind))
    return cv2.resize(image, tuple(size), interpolation=CV2_FILTERS[step['interpolation']])


def crop(image, size):
    """The centre of an image; ``size`` is (width, height)."""
    top = max(0, round((image.shape[0] - size[1]) / 2))
    left = max(0, round((image.shape[1] - size[0]) / 2))
    return image[top : top + size[1], left : left + size[0]]


def paste(mask, box, height, width, threshold=0.5):
    """The mask (h, w) of a box as pixels of the image, bool."""
    result = np.zeros((height, width), bool)
    weights, ranges = [], []
    for low, high, length, cells in (
        (box[1], box[3], height, mask.shape[0]),
        (box[0], box[2], width, mask.shape[1]),
    ):
        first, end = max(0, int(np.floor(low)) - 1), min(length, int(np.ceil(high)) + 1)
        position = (np.arange(first, end) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
        weights.append(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))))
        ranges.append(slice(first, max(first, end)))
    result[tuple(ranges)] = weights[0] @ mask @ weights[1].T >= threshold
    return result


def run_lengths(mask):
    """COCO's compressed run lengths of a mask (H, W)."""
    flat = np.concatenate([[0], mask.ravel(order='F').astype(np.int8)])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff([0, *changes, mask.size]).tolist()
    text = ''
    for i, count in enumerate(counts):
        number, more = (count - counts[i - 2] if i > 2 else count), True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return dict(size=list(mask.shape), counts=text)


def blend(image, mask, colour, opacity):
    """Mixes a colour into the pixels of a mask, in place."""
    image[mask] = (image[mask] * (1 - opacity) + np.multiply(colour, opacity)).astype(np.uint8)


def middle(mask):
    """A point inside the largest connected part of a mask, (x, y)."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    rows, columns = np.nonzero(parts == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return int(np.median(columns)), int(np.median(rows))


def write(image, text, position):
    """Writes white text with a dark background, in place."""
    text = text.encode('ascii', 'replace').decode()  # OpenCV's fonts have no other letters
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    (width, height), below = cv2.getTextSize(text, font, scale, 1)
    x = max(0, min(position[0], image.shape[1] - width))
    y = max(height, min(position[1], image.shape[0] - below))
    image[y - height : y + below, x : x + width] //= 3
    cv2.putText(image, text, (x, y), font, scale, (255, 255, 255), 1, cv2.LINE_AA)


def read_image(path):
    """BGR, (H, W, 3), uint8, rotated as its EXIF data says.

    Raises:
        UserError: if it cannot be read, or is truncated.
    """
    try:
        with Image.open(path) as file:
            file.load()
    except Image.UnidentifiedImageError:
        pass  # a format that OpenCV may know
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f'{path}: {error}') from None
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f'{path}: not an image that can be read')
    return image


def find_inputs(inputs):
    """All given files, and in folders the files with a known extension.

    Raises:
        UserError: if one is missing, or a folder has none.
    """
    found = []
    for given in map(Path, inputs):
        inside = sorted(p for p in given.rglob('*') if p.suffix.lower() in IMAGES | VIDEOS)
        if given.is_dir() and not inside:
            raise UserError(f'{given}: the folder contains no images or videos')
        if not given.exists() and not str(given).isdigit():
            raise UserError(f'there is no input {given}')
        found += inside if given.is_dir() else [given]
    return list(dict.fromkeys(found))


class Writer:
    """Predicts and writes the results into a folder."""

    def __init__(self, model, out_dir, score_thr, max_frames=None):
        self.model, self.out_dir, self.score_thr = model, out_dir, score_thr
        self.max_frames, self.names = max_frames, set()

    def base(self, file, common):
        """A new name for the results of a file, with its subfolder and without extension."""
        base = Path(os.path.abspath(file)).relative_to(common).with_suffix('')
        name, number = base, 1
        while str(name).casefold() in self.names:  # case is ignored, as some file systems do
            tail = file.suffix.lstrip('.').lower() + (f'_{number}' if number > 1 else '')
            name, number = base.with_name(f'{base.name}_{tail}'), number + 1
        self.names.add(str(name).casefold())
        (self.out_dir / name).parent.mkdir(parents=True, exist_ok=True)
        return str(self.out_dir / name)

    def image(self, file, base):
        """Results of an image."""
        image = read_image(file)
        found = self.model.predict(image)
        record = dict(input=os.path.abspath(file), width=image.shape[1], height=image.shape[0])
        if self.model.task == 'segmentation':
            record['label_map'] = f'{Path(base).name}.labels.png'
            labels = found['label_map']
            labels = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
            cv2.imwrite(f'{base}.labels.png', labels)
        record.update(self.model.describe(found, self.score_thr))
        cv2.imwrite(f'{base}.png', self.model.draw(image, found, self.score_thr))
        Path(f'{base}.json').write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')

    def video(self, source, base):
        """Results of a video, or of a camera until Ctrl+C or ``max_frames``."""
        capture, writer, number = cv2.VideoCapture(source), cv2.VideoWriter(), 0
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        try:
            with open(f'{base}.jsonl', 'w', encoding='utf-8') as lines:
                while number != self.max_frames and (frame := capture.read()[1]) is not None:
                    found = self.model.predict(frame)
                    record = dict(frame=number, seconds=round(number / rate, 4))
                    record.update(self.model.describe(found, self.score_thr))
                    lines.write(json.dumps(record) + '\n')
                    drawn = self.model.draw(frame, found, self.score_thr)
                    if number == 0:
                        code, size = cv2.VideoWriter_fourcc(*'mp4v'), drawn.shape[1::-1]
                        writer.open(f'{base}.mp4', code, rate, size)
                    writer.write(drawn)
                    number += 1
        except KeyboardInterrupt:
            print(f'stopped after {number} frames')
        finally:
            capture.release()
            writer.release()
        if not number:
            Path(f'{base}.jsonl').unlink()
            raise UserError(f'{source}: not a video or camera that can be read')


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', help='ONNX file of tools/export_onnx.py')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video, folder, camera')
    parser.add_argument('--out-dir', type=Path, default=Path('predictions'), help='new or empty')
    parser.add_argument(
        '--score-thr', type=float, help='lowest score that is drawn and written; 0.3 for boxes'
    )
    parser.add_argument('--provider', default='CPUExecutionProvider', help='of onnxruntime')
    parser.add_argument('--threads', type=int, default=0, help="default: onnxruntime's choice")
    parser.add_argument('--max-frames', type=int, help='frames of a video or camera; default: all')
    return parser.parse_args()


def prepare(args):
    """The writer and the inputs, after all checks."""
    files, out = find_inputs(args.inputs), args.out_dir
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} exists and is not an empty folder; choose another for the results')
    if args.provider not in onnxruntime.get_available_providers():
        known = ', '.join(onnxruntime.get_available_providers())
        raise UserError(f'--provider {args.provider}: choose one of {known}')
    model = Model(args.model, [args.provider], args.threads)
    default = 0.3 if model.task == 'detection' else 0.0
    out.mkdir(parents=True, exist_ok=True)
    score_thr = default if args.score_thr is None else args.score_thr
    return Writer(model, out, score_thr, args.max_frames), files


def main():
    """Predicts; exits with status 2 for wrong arguments, 1 if files failed."""
    try:
        writer, files = prepare(parse_args())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
    failures = []
    common = os.path.commonpath([Path(os.path.abspath(file)).parent for file in files])
    for file in files:
        try:
            if not file.exists():
                writer.video(int(str(file)), str(writer.out_dir / f'camera_{file}'))
            elif file.suffix.lower() in VIDEOS:
                writer.video(str(file), writer.base(file, common))
            else:
                writer.image(file, writer.base(file, common))
        except (UserError, MemoryError) as error:
            failures.append(str(error) if str(file) in str(error) else f'{file}: {error}')
    print(f'{len(files) - len(failures)} of {len(files)} inputs predicted: {writer.out_dir}')
    if failures:
        print('failed:', *(f'  {failure}' for failure in failures), sep='\n')
        raise SystemExit(1)


if __name__ == '__main__':
    main()
