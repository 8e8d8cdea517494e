"""Screens on a real Slurm: a whole one, and every way in which a cluster loses jobs.

`cluster.sh` beside this file starts a Slurm on this machine's loopback. That takes root and its packages, which
``make slurm`` installs; else these tests are skipped, or fail where PLATELOOM_SLURM=require.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, simulate, snakemake
from in_process import run_stages

from plateloom.config import read_config
from plateloom.engine import locks, schedulers
from plateloom.planning import STAGES, Screen
from plateloom.status import read_screen

CLUSTER = Path(__file__).with_name("cluster.sh")
COMMAND = [sys.executable, "-c", "from plateloom.cli import main; main()"]
SITE = "default-resources: [slurm_account=screens, slurm_partition=cpu, slurm_gpu_partition=gpu]\n"
QUICKLY = ["--seconds-between-status-checks", "1", "--latency-wait", "5"]
DESIGN = {"rows": 2, "columns": 3, "size_px": 128, "cells_per_field": 6.0}
OUTAGE = 60.0  # [s] of slurmctld, while jobs end and others are to be submitted


def control(*words):
    subprocess.run([CLUSTER, *words], check=True, timeout=600)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A running Slurm, and the profile that its users have."""
    missing = (
        "root"
        if os.getuid()
        else ""
        if shutil.which("slurmctld", path="/usr/sbin")
        else "Slurm: `make slurm` installs it"
    )
    if missing:
        assert os.environ.get("PLATELOOM_SLURM") != "require", f"no {missing}"
        pytest.skip(f"no {missing}")
    folder = tmp_path_factory.mktemp("site")
    (folder / "profile.yaml").write_text(SITE)
    try:
        control("up")
        yield folder
    finally:
        control("down")


