"""A reduced screen killed at a random time and run again ends as a clean run does; `benchmarks/soak.py` does it more often."""

import contextlib
import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import soak

pytestmark = pytest.mark.slow
SEED = random.SystemRandom().randrange(2**32)


@pytest.fixture
def clean(once, tmp_path, request):
    seed = f"{SEED} {request.node.name}"
    with contextlib.closing(soak.Soak(tmp_path, seed, base=once("soak", soak.make_base))) as found:
        yield found


@pytest.mark.parametrize("ways", [("group", "driver"), ("job", "worker"), ("term",)], ids=" or ".join)
def test_a_screen_killed_at_a_random_time_ends_as_a_clean_run_does(clean, ways):
    trial = clean.kill_once(clean.random.choice(ways))
    print(f"seed {SEED} {trial.line()}")
    assert trial.equal, (SEED, trial.line(), trial.differences, (trial.screen / "said.txt").read_text()[-4000:])
    # SIGTERM before anything was started, or after all of it has ended, ends the command at once.
    expected = {"group": [-9], "driver": [-9], "job": [0], "worker": [0], "term": [143, -15]}
    assert trial.codes[0] in expected[trial.way]
