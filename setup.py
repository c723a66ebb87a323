"""Adds configs, tools and the model index to the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithResources(build_py):
    """Copies the resources to ``mmvitattn/.mim``, where MIM and mmengine.hub look for them.

    They go to the build folder only; an editable installation reads those of the clone. The
    benchmark is not part of the wheel.
    """

    def run(self) -> None:
        """Builds the package, then adds the resources."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib) / 'mmvitattn' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for folder in ('configs', 'tools'):
            ignored = shutil.ignore_patterns('__pycache__', 'benchmark.py', 'gpu_report.py')
            shutil.copytree(ROOT / folder, target / folder, ignore=ignored)
        shutil.copy(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithResources})
