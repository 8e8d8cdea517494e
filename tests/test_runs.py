"""`runs/{time}` in the screen: what a run began with stands there at once, and what it came to in the end, also after a kill."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from in_process import run_stages

from plateloom import runs, status
from plateloom.config import load_config
from plateloom.engine import locks
from plateloom.planning import SOURCES, Screen
from plateloom.store.provenance import read_json, replacing, write_json

TO_QUALITY = ("conversion", "assembly", "quality")


def open_screen():
    return Screen(yaml.safe_load(Path("config.yaml").read_text()))


def all_runs():
    return sorted(Path("runs").iterdir())


# What Snakemake does with the driver, without its jobs.
DRIVER = """
import os, signal, sys, yaml
from plateloom import driver
screen = driver.open_screen(yaml.safe_load(open("config.yaml")), main=True)
driver.begin_run(screen)
{then}
"""


def drive(then):
    command = [sys.executable, "-c", DRIVER.format(then=then), "--cores", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).returncode


def test_a_run_leaves_what_it_began_with_and_what_it_came_to(screen):
    folder = runs.begin(open_screen(), ["snakemake", "--cores", "2"])
    begun = read_json(folder / "begin.json")
    assert begun["command"] == "snakemake --cores 2" and begun["plates"] == ["P1"]
    assert begun["code"]["segmentation"] == open_screen().code("segmentation") and not begun["adopted_code"]
    assert begun["versions"]["python"] and begun["seeds"]["latent.autoencoder.parameters.seed"] == 0
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert load_config(settings) == open_screen().config, "the same run can be begun again from it"
    assert any(line.startswith("zarr==") for line in (folder / "packages.txt").read_text().splitlines())
    assert not (folder / "end.json").exists()
    run_stages(screen, TO_QUALITY)
    found = runs.end(folder, 0)
    assert found == read_json(folder / "end.json")
    rows = list(csv.DictReader((folder / "jobs.tsv").read_text().splitlines(), delimiter="\t"))
    assert [row["stage"] for row in rows] == list(TO_QUALITY)
    records = [read_json(f"results/plates/P1/records/{stage}/part-0.json") for stage in TO_QUALITY]
    assert found["jobs"] == {"done": 3, "failed": 0, "skipped": 0, "unfinished": 0} and found["exit_code"] == 0
    assert found["peak_memory_mb"] == pytest.approx(max(runs.recorded_memory(record) for record in records), abs=0.1)
    spent = sum(record["seconds"] * record["threads"] for record in records)
    assert found["core_hours"] == pytest.approx(spent / 3600, abs=1e-4)
    assert rows[0]["computed"] == str(len(records[0]["computed"])) and rows[0]["host"] == records[0]["host"]
    started = records[0]["started"]
    assert runs.find_run(".", started) == f"runs/{folder.name}" and not runs.find_run(".", "2001-01-01T00:00:00")


def test_of_an_earlier_run_nothing_is_counted(screen):
    run_stages(screen, TO_QUALITY)
    for path in Path("results").rglob("part-*.json"):
        os.utime(path, (1e9, 1e9))
    folder = runs.begin(open_screen(), ["snakemake"])
    assert runs.end(folder, 0)["jobs"]["done"] == 0
    again = runs.begin(open_screen(), ["snakemake"])
    assert again != folder and again.name.startswith(folder.name[:10])


def test_jobs_that_left_no_record_are_told_with_log_and_reason(screen):
    earlier = Path("results/plates/P1/records/features/.part-0.lock")
    with locks.hold(earlier, wait=False) as lock:
        lock.say(attempts=3, log="logs/features.log")
    os.utime(earlier, (1e9, 1e9))
    folder = runs.begin(open_screen(), ["snakemake"])
    run_stages(screen, ("conversion",))
    Path("logs").mkdir(exist_ok=True)
    Path("logs/job.log").write_text("2026-01-02 03:04:05,678 ERROR OSError: disk full\n")
    with locks.hold("results/plates/P1/records/segmentation/.part-0.lock", wait=False) as lock:
        lock.say(attempts=2, log="logs/job.log", done=1, of=12)
        assert runs.end(folder, 1)["jobs"]["unfinished"] == 0, "it still runs"
    with locks.hold("results/screen/records/.map.lock", wait=False) as lock:
        lock.say(attempts=1)
    assert runs.end(folder, 1)["jobs"] == {"done": 1, "failed": 0, "skipped": 0, "unfinished": 2}
    rows = list(csv.DictReader((folder / "jobs.tsv").read_text().splitlines(), delimiter="\t"))
    told = {row["stage"]: row for row in rows}
    assert set(told) == {"conversion", "segmentation", "map"} and told["map"]["reason"] == status.UNSAID
    row = told["segmentation"]
    names = ("plate", "part", "status", "wells", "attempts", "log", "reason")
    assert [row[name] for name in names] == ["P1", "0", "unfinished", "12", "2", "logs/job.log", "OSError: disk full"]
    assert row["host"] and row["started"][:2] == "20"


@pytest.mark.parametrize("content", ["{}", "[1]", '{"stage": "conversion"}', None])
def test_a_record_that_is_none_ends_no_summary(screen, content):
    folder = runs.begin(open_screen(), ["snakemake"])
    path = Path("results/plates/P1/records/conversion/part-0.json")
    path.mkdir(parents=True) if content is None else path.parent.mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    assert runs.end(folder, 1)["jobs"]["done"] == 0


@pytest.mark.parametrize(
    "then, code", [("driver.end_run()", 0), ("os.kill(os.getpid(), signal.SIGTERM)", 143), ("sys.exit(7)", None)]
)
def test_the_driver_says_how_it_ended(screen, then, code):
    returned = drive(then)
    assert code in (None, returned)
    assert read_json(SOURCES) is not None, "what `plateloom status` goes by"
    (folder,) = all_runs()
    assert read_json(folder / "end.json")["exit_code"] == code
    assert "--cores 2" in read_json(folder / "begin.json")["command"]
    runs.note_exit(".", 3, since=0)
    assert read_json(folder / "end.json")["exit_code"] == 3
    runs.note_exit(".", 1, since=1e12)
    assert read_json(folder / "end.json")["exit_code"] == 3, "that was another command's run"


def test_after_a_kill_the_next_run_says_so(screen):
    assert drive("os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    (killed,) = all_runs()
    assert (killed / "begin.json").exists() and not (killed / "end.json").exists()
    shutil.move(killed, killed.with_name("2020-01-01T00-00-00"))
    assert drive("driver.end_run()") == 0
    first, second = all_runs()
    found = read_json(first / "end.json")
    assert found["reason"] == runs.SILENT and found["told_by"] == second.name and found["exit_code"] is None
    assert read_json(second / "end.json")["exit_code"] == 0


def test_the_second_phase_belongs_to_its_run(screen):
    assert drive("os.environ['PLATELOOM_RUN'] = str(os.getpid()); driver.begin_run(screen); driver.end_run()") == 0
    assert len(all_runs()) == 1


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_new_files_have_the_mode_of_a_plain_file_and_the_group_of_their_folder(tmp_path, mask):
    """In a shared folder (setgid) colleagues must be able to read, and to write what the owner's umask lets them."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    code = (
        "import os, sys; from pathlib import Path; os.umask(int(sys.argv[2], 8));"
        "from plateloom.store.provenance import write_json; folder = Path(sys.argv[1]);"
        "write_json(folder / 'new/ours.json', {}); open(folder / 'new/plain', 'w').close()"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(shared), oct(mask)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    ours, plain = ((shared / "new" / name).stat() for name in ("ours.json", "plain"))
    assert ours.st_mode == plain.st_mode and ours.st_gid == plain.st_gid == shared.stat().st_gid
    assert (shared / "new").stat().st_mode & 0o2000, "new folders hand the group on"


@pytest.mark.parametrize(("folder", "made"), [(0o2770, 0o664), (0o2750, 0o644), (0o770, 0o644), (0o755, 0o644)])
def test_in_a_folder_that_a_group_shares_the_group_may_write_whatever_the_umask(tmp_path, folder, made):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(folder)
    code = (
        "import os, subprocess, sys; os.umask(0o022); os.chdir(sys.argv[1]);"
        "from plateloom.store.provenance import follow_folder, write_json; write_json('before.json', {});"
        "follow_folder(); write_json('new/ours.json', {}); subprocess.run(['touch', 'new/plain'])"
    )
    subprocess.run([sys.executable, "-c", code, str(shared)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert {(shared / "new" / name).stat().st_mode & 0o777 for name in ("ours.json", "plain")} == {made}


def test_a_file_that_is_there_keeps_no_mode_of_its_own(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {})
    path.chmod(0o600)
    with replacing(path) as file:
        file.write(b"{}")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
