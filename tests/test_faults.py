"""Faults of machines and of people, injected: no room, no memory, killed drivers and workers, edits under way, foreign models.

docs/faults.md lists all faults, what must happen, and the test of each; here are those that no other file injects.
"""

import contextlib
import errno
import hashlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT, edit, simulate, snakemake
from in_process import run_stages

from plateloom import driver, status
from plateloom.engine import locks, parts
from plateloom.errors import ModelMismatchError
from plateloom.planning import Screen
from plateloom.store import provenance
from plateloom.store.provenance import read_json, recipe

RUNS = []
COMMAND = [sys.executable, "-c", "from plateloom.cli import main; main()"]
DESIGN = {"rows": 2, "columns": 3, "size_px": 256, "cells_per_field": 8.0}
TO_LABELS = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation")
CONVERSION = "results/plates/P1/records/conversion/part-0.json"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A small screen that nothing has run on; copy it."""
    return simulate(tmp_path_factory.mktemp("faults") / "screen", **DESIGN)


@pytest.fixture
def screen(raw, tmp_path, monkeypatch):
    """A copy of it, and the current folder in it."""
    folder = shutil.copytree(raw, tmp_path / "screen")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def disk(tmp_path):
    """Mount a small file system of its own; ``disk(size="1m")`` does it, and again gives it another size."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(**limits):
        again = ["remount"] if os.path.ismount(where) else []
        options = ",".join(again + [f"{name}={value}" for name, value in limits.items()])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        return where

    yield mount
    subprocess.run(["umount", "--lazy", where], capture_output=True, check=False)


def bytes_of(folder):
    """Digest of every file of the plates but records and locks, hidden ones too: nothing half made stays unseen."""
    root = folder / "results/plates"
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "/records/" not in (name := path.relative_to(root).as_posix())
    }


def wait_for(seen, seconds=900):
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return found


@pytest.fixture(autouse=True)
def nothing_left():
    """Whatever happens in a test, its runs end."""
    yield
    for process in RUNS:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=900)
    RUNS.clear()


