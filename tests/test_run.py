"""Running a screen and looking at it: what is refused, how a run is ended, and what is said of it afterwards."""

import contextlib
import dataclasses
import fcntl
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import yaml
from conftest import ROOT

from plateloom import planning, status
from plateloom.cli import main, run
from plateloom.cli.check import find_problems
from plateloom.config import read_config
from plateloom.engine import locks
from plateloom.errors import INTERRUPTION, ConfigError, PlateloomError
from plateloom.planning import STAGES, Screen
from plateloom.store.provenance import digest, write_json

COMMAND = [sys.executable, "-c", "from plateloom.cli import main; main()"]
TRUNCATED_TIFF = {"well": "C03", "field": 1, "channel": "DNA", "reason": "C03_s1_w1.tif: truncated"}


def plateloom(*arguments, **environment):
    """Call the command in this process; returns exit code and everything that it said."""
    said, code = io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch.object(sys, "argv", ["plateloom", *map(str, arguments)]))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return code, said.getvalue()


class Records:
    """Records of a screen, written by hand."""

    def __init__(self, folder):
        self.screen = Screen(read_config(folder).model_dump(mode="json"), folder)
        self.folder = folder

    def write(self, stage, plate=None, **values):
        """The record of a stage of a plate, or of the screen; done unless the values say otherwise."""
        for part, path in enumerate(self.screen.records(stage, plate)):
            record = {
                "status": "done",
                "reason": "",
                "artefacts": {"A01": "1", "A02": "2"},
                "failures": [],
                "facts": {"listing": self.screen.listing(plate, part)} if stage == "conversion" else {},
                "parts": self.screen.config.parts if STAGES[stage].scope == "part" else None,
                "settings": digest(self.screen.recorded_settings(stage, plate)),
                "code": self.screen.code(stage, plate),
                "seconds": 1.0,
                "log": f"logs/{stage}.log",
            }
            write_json(self.folder / path, record | values)

    def write_all(self, plates=("P1",), **of_stage):
        """All stages done, but for those that are given other values by their names."""
        for stage in self.screen.stages():
            for plate in [None] if STAGES[stage].scope == "screen" else plates:
                self.write(stage, plate, **of_stage.get(stage, {}))


@pytest.fixture
def records(screen):
    return Records(screen)


def add_plate(folder, name):
    path = folder / "plates.tsv"
    path.write_text(path.read_text() + f"{name}\traw/{name}\tpattern\t\t\n")


def failed(reason):
    return {"status": "failed", "reason": reason, "artefacts": {}}


SKIPPED = {"status": "skipped", "reason": "something above failed", "artefacts": {}}
AFTER_CONVERSION = {name: SKIPPED for name, stage in STAGES.items() if stage.scope != "screen" and name != "conversion"}


# What is refused


def test_what_check_refuses_does_not_run(screen):
    (screen / "raw").rename(screen / "elsewhere")
    code, text = plateloom("run", screen)
    assert code == 2 and "P1" in text and "nothing was started" in text
    assert not {".snakemake", "results"} & {path.name for path in screen.iterdir()}


def test_warnings_of_check_are_told_before_a_run_where_somebody_reads_them(screen, monkeypatch):
    monkeypatch.setattr(run, "run_group", lambda arguments: 0)
    monkeypatch.setattr(run, "SHOWN", 1)
    sheet = screen / "plates.tsv"
    head, row = sheet.read_text().splitlines()
    shutil.copytree(screen / "raw/P1", screen / "raw/P2")
    row = row.replace("maps/P1.tsv", "")
    sheet.write_text("\n".join([head, row, row.replace("P1", "P2"), ""]))
    _, text = plateloom("run", screen)
    assert "P1: warning: no plate map" in text and "P2: warning: no plate map" not in text
    told = [note for note in find_problems(screen, files=True, decode=False)[1] if "warning: " in note]
    assert f"\n{len(told) - 1} more: plateloom check {screen}\n" in text and "P2: warning: no plate map" in "".join(
        told
    )
    assert "warning: " not in plateloom("run", screen, "--unattended")[1]


def test_only_plates_that_were_never_converted_need_their_source(screen, records):
    records.write_all()
    (screen / "raw").rename(screen / "archive")
    run.check_screen(screen)
    add_plate(screen, "P2")
    with pytest.raises(ConfigError) as caught:
        run.check_screen(screen)
    assert len(caught.value.problems) == 1 and "raw/P2" in caught.value.problems[0]


