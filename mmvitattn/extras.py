"""Names the extra to install if a package is missing. The tools import this module first.

Importing it sets ``sys.excepthook``, so that a missing package of an extra ends a tool with one
line instead of a traceback.
"""

import sys
from types import TracebackType

EXTRAS = {
    'onedl': ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'),
    'tools': ('cv2', 'matplotlib', 'PIL', 'pycocotools', 'tqdm', 'yaml'),
    'convert': ('msgpack',),
    'export': ('onnx', 'onnxruntime', 'onnxscript'),
    'timm': ('timm',),
    'hf': ('huggingface_hub',),
    'demo': ('gradio',),
}
EXTRA_OF = {package: extra for extra, packages in EXTRAS.items() for package in packages}


def missing_extra(error: BaseException) -> str | None:
    """The extra that contains the package that was not found, as text for the user.

    Args:
        error: any error.

    Returns:
        One line, or ``None`` if no extra contains the package, or the error is another one.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition('.')[0]
    extra = EXTRA_OF.get(package)
    if extra is None:
        return None
    other = ', or [openmmlab] for torch 2.1' if extra == 'onedl' else ''
    return (
        f'{package} is not installed: pip install "mmvitattn[{extra}]" '
        f'(in a clone: pip install -e ".[{extra}]"{other})'
    )


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    message = missing_extra(error)
    if message is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f'error: {message}', file=sys.stderr)


sys.excepthook = _show
