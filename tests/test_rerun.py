"""`plateloom rerun`: what is chosen is made again, with what follows; nothing else is touched."""

import functools
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import TO_PROFILES, TRUNCATED, WITHOUT_GFP, call, edit
from in_process import run_stages

from plateloom.cli import rerun, run, verify
from plateloom.engine import locks, schedulers
from plateloom.errors import ConfigError, LockedError
from plateloom.store.provenance import read_json

PLATE = Path("results/plates/P1")
ask = functools.partial(call, rerun.command, ".")


@pytest.fixture
def done(profiled, monkeypatch):
    """A screen that ran up to its profiles; a rerun runs these stages in this process, locked as a run is."""

    def run(*_):
        with locks.hold(profiled / locks.RUN, wait=False):
            run_stages(profiled, TO_PROFILES)
        return 0

    monkeypatch.setattr(rerun, "_run", run)
    return profiled


def forget():
    """What a rerun computes is read from the records that it writes; those it does not write stay."""
    return {path: path.read_bytes() for path in sorted(PLATE.glob("records/*/*.json"))}


def computed(before):
    """Wells that were computed since, by stage."""
    return {
        path.parent.name: sorted(read_json(path)["computed"])
        for path, data in before.items()
        if path.read_bytes() != data and read_json(path)["computed"]
    }


def tables():
    return {path: path.read_bytes() for path in sorted(PLATE.rglob("*.parquet"))}


def images():
    """Files of the plate's images and labels."""
    return sorted((PLATE / "plate.zarr").rglob("*"))


def test_one_well_from_a_stage_on_and_nothing_else(done):
    before, files = forget(), tables()
    said = ask("--well", "a2", "--from", "segmentation")
    assert "P1: segmentation (A02): asked for, from segmentation on" in said and "conversion" not in said
    found = computed(before)
    assert found["segmentation"] == found["features"] == ["A02"] and "conversion" not in found
    assert tables() == files, "the same input gives the same bytes"


def test_profiles_and_cores_are_handed_on(done, monkeypatch, tmp_path):
    given = []
    monkeypatch.undo()
    monkeypatch.chdir(done)
    monkeypatch.setattr(run.command, "main", lambda arguments, **_: given.append(arguments))
    (tmp_path / "profile.yaml").write_text("jobs: 2\n")
    options = ["--profile", "slurm", "--profile", str(tmp_path), "--cores", "4"]
    before = tables()
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="this machine has no 'scancel'"):
        ask("--from", "profiling", *options)
    assert tables() == before and not given, "what would not run removes nothing"
    monkeypatch.setattr(run.shutil, "which", lambda name: name)
    for wrong in ("--dry-run", "--jbos", "P1"):
        with pytest.raises(ConfigError, match="stands before|no option '--jbos'|unexpected 'P1'"):
            ask("--from", "profiling", "--", wrong)
    assert not given, "nor does what Snakemake would refuse"
    ask("--from", "profiling", *options, "--", "--jobs", "500")
    (PLATE / "features/A02.parquet").write_bytes(b"")
    assert CliRunner().invoke(verify.command, [".", "--repair", *options]).exit_code == 3, "nothing ran"
    rerun, repair = (arguments[1:] for arguments in given)
    assert rerun == [*options, "--jobs", "500"] and repair == [
        *options,
        "--until",
        "flagging",
        "--until",
        "features",
    ], "what there was"


def test_a_well_without_results_is_refused(done):
    before = forget()
    for options in (["--well", "H12"], ["--plate", "P1", "--well", "A02", "--well", "H12", "-n"]):
        with pytest.raises(ConfigError, match="--well: there is no result of H12 on P1"):
            ask(*options)
    assert forget() == before


def test_one_well_from_its_images_on(done):
    before, files = forget(), tables()
    ask("--plate", "P1", "--well", "B01")
    found = computed(before)
    assert {name: found[name] for name in ("conversion", "quality", "segmentation", "features")} == dict.fromkeys(
        ("conversion", "quality", "segmentation", "features"), ["B01"]
    )
    assert tables() == files


def test_images_that_nothing_can_make_again_stay(done):
    """An archived source folder, or one that a well's images have gone from, is no reason to lose what was made of them."""
    before, files = forget(), images()
    raw = Path("raw/P1").rename("archived")
    with pytest.raises(ConfigError, match="nothing can be made again"):
        ask("--plate", "P1", "--well", "B01")
    said = ask("--from", "segmentation", "-n")
    assert "segmentation (12 wells" in said and "left as it is" not in said
    raw.rename("raw/P1")
    for path in Path("raw/P1").glob("B01_*"):
        path.unlink()
    said = ask("--plate", "P1", "-n")
    assert "P1: left as it is (B01): the source has no image of this well any more" in said
    assert "conversion (11 wells" in said
    assert forget() == before and images() == files