def test_a_profile_whose_scheduler_is_not_there_starts_nothing(screen, monkeypatch):
    find = importlib.util.find_spec
    absent = "snakemake_executor_plugin_kubernetes"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == absent else find(name, *more))
    code, text = plateloom("run", screen, "--profile", "kubernetes")
    assert code == 2 and "the package snakemake-executor-plugin-kubernetes is not installed" in text
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    for profile, command in {"slurm": "scancel", "lsf": "bkill", "sge": "qdel"}.items():
        code, text = plateloom("run", screen, "--profile", profile)
        assert code == 2 and f"--profile {profile}: this machine has no '{command}'" in text
    assert not (screen / ".snakemake").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--profile", "nope"], "--profile 'nope': no such profile. Plateloom has: default"),
        (["--profile", "defalt"], "Did you mean 'default'?"),
        (["--profile", "slurm", "--profile", "default"], "--profile 'default': one profile of Plateloom and one of"),
        (["--cores", "abc"], "--cores 'abc': expected a number"),
        (["--cores", "0"], "--cores '0': expected a number"),
        (["--until", "segmentaton"], "Did you mean 'segmentation'?"),
        (["--keep-gonig"], "no option '--keep-gonig'. Did you mean '--keep-going'?"),
        (["--retries", "x"], "invalid int value: 'x'"),
        (["segmentation"], "'segmentation' is no file to make: write --until segmentation"),
        (["--jobs", "0"], "--jobs: expected a number from 1 on, found 0"),
        (["-j", "-1"], "--jobs: expected a number from 1 on, found -1"),
    ],
)
def test_a_wrong_option_is_told_in_one_line_and_starts_nothing(screen, options, said):
    code, text = plateloom("run", screen, *options)
    assert code == 2 and said in text and len(text.splitlines()) == 2, text
    assert not (screen / ".snakemake").exists()


def test_a_stage_that_is_switched_off_is_no_place_to_stop(screen):
    path = screen / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["latent"]["autoencoder"] = {"enabled": False}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="switches this stage off"):
        run._last_stage(screen, "latent")
    assert run._last_stage(screen, "features") == run._last_stage(screen, "measure_features") == "features"
    for name in ("conversion", "convert_plate"):
        assert run._last_stage(screen, name) == "assembly", "a plate without its list is none"


def test_a_run_that_stops_early_judges_what_it_was_asked_for(screen, records, monkeypatch):
    monkeypatch.setattr(run, "run_group", lambda arguments: 0)
    records.write("conversion", "P1")
    records.write("assembly", "P1")
    code, text = plateloom("run", screen, "--until", "conversion")
    assert code == 0 and "1 of 1 plates complete up to conversion" in text
    code, text = plateloom("run", screen, "--until", "segmentation")
    assert code == 1 and "open: P1 up to segmentation" in text and "work is left" in text
    records.write("assembly", "P1", **failed("no field can be used"))
    code, text = plateloom("run", screen, "--until", "conversion")
    assert code == 3 and "quarantined: P1" in text


def test_a_run_after_which_something_is_open_does_not_end_with_0(screen, records, monkeypatch):
    monkeypatch.setattr(run, "run_group", lambda arguments: 0)
    records.write_all()
    assert plateloom("run", screen)[0] == 0
    (screen / records.screen.records("segmentation", "P1")[0]).unlink()
    code, text = plateloom("run", screen)
    assert code == 1 and "work is left" in text


def test_help_names_the_profiles_that_exist():
    _, text = plateloom("run", "--help")
    there = {path.parent.name for path in (ROOT / "profiles").glob("*/profile.yaml")}
    assert set(run.PROFILES) == there and "slurm" in there
    assert f"({','.join(sorted(there))})" in "".join(text.split()), "lines break at hyphens too"


def test_a_held_screen_is_told_at_once_and_planned_by_nobody(screen):
    with locks.hold(screen / ".plateloom.lock", wait=False):
        code, text = plateloom("run", screen)
    assert code == 1 and len(text.splitlines()) == 1
    assert f"process {os.getpid()}" in text and "nothing was started" in text
    assert not (screen / ".snakemake").exists()


def test_a_file_where_results_should_be_is_told_before_anything_starts(screen):
    (screen / "results").touch()
    code, text = plateloom("run", screen)
    assert code == 2 and len(text.splitlines()) == 2 and "results' is a file" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", [".", "results"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(screen, name):
    (screen / "results").mkdir()
    (screen / name).chmod(0o555)
    code, text = plateloom("run", screen)
    (screen / name).chmod(0o755)
    assert code == 2 and len(text.splitlines()) == 2 and "cannot be written" in text


# How a run is ended


FAMILY = """
import os, pathlib, signal, subprocess, sys, time
if len(sys.argv) == 3:
    {child}
    pathlib.Path(sys.argv[1], sys.argv[2]).write_text(str(os.getpid()))
    time.sleep(60)
{parent}
child = subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"])
pathlib.Path(sys.argv[1], "parent").write_text(str(os.getpid()))
child.wait()
"""
WRAPPER = "import sys; from plateloom.cli.run import run_group; sys.exit(run_group([sys.executable, *sys.argv[1:]]))"


def start_family(folder, *, child="", parent="", ignore=None):
    """Start a command that starts another one, as `plateloom run` does; returns its process and both their numbers."""
    (folder / "family.py").write_text(FAMILY.format(child=child, parent=parent))
    before = signal.signal(ignore, signal.SIG_IGN) if ignore else None
    process = subprocess.Popen([sys.executable, "-c", WRAPPER, str(folder / "family.py"), str(folder)], cwd=ROOT)
    if ignore:
        signal.signal(ignore, before)
    wait_for(lambda: all((folder / name).exists() and (folder / name).read_text() for name in ("parent", "child")))
    return process, [int((folder / name).read_text()) for name in ("parent", "child")]


