"""Packaging of mmvitattn: pure Python, nothing to compile."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION: dict = {}
exec((ROOT / 'mmvitattn' / 'version.py').read_text(), VERSION)

# No mm* package here: the originals and their maintained forks share import names, and the
# wrong distribution would be installed over the other. The user picks one extra.
# opencv-python, as the mm packages: its headless twin would overwrite its files.
INSTALL_REQUIRES = [
    *('torch>=2.1', 'torchvision>=0.16', 'numpy', 'tqdm'),
    *('opencv-python', 'pycocotools', 'pillow', 'matplotlib'),
]
EXTRAS = {
    # Maintained forks, current torch.
    'onedl': [
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmdetection>=3.5.1',
        'onedl-mmsegmentation>=1.4.2',
        'onedl-mmpretrain>=1.3.6',
    ],
    # OpenMMLab's last releases, and what they were made for.
    'openmmlab': [
        'torch==2.1.2',
        'torchvision==0.16.2',
        'numpy<2',
        'setuptools<80',
        'mmengine==0.10.7',
        'mmcv-lite==2.1.0',
        'mmdet==3.3.0',
        'mmsegmentation==1.2.2',
        'mmpretrain==1.2.0',
        'opencv-python<4.11',
        'ftfy',
        'regex',
    ],
    # Official checkpoints: tools/model_converters/
    'convert': ['msgpack'],
    # ONNX and files of plain tensors.
    'export': ['onnx', 'onnxruntime', 'safetensors'],
    # Models to measure against.
    'benchmark': ['timm'],
    'dev': ['pytest>=8', 'pytest-xdist', 'hypothesis', 'ruff==0.17.5', 'codespell'],
}
# The tests use all of it.
EXTRAS['dev'] += [*EXTRAS['convert'], *EXTRAS['export'], *EXTRAS['benchmark']]


class BuildWithResources(build_py):
    """Adds configs, tools and the model index to the wheel, where MIM and mmengine.hub look.

    The benchmark is for a clone: the wheel has neither its package nor its tool.

    They are copied into the build folder alone; an editable installation reads the clone's.
    """

    def run(self) -> None:
        """Builds the package, then adds the rest."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib) / 'mmvitattn' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for folder in ('configs', 'tools'):
            ignored = shutil.ignore_patterns('__pycache__', 'benchmark.py')
            shutil.copytree(ROOT / folder, target / folder, ignore=ignored)
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='mmvitattn',
    version=VERSION['__version__'],
    description='Efficient-attention backbones (LinGlo, QnA-ViT, SAG) for mmdet, mmseg, mmpretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    cmdclass={'build_py': BuildWithResources},
    packages=find_packages(include=['mmvitattn', 'mmvitattn.*'], exclude=['mmvitattn.benchmark']),
    python_requires='>=3.10',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