def start(folder, *options, said="said.txt"):
    """Begin `plateloom run`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*COMMAND, "run", folder, "--cores", "2", *options]
    with open(folder / said, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder)
    RUNS.append(process)
    return process


def scripts_of(run):
    """Processes of a run's jobs."""
    found = []
    for child in psutil.Process(run.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [child] if ".snakemake/scripts/" in " ".join(child.cmdline()) else []
    return found


def end(process, folder, said="said.txt"):
    """Exit code of a run, and what it said."""
    return process.wait(timeout=900), (folder / said).read_text()


# 14, 15: no room


@pytest.mark.slow
def test_a_full_disk_is_told_with_what_was_needed_and_the_same_command_goes_on_once_there_is_room(raw, disk, tmp_path):
    expected = shutil.copytree(raw, tmp_path / "expected")
    run_stages(expected, ("conversion", "assembly"))
    folder = disk(size="8m")
    shutil.copytree(raw, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("truth"))
    used = shutil.disk_usage(folder).used
    disk(size=used + 640_000)  # of 1.7 MB that are needed, logs of the run included
    code, said = end(start(folder, "--until", "conversion", "--retries", "0"), folder)
    assert code == 1, said
    assert not (folder / CONVERSION).exists()
    (cause,) = status.find_causes(status.read_screen(folder))
    assert (cause.stage, cause.state) == ("conversion", "failed")
    assert "No space left on device: up to" in cause.reason and "needed" in cause.reason and "MB" in cause.reason
    disk(size="64m")
    code, said = end(start(folder, "--until", "conversion", "--retries", "0"), folder)
    assert code == 0, said
    record = read_json(folder / CONVERSION)
    assert record["kept"] and record["computed"] and record["attempts"] == 2
    assert bytes_of(folder) == bytes_of(expected)


@pytest.mark.slow
@pytest.mark.parametrize("ngff, fewer", [("0.5", "conversion.levels"), ("0.4", "chunk_px")])
def test_a_limit_of_files_is_told_with_their_number_and_how_to_lower_it(screen, disk, ngff, fewer):
    edit(screen, lambda settings: settings["conversion"].update(ngff=ngff, chunk_px=128))
    (screen / "results").symlink_to(disk(nr_inodes=100))
    with pytest.raises(OSError, match=r"up to .* MB in \d+ files were needed, .* and 0 files left; .*" + fewer) as full:
        run_stages(screen, TO_LABELS)
    assert full.value.errno == errno.ENOSPC
    assert not (screen / CONVERSION).exists()
    disk(nr_inodes=5000)
    run_stages(screen, TO_LABELS)
    assert read_json(screen / CONVERSION)["kept"]
    found = bytes_of(screen)
    (screen / "results").unlink()
    run_stages(screen, TO_LABELS)
    assert found == bytes_of(screen)


def test_a_table_for_which_there_is_no_room_says_what_it_needed(disk):
    from plateloom.store.tables import write_table

    folder = disk(size="200k")
    table = pd.DataFrame({f"{i}": [float(j * i) ** 0.5 for j in range(5000)] for i in range(20)})
    with pytest.raises(OSError, match=r"No space left on device: up to 0.80 MB in one file needed, [\d.]+ MB"):
        write_table(folder / "A01.parquet", table, {})
    assert list(folder.iterdir()) == [], "nothing half written is left"


# 16, 19: workers and memory


def toy(folder, name, function, *arguments):
    made = recipe("toy", parameters={}, code="c", inputs={})

    def work():
        (found,) = yield [(function, *arguments)]
        return parts.Outcome(pd.DataFrame({"value": [found]}))

    return parts.Unit(name, folder / f"{name}.parquet", made, work)


def die_once(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 42


def grow(megabytes):
    held = bytearray(megabytes * 1_000_000)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(5)
    return len(held)


def test_a_worker_that_is_killed_costs_its_task_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=1))
    units = [toy(tmp_path, "A01", die_once, str(tmp_path / "died")), toy(tmp_path, "A02", len, "four")]
    record = parts.run_job("toy", record=tmp_path / "record.json", plan=lambda _: units, code="c")
    assert (tmp_path / "died").exists() and record["status"] == "done" and record["computed"] == ["A01", "A02"]
    assert pd.read_parquet(tmp_path / "A01.parquet")["value"].tolist() == [42]


@pytest.mark.slow
def test_a_worker_that_outgrows_its_memory_fails_the_job_and_more_memory_mends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=1, memory_mb=400))
    units = [toy(tmp_path, "A02", len, "four"), toy(tmp_path, "A01", grow, 400)]
    with pytest.raises(MemoryError, match="which has 400 MB, .* more memory"):
        parts.run_job("toy", record=tmp_path / "record.json", plan=lambda _: units, code="c")
    assert not (tmp_path / "record.json").exists()
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=1, memory_mb=1200))
    record = parts.run_job("toy", record=tmp_path / "record.json", plan=lambda _: units, code="c")
    assert record["status"] == "done" and record["attempts"] == 2


def test_memory_that_no_worker_could_begin_with_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=2, memory_mb=60))
    with pytest.raises(MemoryError, match="60 MB for 2 workers: they need .* MB"):
        parts.run_job("toy", record=tmp_path / "r.json", plan=lambda _: [toy(tmp_path, "A01", len, "1")], code="c")


def test_tiles_are_smaller_from_the_third_attempt_on(tmp_path, monkeypatch):
    seen = []

    def plan(_):
        seen.append((parts.EXECUTION.attempt, parts.EXECUTION.tile_px))
        raise MemoryError

    for _ in range(4):
        monkeypatch.setattr(parts, "EXECUTION", parts.Execution())
        with pytest.raises(MemoryError):
            parts.run_job("toy", record=tmp_path / "record.json", plan=plan, code="c")
    assert seen == [(1, 2048), (2, 2048), (3, 1024), (4, 512)]


