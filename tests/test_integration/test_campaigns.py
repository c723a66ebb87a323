"""Short forms of the campaigns in ``tests/campaigns``, which ``make campaign`` runs in full."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
COUNTS = dict(torch_zip=60, torch_legacy=60, flax=100, safetensors=200, coco=300, pictures=200)


def campaign(name):
    path = Path(__file__).parents[1] / 'campaigns' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('kind', COUNTS)
def test_mutated_files_are_refused_or_read(kind):
    outcomes, failures = campaign('fuzz').fuzz(kind, COUNTS[kind], seed=1)
    assert failures == [] and sum(outcomes.values()) == COUNTS[kind]
    assert outcomes['refused'] > COUNTS[kind] // 4 and outcomes['read'] > 0


def test_a_killed_rank_is_restarted_and_the_result_is_the_same(tmp_path):
    killed, compared, differing = campaign('kill_ranks').kill_ranks(tmp_path, kills=2, epochs=30)
    assert killed == 2 and compared > 100 and differing == []
