"""`plateloom estimate` and `plateloom tune`: what a screen costs beforehand, and what its jobs teach."""

import json
import types
from pathlib import Path

import pytest
import yaml
from conftest import TO_PROFILES, call

from plateloom.cli import estimate, tune
from plateloom.errors import ConfigError
from plateloom.estimate import (
    CELLS,
    RATES,
    Observed,
    PlateSize,
    estimate_results,
    estimate_screen,
    measure_plate,
    observe_screen,
    propose_parts,
    rule_of,
)
from plateloom.planning import STAGES, Screen
from plateloom.store.provenance import read_json, write_json


def open_screen(**settings):
    return Screen(yaml.safe_load(Path("config.yaml").read_text()) | settings)


def costs_of(screen):
    sizes = {plate: measure_plate(screen, plate) for plate in screen.plates}
    return {one.stage: one for one in estimate_screen(screen, sizes)}


def add_jobs(stage, count, **values):
    """Records of more parts, as if a larger plate had been cut into them."""
    record = read_json(f"results/plates/P1/records/{stage}/part-0.json")
    for part in range(count):
        path = Path(f"results/plates/P1/records/{stage}/part-{part}.json")
        write_json(path, record | {"part": part, "parts": count, "kept": [], "computed": ["A01"]} | values)


def test_a_plate_is_measured_by_its_listing_and_one_image(screen):
    size = measure_plate(open_screen(), "P1")
    assert (size.wells, size.fields, size.shape, size.channels) == (12, 12, (256, 256), 3)
    assert size.gigapixels == pytest.approx(12 * 3 * 256 * 256 * 1e-9)
    assert size.source_bytes == sum(path.stat().st_size for path in Path("raw/P1").rglob("*.tif*"))


def test_before_any_run_the_shipped_rates_tell(screen):
    found = costs_of(open_screen())
    assert list(found) == open_screen().stages() and not any(one.learned for one in found.values())
    fixed, rate = RATES["features"]
    pixels = measure_plate(open_screen(), "P1").gigapixels
    assert found["features"].core_hours * 3600 == pytest.approx(fixed + rate * pixels)
    cut = costs_of(open_screen(parts=4))
    assert cut["features"].jobs == 4 and cut["profiling"].jobs == cut["profiles"].jobs == 1
    assert cut["features"].core_hours * 3600 == pytest.approx(4 * fixed + rate * pixels)
    assert cut["features"].longest_s < found["features"].longest_s
    said = call(estimate.command, ".")
    assert "1 plate, 12 fields" in said and "(0 of" in said and "results: about" in said
    assert json.loads(call(estimate.command, ".", "--json"))["plates"]["P1"]["fields"] == 12


def test_a_model_learns_from_no_more_cells_than_the_images_can_hold(screen):
    settings = {"latent": {"autoencoder": {"enabled": True, "parameters": {"epochs": 10}}}}
    fixed, rate = RATES["autoencoder"]
    cells = CELLS * 12 * 256 * 256 * 1e-6
    found = costs_of(open_screen(**settings))["autoencoder"]
    assert cells < 20_000 and found.core_hours * 3600 == pytest.approx(fixed + rate * 10 * cells / 1000)
    settings["latent"]["autoencoder"]["cells"] = 100
    assert costs_of(open_screen(**settings))["autoencoder"].core_hours * 3600 == pytest.approx(fixed + rate)


def test_steps_of_the_screen_cost_by_its_wells(screen):
    big = PlateSize(wells=384, fields=384 * 9, shape=(2160, 2160), channels=3)
    found = {one.stage: one for one in estimate_screen(open_screen(), {f"P{i}": big for i in range(400)})}
    for stage in ("profiles", "comparison", "screen_report"):
        fixed, rate = RATES[stage]
        assert found[stage].core_hours * 3600 == pytest.approx(fixed + rate * 400 * 384 / 1000)
        assert found[stage].longest_s < 15 * 60
    assert found["profiling"].longest_s < 15 * 60, "of one plate: its cells become rows, no pixel is read"


@pytest.mark.parametrize("device", ["prefer", "cpu"])
def test_hours_on_a_gpu_are_of_the_stages_that_ask_for_one(screen, device):
    Path("labels.tsv").write_text("plate\twell\tfield\tlabel\tclass\n")
    classes = {"labels": "labels.tsv", "inputs": "crops", "method": "cnn"}
    opened = open_screen(classification=classes, latent={"autoencoder": {"enabled": True}}, engine={"device": device})
    costs = estimate_screen(opened, {"P1": measure_plate(opened, "P1")})
    asking = {one.stage for one in costs if opened.gpus(one.stage)}
    assert {one.stage for one in costs if one.gpu_hours} == asking
    assert asking == (set() if device == "cpu" else {"autoencoder", "latent", "classifier", "classes"})
    fixed, rate = RATES["autoencoder"]
    cells = min(opened.config.classification.cells, CELLS * 12 * 256 * 256 * 1e-6) / 1000
    (learning,) = [one for one in costs if one.stage == "classifier"]
    epochs = opened.config.classification.parameters["epochs"]
    assert learning.core_hours * 3600 == pytest.approx(fixed + rate * cells * epochs)