class Run:
    """A run of a screen on Slurm, in the background."""

    def __init__(self, screen, site, *options):
        self.said = screen.with_suffix(".said")
        command = [*COMMAND, "run", screen, "--profile", "slurm", "--profile", site, *QUICKLY, *options]
        with open(self.said, "w") as out:
            environment = os.environ | {"PLATELOOM_POLL": "1", "PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=screen.parent)

    def wait(self):
        """Exit code and everything that was said."""
        return self.process.wait(timeout=900), self.said.read_text()

    def end(self):
        """Whatever happens in a test, nothing of the run is left."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=900)


@contextlib.contextmanager
def running(*arguments):
    run = Run(*arguments)
    try:
        yield run
    finally:
        run.end()


def jobs_of(screen):
    """Jobs of a screen from accounting, the eldest first: number, what it is, partition, state, memory, time limit, TRES."""
    names = ["JobIDRaw", "JobName", "Partition", "State", "ReqMem", "TimelimitRaw", "ReqTRES", "Start", "End"]
    form = ",".join(f"{name}%200" if name in ("JobName", "ReqTRES") else name for name in names)
    text = subprocess.run(
        [
            "sacct",
            "--allocations",
            "--noheader",
            "--parsable2",
            f"--format={form}",
            "--starttime=today",
            "--duplicates",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [dict(zip(names, line.split("|"), strict=True)) for line in text.splitlines()]
    tag = schedulers.screen_tag(screen)
    return [row | {"of": row["JobName"].removeprefix(tag + ".")} for row in rows if row["JobName"].startswith(tag)]


def wait_for(find, seconds=600.0, pause=0.2):
    """What `find` returns as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(pause)
    return found


def queued(screen, of, state="RUNNING"):
    """Number of the job that is what `of` says and in this state; None where there is none."""
    text = subprocess.run(["squeue", "-h", "-o", "%A %T %j"], capture_output=True, text=True, check=False).stdout
    name = f"{schedulers.screen_tag(screen)}.{of}"
    return next((line.split()[0] for line in text.splitlines() if line.split()[1:] == [state, name]), None)


def hang(screen, plate):
    """Stop a plate's job in mid-work, as a file system that hangs does; returns its number."""
    job = wait_for(lambda: queued(screen, f"convert_plate.{plate}.0"))
    log = screen / f"logs/convert_plate/{plate}/part-0.batch.log"
    wait_for(lambda: log.exists() and "Building DAG" in log.read_text())
    subprocess.run(["scancel", "--signal=STOP", "--full", job], check=True)
    return job


def hang_midway(screen, plate):
    """Stop a plate's job as soon as a well is done; returns how many are."""
    lock = screen / f"results/plates/{plate}/records/conversion/.part-0.lock"
    said = wait_for(lambda: lock.exists() and locks.read(lock).get("done") and locks.read(lock), pause=0.002)
    os.kill(said["process"], signal.SIGSTOP)  # at once, and then all of the job
    job = queued(screen, f"convert_plate.{plate}.0")
    subprocess.run(["scancel", "--signal=STOP", "--full", job], check=True)
    assert (said := locks.read(lock))["done"] < said["of"], "it was too quick"
    return said["done"]


# What is made from latents, which are equal within rounding only.
OF_LATENTS = {"latent_aggregates.parquet", "latent_profiles.parquet", "comparison.json", "retrieval.parquet"}
OF_LATENTS |= {"corrected_profiles.parquet", "treatments.parquet"}


def results_of(screen):
    """Digest of every file of plates and tables, but what a network says."""
    files = [
        path for path in (screen / "results").rglob("*") if path.is_file() and path.suffix not in (".lock", ".html")
    ]
    return {
        str(path.relative_to(screen)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not {"records", "models", "latent", *OF_LATENTS} & set(path.parts)
    }


@pytest.fixture(scope="module")
def finished(site, tmp_path_factory):
    """A whole screen, during which both of Slurm's daemons were away, and the same screen run without Slurm."""
    here = tmp_path_factory.mktemp("whole") / "screen"
    simulate(here, **DESIGN)
    other = here.with_name("local")
    shutil.copytree(here, other)
    with running(here, site) as run:
        wait_for(lambda: queued(here, "assemble_plate.P1"))
        try:
            control("stop", "slurmdbd")
            control("stop", "slurmctld")
            began = time.monotonic()
            run_stages(other)
            time.sleep(max(0.0, began + OUTAGE - time.monotonic()))
        finally:
            control("start", "slurmctld")
            control("start", "slurmdbd")
        code, said = run.wait()
    return here, other, code, said


def test_a_whole_screen_through_an_outage_of_slurm_equals_a_local_run(finished):
    here, other, code, said = finished
    assert code in (0, 3), said
    assert "1 of 1 plates complete" in said
    found, expected = results_of(here), results_of(other)
    assert found == expected and len(found) > 50
    latent = [pd.read_parquet(screen / "results/plates/P1/latent").filter(like="Latent_") for screen in (here, other)]
    np.testing.assert_allclose(*latent, rtol=0, atol=1e-5)  # trained with another number of threads
    assert latent[0].shape[0] > 20
    assert "has ended" not in said, "the outage has cost no job"
    assert all(row["State"] == "COMPLETED" for row in jobs_of(here))


def test_networks_get_a_gpu_on_its_partition_and_nothing_else_does(finished):
    with_gpu = {"train_autoencoder", "encode_plate.P1.0"}
    jobs = {row["of"]: row for row in jobs_of(finished[0])}
    screen = Screen(read_config(finished[0]).model_dump(mode="json"), finished[0])
    assert with_gpu < set(jobs)
    assert {of.partition(".")[0] for of in jobs} == {STAGES[stage].script for stage in screen.stages()}
    for name, row in jobs.items():
        assert row["Partition"] == ("gpu" if name in with_gpu else "cpu")
        assert ("gres/gpu=1" in row["ReqTRES"]) == (name in with_gpu)


def test_slurms_own_log_lies_beside_that_of_the_job(finished):
    for name in ("convert_plate/P1/part-0", "fit_map"):
        assert "Finished jobid" in (finished[0] / f"logs/{name}.batch.log").read_text()


def test_jobs_that_the_cluster_kills_are_retried_and_fail_their_plate_alone(site, tmp_path):
    plates = ("memory", "time", "cancel", "node", "never")
    screen = simulate(tmp_path / "screen", plates=plates, **DESIGN | {"rows": 4, "columns": 6})
    memory = "1200 if attempt > 1 or wildcards.plate in ('time', 'cancel', 'node') else 60"
    asked = {
        "mem_mb": f"60 if wildcards.plate == 'never' else {memory}",
        "runtime": "attempt",
        "slurm_partition": "'gpu' if wildcards.plate == 'node' else 'cpu'",
    }
    options = [f"convert_plate:{name}={value}" for name, value in asked.items()]
    with running(screen, site, "--until", "conversion", "--set-resources", *options) as run:
        with ThreadPoolExecutor() as pool:
            done = {plate: pool.submit(hang_midway, screen, plate) for plate in ("time", "node")}
            subprocess.run(["scancel", wait_for(lambda: queued(screen, "convert_plate.cancel.0"))], check=True)
        control("crash", "gpu1")
        wait_for(lambda: len([row for row in jobs_of(screen) if row["of"] == "convert_plate.node.0"]) > 1)
        control("start", "gpu1")
        code, said = run.wait()
    assert code == 1 and "4 of 5 plates complete; open: never up to conversion" in said, said
    ends = {}
    for row in jobs_of(screen):
        ends.setdefault(row["of"], []).append(row["State"].split()[0])
    assert ends["convert_plate.memory.0"] == ["OUT_OF_MEMORY", "COMPLETED"]
    assert ends["convert_plate.never.0"] == ["OUT_OF_MEMORY"] * 3
    assert ends["convert_plate.time.0"] == ["TIMEOUT", "COMPLETED"]
    assert ends["convert_plate.cancel.0"] == ["CANCELLED", "COMPLETED"]
    assert ends["convert_plate.node.0"] == ["NODE_FAIL", "COMPLETED"]
    assert [row["ReqMem"] for row in jobs_of(screen) if row["of"] == "convert_plate.memory.0"] == ["60M", "1200M"]
    assert [row["TimelimitRaw"] for row in jobs_of(screen) if row["of"] == "convert_plate.time.0"] == ["1", "2"]
    records = {plate: screen / f"results/plates/{plate}/records/conversion/part-0.json" for plate in plates[:4]}
    records = {plate: json.loads(path.read_text()) for plate, path in records.items()}
    for plate, hung in done.items():
        record = records[plate]
        assert record["attempts"] == 2 and hung.result() <= len(record["kept"]) < 24, "it went on where it was"
        assert {*record["kept"], *record["computed"]} == set(record["artefacts"])
    assert all(record["status"] == "done" and len(record["artefacts"]) == 24 for record in records.values())
    state = read_screen(screen)["plates"]["never"]["conversion"]
    assert state.state in ("failed", "interrupted") and "has ended: OUT_OF_MEMORY" in state.reason
    assert state.log == "logs/convert_plate/never/part-0.batch.log"


def test_a_job_that_a_more_urgent_one_preempts_is_tried_again_and_goes_on(site, tmp_path):
    screen = simulate(tmp_path / "screen", **DESIGN | {"rows": 4, "columns": 6})
    options = ["--until", "convert_plate", "--set-resources", "convert_plate:slurm_partition='gpu'"]
    with running(screen, site, *options) as run:
        done = hang_midway(screen, "P1")
        urgent = [
            "sbatch",
            "--account=screens",
            "--partition=urgent",
            "--exclusive",
            "--wait",
            "--time=5",
            "--wrap=true",
        ]
        subprocess.run([*urgent, "--output=/dev/null"], check=True, timeout=600)
        code, said = run.wait()
    assert code == 0 and "has ended: PREEMPTED" in said, said
    states = [row["State"] for row in jobs_of(screen) if row["of"] == "convert_plate.P1.0"]
    assert states == ["PREEMPTED", "COMPLETED"], "and not requeued by Slurm"
    record = json.loads((screen / "results/plates/P1/records/conversion/part-0.json").read_text())
    assert record["attempts"] == 2 and done <= len(record["kept"]) < 24


def test_jobs_of_a_killed_run_are_cancelled_before_the_next_one_works(site, tmp_path):
    screen = simulate(tmp_path / "screen", plates=("done", "hung", "waiting"), **DESIGN)
    extra = "'--begin=now+1hour' if wildcards.plate == 'waiting' else ''"
    with running(
        screen, site, "--until", "convert_plate", "--set-resources", f"convert_plate:slurm_extra={extra}"
    ) as run:
        hung = hang(screen, "hung")
        waiting = wait_for(lambda: queued(screen, "convert_plate.waiting.0", "PENDING"))
        record = screen / "results/plates/done/records/conversion/part-0.json"
        wait_for(lambda: "Finished jobid" in run.said.read_text())
        driver = locks.read(screen / locks.RUN)["process"]
        run.process.kill()
        os.kill(driver, signal.SIGKILL)
    written = record.stat().st_mtime_ns
    assert queued(screen, "convert_plate.hung.0", "STOPPED") == hung
    assert queued(screen, "convert_plate.waiting.0", "PENDING") == waiting
    profiles = ["--workflow-profile", "profiles/slurm", "--profile", str(site)]
    said = snakemake(screen, *profiles, *QUICKLY, "--until", "convert_plate").stdout
    (cancelled,) = re.findall("Cancelled jobs of an earlier run: (.*)", said)
    assert {hung, waiting} <= set(cancelled.split(", "))
    assert record.stat().st_mtime_ns == written, "what was left, and nothing else"
    jobs = {}
    for row in jobs_of(screen):
        jobs.setdefault(row["of"], []).append(row)
    assert len(jobs["convert_plate.done.0"]) == 1
    first, second = jobs["convert_plate.hung.0"]
    assert first["JobIDRaw"] == hung and first["State"].startswith("CANCELLED")
    assert first["End"] <= second["Start"], "never two at work on the same part"
    assert jobs["convert_plate.waiting.0"][-1]["JobIDRaw"] != waiting
    for plate in ("hung", "waiting"):
        assert jobs[f"convert_plate.{plate}.0"][-1]["State"] == "COMPLETED"
        done = json.loads((screen / f"results/plates/{plate}/records/conversion/part-0.json").read_text())
        assert done["status"] == "done"


def test_dask_workers_that_are_slurm_jobs_give_the_same_results_and_stand_in_the_record(site, tmp_path):
    screen, other = tmp_path / "screen", tmp_path / "local"
    simulate(screen, **DESIGN)
    shutil.copytree(screen, other)
    settings = yaml.safe_load((screen / "config.yaml").read_text())
    worker = {"cores": 1, "processes": 1, "memory": "1GB", "walltime": "00:10:00", "queue": "cpu", "account": "screens"}
    settings["engine"] = {"kind": "slurm", "slurm": worker | {"jobs": 2, "interface": "lo", "job_name": "dask-of-test"}}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [*COMMAND, "run", screen, "--cores", "2", "--until", "conversion"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run_stages(other, ("conversion", "assembly"))
    assert results_of(screen) == results_of(other) and len(results_of(screen)) > 50
    cluster = json.loads((screen / "results/plates/P1/records/conversion/part-0.json").read_text())["cluster"]
    assert cluster["kind"] == "slurm" and cluster["tasks"] == 6 and cluster["workers"]
    form = r"tcp://127\.0\.0\.1:\d+ on \S+, Slurm job (\d+)"
    numbers = {re.fullmatch(form, worker)[1] for worker in cluster["workers"]}
    text = subprocess.run(["squeue", "-h", "--name=dask-of-test"], capture_output=True, text=True, check=True).stdout
    assert not text.strip() or "CG" in text, "workers end with their job"
    asked = ["sacct", "-X", "-n", "-P", "--name=dask-of-test", "--format=JobIDRaw", "--starttime=today"]
    assert numbers <= set(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split())


def test_the_driver_can_be_a_job_itself(site, tmp_path):
    screen = simulate(tmp_path / "screen", **DESIGN)
    line = shlex.join(
        [*COMMAND, "run", str(screen), "--profile", "slurm", "--profile", str(site), *QUICKLY, "--until", "conversion"]
    )
    said = tmp_path / "driver.txt"
    submit = ["sbatch", "--parsable", "--wait", "--account=screens", "--partition=gpu", "--cpus-per-task=1", "--mem=2G"]
    submit += ["--time=10", "--job-name=driver", f"--output={said}", f"--wrap={line}"]
    environment = os.environ | {"PLATELOOM_POLL": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(submit, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr + said.read_text()
    assert "1 of 1 plates complete up to conversion" in said.read_text()
    jobs = wait_for(lambda: {row["of"]: row for row in jobs_of(screen) if row["State"] == "COMPLETED"})
    assert set(jobs) == {"convert_plate.P1.0", "assemble_plate.P1"}
    assert {row["Partition"] for row in jobs.values()} == {"cpu"}, "its own place in the queue is not handed on"


def test_a_night_can_be_a_job_as_scrontab_starts_it(site, tmp_path):
    screen, said = simulate(tmp_path / "screen", **DESIGN), tmp_path / "nightly.log"
    (screen / "raw").rename(tmp_path / "inbox")
    (screen / "plates.tsv").unlink()
    settings = yaml.safe_load((screen / "config.yaml").read_text())
    settings["latent"]["autoencoder"] = {"enabled": False}
    settings |= {"classification": {"labels": ""}, "nightly": {"settle_minutes": 0}}
    (screen / "config.yaml").write_text(yaml.safe_dump(settings))
    night = [*COMMAND, "nightly", screen.name, "--inbox", str(tmp_path / "inbox"), "--hours", "1"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site/profile.yaml").write_text(SITE + "seconds-between-status-checks: 1\n")
    night += ["--profile", "slurm", "--profile", str(tmp_path / "site")]
    submit = ["sbatch", "--parsable", "--wait", "--account=screens", "--partition=gpu", "--cpus-per-task=1", "--mem=4G"]
    submit += [
        "--time=30",
        "--job-name=plateloom-night",
        f"--chdir={tmp_path}",
        f"--output={said}",
        "--open-mode=append",
    ]
    environment = os.environ | {"PLATELOOM_POLL": "1", "PYTHONPATH": str(ROOT)}
    for finished in ("finished 1 (P1)", "finished 0;"):
        done = subprocess.run(
            [*submit, f"--wrap={shlex.join(night)}"], capture_output=True, text=True, env=environment, timeout=900
        )
        assert done.returncode in (0, 3), done.stderr + said.read_text()
        line = sorted((screen / "results/nights").glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)[
            -1
        ].read_text()
        assert finished in line and line.strip() in said.read_text()
    jobs = {row["of"] for row in jobs_of(screen)}
    assert {"convert_plate.P1.0", "report_screen"} <= jobs and "train_autoencoder" not in jobs
