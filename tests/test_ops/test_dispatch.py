import pytest
import torch

from mmvitattn.ops import dispatch


@pytest.fixture
def ops(monkeypatch):
    """Two made-up ops: 'double' has a fast and a plain form, 'negate' a plain one."""
    monkeypatch.setattr(dispatch, '_IMPLEMENTATIONS', {})
    monkeypatch.setattr(dispatch, '_setting', '')
    dispatch.register(
        'double', 'fast', lambda x: x + x, lambda x: None if x.dim() == 1 else 'x is not a vector'
    )
    dispatch.register('double', 'plain', lambda x: 2 * x)
    dispatch.register('negate', 'plain', lambda x: -x)
    return dispatch


def name_of(op, x):
    chosen = dispatch.choose(op, x)
    return next(n for n, i in dispatch._IMPLEMENTATIONS[op].items() if i.function is chosen)


def test_first_that_can_run_is_chosen(ops):
    assert name_of('double', torch.ones(3)) == 'fast'
    assert name_of('double', torch.ones(3, 3)) == 'plain'


def test_force_one_op_or_all_and_restore(ops):
    x = torch.ones(3)
    with ops.force('double=plain'):
        assert name_of('double', x) == 'plain'
        with ops.force('fast'):
            assert name_of('double', x) == 'fast'
            assert name_of('negate', x) == 'plain'
        assert name_of('double', x) == 'plain'
    assert name_of('double', x) == 'fast'


def test_forced_implementation_that_cannot_run_says_why(ops):
    with ops.force('double=fast'), pytest.raises(ValueError, match='x is not a vector'):
        ops.choose('double', torch.ones(3, 3))


@pytest.mark.parametrize('setting', ['nonsense', 'double=nonsense', 'nonsense=plain'])
def test_unknown_names_are_refused_and_listed(ops, setting):
    with pytest.raises(ValueError, match='double=fast, double=plain, negate=plain'):
        ops.force(setting).__enter__()


def test_environment_variable(ops, monkeypatch):
    monkeypatch.setattr(dispatch, '_setting', 'double=plain')
    assert name_of('double', torch.ones(3)) == 'plain'


def test_explain_gives_the_reason(ops):
    text = ops.explain('double', torch.ones(3, 3))
    assert text == 'double (fast: x is not a vector; plain: can run)'


def test_real_ops_have_a_reference():
    assert all('reference' in names for names in dispatch._IMPLEMENTATIONS.values())
