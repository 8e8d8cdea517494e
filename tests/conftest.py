"""Fixtures that several test files share: one small simulated screen, and the folder of real data."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

collect_ignore = ["czi.py"]  # it runs in an environment of its own

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Fast settings; nothing here changes what a stage does, only how much of it.
SMALL = """
illumination: {fields: 6, parameters: {thumbnail: 32}}
features: {families: [AreaShape, Location, Intensity, Correlation, Neighbors], texture_scales: [3]}
latent:
  autoencoder: {cells: 120, parameters: {epochs: 3, out_px: 32, latent_dim: 8}}
  maps: {method: pca, cells: 200, clusters: {resamples: 3}}
report: {montage_wells: 2}
engine: {kind: threads}
"""


SLOW_FIRST = (
    "test_workflow",
    "test_export",
    "test_verify",
    "test_layouts_of_plates",
    "test_plate",
    "test_cli",
)


def pytest_addoption(parser):
    parser.addoption("--share", default="1/1", help="1/2: one half of the tests, 2/2: the other.")


def pytest_collection_modifyitems(config, items):
    """Keep the share that is asked for, and begin with the files that take longest, so that two processes end at about the same time."""
    part, parts = map(int, config.getoption("--share").split("/"))
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == part - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    order = {name: i for i, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def data():
    """Folder of real data; the test is skipped where it is not."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}")
    return DATA


@contextlib.contextmanager
def soon(seconds=60):
    """Fail where a block takes so much of the processor that it may never end; far more than it takes on a slow machine."""

    def stop(*_):
        raise AssertionError(f"no end after {seconds} s of the processor")

    former = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def simulate(folder, **design):
    """Write a small screen: one plate, 12 wells, one field each, unless the design says otherwise."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign

    options = {"plates": ("P1",), "rows": 3, "columns": 4, "fields": 1, "size_px": 256, "cells_per_field": 12.0}
    write_screen(folder, ScreenDesign(**options | design))
    settings = yaml.safe_load((folder / "config.yaml").read_text()) | yaml.safe_load(SMALL)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


TO_FEATURES = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation", "features")
TO_PROFILES = (*TO_FEATURES, "profiling")

# Where the small screen is not as it should be.
WITHOUT_GFP, TRUNCATED = "B02", "C03"


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder in the first test process that asks for it: ``once(name, make)`` calls ``make(folder)``; copy it.

    Every such folder is called "screen", as copies of it are: pages name the folder that they were made in.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name, make):
        folder = base / name / "screen"
        with FileLock(base / f"{name}.lock"):
            done = base / f"{name}.done"
            if not done.exists():
                shutil.rmtree(folder.parent, ignore_errors=True)
                folder.parent.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def raw_screen(once):
    """A small screen that nothing has run on; copy it, do not run it."""
    defects = {"missing": [("P1", WITHOUT_GFP, 1)], "truncated": [("P1", TRUNCATED, 1)]}
    return once("raw", lambda folder: simulate(folder, defects=defects))


@pytest.fixture(scope="session")
def profiled_screen(raw_screen, once):
    """The small screen with everything up to its profiles; copy it."""
    from in_process import run_stages

    def make(folder):
        shutil.copytree(raw_screen, folder)
        run_stages(folder, TO_PROFILES)

    return once("profiled", make)


@pytest.fixture
def screen(raw_screen, tmp_path, monkeypatch):
    """A copy of the small screen, and the current folder in it."""
    return copy_of(raw_screen, tmp_path, monkeypatch)


@pytest.fixture
def profiled(profiled_screen, tmp_path, monkeypatch):
    """A copy of the small screen with its profiles, and the current folder in it."""
    return copy_of(profiled_screen, tmp_path, monkeypatch)


def copy_of(screen, tmp_path, monkeypatch):
    """Copy a screen and make the copy the current folder."""
    folder = tmp_path / "screen"
    shutil.copytree(screen, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Let torch compute as in a worker of ours."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def edit(folder, change):
    """Change the settings of a screen by a function that alters them."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    change(settings)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def call(command, *options):
    """Call a command of the command line in this process; returns what it said, raises what it raised."""
    found = CliRunner().invoke(command, [str(option) for option in options])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def copy_project(folder):
    """Copy what runs a screen, so that a test may change a line of it."""
    folder.mkdir(parents=True)
    shutil.copyfile(ROOT / "Snakefile", folder / "Snakefile")
    for name in ("rules", "scripts", "config", "envs", "profiles", "plateloom"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def snakemake(folder, *options, project=ROOT, check=True):
    """Run snakemake on a screen; returns the finished process, its output as text."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project / "Snakefile"), "--directory", str(folder)]
    paths = os.pathsep.join([str(project), str(ROOT / "tests/strict")])
    environment = os.environ | {"PYTHONPATH": paths}
    if project != ROOT:  # a line that is changed within the second, to one as long, would not be noticed
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    found = subprocess.run(
        [*command, "--cores", "2", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
        cwd=project,
    )
    if check and found.returncode:
        raise AssertionError(f"snakemake ended with {found.returncode}:\n{found.stdout[-6000:]}")
    return found
