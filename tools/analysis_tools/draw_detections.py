"""Draws true boxes (left) beside predicted ones (right), enlarged.

``python tools/analysis_tools/draw_detections.py PREDICTIONS.pkl ANNOTATIONS.json OUT_DIR``, with
the predictions that ``tools/test.py --out PREDICTIONS.pkl`` writes. OUT_DIR, new or empty, gets one
picture for each image and ``overview.png`` with several of them.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from mmengine.fileio import load
from pycocotools.coco import COCO
from tqdm import tqdm

from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference.media import check_out_dir, name_outputs, write_image

COLOURS = [(60, 60, 230), (220, 120, 30), (60, 170, 60), (20, 150, 240), (200, 70, 150)]
COLOURS += [(180, 170, 20), (40, 200, 220), (150, 90, 60)]  # BGR, by category in turn
OVERVIEW = 'overview.png'
OVERVIEW_ROWS, OVERVIEW_COLUMNS = 4, 3


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('predictions', help='written by tools/test.py --out')
    parser.add_argument('annotations', help='COCO annotation file of the same pictures')
    parser.add_argument('out_dir', type=Path)
    parser.add_argument('--score-thr', type=float, default=0.4, help='least score drawn')
    parser.add_argument('--side', type=int, default=384, help='least longer side drawn, in pixels')
    parser.add_argument('--max-pictures', type=int, default=48)
    return parser.parse_args()


def enlarge(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The picture at a longer side of at least ``side`` pixels, and the factor."""
    factor = max(1.0, side / max(image.shape[:2]))
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), factor


def draw(image: np.ndarray, boxes: np.ndarray, labels: list[int], captions: list[str]) -> None:
    """Draws boxes (n, 4) as x1, y1, x2, y2 in pixels, with captions, in place."""
    for box, label, caption in zip(
        boxes.round().astype(int).tolist(), labels, captions, strict=True
    ):
        colour = COLOURS[label % len(COLOURS)]
        cv2.rectangle(image, box[:2], box[2:], colour, 2)
        font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42
        (width, height), _ = cv2.getTextSize(caption, font, size, 1)
        x = max(0, min(box[0], image.shape[1] - width - 2))
        y = max(height + 4, box[1])
        cv2.rectangle(image, (x, y - height - 4), (x + width + 2, y), colour, -1)
        cv2.putText(image, caption, (x + 1, y - 3), font, size, (255, 255, 255), 1, cv2.LINE_AA)


def compare(result: dict, coco: COCO, side: int, score_thr: float) -> np.ndarray:
    """One picture with its true boxes beside the same with the predicted ones."""
    image = cv2.imread(result['img_path'])
    if image is None:
        raise UsageError(f'cannot read the picture {result["img_path"]}')
    true, factor = enlarge(image, side)
    predicted = true.copy()
    categories = coco.getCatIds()
    annotations = coco.loadAnns(coco.getAnnIds(result['img_id']))
    boxes = np.array([a['bbox'] for a in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [categories.index(a['category_id']) for a in annotations]
    names = [category['name'] for category in coco.loadCats(categories)]
    draw(true, boxes * factor, labels, [names[label] for label in labels])
    instances = result['pred_instances']
    order = instances['scores'].argsort()  # the surest last, on top
    kept = order[instances['scores'][order] >= score_thr]
    labels = instances['labels'][kept].tolist()
    scores = instances['scores'][kept].tolist()
    captions = [f'{names[k]} {score:.2f}' for k, score in zip(labels, scores, strict=True)]
    draw(predicted, instances['bboxes'][kept].numpy() * factor, labels, captions)
    divider = np.full((true.shape[0], 6, 3), 255, np.uint8)
    return np.hstack([true, divider, predicted])


def overview(pictures: list[np.ndarray]) -> np.ndarray:
    """Contact sheet of the first pictures, all brought to the first one's size."""
    height, width = pictures[0].shape[:2]
    sheet = np.full((OVERVIEW_ROWS * (height + 10), OVERVIEW_COLUMNS * (width + 10), 3), 255, 'u1')
    for i, picture in enumerate(pictures[: OVERVIEW_ROWS * OVERVIEW_COLUMNS]):
        top = (i // OVERVIEW_COLUMNS) * (height + 10)
        left = (i % OVERVIEW_COLUMNS) * (width + 10)
        sheet[top : top + height, left : left + width] = cv2.resize(picture, (width, height))
    return sheet


def main() -> None:
    """Draws what the command line names."""
    args = parse_args()
    with usage_errors_exit():
        for path in (args.predictions, args.annotations):
            if not Path(path).is_file():
                raise UsageError(f'there is no file {path}')
        check_out_dir(args.out_dir)
        if args.max_pictures < 1:
            raise UsageError(f'--max-pictures {args.max_pictures}: give at least 1')
        coco, results = COCO(args.annotations), load(args.predictions)[: args.max_pictures]
        if not results:
            raise UsageError(f'{args.predictions} holds no predictions')
        files = [Path(result['img_path']).resolve() for result in results]
        names = name_outputs(files, ['.png'], taken=[OVERVIEW])
        pictures = []
        for file, result in zip(
            files, tqdm(results, desc=f'drawing to {args.out_dir}'), strict=True
        ):
            pictures.append(compare(result, coco, args.side, args.score_thr))
            write_image(args.out_dir / f'{names[file]}.png', pictures[-1])
        write_image(args.out_dir / OVERVIEW, overview(pictures))


if __name__ == '__main__':
    main()
