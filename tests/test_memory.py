"""Memory of a plate's jobs is flat as its fields grow; `benchmarks/memory.py` measures it with larger ones."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import memory

SIDE_PX, CHANNELS = 256, 3


@pytest.mark.slow
def test_memory_is_flat_from_1_to_100_fields():
    one, few, many = (memory.measure(fields, size_px=SIDE_PX, cells_per_field=8.0) for fields in memory.FIELDS)
    held_mb = 90 * CHANNELS * SIDE_PX**2 * 4 / 1e6  # the pixels of the fields that are more, as float32
    grown = {
        stage: tuple(after - before for before, after in zip((few | one)[stage], many[stage], strict=True))
        for stage in memory.STAGES
    }
    print(one, few, many)
    assert set(one) == set(memory.MEASURING) and all(max(mb) < held_mb / 2 for mb in grown.values()), (held_mb, grown)
