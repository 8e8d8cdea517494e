"""A job's own folder on the node's disk: the same results, nothing of it left, also after a kill."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import simulate
from in_process import run_stages
from test_workflow import bytes_of

from plateloom.engine import scratch

STAGES = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation", "autoencoder")


def segment_and_train(folder, design, base=""):
    """Segment a screen in tiles, and train on it, with a scratch folder; returns the bytes of its results."""
    shutil.copytree(design, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["engine"] |= {"tile_px": 100, "scratch": str(base)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(folder, STAGES)
    return {name: digest for name, digest in bytes_of(folder, "results/**/*").items() if "/records/" not in name}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("scratch") / "raw", rows=1, columns=3, size_px=192, cells_per_field=8.0)


def leave_half(base, record, ready):
    with scratch.open_scratch(base, record) as folder:
        (folder / "half").write_bytes(b"x")
        ready.set()
        time.sleep(60)


def killed_while_using(base, record):
    """The folder that a job has left which was killed."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=leave_half, args=(base, record, ready))
    process.start()
    assert ready.wait(30)
    (folder,) = Path(base).iterdir()
    with scratch.open_scratch(base, record + "-other"):
        assert (folder / "half").exists(), "another job's, which lives"
    process.kill()
    process.join()
    return folder


def test_results_are_the_same_with_and_without(raw, tmp_path, monkeypatch):
    saved, save = [], np.save
    monkeypatch.setattr(np, "save", lambda file, pixels: saved.append(file) or save(file, pixels))
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    expected = segment_and_train(tmp_path / "a/screen", raw)
    tiles = [str(file) for file in saved if not hasattr(file, "write")]
    assert tiles and not any("node" in path for path in tiles)
    saved.clear()
    found = segment_and_train(tmp_path / "b/screen", raw, "$NODE_DISK/jobs")
    assert found == expected and len(found) > 50
    private = [str(file) for file in saved if not hasattr(file, "write")]
    assert len(private) == len(tiles) and all(path.startswith(f"{tmp_path}/node/jobs/plateloom-") for path in private)
    assert list((tmp_path / "node/jobs").iterdir()) == []


def test_what_a_killed_job_has_left_goes_when_it_begins_again(tmp_path):
    base = str(tmp_path / "disk")
    left = killed_while_using(base, "record.json")
    assert (left / "half").exists()
    with scratch.open_scratch(base, "record.json") as folder:
        assert not left.exists() and list(folder.iterdir()) == []
    assert list(Path(base).iterdir()) == []


def test_what_jobs_of_others_have_left_goes_once_it_is_old(tmp_path):
    base = str(tmp_path / "disk")
    left = killed_while_using(base, "record.json")
    (tmp_path / "disk/of-somebody-else").mkdir()
    with scratch.open_scratch(base, "another.json"):
        assert left.exists(), "it may just have been made"
    before = time.time() - 2 * scratch.FRESH
    os.utime(left, (before, before))
    with scratch.open_scratch(base, "another.json"):
        assert not left.exists()
    assert [path.name for path in Path(base).iterdir()] == ["of-somebody-else"]


@pytest.mark.parametrize("base", ["$NO_SUCH_VARIABLE/jobs", "/proc/nowhere", ""])
def test_where_there_is_no_such_folder_the_files_lie_beside_the_results(base, monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    with scratch.open_scratch(base, "record.json") as folder:
        assert folder is None
