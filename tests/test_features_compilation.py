"""Kernels on disk: jobs that start at once, files cut short, no place to write."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from plateloom import compilation, kernel_cache
from plateloom.compilation import _compile
from plateloom.kernel_cache import _KernelFiles

JOB = """
import json, sys
import numpy as np
import pandas
from plateloom.features import location, measure_image, pixels

random = np.random.default_rng(0)
image, labels = random.integers(0, 256, (2, 20, 30), np.uint8), random.integers(0, 6, (20, 30))
print("ready", flush=True)
sys.stdin.readline()
table = measure_image(image, {"Cells": labels}, ["DNA", "ER"], families=["Location", "Links"])["Cells"]
kernels = [value for module in (location, pixels) for value in vars(module).values() if hasattr(value, "stats")]
compiled = sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)
print(json.dumps([compiled, table.to_numpy().tolist()]))
"""


def run_jobs(count, cache):
    """Run jobs that begin to measure at the same moment; returns how much each compiled and what it measured."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONWARNINGS": "error"}
    command, root = [sys.executable, "-c", JOB], Path(__file__).parents[1]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    jobs = [subprocess.Popen(command, env=environment, cwd=root, text=True, **pipes) for _ in range(count)]
    for job in jobs:
        job.stdout.readline()
    for job in jobs:
        job.stdin.write("go\n")
        job.stdin.flush()
    results = []
    for job in jobs:
        output, errors = job.communicate(timeout=900)
        assert job.returncode == 0, errors
        results.append(json.loads(output))
    return results


@pytest.mark.slow
def test_jobs_that_start_at_once_share_an_empty_cache_and_the_next_one_compiles_nothing(tmp_path):
    first = run_jobs(4, tmp_path)
    alone = run_jobs(1, tmp_path / "alone")
    assert sum(compiled for compiled, _ in first) == alone[0][0] > 0, "none was compiled twice"
    shutil.rmtree(tmp_path / "alone")
    assert all(values == first[0][1] for _, values in first)
    files = sorted(tmp_path.rglob("*.*"))
    assert {file.suffix for file in files} == {".nbc"}, "no files that were not finished"
    assert run_jobs(1, tmp_path) == [[0, first[0][1]]]
    assert sorted(tmp_path.rglob("*.*")) == files


# --- one kernel


def add_up(values):
    total = 0.0
    for value in values:
        total += value
    return total


@pytest.fixture
def cache(tmp_path):
    # Not numba.config itself: at any compilation numba may read its settings anew from the environment.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        numba.config.reload_config()
        yield tmp_path
    numba.config.reload_config()


def call(values=(1.0, 2.0, 4.0), stamp="a text"):
    """Call the kernel as a job does that has just started; returns what it gives, and whether it compiled."""
    kernel = _compile(add_up, stamp)
    return kernel(np.array(values)), sum(kernel.stats.cache_misses.values()) == 1


def test_a_kernel_is_compiled_once(cache):
    assert call() == (7, True)
    assert call() == (7, False)
    assert call((1, 2, 5)) == (8, True), "other types"
    assert call((1, 2, 5)) == (8, False)
    assert call() == (7, False)
    assert len(list(cache.rglob("*.nbc"))) == 2


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda content: b"", lambda content: b"garbage", lambda content: bytes(len(content))]
)
def test_a_damaged_file_is_compiled_anew_and_mended(cache, damage):
    call()
    (file,) = cache.rglob("*.nbc")
    file.write_bytes(damage(file.read_bytes()))
    assert call() == (7, True)
    assert call() == (7, False)


def test_a_folder_in_the_place_of_a_file_stops_no_job(cache):
    call()
    (file,) = cache.rglob("*.nbc")
    file.unlink()
    file.mkdir()
    assert call() == (7, True)
    assert [found.name for found in file.parent.iterdir()] == [file.name], "no files that were not finished"


