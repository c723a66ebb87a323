"""Predicts for pictures, folders and videos: ``python tools/infer.py CONFIG CHECKPOINT INPUT...``.

For each picture, OUT_DIR gets a picture with boxes, masks or labels drawn on it, a JSON file, and
for segmentation a PNG file with the class of each pixel; for each video an MP4 file and one line of
JSON per frame. Files that cannot be read are skipped and listed at the end.
"""

import argparse
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.engine import media
from mmvitattn.engine.checkpoints import load_checkpoint
from mmvitattn.engine.errors import UsageError, usage_errors_exit
from mmvitattn.engine.inference import (
    add_model_options,
    build_predictor,
    check_device,
    read_config,
)
from mmvitattn.engine.media import UnreadableError
from mmvitattn.engine.predictors import Predictor

PICTURE, RECORD, LABELS, VIDEO, LINES = '.png', '.json', '.labels.png', '.mp4', '.jsonl'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='picture, video or folder')
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('predictions'),
        help='new or empty; default %(default)s',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        help='lowest score drawn and written; default 0.3 for boxes',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='pictures per batch, of one size')
    add_model_options(parser)
    return parser.parse_args()


class Inference:
    """Predicts and writes the results.

    Args:
        predictor: the model.
        out_dir: folder of the results.
        score_thr: lowest score that is drawn and written.
        batch_size: most pictures per batch.
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
        with tqdm(total=len(files), unit='file') as bar:
            for group in _groups(files, self.batch_size):
                if media.is_video(group[0]):
                    self._video(group[0], names[group[0]])
                else:
                    self._pictures(group, names)
                bar.update(len(group))

    def _fail(self, file: Path, reason: Exception) -> None:
        self.failures.append(f'{file}: {reason}')

    def _pictures(self, files: list[Path], names: dict[Path, Path]) -> None:
        images = {}
        for file in files:
            try:
                images[file] = media.read_image(file)
            except UnreadableError as error:
                self._fail(file, error)
        for file, sample in self._predict(images):
            base, image = self.out_dir / names[file], images[file]
            record = dict(input=str(file), width=image.shape[1], height=image.shape[0])
            labels = self.predictor.label_map(sample)
            if labels is not None:
                record['label_map'] = f'{base.name}{LABELS}'
                media.write_image(Path(f'{base}{LABELS}'), labels)
            record.update(self.predictor.describe(sample, self.score_thr))
            media.write_image(
                Path(f'{base}{PICTURE}'), self.predictor.draw(image, sample, self.score_thr)
            )
            Path(f'{base}{RECORD}').write_text(json.dumps(record, indent=2) + '\n')

    def _predict(self, images: dict[Path, np.ndarray]) -> Iterator[tuple[Path, object]]:
        """Predicts in one batch, or one by one if a picture in it is invalid."""
        try:
            samples = self.predictor.predict(list(images.values()))
            yield from zip(images, samples, strict=True)
            return
        except ValueError as error:  # e.g. too small for the backbone
            if len(images) == 1:
                self._fail(*images, error)
                return
        for file, image in images.items():
            yield from self._predict({file: image})

    def _video(self, file: Path, name: Path) -> None:
        base = self.out_dir / name
        try:
            reader = media.VideoReader(file)
            frames = tqdm(reader, total=reader.length or None, desc=file.name, leave=False)
            with (
                closing(media.VideoWriter(Path(f'{base}{VIDEO}'), reader.rate)) as video,
                open(f'{base}{LINES}', 'w', encoding='utf-8') as lines,
            ):
                number = 0
                for batch in _chunks(frames, self.batch_size):
                    for frame, sample in zip(batch, self.predictor.predict(batch), strict=True):
                        record = dict(frame=number, seconds=round(number / reader.rate, 4))
                        record.update(self.predictor.describe(sample, self.score_thr))
                        lines.write(json.dumps(record) + '\n')
                        video.write(self.predictor.draw(frame, sample, self.score_thr))
                        number += 1
        except (UnreadableError, ValueError) as error:
            self._fail(file, error)


def _groups(files: list[Path], size: int) -> Iterator[list[Path]]:
    """Up to ``size`` consecutive pictures, or one video."""
    group: list[Path] = []
    for file in files:
        if group and (media.is_video(file) or len(group) == size):
            yield group
            group = []
        if media.is_video(file):
            yield [file]
        else:
            group.append(file)
    if group:
        yield group


def _chunks(frames: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    frames = iter(frames)
    while chunk := list(islice(frames, size)):
        yield chunk


def prepare(args: argparse.Namespace) -> tuple[Inference, list[Path]]:
    """The model and the inputs, after all checks.

    Raises:
        UsageError: for whatever the user has to mend before the work can start.
    """
    cfg = read_config(args.config, args.cfg_options)
    files = media.find_inputs(args.inputs)
    media.check_out_dir(args.out_dir)
    if args.batch_size < 1:
        raise UsageError(f'--batch-size {args.batch_size}: give at least 1')
    if args.score_thr is not None and cfg.default_scope == 'mmseg':
        raise UsageError('--score-thr: a segmentation has no scores')
    device = check_device(args.device)
    checkpoint = load_checkpoint(args.checkpoint, args.trust_checkpoint)
    predictor = build_predictor(cfg, checkpoint, args.checkpoint, device)
    score_thr = predictor.default_score_thr if args.score_thr is None else args.score_thr
    return Inference(predictor, args.out_dir, score_thr, args.batch_size), files


def main() -> None:
    """Predicts as the command line says; exits with status 1 if files failed."""
    args = parse_args()
    logging.disable(logging.WARNING)  # the toolboxes' notes on their registries
    with usage_errors_exit():
        inference, files = prepare(args)
    inference.run(files)
    done = len(files) - len(inference.failures)
    print(f'{done} of {len(files)} files predicted, results in {args.out_dir}')
    if inference.failures:
        print('failed:', *(f'  {failure}' for failure in inference.failures), sep='\n')
        raise SystemExit(1)


if __name__ == '__main__':
    main()
