"""Profiles for clusters, without one: what is submitted, and what is made of a scheduler's answers."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml
from conftest import ROOT, simulate

from plateloom.engine import locks, schedulers
from plateloom.errors import SchedulerError
from plateloom.estimate import RATES
from plateloom.planning import STAGES, Screen
from plateloom.store.provenance import write_json

PROFILES = {path.parent.name: path for path in (ROOT / "profiles").glob("*/profile.yaml")}
CLUSTERS = {
    "slurm": ["sbatch", "12;cluster"],
    "lsf": ["bsub", "Job <12> is submitted to queue <normal>."],
    "sge": ["qsub", "12"],
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Write shell scripts in the place of a scheduler's commands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def write(**commands):
        for name, body in commands.items():
            path = tmp_path / "bin" / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)

    return write


@pytest.fixture
def jobscript(tmp_path):
    properties = {
        "rule": "encode_plate",
        "wildcards": {"plate": "P1", "part": "0"},
        "threads": 2,
        "resources": {"gpu": 1, "mem_mb": 6001, "runtime": 120},
        "log": ["logs/encode_plate/P1/part-0.log"],
    }
    path = tmp_path / "job.sh"
    path.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties)}\ntrue\n")
    return path


def status(cluster, job="12", **environment):
    command = [ROOT / f"profiles/{cluster}/status.sh", job]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return done.stdout.strip()


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_keep_plateloom_s_rules_and_leave_the_site_its_own(name):
    settings = yaml.safe_load(PROFILES[name].read_text())
    ours = yaml.safe_load(PROFILES["default"].read_text())
    for key in ("keep-going", "rerun-incomplete", "nolock", "rerun-triggers"):
        assert settings[key] == ours[key]
    assert name == "default" or settings["latency-wait"] >= 60, "of a network file system"
    assert "default-resources" not in settings
    assert set(settings.get("set-resources", {})) <= {stage.script for stage in STAGES.values()}
    assert not any("array" in key for key in settings)


def test_the_profile_for_kubernetes_has_options_that_exist_and_says_whose_gpus_every_rule_may_ask_for():
    from snakemake.cli import get_argument_parser

    settings = yaml.safe_load(PROFILES["kubernetes"].read_text())
    known = {name.removeprefix("--") for action in get_argument_parser()._actions for name in action.option_strings}
    assert set(settings) <= known and settings["executor"] == "kubernetes"
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    with_gpu = {body.split(":")[0] for body in rules.split("\nrule ")[1:] if "gpu=gpus_for(" in body}
    assert {rule: {"gpu_manufacturer": "nvidia"} for rule in with_gpu} == settings["set-resources"]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_job_is_submitted_with_what_it_asks_for(cluster, stand_in, jobscript, tmp_path):
    command, answer = CLUSTERS[cluster]
    stand_in(**{command: f'printf "%s\\n" "$@" > asked; cat > script; echo "{answer}"'})
    assert schedulers.submit(cluster, jobscript) == "12"
    assert (tmp_path / "script").read_text() == jobscript.read_text()
    asked = (tmp_path / "asked").read_text().splitlines()
    name = f"{schedulers.screen_tag(tmp_path)}.encode_plate.P1.0"
    expected = {
        "slurm": [
            f"--job-name={name}",
            "--mem=6001M",
            "--time=120",
            "--gres=gpu:1",
            "--no-requeue",
            "--cpus-per-task=2",
        ],
        "lsf": [name, "6001MB", "rusage[mem=6001MB]", "120", "num=1", "span[hosts=1]"],
        "sge": [name, "h_vmem=3001M", "h_rt=7200", "gpu=1", "smp"],
    }
    assert set(expected[cluster]) <= set(asked)
    assert (tmp_path / "logs/encode_plate/P1").is_dir(), "no scheduler makes the folder of its log"


def test_the_site_says_how_slurm_is_asked_in_one_line_each(jobscript):
    properties = schedulers.read_properties(jobscript)
    properties["resources"] |= {
        "slurm_account": "lab",
        "slurm_partition": "cpu",
        "slurm_gpu_partition": "gpu",
        "slurm_gres": "none",
        "slurm_extra": "--qos=long --comment='two words'",
    }
    asked = schedulers.slurm_command(properties, "a")
    assert {"--account=lab", "--partition=gpu", "--gpus=1", "--qos=long", "--comment=two words"} <= set(asked)
    properties["resources"] |= {"gpu": 0}
    asked = schedulers.slurm_command(properties, "a")
    assert "--partition=cpu" in asked and not [option for option in asked if "gpus" in option or "gres" in option]


def test_a_refused_job_is_an_error_and_an_absent_scheduler_is_waited_for(stand_in, jobscript, monkeypatch, capsys):
    stand_in(sbatch="echo 'sbatch: error: invalid partition specified: cup' >&2; exit 1")
    with pytest.raises(SchedulerError, match="invalid partition specified: cup"):
        schedulers.submit("slurm", jobscript)
    monkeypatch.setattr(schedulers, "PAUSE", 0.01)
    away = "echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    stand_in(sbatch=f"[ -e back ] && echo 13 && exit; touch back; {away}", squeue="true")
    with locks.hold(locks.RUN, wait=False):
        assert schedulers.submit("slurm", jobscript) == "13"
    assert "trying again" in capsys.readouterr().err
    stand_in(sbatch=away)
    with pytest.raises(SchedulerError, match="has ended"):
        schedulers.submit("slurm", jobscript)  # of a run that was killed meanwhile


def test_a_job_whose_number_was_lost_on_the_way_is_not_submitted_twice(stand_in, jobscript, monkeypatch):
    monkeypatch.setattr(schedulers, "PAUSE", 0.01)
    stand_in(sbatch="echo x >> calls; echo 'Socket timed out on send/recv operation' >&2; exit 1", squeue="echo 14")
    with locks.hold(locks.RUN, wait=False):
        assert schedulers.submit("slurm", jobscript) == "14"
    assert jobscript.with_name("calls").read_text() == "x\n"


def test_only_jobs_of_this_screen_are_cancelled(stand_in, tmp_path):
    tag, me = schedulers.screen_tag(tmp_path), f"{os.getuid()}|me"
    assert tag != schedulers.screen_tag(tmp_path / "other")
    rows = [
        f"1|RUNNING|{me}|{tag}.fit_map||/",
        f"2|PENDING|{me}|plateloom-0000000000.fit_map||/",
        f"3|RUNNING|{me}|the-run-itself||{tmp_path}",
        f"4|PENDING|{me}|7f59d396|rule_fit_map|{tmp_path}",
        f"5|PENDING|{me}|7f59d396|rule_fit_map|{tmp_path}/other",
        f"6|RUNNING|4711|ada|{schedulers.screen_tag(tmp_path / 'other')}.fit_map||/",
        f"7|COMPLETING|4711|ada|{tag}.fit_map||/",
    ]
    jobs = "\\n".join(rows)
    stand_in(squeue=f'[ -e cancelled ] || printf "{jobs}\\n"', scancel='printf "%s\\n" "$@" > cancelled')
    assert schedulers.cancel_orphans(tmp_path) == [], "nothing was ever submitted"
    schedulers.LEDGER.parent.mkdir()
    schedulers.LEDGER.touch()
    assert schedulers.cancel_orphans(tmp_path) == ["1", "4"]
    assert (tmp_path / "cancelled").read_text() == "1\n4\n"


def test_a_run_does_not_begin_while_jobs_of_somebody_else_s_run_are_at_work(stand_in, tmp_path):
    jobs = f"12|PENDING|4711|ada|{schedulers.screen_tag(tmp_path)}.fit_map||/"
    stand_in(squeue=f'[[ "$*" == *--user* ]] || echo "{jobs}"', scancel="touch cancelled")
    schedulers.LEDGER.parent.mkdir()
    schedulers.LEDGER.touch()
    with pytest.raises(SchedulerError, match="not yours to cancel: 12 of ada"):
        schedulers.cancel_orphans(tmp_path)
    assert not Path("cancelled").exists()


def test_jobs_that_nobody_can_ask_for_are_told_until_they_are_known_to_have_ended(
    stand_in, jobscript, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(schedulers.shutil, "which", lambda name: None)
    stand_in(sbatch="echo 12", bsub="echo 12", squeue="echo '12|COMPLETED'")
    schedulers.submit("lsf", jobscript)
    assert schedulers.cancel_orphans(tmp_path) == [] and not capsys.readouterr().err, "no job of Slurm's"
    schedulers.submit("slurm", jobscript)
    assert schedulers.cancel_orphans(tmp_path) == []
    assert "may still be at work, and this machine has no squeue to ask: 12\n" in capsys.readouterr().err
    assert status("slurm") == "success"
    assert schedulers.cancel_orphans(tmp_path) == [] and not capsys.readouterr().err
    schedulers.submit("slurm", jobscript)  # and then the run is killed
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    stand_in(squeue="true")
    assert schedulers.cancel_orphans(tmp_path) == []
    assert not schedulers.OPEN.exists(), "squeue knows none any more"


def test_a_run_does_not_begin_while_slurm_cannot_say_whether_jobs_are_left(stand_in, tmp_path):
    stand_in(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    schedulers.LEDGER.parent.mkdir()
    schedulers.LEDGER.touch()
    with pytest.raises(SchedulerError, match="may still be at work: Unable to contact"):
        schedulers.cancel_orphans(tmp_path, patience=-1)


@pytest.mark.parametrize(
    "squeue, sacct, expected",
    [
        ("echo '12|RUNNING'", "exit 1", "running"),
        ("echo '12|COMPLETED'", "exit 1", "success"),
        ("echo '12|OUT_OF_MEMORY'", "exit 1", "failed"),
        ("echo '12|PREEMPTED'", "exit 1", "failed"),
        ("echo '11|RUNNING'", "echo '12|COMPLETED'", "success"),
        ("echo '11|RUNNING'", "echo '12|CANCELLED by 0'", "failed"),
        ("exit 1", "echo '12|COMPLETED'", "success"),
        ("exit 1", "echo '12|PREEMPTED'", "failed"),
        ("exit 1", "echo '11|COMPLETED'", "running"),
        ("exit 1", "echo '12|RUNNING'", "running"),
        ("exit 1", "exit 1", "running"),
        ("true", "echo Connection refused >&2; exit 1", "running"),
        ("true", "echo Slurm accounting storage is disabled >&2; exit 1", "lost"),
        ("true", "true", "lost"),
        ("true", "echo '12|RUNNING'", "lost"),
    ],
)
def test_a_slurm_job_is_at_work_until_something_says_otherwise(stand_in, squeue, sacct, expected):
    stand_in(squeue=squeue, sacct=sacct)
    lost = expected == "lost"
    assert status("slurm", PLATELOOM_LOST="0") == ("running" if lost else expected), "two lists must lack it"
    if lost:
        assert status("slurm", PLATELOOM_POLL="0") == "running", "not at once"
        assert status("slurm", PLATELOOM_POLL="0", PLATELOOM_LOST="0") == "failed"


def pass_poll():
    """As if the last question was as long ago as the next one is to wait for."""
    path = Path(".plateloom/slurm/asked")
    os.utime(path, (0, path.stat().st_mtime - 3600))


@pytest.mark.parametrize("squeue", ["exit 1", "echo '11|RUNNING'", "echo '12|RUNNING'; echo '13|COMPLETED'"])
@pytest.mark.parametrize("sacct", ["exit 1", "echo '12|RUNNING'; echo '13|RUNNING'"])
def test_each_of_slurm_s_daemons_is_asked_once_for_all_jobs_whatever_it_answers(stand_in, jobscript, squeue, sacct):
    counted = "echo $(basename $0) >> calls"
    stand_in(sbatch="cat number", squeue=f"{counted}; {squeue}", sacct=f'{counted}; echo "$@" >> asked; {sacct}')
    for number in ("12", "13"):
        Path("number").write_text(number)
        schedulers.submit("slurm", jobscript)
    unlisted, patient = "12|" not in squeue, {"PLATELOOM_POLL": "600"}
    for times in (1, 2):
        found = [status("slurm", job, **patient) for job in ("12", "13", "12", "12")]
        assert found == ["running", "running" if unlisted else "success", "running", "running"]
        calls = Path("calls").read_text().split()
        assert (calls.count("squeue"), calls.count("sacct")) == (times, times * unlisted)
        pass_poll()
    if unlisted:
        assert "--jobs=12,13,12 " in Path("asked").read_text(), "all that have not ended"
        Path(".plateloom/slurm/asked").touch()
        Path("number").write_text("14")
        schedulers.submit("slurm", jobscript)
        assert status("slurm", "14", **patient) == "running"
        calls = Path("calls").read_text().split()
        assert (calls.count("squeue"), calls.count("sacct")) == (2, 2), "no list can know it yet"


@pytest.mark.parametrize(
    "cluster, answers, expected",
    [
        ("lsf", {"bjobs": "echo PEND"}, "running"),
        ("lsf", {"bjobs": "echo DONE"}, "success"),
        ("lsf", {"bjobs": "echo EXIT"}, "failed"),
        ("lsf", {"bjobs": "echo 'Job <12> is not found' >&2; exit 255"}, "failed"),
        ("lsf", {"bjobs": "echo 'LSF is down. Please wait ...' >&2; exit 255"}, "running"),
        ("sge", {"qstat": "echo job_number: 12"}, "running"),
        ("sge", {"qstat": "echo 'error reason 1: x'"}, "failed"),
        ("sge", {"qstat": "echo 'error: unable to contact qmaster' >&2; exit 1"}, "running"),
        ("sge", {"qacct": r"printf 'failed       0    \nexit_status  0   \n'"}, "success"),
        ("sge", {"qacct": r"printf 'failed       0    \nexit_status  137   \n'"}, "failed"),
        ("sge", {"qacct": "exit 1"}, "running"),
    ],
)
def test_states_of_other_schedulers(stand_in, cluster, answers, expected):
    gone = {"qstat": "echo 'Following jobs do not exist: 12' >&2; exit 1"} if cluster == "sge" else {}
    stand_in(**gone | answers)
    assert status(cluster) == expected


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """The functions of rules/common.smk, of a small screen with some settings."""
    monkeypatch.chdir(simulate(tmp_path / "screen", rows=1, columns=2, size_px=64, cells_per_field=2.0))

    def read(**settings):
        workflow = SimpleNamespace(basedir=str(ROOT), is_main_process=False, executor_settings=None)
        functions = {"workflow": workflow, "config": yaml.safe_load(Path("config.yaml").read_text()) | settings}
        with mock.patch.dict(os.environ):
            exec(compile((ROOT / "rules/common.smk").read_text(), "common.smk", "exec"), functions)
        return functions

    return read


def assemble(shape, fields):
    facts = {"accepted": [*shape, "uint16"], "fields": fields}
    write_json("results/plates/P1/records/assembly/part-0.json", {"status": "done", "facts": facts})


def test_memory_and_time_follow_the_plate_and_the_attempt(rules):
    functions = rules(parts=2)
    memory, runtime = functions["memory_for"](6), functions["runtime_for"]("features", 240)
    plate = {"plate": "P1", "part": "1"}
    assert (memory(plate, 2, 1), memory(plate, 2, 3)) == (6000, 18000)
    assert (runtime(plate, 2, 1), runtime(plate, 2, 2)) == (240, 480)
    assemble((2000, 2000), 2500)  # of 3 channels: 24 MB a field, 30 Gpx
    assert (memory(plate, 2, 1), memory(plate, 2, 3)) == (6000 + 8 * 24, 3 * (6000 + 8 * 24))
    fixed, rate = RATES["features"]
    minutes = 1.5 * (fixed + rate * 15) / 2 / 60
    assert (runtime(plate, 2, 1), runtime(plate, 2, 2)) == (int(minutes), int(2 * minutes)), "half of the plate"
    assert runtime(plate, 1, 1) == int(2 * minutes), "with one thread"
    assert memory({}, 1, 1) == 6000, "a step of the screen"


def test_a_job_on_a_whole_plate_has_as_much_time_with_parts(rules):
    limits = {}
    for parts in (1, 8):
        runtime_for = rules(parts=parts)["runtime_for"]
        assemble((2160, 2160), 384 * 9)
        for stage in STAGES:
            limits.setdefault(stage, []).append(runtime_for(stage, 1)({"plate": "P1", "part": "0"}, 2, 1))
        expected = RATES["report"][1] * 384 * 9 * 3 * 2160**2 * 1e-9 / 2 / 60
        assert limits["report"][-1] > expected > 30 and limits["profiles"][-1] == 1
    shorter = {stage for stage, (whole, part) in limits.items() if part < whole}
    assert {"segmentation", "features", "quality"} <= shorter <= {s for s, one in STAGES.items() if one.scope == "part"}
    assert limits["features"][0] > 7 * limits["features"][1]
    assert limits["illumination"][0] < 60, "it reads no more than `illumination.fields`"


def test_steps_of_the_screen_have_time_by_its_wells(rules):
    functions = rules()
    screen, runtime = functions["SCREEN"], functions["runtime_for"]("comparison", 120)
    assert runtime({}, 1, 1) == 120
    screen.plates |= {f"Q{i}": screen.plates["P1"] for i in range(15_000)}
    fixed, rate = RATES["comparison"]
    wells = 2 + 384 * 15_000  # of plates that nobody has listed the usual number
    assert runtime({}, 1, 1) == int(1.5 * (fixed + rate * wells / 1000) / 60) > 120


def test_conversion_has_time_by_the_bytes_of_its_part(rules):
    for well in ("A01", "A02"):
        os.truncate(next(Path("raw/P1").rglob(f"*{well}*")), 80_000_000_000)  # a hole: it takes no room
    functions = rules(parts=2)
    runtime, screen = functions["runtime_for"]("conversion", 120), functions["SCREEN"]
    fixed, rate = RATES["conversion"]
    limits = [runtime({"plate": "P1", "part": str(part)}, 2, 1) for part in (0, 1)]
    assert limits == [int(1.5 * (fixed + rate * screen.source_gb("P1", part)) / 2 / 60) for part in (0, 1)]
    assert screen.source_gb("P1", 0) == pytest.approx(80, abs=0.1) and min(limits) > 200 and screen.wells("P1") == 2
    again = json.loads(json.dumps(screen.freeze()))
    shutil.rmtree("raw")
    assert Screen({}, frozen=again).source_gb("P1", 1) == screen.source_gb("P1", 1), "listed once a run"
    fresh = Screen(screen.config.model_dump(mode="json"))
    assert (fresh.source_gb("P1", 1), fresh.wells("P1")) == (0.0, 384), "a source that has gone"


def test_one_machine_tries_a_job_twice_and_a_cluster_three_times():
    tried = {name: 1 + yaml.safe_load(path.read_text())["retries"] for name, path in PROFILES.items()}
    assert tried.pop("default") == 2 and set(tried.values()) == {3}, "docs/faults.md says what they then ask for"