def test_every_stage_has_a_rate_and_a_rule(profiled):
    assert RATES.keys() == STAGES.keys()
    for stage in STAGES:
        threads, gigabytes = rule_of(stage, open_screen())
        assert threads >= 1 and gigabytes >= 1
    many = types.SimpleNamespace(plates=range(400), crops_gb=0.0, stacks_gb=0.0)
    assert rule_of("profiles", many) == (1, 28.0)
    assert rule_of("features") == (2, 6.0)


def test_its_own_jobs_tell_better(profiled):
    add_jobs("features", 1, seconds=3600.0, threads=2)
    found = costs_of(open_screen())
    assert found["features"].learned == 1 and found["features"].core_hours == pytest.approx(2.0)
    add_jobs("features", 1, seconds=3600.0, threads=2, kept=["A02"])
    assert costs_of(open_screen())["features"].learned == 0, "a job that kept wells says nothing of what all would cost"
    assert "*" in call(estimate.command, ".")


def test_bytes_and_files_are_those_of_a_plate_that_is_there(profiled):
    screen = open_screen()
    sizes = {"P1": measure_plate(screen, "P1")}
    found, files = estimate_results(screen, sizes)
    folder = Path("results/plates/P1")
    for name in ("plate.zarr", "features"):
        there = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        assert found[name] == pytest.approx(there)
    of_images = sum(path.is_file() for path in (folder / "plate.zarr").rglob("*"))
    assert files == pytest.approx(of_images, rel=0.6) and files > of_images


def test_a_plate_that_cannot_be_read_is_left_out_and_said(screen):
    Path("plates.tsv").write_text(Path("plates.tsv").read_text() + "P2\tnowhere\tpattern\t\t\n")
    said = call(estimate.command, ".")
    assert "P2: left out" in said and "1 plate, 12 fields" in said
    with pytest.raises(ConfigError, match="Did you mean 'P1'|no plate 'P9'"):
        call(estimate.command, ".", "--plate", "P9")


def test_too_few_jobs_teach_nothing(profiled):
    with pytest.raises(ConfigError, match="too little to learn from.*features 1"):
        call(tune.command, ".")
    for stage in TO_PROFILES:
        Path(f"results/plates/P1/records/{stage}/part-0.json").unlink()
    with pytest.raises(ConfigError, match="there are: none"):
        call(tune.command, ".")


def test_memory_and_time_are_the_most_that_was_seen_and_some(profiled):
    settings = yaml.safe_load(Path("config.yaml").read_text())
    Path("config.yaml").write_text(yaml.safe_dump(settings | {"parts": 3}))
    add_jobs(
        "features",
        3,
        seconds=2700.0,
        memory_mb=1000,
        cluster={"kind": "processes", "workers": [1, 2], "worker_peak_mb": 900},
    )
    bench = Path("benchmarks/measure_features/P1/part-1.tsv")
    bench.parent.mkdir(parents=True)
    bench.write_text("s\tmax_rss\n2700\t4000.5\n")
    (observed,) = [one for one in observe_screen(open_screen()) if one.stage == "features"]
    assert (observed.jobs, observed.seconds, observed.memory_mb) == (3, 2700.0, 4000.5)
    assert observed.ask == {"mem_mb": 5500, "runtime": 90}
    said = call(tune.command, ".")
    resources = yaml.safe_load(said)["set-resources"]
    assert resources == {"measure_features": {"mem_mb": "5500 * attempt", "runtime": "90 * attempt"}}
    assert "# parts: 9" in said and "# too few jobs" in said
    bench.unlink()
    assert max(one.memory_mb for one in observe_screen(open_screen()) if one.stage == "features") == 2800


def test_parts_follow_from_the_longest_job(screen):
    one = Observed("features", 3, 900.0, 100.0)
    assert propose_parts(open_screen(parts=8), [one]) == 8
    assert propose_parts(open_screen(parts=1), [Observed("features", 3, 1e6, 100.0)]) == 64
    assert (
        propose_parts(open_screen(), [Observed("features", 2, 900.0, 1.0), Observed("profiling", 9, 900.0, 1.0)])
        is None
    )
