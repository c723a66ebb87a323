import importlib.util

import pytest
import torch

from mmvitattn.ops import dispatch


@pytest.fixture
def load(monkeypatch):
    """Loads the module again, with two made-up ops: 'double' has two forms, 'negate' one."""

    def load(setting=''):
        monkeypatch.setenv('MMVITATTN_IMPL', setting)
        spec = importlib.util.spec_from_file_location('fresh_dispatch', dispatch.__file__)
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)

        def vectors_only(x):
            return None if x.dim() == 1 else 'x is not a vector'

        def short_ones_only(x):
            return 'x is long' if len(x) > 9 else None

        fresh.register(
            'double',
            lambda x: x,
            [
                fresh.Implementation('fast', lambda x: x + x, vectors_only, short_ones_only),
                fresh.Implementation('plain', lambda x: 2 * x),
            ],
        )
        fresh.register('negate', lambda x: x, [fresh.Implementation('plain', lambda x: -x)])
        return fresh

    return load


@pytest.fixture
def ops(load):
    return load()


def test_first_that_can_run_is_chosen(ops):
    assert ops.chosen('double', torch.ones(3)) == 'fast'
    assert ops.chosen('double', torch.ones(3, 3)) == 'plain'
    assert ops.chosen('double', torch.ones(10)) == 'plain'
    assert torch.equal(ops.run('double', torch.ones(3)), torch.full((3,), 2.0))


def test_force_one_op_or_all_and_restore(ops):
    x = torch.ones(3)
    with ops.force('double=plain'):
        assert ops.chosen('double', x) == 'plain'
        with ops.force('fast'):
            assert ops.chosen('double', x) == 'fast'
            assert ops.chosen('double', torch.ones(10)) == 'fast'
            assert ops.chosen('negate', x) == 'plain'
        assert ops.chosen('double', x) == 'plain'
    assert ops.chosen('double', x) == 'fast'


@pytest.mark.parametrize('method', ['chosen', 'run'])
def test_forced_implementation_that_cannot_run_says_why(ops, method):
    with ops.force('double=fast'), pytest.raises(ValueError, match='x is not a vector'):
        getattr(ops, method)('double', torch.ones(3, 3))


@pytest.mark.parametrize('setting', ['nonsense', 'double=nonsense', 'nonsense=plain'])
def test_unknown_names_are_refused_and_listed(ops, setting):
    with pytest.raises(ValueError, match='double=fast, double=plain, negate=plain'):
        ops.force(setting).__enter__()


def test_environment_variable(load):
    assert load('double=plain').chosen('double', torch.ones(3)) == 'plain'


def test_explain_gives_the_reason(ops):
    text = ops.explain('double', torch.ones(3, 3))
    assert text == 'double (fast: x is not a vector; plain: can run)'
    assert 'fast: x is long' in ops.explain('double', torch.ones(10))


def test_no_implementation_can_run(ops):
    ops.register('negate', lambda x: x, [ops.Implementation('never', lambda x: x, lambda x: 'no')])
    with pytest.raises(ValueError, match=r'no implementation can run; negate \(never: no\)'):
        ops.run('negate', torch.ones(3))


def test_names_are_listed_in_order(ops):
    assert ops.names() == {'double': ['fast', 'plain'], 'negate': ['plain']}


def test_real_ops_have_a_reference():
    assert dispatch.names() and all('reference' in names for names in dispatch.names().values())
