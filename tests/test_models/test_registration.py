"""A backbone resolves by name from every toolbox's scope, in a fresh interpreter."""

import pytest

from mmvitattn.zoo import families

CODE = """
import sys, types, importlib.machinery
{prelude}
from mmengine.registry import init_default_scope
init_default_scope({scope!r})
from {scope}.registry import MODELS
for name, arch in {backbones}:
    model = MODELS.build(dict(type={prefix!r} + name, arch=arch, out_indices=0))
    print('built', type(model).__module__, type(model).__name__)
"""
# Stands for an mmcv with compiled ops, with which the toolboxes import by themselves.
COMPILED_OPS = """
class Ops(types.ModuleType):
    __spec__ = importlib.machinery.ModuleSpec('mmcv._ext', None)
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *args, **kwargs: None
sys.modules['mmcv._ext'] = Ops('mmcv._ext')
"""
BACKBONES = {cls.__name__: (module, next(iter(cls.arch_zoo))) for module, cls in families().items()}


@pytest.mark.parametrize(
    ('scope', 'scoped'),
    [
        pytest.param('mmdet', True, id='scoped-mmdet'),
        pytest.param('mmseg', False, id='unscoped-mmseg'),
        pytest.param('mmseg', True, id='scoped-mmseg', marks=pytest.mark.slow),
        pytest.param('mmpretrain', True, id='scoped-mmpretrain', marks=pytest.mark.slow),
        pytest.param('mmdet', False, id='unscoped-mmdet', marks=pytest.mark.slow),
        pytest.param('mmpretrain', False, id='unscoped-mmpretrain', marks=pytest.mark.slow),
    ],
)
def test_backbones_resolve(scope, scoped, run_code):
    code = CODE.format(
        prelude=COMPILED_OPS if scoped else 'import mmvitattn',
        scope=scope,
        prefix='mmvitattn.' if scoped else '',
        backbones=[(name, arch) for name, (_, arch) in BACKBONES.items()],
    )
    built = [line for line in run_code(code).splitlines() if line.startswith('built')]
    assert built == [f'built mmvitattn.models.{m} {name}' for name, (m, _) in BACKBONES.items()]