@pytest.mark.slow
def test_a_job_without_memory_is_tried_with_more_and_fails_its_plate_alone(tmp_path):
    folder = simulate(tmp_path / "screen", plates=("P1", "never"), rows=1, columns=2, size_px=128, cells_per_field=6.0)
    edit(folder, lambda settings: settings["engine"].update(kind="processes"))
    memory = "convert_plate:mem_mb=1500 if attempt > 1 and wildcards.plate != 'never' else 60"
    code, said = end(start(folder, "--until", "conversion", "--set-resources", memory, "--retries", "1"), folder)
    assert code == 1 and "1 of 2 plates complete; open: never up to conversion" in said, said
    assert read_json(folder / CONVERSION)["attempts"] == 2
    causes = [cause for cause in status.find_causes(status.read_screen(folder)) if cause.state == "failed"]
    assert [cause.plates for cause in causes] == [["never"]] and "60 MB for 2 workers" in causes[0].reason


# 17: the driver


def job_of(folder):
    """Process of the job that converts, once it has done a well; None before."""
    path = folder / "results/plates/P1/records/conversion/.part-0.lock"
    said = locks.read(path)
    return said["process"] if said.get("done") and locks.is_held(path) else None


@pytest.mark.slow
def test_a_job_that_outlives_its_driver_is_waited_for_and_never_has_a_second_writer(screen, raw, tmp_path):
    expected = shutil.copytree(raw, tmp_path / "expected")
    run_stages(expected, ("conversion", "assembly"))
    first = start(screen, "--until", "conversion")
    try:
        orphan = psutil.Process(wait_for(lambda: job_of(screen)))
        orphan.suspend()
        first.kill()
        os.kill(locks.read(screen / locks.RUN)["process"], signal.SIGKILL)
        first.wait()
        done = len(list((screen / "results/plates/P1/fields").glob("[!.]*.parquet")))
        assert 1 <= done < 6, "stopped too late to prove anything"
        second = start(screen, "--until", "conversion", said="second.txt")
        log = screen / "logs/convert_plate/P1/part-0.log"
        began = log.stat().st_mtime_ns
        wait_for(lambda: log.exists() and log.stat().st_mtime_ns > began and scripts_of(second))
        time.sleep(3)
        assert scripts_of(second) and second.poll() is None
        assert len(list((screen / "results/plates/P1/fields").glob("[!.]*.parquet"))) == done, "a second writer"
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.resume()
    code, said = end(second, screen, "second.txt")
    assert code == 0, said
    assert read_json(screen / CONVERSION)["computed"] == [] and len(read_json(screen / CONVERSION)["kept"]) == 6
    assert bytes_of(screen) == bytes_of(expected)


# 21: a slow file system


def test_every_file_is_on_the_disk_before_its_name_is_and_the_record_comes_last(screen, monkeypatch):
    flushed, named = set(), []
    flush, replace = os.fsync, os.replace

    def fsync(handle):
        flush(handle)
        flushed.add(os.readlink(f"/proc/self/fd/{handle}"))

    def rename(source, target, **options):
        if os.path.abspath(target).startswith(f"{screen}/results"):  # compiled kernels are a cache
            named.append((os.path.abspath(source) in flushed, os.path.abspath(target)))
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(provenance.os, "replace", rename)
    run_stages(screen, (*TO_LABELS, "features"))
    assert len(named) > 100 and all(before for before, _ in named)
    order = [name for _, name in named]
    shards = [name for name in order if "/c/0/" in name]
    assert len(shards) > 50 and len(set(shards)) == len(shards), "each is written once"
    for stage, kind in (("conversion", "fields"), ("segmentation", "segmentation"), ("features", "features")):
        record = order.index(str(screen / f"results/plates/P1/records/{stage}/part-0.json"))
        tables = [i for i, name in enumerate(order) if f"/P1/{kind}/" in name]
        assert len(tables) == 6 and max(tables) < record


# 23: no GPU