def wait_for(seen, seconds=600):
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_alive(number):
    """Whether a process is there, and no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.parametrize(
    "number, ignore",
    [
        (signal.SIGINT, None),
        (signal.SIGTERM, None),
        (signal.SIGHUP, None),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGHUP),
    ],
)
def test_a_signal_ends_the_command_and_what_it_has_started(tmp_path, number, ignore):
    process, family = start_family(tmp_path, ignore=ignore)
    process.send_signal(number)
    assert process.wait(timeout=900) == 128 + number
    assert not any(map(is_alive, family))


def test_nohup_is_heard(tmp_path):
    process, family = start_family(tmp_path, ignore=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and all(map(is_alive, family))
    process.terminate()
    assert process.wait(timeout=900) == 143


def test_a_second_signal_kills_what_does_not_listen(tmp_path):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    process, family = start_family(tmp_path, child=deaf, parent=deaf)
    process.send_signal(signal.SIGINT)
    time.sleep(run.AHEAD + 0.3)
    assert process.poll() is None and all(map(is_alive, family))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=900) == 130
    wait_for(lambda: not any(map(is_alive, family)))


def test_what_outlives_the_command_is_ended_with_it(tmp_path):
    process, (parent, child) = start_family(tmp_path)
    os.kill(parent, signal.SIGKILL)
    assert process.wait(timeout=900) == 137
    assert not is_alive(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_driver_begins_no_second_phase(tmp_path, number):
    log = tmp_path / "snakemake.log"
    log.write_text("Error in rule segment_plate:\n")
    lines = [
        "import os, signal, sys",
        "from plateloom import driver",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "driver._listen()",
        f"try: os.kill(os.getpid(), {int(number)})",
        "except SystemExit: print('left')",
        f"driver.finish_complete_plates([{str(log)!r}])",
    ]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (128 + number, "left\n", "")


def job_is_under_way(folder):
    """Whether a job of the screen holds its lock, and has begun with its wells."""
    paths = (folder / "results").glob("plates/*/records/*/.*.lock")
    return any(locks.read(path).get("done") and locks.is_held(path) for path in paths)


@pytest.mark.parametrize("by", ["plateloom", "snakemake"])
def test_an_interrupted_run_ends_whole_and_says_so(screen, by):
    command = [*COMMAND, "run", str(screen), "--cores", "2"]
    if by == "snakemake":
        command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-d", str(screen), "--cores", "2"]
    said = screen / "said.txt"
    with open(said, "w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    wait_for(lambda: job_is_under_way(screen) or process.poll() is not None)
    if by == "plateloom":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    code, text = process.wait(timeout=900), said.read_text()
    assert code == (143 if by == "plateloom" else 130), text
    assert "complete_only" not in text
    assert not locks.is_held(screen / ".plateloom.lock") and not job_is_under_way(screen)
    states = status.read_screen(screen)
    assert not [s for s in states["plates"]["P1"].values() if s.state == status.FAILED]
    assert status.screen_state(states)["open"] == ["P1"]
    if by == "plateloom":
        assert text.endswith("interrupted; the same command goes on where it stopped\n")
        assert "Traceback" not in text and "Error" not in text


# What is said of it afterwards


def test_a_finished_screen_is_complete(screen, records):
    records.write_all()
    found = status.screen_state(status.read_screen(screen))
    assert found["summary"] == "1 of 1 plates complete" and found["complete"] == ["P1"]
    assert status.find_causes(status.read_screen(screen)) == []


def test_a_plate_is_of_one_sort_only_and_each_cause_is_told_once(screen, records):
    of_screen = {name: failed("no plate is complete") for name in status.SCREEN_STAGES - {"training"}}
    told = {"report": failed("conversion failed: no image matches")}
    records.write_all(conversion=failed("no image matches"), **AFTER_CONVERSION | of_screen | told)
    code, text = plateloom("status", screen)
    assert code == 0 and text.count("no image matches") == 1 and "something above" not in text
    assert (
        f"conversion of P1: quarantined: no image matches; {len(AFTER_CONVERSION | of_screen)} later stages skipped"
        in text
    )
    assert text.endswith("0 of 1 plates complete; quarantined: P1\n")


def test_a_step_of_the_screen_that_had_nothing_to_do_quarantines_no_plate(screen, records):
    records.write_all(classifier=failed("too few labels"), classes=SKIPPED)
    code, text = plateloom("status", screen)
    assert code == 0 and "1 of 1 plates complete; not made: classifier" in text
    assert "classifier of the screen: not made: too few labels; 1 later stage skipped" in text


def test_failures_are_shown_with_well_field_channel_and_reason(screen, records):
    failures = [TRUNCATED_TIFF | {"well": f"C{i:02d}"} for i in range(1, 6)]
    records.write_all(conversion={"failures": failures}, segmentation={"failures": failures[:1]})
    code, text = plateloom("status", screen)
    assert code == 0 and "C01 field 1 DNA: C03_s1_w1.tif: truncated (conversion)" in text
    assert text.count("field 1 DNA") == 3 and "and 2 more; --all shows them" in text and "5 fields failed" in text
    assert "1 of 1 plates complete, 1 of them with failed fields (P1)" in text
    _, text = plateloom("status", screen, "--all")
    assert text.count("field 1 DNA") == 5


def test_one_changed_file_does_not_look_as_if_all_were_lost(screen, records):
    records.write_all(conversion={"facts": {"listing": "another"}})
    (cause,) = status.find_causes(status.read_screen(screen))
    assert cause.reason.startswith("at least one source file") and "only the wells concerned" in cause.reason
    assert cause.later == set(records.screen.stages()) - {"conversion"}
    _, text = plateloom("status", screen)
    assert text.count("stale:") == 1 and "12/12" not in text


def test_a_step_of_the_screen_is_stale_after_one_that_is(screen, records):
    records.write_all(profiles={"settings": "others"})
    found = status.read_screen(screen)["screen"]
    assert [found[name].state for name in ("profiles", "comparison", "screen_report")] == ["stale"] * 3
    assert found["comparison"].waits_for == "profiles" and found["map"].state == "done"


def test_a_plate_that_failed_and_was_mended_is_open(screen, records):
    records.write_all(conversion=failed("no image matches") | {"facts": {"listing": "another"}}, **AFTER_CONVERSION)
    assert status.screen_state(status.read_screen(screen))["open"] == ["P1"]


def test_a_plate_that_is_still_being_written_is_put_off(screen, records):
    records.write_all(conversion=failed("deferred: a file is new"), **AFTER_CONVERSION)
    records.write("conversion", "P1", **failed("deferred: a file is new") | {"facts": {"deferred": True}})
    found = status.screen_state(status.read_screen(screen))
    assert found["summary"] == "0 of 1 plates complete; put off: P1"


def test_a_plate_does_not_wait_for_another_that_is_open(screen, records):
    add_plate(screen, "P2")
    records = Records(screen)
    records.write_all(plates=("P1", "P2"))
    (screen / records.screen.records("segmentation", "P2")[0]).unlink()
    found = status.screen_state(status.read_screen(screen))
    assert found["summary"] == "1 of 2 plates complete; open: P2"


def test_the_time_left_is_what_the_same_stages_took_less_what_is_done(screen, records):
    records.write_all()
    assert status.screen_state(status.read_screen(screen))["seconds_left"] is None, "nothing is left"
    add_plate(screen, "P2")
    records = Records(screen)
    took = {"segmentation": {"seconds": 1200.0}, "features": {"seconds": 3000.0}}
    records.write_all(plates=("P1", "P2"), **took)
    record = screen / records.screen.records("features", "P2")[0]
    record.unlink()
    assert status.screen_state(status.read_screen(screen))["seconds_left"] == pytest.approx(3000, abs=20)
    (screen / records.screen.records("segmentation", "P2")[0]).unlink()
    assert status.screen_state(status.read_screen(screen))["seconds_left"] == pytest.approx(4200, abs=20)
    with locks.hold(record.with_name(".part-0.lock"), wait=False) as lock:
        lock.say(attempts=1, log="logs/job.log", done=9, of=12)
        assert status.screen_state(status.read_screen(screen))["seconds_left"] == pytest.approx(1950, abs=20)
    _, text = plateloom("status", screen)
    assert "about 32 min of job time left" in text, "an interrupted job goes on where it was"


@pytest.mark.parametrize(
    "content",
    ["{}", "[1]", '{"status": "done"}', '{"status": "do', None],
    ids=["empty", "list", "bare", "cut", "folder"],
)
@pytest.mark.parametrize("stage", ["conversion", "segmentation", "map"])
def test_a_record_that_cannot_be_read_is_told_and_ends_nothing(screen, records, stage, content):
    records.write_all()
    path = screen / records.screen.records(stage, None if stage in status.SCREEN_STAGES else "P1")[0]
    path.unlink()
    path.mkdir() if content is None else path.write_text(content)
    (cause,) = status.find_causes(status.read_screen(screen, quick=True))
    assert (cause.stage, cause.state) == (stage, "failed")
    assert cause.reason.startswith(f"record cannot be read: '{path.relative_to(screen)}': ")
    with locks.hold(screen / locks.RUN, wait=False):  # no run makes it again
        assert status.find_causes(status.read_screen(screen)) == [cause]
    code, text = plateloom("status", screen)
    assert code == 0 and "plateloom verify" in text


def test_costs_are_not_learned_from_a_record_that_does_not_tell_them(screen, records):
    for stage in ("conversion", "segmentation"):
        write_json(screen / records.screen.records(stage, "P1")[0], {"status": "done"})
    code, text = plateloom("estimate", screen)
    assert code == 0 and "segmentation" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_record_that_may_not_be_read_is_told(screen, records):
    records.write_all()
    path = screen / records.screen.records("segmentation", "P1")[0]
    path.chmod(0)
    (cause,) = status.find_causes(status.read_screen(screen))
    assert cause.state == "failed" and "Permission denied" in cause.reason


def test_a_failed_job_of_a_run_under_way_may_be_tried_again(screen, records):
    records.write_all()
    path = screen / records.screen.records("segmentation", "P1")[0]
    path.unlink()
    with locks.hold(path.with_name(".part-0.lock"), wait=False) as lock:
        lock.say(attempts=1, done=5, of=12)
    with locks.hold(screen / locks.RUN, wait=False):
        (cause,) = status.find_causes(status.read_screen(screen))
    assert cause.reason == status.UNSAID + status.AGAIN
    (cause,) = status.find_causes(status.read_screen(screen))
    assert cause.reason == status.UNSAID


def in_parts(folder, parts):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"parts": parts}))
    return Records(folder)


@pytest.mark.parametrize("sources", [True, False])
def test_wells_and_time_of_parts_that_nobody_has_begun_count(screen, sources):
    records = in_parts(screen, 4)
    wells = records.screen.wells("P1")
    add_plate(screen, "P2")
    shutil.copytree(screen / "raw/P1", screen / "raw/P2")
    records = in_parts(screen, 4)
    three = {"artefacts": {f"A{i:02d}": "1" for i in range(3)}}
    records.write_all(plates=("P1", "P2"), segmentation=three | {"seconds": 1000.0})
    if not sources:
        shutil.rmtree(screen / "raw")
    paths = [screen / path for path in records.screen.records("segmentation", "P2")]
    for path in paths[1:]:
        path.unlink()
    state = status.read_screen(screen)["plates"]["P2"]["segmentation"]
    assert (state.state, state.done, state.of, state.left) == ("missing", 3, wells if sources else 12, 0.75)
    with locks.hold(paths[1].with_name(".part-1.lock"), wait=False) as lock:
        lock.say(attempts=1, log="logs/job.log", done=0, of=3)
        states = status.read_screen(screen)
    state = states["plates"]["P2"]["segmentation"]
    assert (state.state, state.done, state.of) == ("running", 3, wells if sources else 12)
    assert status.time_left(states)["P2"]["segmentation"] == 3000


def test_time_that_is_left_is_told_by_plate_and_stage(screen, records):
    records.write_all(map={"settings": "others", "seconds": 600.0}, screen_report={"seconds": 60.0})
    found = json.loads(plateloom("status", screen, "--json")[1])
    assert found["screen"]["map"]["seconds_left"] == 600, "by what it took before it was stale"
    assert found["screen"]["screen_report"]["seconds_left"] == 60 and found["screen"]["profiles"]["seconds_left"] == 0
    assert found["plates"]["P1"]["conversion"]["seconds_left"] == 0 and not found["untold"]
    records.write_all(segmentation={"seconds": 1200.0})
    add_plate(screen, "P2")
    (screen / records.screen.records("map")[0]).unlink()
    found = json.loads(plateloom("status", screen, "--json")[1])
    assert found["plates"]["P2"]["segmentation"]["seconds_left"] == 1200
    assert found["screen"]["map"]["seconds_left"] is None and found["untold"] == ["map"]
    lines = plateloom("status", screen)[1].splitlines()
    (line,) = [line for line in lines if line.startswith("P2 ")]
    assert line.endswith("about 20 min left"), line
    assert "about 20 min of job time left, by what the same stages took before; without map, of which" in "\n".join(
        lines
    )


def test_of_a_changed_file_less_than_all_may_be_left(screen, records):
    records.write_all(conversion={"facts": {"listing": "another"}, "seconds": 3600.0})
    (line,) = [line for line in plateloom("status", screen)[1].splitlines() if "job time left" in line]
    assert line.startswith("about 1 h 0 min") and line.endswith("less where only some wells are made anew")


def test_source_folders_without_a_new_or_lost_file_are_not_listed_again(screen, records, monkeypatch):
    listed, real = [], planning.list_source
    monkeypatch.setattr(planning, "list_source", lambda *asked: listed.append(asked) or real(*asked))
    raw = screen / "raw/P1"
    (raw / "more").mkdir()
    for folder in (raw / "more", raw):
        os.utime(folder, (1e9, 1e9))
    records = Records(screen)
    records.write_all()
    write_json(screen / planning.SOURCES, records.screen.remember_sources())

    def look():
        listed.clear()
        return status.read_screen(screen, quick=True)["plates"]["P1"]["conversion"].state, len(listed)

    assert look() == ("done", 0)
    image = next(raw.glob("*.tif"))
    with open(image, "ab") as file:
        file.write(b"\0")
    assert look() == ("done", 0) and status.read_screen(screen)["plates"]["P1"]["conversion"].state == "stale"
    assert "done" in plateloom("status", screen)[1] and "stale" in plateloom("status", screen, "--sources")[1]
    shutil.copy(image, raw / "more" / image.name.replace("A01", "B01"))
    assert look()[1] == 1, "a file has come to a folder below"
    (raw / "more" / image.name.replace("A01", "B01")).unlink()
    assert look()[1] == 1
    write_json(screen / planning.SOURCES, Records(screen).screen.remember_sources())
    assert look()[1] == 1, "a folder that was changed just now is not relied on"


def test_a_plate_that_is_not_converted_is_not_remembered(screen, records):
    raw = screen / "raw/P1"
    os.utime(raw, (1e9, 1e9))
    records = Records(screen)
    records.write_all(conversion=failed("deferred: a file is new") | {"facts": {"deferred": True}})
    write_json(screen / planning.SOURCES, records.screen.remember_sources())
    with open(next(raw.glob("*.tif")), "ab") as file:
        file.write(b"\0")
    records.write("conversion", "P1", **failed("no image") | {"facts": {"listing": records.screen.listing("P1", 0)}})
    assert status.read_screen(screen, quick=True)["plates"]["P1"]["conversion"].state == "stale"


def test_status_and_the_end_of_a_run_name_the_report(screen, records, monkeypatch):
    records.write_all()
    monkeypatch.setattr("plateloom.cli.run.run_group", lambda _: 0)  # Snakemake's
    report = screen / "results/screen/report.html"
    for command in (["status", screen], ["run", screen]):
        assert "report: " not in plateloom(*command)[1]
    report.write_text("")
    for command in (["status", screen], ["run", screen]):
        code, text = plateloom(*command)
        assert code == 0 and text.splitlines()[-1] == f"report: {report}"


def test_one_cause_on_many_plates_is_one_line(screen, records):
    for name in ("P2", "P3"):
        add_plate(screen, name)
    records = Records(screen)
    records.write_all(plates=("P1", "P2", "P3"), segmentation={"settings": "others"})
    _, text = plateloom("status", screen)
    assert len(re.findall("stale", text)) == 2  # once in the legend
    assert "segmentation of P1, P2, P3: stale: settings have changed" in text


def test_what_a_page_warns_of_is_said_where_a_plate_is_called_complete(screen, records):
    records.write_all()
    path = screen / records.screen.records("report", "P1")[0]
    notices = [{"kind": "segmentation", "text": "Half of the nuclei are cut.", "section": ""}]
    notices += [{"kind": "flagged", "text": "Two fields are left out.", "section": ""}]
    write_json(path, json.loads(path.read_text()) | {"facts": {"notices": notices}})
    assert status.screen_state(status.read_screen(screen))["warnings"] == {"P1": ["Half of the nuclei are cut."]}
    code, text = plateloom("status", screen)
    assert "warning: P1: Half of the nuclei are cut." in text and "1 of 1 plates complete" in text


def test_a_plate_without_controls_among_others_or_apart_from_them_is_alarmed(screen, records):
    add_plate(screen, "P2")
    records = Records(screen)
    records.write_all(plates=("P1", "P2"))

    def alarmed(**kinds):
        for plate in ("P1", "P2"):
            path = screen / records.screen.records("report", plate)[0]
            notices = [{"kind": kind, "text": kind, "section": ""} for kind in kinds.get(plate, ())]
            write_json(path, json.loads(path.read_text()) | {"facts": {"notices": notices}})
        states = status.read_screen(screen)
        assert plateloom("status", screen, "--json")[0] == 0
        return status.screen_state(states)["alarmed"]

    assert alarmed() == alarmed(P1=["segmentation"]) == []
    assert alarmed(P2=["shift"]) == alarmed(P2=["normalization"]) == ["P2"]
    assert alarmed(P1=["normalization"], P2=["normalization"]) == [], "a screen that has no controls lacks none"


def test_controls_are_compared_with_the_plates_that_are_learned_from(screen, records):
    """The profiles are stale when other plates are learned from, not when the same ones get more labels."""
    path, config = screen / "labels.tsv", screen / "config.yaml"
    settings = yaml.safe_load(config.read_text())

    def learned_from(plates=None, **labels):
        chosen = settings | {"classification": labels, "latent": {"autoencoder": {"plates": plates}}}
        return Screen(chosen, screen).settings("profiles").get("learned_from")

    header = "plate\twell\tfield\tobject\tclass\n"
    path.write_text(header + "P1\tA01\t\t\ta\nP0\tA01\t1\t2\tb\nP0\tA01\t1\t2\t\n")
    assert learned_from(labels="labels.tsv") == learned_from(["P2"], labels="labels.tsv") == ["P1"]
    assert learned_from(["P2"], labels="controls") == learned_from(["P2"], labels="") == ["P2"]
    assert learned_from(labels="controls") is None
    config.write_text(yaml.safe_dump(settings | {"classification": {"labels": "labels.tsv"}}))
    Records(screen).write_all()
    for row, state in (("P1\tA02\t\t\tb\n", "done"), ("P2\tA01\t\t\ta\n", "stale")):
        path.write_text(path.read_text() + row)
        assert status.read_screen(screen)["screen"]["profiles"].state == state


def test_a_record_that_is_gone_is_a_cause(screen, records):
    records.write_all()
    (screen / records.screen.records("quality", "P1")[0]).unlink()
    (cause,) = status.find_causes(status.read_screen(screen))
    assert (cause.stage, cause.state, cause.reason, cause.plates) == ("quality", "missing", status.GONE, ["P1"])
    code, text = plateloom("status", screen)
    assert status.GONE in text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ""),
        ("{INFO} distributed.nanny: Worker process 6957 was killed by signal 2\n", ""),
        ("{CRITICAL} root: the job failed\nTraceback (…):\n  File 'a', line 1\n    f()\nKeyboardInterrupt\n", ""),
        (
            "{CRITICAL} root: the job failed\nTraceback (…):\n  File 'a', line 1\n    f()\n    ^^^\nOSError: disk full\n"
            "{INFO} distributed.scheduler: Closing scheduler\n",
            "OSError: disk full",
        ),
        (
            "{ERROR} distributed.scheduler: Couldn't gather keys\n{INFO} a: " + INTERRUPTION + "\n{ERROR} b: closed\n",
            "",
        ),
        ("{ERROR} plateloom.stages.latent: no GPU\n{INFO} a: b\n", "plateloom.stages.latent: no GPU"),
        ("{INFO} a: b\nFatal Python error: Segmentation fault\n\nThread 1:\n  File 'a'\n", "Fatal Python error: Segm"),
    ],
)
def test_only_an_error_is_taken_for_one(tmp_path, text, expected):
    log = tmp_path / "job.log"
    for level in ("INFO", "ERROR", "CRITICAL"):
        text = text.replace(f"{{{level}}}", f"2026-01-02 03:04:05,678 {level}")
    log.write_text(text)
    found = status._last_error(log)
    assert found == expected or (expected and found.startswith(expected))


def test_what_the_scheduler_ended_is_told_in_its_words(screen, records):
    """A job that was killed for want of memory, before or after it had begun, says nothing itself."""
    folder = screen / "logs/convert_plate/P1"
    folder.mkdir(parents=True)
    batch = folder / "part-0.batch.log"
    batch.write_text("Building DAG\nSlurm job 7 (x.convert_plate.P1.0) has ended: OUT_OF_MEMORY\n")
    state = status.read_screen(screen)["plates"]["P1"]["conversion"]
    assert (state.state, state.log) == ("failed", "logs/convert_plate/P1/part-0.batch.log")
    assert state.reason == "Slurm job 7 (x.convert_plate.P1.0) has ended: OUT_OF_MEMORY"
    (folder / "part-0.log").write_text("2026-11-01 10:00:00,000 INFO a: b\n")
    with locks.hold(screen / "results/plates/P1/records/conversion/.part-0.lock", wait=False) as lock:
        lock.say(attempts=1, done=2, of=6, log="logs/convert_plate/P1/part-0.log")
        assert status.read_screen(screen)["plates"]["P1"]["conversion"].state == "running"
    state = status.read_screen(screen)["plates"]["P1"]["conversion"]
    assert state.state == "interrupted" and "OUT_OF_MEMORY" in state.reason and state.log.endswith(".batch.log")
    with open(batch, "a") as file:
        file.write("Building DAG\n")  # of the next attempt
    state = status.read_screen(screen)["plates"]["P1"]["conversion"]
    assert state.reason == status.UNSAID and state.log.endswith("part-0.log")


def test_a_lock_of_somebody_else_is_seen_by_whoever_may_read_it(tmp_path, monkeypatch):
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, mode="r", *more, **named: (
            real(path, mode, *more, **named)
            if mode == "r"
            else (_ for _ in ()).throw(PermissionError(13, "no", str(path)))
        ),
    )
    with real(tmp_path / "lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert locks.is_held(tmp_path / "lock")
    assert not locks.is_held(tmp_path / "lock")


@pytest.mark.parametrize("line, state", [("INFO a: b", "interrupted"), ("ERROR a: disk full", "failed")])
def test_a_job_that_ended_without_an_error_was_interrupted(screen, records, line, state):
    records.write_all()
    path = screen / records.screen.records("segmentation", "P1")[0]
    path.unlink()
    (screen / "logs").mkdir()
    (screen / "logs/job.log").write_text(f"2026-01-02 03:04:05,678 {line}\n")
    with locks.hold(path.with_name(".part-0.lock"), wait=False) as lock:
        lock.say(attempts=1, log="logs/job.log", done=5, of=12)
    code, text = plateloom("status", screen)
    assert code == 0 and f"segmentation of P1: {state} 5/12 wells: " in text and "1 plates complete; open: P1" in text
    assert str(screen / "logs/job.log") in text


def test_the_table_of_plates_with_long_names_fits_on_80_columns(screen, records):
    names = [f"2026-01-02_screening-campaign_library-plate-{i:03d}_replicate-A_reimaged" for i in (1, 2)]
    for name in names:
        add_plate(screen, name)
    _, text = plateloom("status", screen, COLUMNS="80", FORCE_COLOR="1", TERM="xterm")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    table = lines[: lines.index("")] if "" in lines else lines[:-1]
    assert all(len(line.rstrip()) <= 80 for line in table) and "co conversion" in text
    for name in names:
        assert table[table.index(name) + 1].split() == ["·"] * 13
    _, text = plateloom("status", screen, COLUMNS="80")
    assert all(name in text for name in names), "whole where a program reads"


class _Clock:
    """In the place of `time`: each pause lets something happen, and then passes at once."""

    def __init__(self, happens):
        self.happens, self.strftime = list(happens), time.strftime

    def sleep(self, seconds):
        if not self.happens:
            raise KeyboardInterrupt
        self.happens.pop(0)()


def test_a_screen_is_watched_until_nothing_runs(screen, records, monkeypatch):
    from plateloom.cli import status as command

    records.write_all()
    path = screen / records.screen.records("segmentation", "P1")[0]
    path.unlink()
    with contextlib.ExitStack() as running:
        lock = running.enter_context(locks.hold(path.with_name(".part-0.lock"), wait=False))
        lock.say(attempts=2, log="", done=5, of=12)

        def end():
            records.write("segmentation", "P1")
            running.close()

        more = lambda: lock.say(attempts=2, log="", done=7, of=12)  # noqa: E731
        monkeypatch.setattr(command, "time", _Clock([lambda: None, more, end]))
        code, text = plateloom("status", screen, "--watch", COLUMNS="80")
    assert code == 0 and "\x1b" not in text
    assert len(re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", text, re.M)) == 3, (
        "what has not changed is not said again"
    )
    assert "segmentation of P1: running 5/12 wells, attempt 2" in text and "running 7/12 wells" in text
    assert text.endswith("1 of 1 plates complete\n")


def test_on_a_terminal_it_is_drawn_in_place_and_ctrl_c_ends_it(screen, records, monkeypatch):
    from plateloom.cli import status as command

    records.write_all()
    monkeypatch.setattr(command, "time", _Clock([lambda: None]))
    with locks.hold(screen / ".plateloom.lock", wait=False):
        code, text = plateloom("status", screen, "--watch", COLUMNS="80", LINES="6", FORCE_COLOR="1", TERM="xterm")
    assert code == 0 and "\x1b[?1049h" not in text, "no alternate screen"
    nothing, first, second = text.split("\x1b[H\x1b[2J")
    assert not nothing and first == second.removesuffix("\n")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", first).splitlines()
    assert len(lines) <= 5 and lines[-1] == "1 of 1 plates complete" and all(len(line.rstrip()) <= 80 for line in lines)


def test_programs_are_not_shown_a_screen_that_is_watched(screen, records):
    code, text = plateloom("status", screen, "--watch", "--json")
    assert code == 2 and "take one of them" in text


def test_programs_read_states_as_json(screen, records):
    records.write_all(conversion={"failures": [TRUNCATED_TIFF]})
    code, text = plateloom("status", screen, "--json")
    found = json.loads(text)
    assert code == 0 and found["with_failures"] == ["P1"] and found["complete"] == []
    assert found["plates"]["P1"]["conversion"]["failed"] == [TRUNCATED_TIFF]
    names = {field.name for field in dataclasses.fields(status.State)}
    assert names | {"seconds_left"} == set(found["screen"]["map"])


def test_many_source_folders_are_listed_as_few_are(tmp_path, monkeypatch):
    names = [f"P{i:02d}" for i in range(planning.LISTED_ALONE + 3)]
    for i, name in enumerate(names):
        source = tmp_path / "raw" / name
        source.mkdir(parents=True)
        for well in ("A01", "B02", f"C{i + 1:02d}"):
            (source / f"{well}_s1_w1.tif").write_bytes(b"x" * i)
    (tmp_path / "raw/P03/odd\udcff_s1_w1.tif").write_bytes(b"no well")
    (tmp_path / "raw/P04").rename(tmp_path / "raw/gone")
    rows = "".join(f"{name}\traw/{name}\tpattern\n" for name in names)
    (tmp_path / "plates.tsv").write_text("plate\tsource\treader\n" + rows)
    settings = {
        "parts": 3,
        "channels": {"DNA": {"source": "1"}},
        "segmentation": {"parameters": {"nuclei_channel": "DNA"}},
    }
    monkeypatch.setattr(planning, "ALONE_SECONDS", 0)
    many = Screen(settings, tmp_path)
    listed = {name: [many.listing(name, part) for part in range(3)] for name in names}
    monkeypatch.setattr(planning, "LISTED_ALONE", len(names))
    few = Screen(settings, tmp_path)
    assert listed == {name: [few.listing(name, part) for part in range(3)] for name in names}
    assert listed["P04"] == ["no source folder"] * 3 and len({str(one) for one in listed.values()}) == len(names)


def test_a_listing_that_dies_is_an_error_and_not_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "LISTED_ALONE", 0)
    monkeypatch.setattr(planning, "ALONE_SECONDS", 0)
    with pytest.raises(PlateloomError, match="Unknown reader .nonsense."):
        planning._list_sources([(str(tmp_path), "nonsense", {}, 1)])
