"""After a failed job: what follows from it is left out, plate by plate and said so, and everything else goes on."""

import json
import os
import shutil
from unittest import mock

import pytest
from conftest import TO_PROFILES, edit, simulate, snakemake
from in_process import run_stages

from plateloom import driver, repair, status
from plateloom.config import read_config
from plateloom.engine import locks
from plateloom.planning import Screen
from plateloom.stages import latent
from plateloom.store.layout import record_path
from plateloom.store.provenance import read_json, write_json

DESIGN = {"rows": 3, "columns": 4, "size_px": 192, "cells_per_field": 14.0}
SCREEN = "results/screen"

pytestmark = pytest.mark.slow  # whole small screens


def of_latents(settings):
    """Map, classifier and comparison of latents, as fast as they can be had."""
    fast = {"cells": 100, "parameters": {"epochs": 1, "out_px": 16, "latent_dim": 4}}
    settings["latent"] = {"autoencoder": fast, "maps": {"method": "pca", "inputs": "latent", "cells": 200}}
    settings["latent"]["maps"]["clusters"] = {"method": "none"}
    settings["classification"] = {"labels": "controls", "inputs": "latent", "tune": False}


def without_latents(settings):
    settings["latent"] = {"autoencoder": {"enabled": False}}
    settings["classification"] = {"labels": ""}


def second_phase(folder, on=True):
    """Say that only complete plates are worked on, as the second phase does, or that all are."""
    edit(folder, lambda settings: settings.update(complete_only=on))


def open_screen(folder):
    return Screen(read_config(folder).model_dump(mode="json"), folder)


@pytest.fixture(scope="module")
def crashed(once):
    """Two plates up to their latents; the job that encodes P2 has died. Copy it, do not change it."""
    return once("crashed", make_crashed)


def make_crashed(folder):
    simulate(folder, plates=("P1", "P2"), **DESIGN)
    edit(folder, of_latents)
    encode = latent.encode_field

    def die(plate, *rest):
        if plate == "P2":
            raise OSError("stale file handle")
        return encode(plate, *rest)

    with mock.patch.object(latent, "encode_field", die), pytest.raises(OSError, match="stale"):
        run_stages(folder, (*TO_PROFILES, "profiles", "autoencoder", "latent"))


def test_a_plate_without_latents_stops_no_map_no_classes_no_comparison_and_no_page(crashed, tmp_path):
    folder = shutil.copytree(crashed, tmp_path / "screen")
    model = (folder / SCREEN / "models/autoencoder/model.safetensors").read_bytes()
    second_phase(folder)
    run_stages(folder)
    for stage in ("map", "classifier", "comparison", "profiles", "screen_report"):
        assert read_json(folder / SCREEN / f"records/{stage}.json")["status"] == "done", stage
    for stage in ("latent", "latent_profiling", "maps", "classes", "report"):
        assert read_json(folder / record_path("P1", stage))["status"] == "done", stage
        assert not (folder / record_path("P2", stage)).exists(), stage
    assert (folder / SCREEN / "models/autoencoder/model.safetensors").read_bytes() == model, "it was good"
    for name in ("map", "classifier"):
        made = read_json(folder / SCREEN / f"models/{name}/{name.replace('classifier', 'model')}.json")
        wells = [key for key in made["plateloom"]["inputs"] if "/" in key]
        assert wells and all(well.startswith("P1/") for well in wells), name
    # Its features are good, and so is what the screen makes of them.
    assert read_json(folder / SCREEN / "records/profiles.json")["facts"]["plates"] == ["P1", "P2"]
    assert read_json(folder / SCREEN / "comparison.json")["left_out"] == {"P2": "not complete"}
    missing = {
        name: read_json(folder / SCREEN / f"records/{name}.json")["facts"]["missing"]
        for name in ("autoencoder", "map", "classifier")
    }
    assert missing == {"autoencoder": [], "map": ["P2"], "classifier": ["P2"]}, "its latents are"
    page = (folder / SCREEN / "report.html").read_text()
    assert "not complete" in page and "P2" in page
    states = status.read_screen(folder)
    (cause,) = status.find_causes(states)
    assert (cause.stage, cause.plates) == ("latent", ["P2"])
    assert cause.later >= {"map", "maps", "classifier", "classes", "comparison", "report"}
    until = status.states_until(states, ["maps"])
    assert status.screen_state(until)["open"] == ["P2"] and status.find_causes(until)[0].stage == "latent"
    summed = status.screen_state(states)
    assert (summed["complete"], summed["open"]) == (["P1"], ["P2"])

    second_phase(folder, on=False)  # what was the matter is mended
    run_stages(folder)
    assert status.screen_state(status.read_screen(folder))["complete"] == ["P1", "P2"]
    assert "not complete" not in (folder / SCREEN / "report.html").read_text()
    assert read_json(folder / SCREEN / "comparison.json")["left_out"] == {}
    for name in ("map", "classifier"):
        assert read_json(folder / SCREEN / f"records/{name}.json")["facts"]["missing"] == []
    again = {one.stage for one in repair.list_made(folder, ["P1", "P2"], first="latent", shared=True)}
    assert {"latent", "map", "maps", "classifier", "classes"} <= again, "they follow from latents here"