def test_a_gpu_that_is_required_and_absent_fails_the_job_and_the_policy_prefer_says_what_was_used(screen):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    stages = (*TO_LABELS, "autoencoder")
    edit(screen, lambda settings: settings["engine"].update(device="require"))
    record = screen / "results/screen/records/autoencoder.json"
    with pytest.raises(RuntimeError, match="engine.device is `require`, but torch sees no GPU here"):
        run_stages(screen, stages)
    assert not record.exists()
    edit(screen, lambda settings: settings["engine"].update(device="prefer"))
    run_stages(screen, stages)
    assert read_json(record)["status"] == "done" and read_json(record)["facts"]["device"] == "cpu"


def test_a_gpu_that_fails_at_work_fails_the_job_and_no_cpu_takes_its_place(screen, monkeypatch):
    pytest.importorskip("torch")
    from plateloom import devices
    from plateloom.segmentation import unet
    from plateloom.segmentation.batching import Batches

    def broken(points):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    method = {"method": "unet", "parameters": {"nuclei_channel": "DNA", "nucleus_diameter_um": 15.0}}
    edit(screen, lambda settings: settings.update(segmentation=method))
    record = screen / "results/plates/P1/records/segmentation/part-0.json"
    with monkeypatch.context() as patched:
        patched.setattr(unet, "_load", lambda *_: Batches(broken, 4))
        patched.setattr(devices, "has_gpu", lambda policy: True)
        patched.setattr(devices, "choose_device", lambda policy: "cuda")
        with pytest.raises(RuntimeError, match="CUDA error: an illegal memory access"):
            run_stages(screen, TO_LABELS)
    assert not record.exists() and not list(screen.glob("results/plates/P1/segmentation/*.parquet"))
    assert locks.read(record.with_name(".part-0.lock"))["attempts"] == 1
    state = status.read_screen(screen)["plates"]["P1"]["segmentation"]
    assert state.state in ("failed", "interrupted") and not state.done
    run_stages(screen, TO_LABELS)
    assert read_json(record)["status"] == "done" and read_json(record)["attempts"] == 2


# 24: foreign models


