"""A local web page for pictures: ``python tools/demo.py CONFIG,CHECKPOINT|MODEL.onnx...``.

Drop a picture, choose one of the models of the command line and a threshold; the page shows boxes,
masks or labels, the result as JSON, and for CONFIG,CHECKPOINT the attention of the backbone.
"""

from mmvitattn import extras  # noqa: F401  (names the extra of a missing package)

# isort: split
import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

import mmvitattn  # noqa: F401  (registers the backbones, and mmcv's ops where it has none)
from mmvitattn.checkpoint import load_checkpoint
from mmvitattn.cli import add_trust_argument
from mmvitattn.errors import UsageError, usage_errors_exit
from mmvitattn.inference import media
from mmvitattn.inference.build import build_predictor, check_device, read_config
from mmvitattn.inference.onnx_metadata import load_runner
from mmvitattn.visualization import Scene, draw_attention, has_attention

DPI = 110
Shown = tuple[np.ndarray, dict[str, Any], np.ndarray | None]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'models', nargs='+', metavar='MODEL', help='CONFIG,CHECKPOINT or an exported ONNX file'
    )
    parser.add_argument('--device', help='of CONFIG,CHECKPOINT; default: a GPU if there is one')
    parser.add_argument('--port', type=int, help='default: the first free one from 7860')
    add_trust_argument(parser)
    return parser.parse_args()


class TorchModel:
    """A config with a checkpoint."""

    def __init__(self, config: str, checkpoint: str, device: str | None, trust: bool) -> None:
        cfg = read_config(config)
        content = load_checkpoint(checkpoint, trust)
        self.caption = f'{Path(config).stem}, {Path(checkpoint).name}'
        self.predictor = build_predictor(cfg, content, checkpoint, check_device(device))

    def __call__(self, image: np.ndarray, score_thr: float) -> Shown:
        """Drawing (RGB), record and picture of the attention of a BGR image."""
        predictor = self.predictor
        (sample,) = predictor.predict([image])
        drawing = predictor.draw(image, sample, score_thr)[..., ::-1]
        return drawing, predictor.describe(sample, score_thr), self._attention(image)

    def _attention(self, image: np.ndarray) -> np.ndarray | None:
        """The overview of the attention, if the backbone is one of this package."""
        model = self.predictor.model
        if not has_attention(model.backbone):
            return None
        packed = self.predictor.pack(image)
        inputs = model.data_preprocessor(self.predictor.collate([packed]), False)['inputs']
        scene = Scene(self.predictor.shown(packed), self.caption)
        _, figure = next(draw_attention(model.backbone, inputs, scene))
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class OnnxModel:
    """A file of ``tools/export_onnx.py``."""

    def __init__(self, path: str) -> None:
        runner = load_runner()
        try:
            self.model = runner.Model(path)
        except runner.UserError as error:
            raise UsageError(str(error)) from None

    def __call__(self, image: np.ndarray, score_thr: float) -> Shown:
        """Drawing (RGB), record and no picture of the attention of a BGR image."""
        found = self.model.predict(image)
        drawing = self.model.draw(image, found, score_thr)[..., ::-1]
        return drawing, self.model.describe(found, score_thr), None


def load_models(args: argparse.Namespace) -> dict[str, TorchModel | OnnxModel]:
    """The models by their names on the page.

    Raises:
        UsageError: if one cannot be used.
    """
    models: dict[str, TorchModel | OnnxModel] = {}
    for given in args.models:
        config, comma, checkpoint = given.partition(',')
        name = ', '.join(Path(part).name for part in given.split(','))
        name = given if name in models else name
        if comma:
            models[name] = TorchModel(config, checkpoint, args.device, args.trust_checkpoint)
        elif given.endswith('.onnx'):
            models[name] = OnnxModel(given)
        else:
            raise UsageError(f'{given}: give CONFIG,CHECKPOINT or a file that ends in .onnx')
    return models


def build_page(models: dict[str, TorchModel | OnnxModel]) -> Any:
    """The page, which ``launch()`` serves."""
    import gradio as gr

    def predict(file: str | None, name: str, score_thr: float) -> Shown:
        if file is None:
            raise gr.Error('choose a picture first')
        try:
            image = media.read_image(Path(file))
            return models[name](image, score_thr)
        except (UsageError, ValueError) as error:  # unreadable, or of an unsuitable size
            raise gr.Error(str(error).replace(file, Path(file).name)) from None

    with gr.Blocks(title='mmvitattn') as page:
        with gr.Row():
            with gr.Column():
                # the file itself, which is read as the other tools do
                picture = gr.Image(label='Picture', type='filepath', image_mode=None)
                model = gr.Dropdown(list(models), label='Model', value=next(iter(models)))
                threshold = gr.Slider(0, 1, 0.3, step=0.01, label='Lowest score')
                button = gr.Button('Predict', variant='primary')
            with gr.Column():
                drawing = gr.Image(label='Result', format='png')
                record = gr.JSON(label='JSON')
        attention = gr.Image(label='Attention', format='png')
        inputs, outputs = [picture, model, threshold], [drawing, record, attention]
        button.click(predict, inputs, outputs)
        threshold.release(predict, inputs, outputs)
    return page


def main() -> None:
    """Serves the page until Ctrl+C; only this computer can open it."""
    args = parse_args()
    logging.disable(logging.WARNING)
    with usage_errors_exit():
        import gradio  # noqa: F401  (missing: an error before the models are read)

        page = build_page(load_models(args))
    page.launch(server_name='127.0.0.1', server_port=args.port)


if __name__ == '__main__':
    main()