@pytest.mark.parametrize("patience", [30.0, 0.2])
def test_a_job_waits_for_one_that_compiles_the_same_but_not_for_ever(cache, patience, monkeypatch):
    monkeypatch.setattr(kernel_cache, "_PATIENCE", patience)
    call()
    (file,) = cache.rglob("*.nbc")
    ready, claim = file.read_bytes(), file.with_suffix(".compiling")
    file.unlink()
    claim.touch()

    def finish(_):
        if patience > 1:
            file.write_bytes(ready)
            claim.unlink()

    monkeypatch.setattr(kernel_cache.time, "sleep", finish)
    assert call() == (7, patience < 1)
    assert [found.name for found in file.parent.iterdir()] == [file.name]


def test_a_kernel_that_was_changed_is_compiled_anew_in_the_same_file(cache):
    call()
    files = list(cache.rglob("*.nbc"))
    assert call(stamp="another text") == (7, True)
    assert call(stamp="another text") == (7, False)
    assert list(cache.rglob("*.nbc")) == files


def test_jobs_of_two_processors_that_write_at_once_do_not_mix(tmp_path):
    """What each of them leaves in an empty folder, in one folder."""
    keys = [("types", ("linux", processor, "avx"), ("code", "")) for processor in ("old", "new")]
    for processor, key in zip(("old", "new"), keys, strict=True):
        (tmp_path / processor).mkdir()
        _KernelFiles(str(tmp_path / processor), "kernel", "stamp").save(key, f"code for the {processor} one")
    shutil.copytree(tmp_path / "new", tmp_path / "old", dirs_exist_ok=True)
    files = _KernelFiles(str(tmp_path / "old"), "kernel", "stamp")
    assert [files.load(key) for key in keys] == ["code for the old one", "code for the new one"]


@pytest.mark.parametrize("place", ["a file", "a folder that cannot be made"])
def test_without_a_place_to_write_every_job_compiles(cache, monkeypatch, place):
    (cache / "file").write_text("")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache / "file" / ("" if place == "a file" else "folder")))
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    assert [call(), call()] == [(7, True)] * 2


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_a_disk_that_is_full_or_gone_stops_no_job(cache, monkeypatch, error):
    def refuse(*arguments):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(_KernelFiles, "_open_for_write", refuse)
    assert call() == (7, True)
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache))
    call()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert call() == (7, True)


# --- a module's kernels


MODULE = """
from plateloom.compilation import kernel

@kernel
def outer(x):
    return inner(x) + 1

@kernel
def inner(x):
    return x + {}
"""


def import_module(path, number, name, text=MODULE):
    path.write_text(text.format(number))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_that_was_read_before_an_edit_does_not_pass_for_the_edited(cache, tmp_path):
    path = tmp_path / "kernels.py"
    old = import_module(path, 3, "old")
    path.write_text(MODULE.format(500))
    assert old.outer(1) == 5
    assert import_module(path, 500, "new").outer(1) == 502


def test_a_kernel_that_is_copied_into_another_gives_the_same(cache, tmp_path):
    module = import_module(tmp_path / "kernels.py", 3, "plain")
    text = MODULE.replace("@kernel\ndef inner", '@kernel(inline="always")\ndef inner')
    copied = import_module(tmp_path / "copied.py", 3, "copied", text)
    assert copied.outer(1) == module.outer(1) == 5
    assert copied.inner.targetoptions["inline"] == "always" and module.inner.targetoptions["inline"] == "never"


def test_a_thread_sees_all_kernels_of_a_module_compiled_or_none(cache, tmp_path, monkeypatch):
    module = import_module(tmp_path / "kernels.py", 3, "shared")
    seen, compile_one = [], compilation._compile

    def watch(function, *how):
        seen.append([hasattr(getattr(module, name), "uncompiled_kernel") for name in ("outer", "inner")])
        return compile_one(function, *how)

    monkeypatch.setattr(compilation, "_compile", watch)
    assert module.inner(1) == 4
    assert seen == [[True, True]] * 2
    assert not hasattr(module.outer, "uncompiled_kernel")