def test_jobs_of_a_killed_run_are_ended_before_anything_is_removed(done, monkeypatch):
    cancelled, files = [], tables()
    monkeypatch.setattr(schedulers, "cancel_orphans", lambda folder: cancelled.append(folder) or ["17"])
    told = pytest.raises(LockedError, match="a job of an earlier run still works on this screen")
    with locks.hold(PLATE / "records/segmentation/.part-0.lock", wait=False), told:
        ask("--from", "segmentation")
    assert tables() == files and cancelled
    assert "cancelled jobs of an earlier run: 17" in ask("--from", "profiling")


def test_a_table_that_is_lost_beside_another_is_made_again(done):
    path, record = PLATE / "aggregates.parquet", PLATE / "records/profiling/part-0.json"
    before = path.read_bytes()
    path.unlink()
    record.unlink()
    run_stages(done, TO_PROFILES)
    assert path.read_bytes() == before and read_json(record)["computed"] == ["profiles"]


def test_all_wells_from_a_stage_on(done):
    before = forget()
    ask("--from", "features")
    found = computed(before)
    assert len(found["features"]) == 12 and not {"conversion", "segmentation"} & found.keys()


def test_a_dry_run_removes_nothing(done):
    before, files = forget(), tables()
    said = ask("--from", "quality", "-n")
    assert "P1: quality (12 wells: A01, A02" in said
    assert forget() == before and tables() == files


def test_what_the_run_does_beside_is_said_whatever_was_chosen(done, monkeypatch):
    edit(done, lambda settings: settings["features"].update(texture_scales=[2]))
    shutil.copytree("raw/P1", "raw/P2")
    Path("plates.tsv").write_text(Path("plates.tsv").read_text() + "P2\traw/P2\tpattern\t\t\n")
    options = ["--plate", "P1", "--well", "A02", "--from", "quality"]
    said = ask(*options, "-n")
    assert said.startswith("P1: quality (A02): asked for")
    beside, then = said.partition("this run also does:\n")[2].split("then: ")
    for line in ("conversion of P2: missing", "features of P1: stale: settings have changed"):
        assert f"  {line}" in beside, beside
    assert {"flagging", "profiling", "profiles", "report", "screen_report"} <= set(then.strip().split(", "))
    assert not {"conversion", "training"} & set(then.strip().split(", ")), "the first, and one that is switched off"
    monkeypatch.setattr(rerun, "_run", lambda *_: 0)
    assert said in ask(*options)


def test_by_default_what_has_failed_is_tried_again(done):
    before = forget()
    said = ask()
    assert f"P1: conversion ({TRUNCATED}): a field failed: " in said and said.count("P1: ") == 2
    assert computed(before)["conversion"] == sorted([WITHOUT_GFP, TRUNCATED])


def test_a_quarantined_stage_is_tried_again_with_its_plate(done):
    record = PLATE / "records/assembly/part-0.json"
    text = record.read_text().replace('"status": "done"', '"status": "failed"')
    record.write_text(text.replace('"reason": ""', '"reason": "too many fields failed"'))
    before = forget()
    said = ask("--failed", "--from", "assembly")
    assert "P1: assembly: too many fields failed" in said and "conversion" not in said
    assert read_json(record)["status"] == "done" and "conversion" not in computed(before)


def test_what_is_not_there_is_refused_and_nothing_is_touched(done):
    before = forget()
    for options, said in {
        ("--plate", "P2"): "there is no 'P2'",
        ("--from", "segmentaton"): "Did you mean 'segmentation'",
        ("--well", "7"): "--well: ",
    }.items():
        with pytest.raises(ConfigError) as refused:
            ask(*options)
        assert said in "\n".join(refused.value.problems)
    assert "nothing is to be made again" in ask("--failed", "--well", "A02", "-n")
    assert forget() == before


def test_where_nothing_is_to_be_removed_it_runs_what_is_left(done):
    before = forget()
    assert "nothing is to be made again" in ask("--failed", "--well", "A02")
    assert computed(before) == {}


def test_a_screen_that_somebody_works_on_is_left_alone(done):
    with locks.hold(done / locks.RUN, wait=False), pytest.raises(LockedError):
        ask("--from", "features")
