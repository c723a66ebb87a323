"""Predicts for images, folders and videos: ``python tools/infer.py CONFIG CHECKPOINT INPUT...``.

For each image, it writes a drawing with boxes, masks or labels, a JSON file, and for segmentation a
PNG file with the class of each pixel; for each video an MP4 file and a file with a line of JSON for
each frame. Files that cannot be read are skipped and listed at the end.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import mmcv
import numpy as np
import torch
from tqdm import tqdm

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.cli import add_model_options
from mmvitattn.errors import UnreadableError, UsageError, usage_errors_exit
from mmvitattn.inference import media
from mmvitattn.inference.build import build_predictor, check_device, read_config
from mmvitattn.inference.predictors import Predictor
from mmvitattn.training.mixed_precision import warn_if_slow

PICTURE, RECORD, LABELS, VIDEO, LINES = '.png', '.json', '.labels.png', '.mp4', '.jsonl'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video or folder')
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('predictions'),
        help='new or empty; default %(default)s',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        help='lowest score that is drawn and written; default 0.3 for boxes',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images of equal size in a batch')
    parser.add_argument('--amp', action='store_true', help='mixed precision; on CPUs, in bfloat16')
    add_model_options(parser)
    return parser.parse_args()


class Inference:
    """Predicts and writes the results.

    Args:
        predictor: the model.
        out_dir: folder of the results.
        score_thr: lowest score that is drawn and written.
        batch_size: maximum number of images in a batch.
    """

    def __init__(
        self, predictor: Predictor, out_dir: Path, score_thr: float, batch_size: int
    ) -> None:
        self.predictor, self.out_dir = predictor, out_dir
        self.score_thr, self.batch_size = score_thr, batch_size
        self.failures: list[str] = []

    def run(self, files: list[Path]) -> None:
        """Predicts for all files; those that fail are listed in ``failures``."""
        names = media.name_outputs(files, (PICTURE, RECORD, LABELS, VIDEO, LINES))
        for name in names.values():
            (self.out_dir / name).parent.mkdir(parents=True, exist_ok=True)
        videos = [file for file in files if media.is_video(file)]
        pictures = [file for file in files if not media.is_video(file)]
        with tqdm(total=len(files), unit='file') as bar:
            for i in range(0, len(pictures), self.batch_size):
                batch = pictures[i : i + self.batch_size]
                self._pictures(batch, names)
                bar.update(len(batch))
            for video in videos:
                self._video(video, self.out_dir / names[video])
                bar.update()

    def _pictures(self, files: list[Path], names: dict[Path, Path]) -> None:
        images = {}
        for file in files:
            try:
                images[file] = media.read_image(file)
            except UnreadableError as error:
                self.failures.append(str(error))
        for file, sample in self._predict(images):
            base, image = self.out_dir / names[file], images[file]
            record = dict(input=str(file), width=image.shape[1], height=image.shape[0])
            labels = self.predictor.label_map(sample)
            if labels is not None:
                record['label_map'] = f'{base.name}{LABELS}'
                mmcv.imwrite(labels, f'{base}{LABELS}')
            record.update(self.predictor.describe(sample, self.score_thr))
            drawing = self.predictor.draw(image, sample, self.score_thr)
            mmcv.imwrite(drawing, f'{base}{PICTURE}')
            Path(f'{base}{RECORD}').write_text(json.dumps(record, indent=2) + '\n')

    def _predict(self, images: dict[Path, np.ndarray]) -> Iterator[tuple[Path, object]]:
        """Predicts for all images at once or, if one is refused, one by one."""
        try:
            samples = self.predictor.predict(list(images.values()))
            yield from zip(images, samples, strict=True)
            return
        except ValueError as error:  # e.g. too small for the backbone
            if len(images) == 1:
                self.failures.append(f'{next(iter(images))}: {error}')
                return
        for file, image in images.items():
            yield from self._predict({file: image})

    def _video(self, file: Path, base: Path) -> None:
        try:
            reader = media.VideoReader(file)
            with open(f'{base}{LINES}', 'w', encoding='utf-8') as lines:
                media.write_video(Path(f'{base}{VIDEO}'), reader.rate, self._drawn(reader, lines))
        except UnreadableError as error:
            self.failures.append(str(error))
        except ValueError as error:
            self.failures.append(f'{file}: {error}')

    def _drawn(self, reader: media.VideoReader, lines: TextIO) -> Iterator[np.ndarray]:
        """Drawings of the frames, whose predictions are written line by line."""
        frames = iter(tqdm(reader, total=reader.length or None, unit='frame', leave=False))
        number = 0
        while batch := list(islice(frames, self.batch_size)):
            for frame, sample in zip(batch, self.predictor.predict(batch), strict=True):
                record = dict(frame=number, seconds=round(number / reader.rate, 4))
                record.update(self.predictor.describe(sample, self.score_thr))
                lines.write(json.dumps(record) + '\n')
                yield self.predictor.draw(frame, sample, self.score_thr)
                number += 1


def prepare(args: argparse.Namespace) -> tuple[Inference, list[Path]]:
    """The model and the inputs, after all checks.

    Raises:
        UsageError: if the user has to correct something before the work can start.
    """
    cfg = read_config(args.config, args.cfg_options)
    files = media.find_inputs(args.inputs)
    media.check_out_dir(args.out_dir)
    if args.batch_size < 1:
        raise UsageError(f'--batch-size {args.batch_size}: give at least 1')
    if args.score_thr is not None and cfg.default_scope == 'mmseg':
        raise UsageError('--score-thr: segmentations have no scores')
    device = check_device(args.device)
    checkpoint = load_checkpoint(args.checkpoint, args.trust_checkpoint)
    predictor = build_predictor(cfg, checkpoint, args.checkpoint, device)
    score_thr = predictor.default_score_thr if args.score_thr is None else args.score_thr
    return Inference(predictor, args.out_dir, score_thr, args.batch_size), files


def main() -> None:
    """Predicts; exits with status 1 if files failed."""
    args = parse_args()
    logging.disable(logging.WARNING)  # the toolboxes' messages about their registries
    with usage_errors_exit():
        inference, files = prepare(args)
    if args.amp:
        warn_if_slow()
    with torch.autocast(torch.device(check_device(args.device)).type, enabled=args.amp):
        inference.run(files)
    done = len(files) - len(inference.failures)
    print(f'{done} of {len(files)} files predicted, results in {args.out_dir}')
    if inference.failures:
        print('failed:', *(f'  {failure}' for failure in inference.failures), sep='\n')
        raise SystemExit(1)


if __name__ == '__main__':
    main()