def test_where_the_latents_of_all_plates_fail_there_is_no_map_and_a_page_that_says_so(crashed, tmp_path):
    folder = shutil.copytree(crashed, tmp_path / "screen")
    (folder / record_path("P1", "latent")).unlink()
    with locks.hold((folder / record_path("P1", "latent")).with_name(".part-0.lock"), wait=True) as lock:
        lock.say(attempts=1)
    second_phase(folder)
    run_stages(folder)
    for stage in ("map", "classifier"):
        record = read_json(folder / SCREEN / f"records/{stage}.json")
        assert record["status"] == "failed" and "no " in record["reason"] and "complete" in record["reason"], stage
    assert read_json(folder / SCREEN / "records/profiles.json")["facts"]["plates"] == ["P1", "P2"]
    assert "No plate is complete" in (folder / SCREEN / "report.html").read_text()


def test_what_is_judged_by_latents_leaves_the_plate_out_of_profiles_too(crashed, tmp_path):
    folder = shutil.copytree(crashed, tmp_path / "screen")
    (folder / record_path("P1", "profiling")).unlink()
    (folder / record_path("P2", "profiling")).unlink()
    edit(folder, lambda settings: settings["profiling"].update(exclude_badly_restored=True))
    second_phase(folder)
    screen = open_screen(folder)
    assert screen.complete_plates == ["P2"], "P1 is encoded and not profiled: that job has failed"
    assert screen.plates_with("features") == ["P2"] and screen.plates_with("profiling") == []
    assert screen.missing_from("features") == ["P1"] and screen.missing_from("profiling") == ["P1", "P2"]


def test_of_failed_latents_nothing_is_left_out_that_is_not_made_of_them(crashed, tmp_path):
    folder = shutil.copytree(crashed, tmp_path / "screen")
    edit(folder, lambda settings: settings["latent"]["maps"].update(inputs="features"))
    edit(folder, lambda settings: settings["classification"].update(inputs="features"))
    second_phase(folder)
    screen = open_screen(folder)
    assert screen.failed_stages == {"P2": ["latent"]} and screen.complete_plates == ["P1", "P2"]
    for stage in ("features", "profiling", "maps", "classes"):
        assert screen.plates_with(stage) == ["P1", "P2"], stage
    for stage in ("latent", "latent_profiling", "report"):
        assert screen.plates_with(stage) == ["P1"] and screen.missing_from(stage) == ["P2"], stage
    second_phase(folder, on=False)
    assert open_screen(folder).plates_with("report") == ["P1", "P2"], "a run of all plates tries it again"