class _Trap:
    """What leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def with_models(raw, tmp_path_factory):
    """The small screen with its autoencoder and its map; copy it."""
    folder = shutil.copytree(raw, tmp_path_factory.mktemp("with_models") / "screen")
    run_stages(folder, (*TO_LABELS, "features", "autoencoder", "latent", "map", "maps"))
    return folder


@pytest.mark.parametrize("stage, file", [("maps", "map/map.npz"), ("latent", "autoencoder/model.safetensors")])
@pytest.mark.parametrize("what", ["a pickle", "one changed byte"])
def test_a_model_that_is_not_the_one_that_was_made_is_refused_before_it_is_read(
    with_models, tmp_path, stage, file, what
):
    from plateloom.stages import latent, maps

    folder = shutil.copytree(with_models, tmp_path / "screen")
    model, sprung = folder / "results/screen/models" / file, tmp_path / "sprung"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(pickle.dumps(_Trap(sprung)) if what == "a pickle" else bytes(data))
    shutil.rmtree(folder / f"results/plates/P1/{stage}")
    record = folder / f"results/plates/P1/records/{stage}/part-0.json"
    record.unlink()
    for load in (latent.load_autoencoder, maps.load_map):  # of this process, as a job has it
        load.cache_clear()
    with pytest.raises(ModelMismatchError, match="was altered"):
        run_stages(folder, (stage,))
    assert not record.exists() and not sprung.exists()


# 29: an edit under way


@pytest.mark.slow
def test_a_config_that_is_edited_while_a_run_is_under_way_holds_from_the_next_run_on(screen):
    process = start(screen, "--until", "segmentation")
    wait_for(lambda: locks.read(screen / "results/plates/P1/records/conversion/.part-0.lock").get("attempts"))

    def change(settings):
        settings["segmentation"]["parameters"]["nucleus_diameter_um"] = 14
        settings["parts"] = 2
        settings["channels"]["DNA"]["source"] = "9"

    before = (screen / "config.yaml").read_text()
    edit(screen, change)
    code, said = end(process, screen)
    assert code == 0, said
    frozen = read_json(screen / ".plateloom/run.json")
    found = status.read_screen(screen, frozen=frozen)["plates"]["P1"]
    assert {found[stage].state for stage in ("conversion", "illumination", "segmentation")} == {"done"}
    (screen / "config.yaml").write_text(before)
    edit(screen, lambda settings: settings["segmentation"]["parameters"].update(nucleus_diameter_um=14))
    now = status.read_screen(screen)["plates"]["P1"]
    assert now["conversion"].state == "done" and now["segmentation"].state == "stale"
    code, said = end(start(screen, "--until", "segmentation"), screen)
    assert code == 0, said
    assert status.read_screen(screen)["plates"]["P1"]["segmentation"].state == "done"
    record = read_json(screen / "results/plates/P1/records/segmentation/part-0.json")
    assert len(record["computed"]) == 6 and not record["kept"]
    assert read_json(screen / CONVERSION)["attempts"] == 1, "only what the change concerns"


@pytest.mark.slow
def test_jobs_on_a_cluster_never_read_a_config_that_is_broken_while_a_run_is_under_way(tmp_path):
    folder = simulate(tmp_path / "screen", rows=1, columns=2, size_px=64, cells_per_field=2.0)
    submit = tmp_path / "submit.sh"  # a scheduler that takes its time: until then somebody saves half of an edit
    submit.write_text("#!/bin/sh\necho 'channels: [' > config.yaml\nsh \"$1\" > job.txt 2>&1 &\necho $!\n")
    submit.chmod(0o755)
    cluster = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(submit), "--jobs", "2"]
    waits = ["--seconds-between-status-checks", "1", "--max-status-checks-per-second", "10", "--latency-wait", "1"]
    snakemake(folder, *cluster, *waits, "--retries", "0", "--until", "convert_plate")
    assert read_json(folder / CONVERSION)["status"] == "done"
    assert (folder / "config.yaml").read_text() == "channels: [\n"


def test_the_second_phase_of_a_run_goes_on_with_what_it_began_with(screen, monkeypatch):
    monkeypatch.setattr(driver, "_listen", lambda: None)
    began = Screen(yaml.safe_load((screen / "config.yaml").read_text())).freeze()
    provenance.write_json(driver.FROZEN, began | {"failed_stages": {"P1": ["latent"]}, "complete_plates": ["P1"]})
    edit(screen, lambda settings: settings["conversion"].update(pixel_size_um=1.5))
    edited = yaml.safe_load((screen / "config.yaml").read_text()) | {"complete_only": 1}
    with mock.patch.dict(os.environ), locks.hold(driver.LOCK, wait=False):
        os.environ[driver.PHASE] = str(os.getpid() + 1)
        assert driver.read_frozen(main=True) is None, "a run of its own"
        os.environ[driver.PHASE] = str(os.getpid())
        opened = driver.open_screen(edited, main=True)
        driver.begin_run(opened)
    said = read_json(driver.FROZEN)
    assert said["config"] == began["config"] | {"complete_only": True} and edited == said["config"]
    assert (said["complete_plates"], said["failed_stages"]) == ([], {}), "what is complete is found anew"


def test_every_test_that_the_page_of_faults_names_is_there():
    page = (ROOT / "docs/faults.md").read_text()
    files = {path.name: path.read_text() for path in [*ROOT.glob("tests/*.py"), *ROOT.glob("tests/slurm/*.py")]}
    file, count = None, 0
    for named, test in re.findall(r"`(?:(test_\w+\.py)|…)(?:::(test_\w+?)_?…)?`", page):
        file = named or file
        assert file in files, file
        if test:
            assert re.search(rf"^def {test}", files[file], re.M), f"{file}::{test}"
            count += 1
    assert count > 30
