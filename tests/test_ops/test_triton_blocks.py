"""The search for the fastest blocks of the Triton kernels: its choices and where they are kept."""

import json

import pytest
import torch

from mmvitattn.ops import triton_support

if triton_support.UNAVAILABLE is not None:
    pytest.skip(triton_support.UNAVAILABLE, allow_module_level=True)
from triton.runtime.errors import OutOfResources

from mmvitattn.ops import triton_blocks
from mmvitattn.ops.triton_blocks import SEARCH_SPACE, Blocks, cache_file, launch_with_blocks

DEFAULT = Blocks(512)


@pytest.fixture(autouse=True)
def search(monkeypatch, tmp_path):
    monkeypatch.setenv('MMVITATTN_AUTOTUNE', '1')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    triton_blocks._known.cache_clear()
    yield
    triton_blocks._known.cache_clear()


@pytest.fixture
def launches(monkeypatch):
    """What is launched; the time of a launch grows with the distance from 2048 values, 8 warps."""
    launched = []

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(triton_blocks, 'time', clock)

    def launch(blocks):
        launched.append(blocks)
        if blocks.elements == 1024:
            raise OutOfResources(2, 1, 'registers')
        clock.now += 1 + abs(blocks.elements - 2048) + abs(blocks.warps - 8)
        return blocks

    launch.all = launched
    return launch


def run(launch, x=None, **settings):
    return launch_with_blocks(
        'an_op', launch, DEFAULT, torch.zeros(100) if x is None else x, settings
    )


def test_nothing_is_searched_by_default(monkeypatch, launches):
    monkeypatch.delenv('MMVITATTN_AUTOTUNE')
    assert run(launches) == DEFAULT
    assert launches.all == [DEFAULT]
    assert not cache_file().exists()


def test_the_fastest_is_launched_and_kept(launches):
    assert run(launches, HEADS=2) == Blocks(2048, 8)
    assert launches.all == [DEFAULT, *SEARCH_SPACE, Blocks(2048, 8)]
    triton_blocks._known.cache_clear()  # as in another process
    launches.all.clear()
    assert run(launches, HEADS=2) == Blocks(2048, 8)
    assert launches.all == [Blocks(2048, 8)]


def test_choices_are_made_apart_where_kernels_differ(launches):
    for x in (torch.zeros(100), torch.zeros(100_000), torch.zeros(100, dtype=torch.bfloat16)):
        for heads in (1, 2):
            launches.all.clear()
            run(launches, x, HEADS=heads)
            assert len(launches.all) > 2
    launches.all.clear()
    run(launches, torch.zeros(120), HEADS=1)  # a size close to the first
    assert len(launches.all) == 1
    assert len(json.loads(cache_file().read_text())) == 6


def test_choices_of_another_process_are_kept(launches):
    run(launches, HEADS=1)
    stored = json.loads(cache_file().read_text())
    cache_file().write_text(json.dumps({**stored, 'other': [4096, 4]}))
    run(launches, HEADS=2)
    assert json.loads(cache_file().read_text())['other'] == [4096, 4]


@pytest.mark.parametrize('content', ['', '{"a": 1}', '[]', '{"a": [1, 2, 3]}'])
def test_a_damaged_file_is_replaced(content, launches):
    cache_file().parent.mkdir()
    cache_file().write_text(content)
    assert run(launches) == Blocks(2048, 8)
    assert list(json.loads(cache_file().read_text()).values()) == [[2048, 8]]


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, launches):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert run(launches) == Blocks(2048, 8)
    launches.all.clear()
    run(launches)
    assert len(launches.all) == 1  # the choice holds for this process