def test_a_job_that_an_earlier_run_has_left_is_tried_and_jobs_agree_with_the_run_that_they_are_of(crashed, tmp_path):
    folder = shutil.copytree(crashed, tmp_path / "screen", copy_function=shutil.copy2)
    second_phase(folder)
    lock = (folder / record_path("P2", "latent")).with_name(".part-0.lock")
    began = lock.stat().st_mtime
    for run, expected in ((began - 10, ["P1"]), (began + 10, ["P1", "P2"])):
        (folder / locks.RUN).touch()
        os.utime(folder / locks.RUN, (run, run))
        assert open_screen(folder).plates_with("latent") == expected
    os.utime(folder / locks.RUN, (began - 10, began - 10))
    frozen = json.loads(json.dumps(open_screen(folder).freeze()))
    write_json(folder / record_path("P2", "latent"), {"status": "done"})
    assert Screen({}, folder, frozen=frozen).plates_with("latent") == ["P1"]
    assert open_screen(folder).plates_with("latent") == ["P1", "P2"]


@pytest.mark.parametrize("fails, runs", [(["latent", "maps"], 3), (["latent", "none"], 2), (["none"], 1), ([], 1)])
def test_what_fails_in_the_second_phase_is_left_out_of_another(crashed, tmp_path, monkeypatch, capfd, fails, runs):
    """`none` is no stage of a plate: what fails there leaves nothing more out."""
    folder = shutil.copytree(crashed, tmp_path / "screen", ignore=shutil.ignore_patterns("latent"))
    monkeypatch.chdir(folder)
    monkeypatch.delenv(driver.PHASE, raising=False)
    write_json(driver.FROZEN, open_screen(folder).freeze())
    (folder / "log").write_text("Error in rule segment_plate:\n")
    left, called = list(fails), []

    class Process:
        def __init__(self, command, env):
            called.append(command)

        def wait(self):
            if not left:
                return 0
            with locks.hold((folder / record_path("P2", left.pop(0))).with_name(".part-0.lock"), wait=True) as lock:
                lock.say(attempts=1)
            return 1

    monkeypatch.setattr(driver.subprocess, "Popen", Process)
    driver.finish_complete_plates([folder / "log"])
    assert len(called) == runs and all("complete_only=1" in command for command in called)
    assert ("could not be finished" in capfd.readouterr().err) == ("none" in fails)


def test_three_plates_of_which_one_has_no_images_and_one_no_latents_end_with_the_pages_of_the_third(tmp_path):
    """The first phase never comes to train; the latents of P2 fail in the second, and the third finishes P1. Once P3 has images,
    a run without latents finishes all.
    """
    folder = simulate(tmp_path / "screen", plates=("P1", "P2", "P3"), **DESIGN)
    edit(folder, of_latents)
    for plate, kind in (("P2", "latent"), ("P3", "fields")):  # what should be a folder is a file
        (folder / "results/plates" / plate).mkdir(parents=True)
        (folder / "results/plates" / plate / kind).touch()
    assert snakemake(folder, "--retries", "0", check=False).returncode == 1
    assert read_json(folder / record_path("P1", "report"))["status"] == "done"
    assert read_json(folder / SCREEN / "records/profiles.json")["facts"]["plates"] == ["P1", "P2"]
    assert read_json(folder / SCREEN / "comparison.json")["left_out"] == dict.fromkeys(("P2", "P3"), "not complete")
    assert read_json(folder / SCREEN / "records/autoencoder.json")["facts"]["missing"] == ["P3"]
    page = (folder / SCREEN / "report.html").read_text()
    assert page.count("not complete") >= 2
    causes = {cause.stage: cause.plates for cause in status.find_causes(status.read_screen(folder))}
    assert causes == {"latent": ["P2"], "conversion": ["P3"]}
    assert not (folder / "results/plates/P3/records/segmentation").exists(), "what follows from it is not tried"

    (folder / "results/plates/P3/fields").unlink()
    edit(folder, without_latents)  # P2 has none yet
    snakemake(folder)
    for plate in ("P1", "P2", "P3"):
        assert read_json(folder / record_path(plate, "report"))["status"] == "done", plate
    assert "not complete" not in (folder / SCREEN / "report.html").read_text()
    assert "Nothing to be done" in snakemake(folder, "--dry-run").stdout
