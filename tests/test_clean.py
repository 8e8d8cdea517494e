"""`plateloom clean`: what serves nobody is listed and goes when told to; what is current stays, byte for byte."""

import functools
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TO_FEATURES, call, edit
from in_process import run_stages

from plateloom.cli import clean
from plateloom.engine import locks
from plateloom.errors import ConfigError, LockedError
from plateloom.status import read_screen
from plateloom.store.provenance import file_digest, read_json, replacing

P1 = Path("results/plates/P1")
ask = functools.partial(call, clean.command, ".")


def contents():
    """Digest of every file; lock files say who held them last."""
    files = [path for path in sorted(Path(".").rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path): file_digest(path.read_bytes()) for path in files}


def half_written(path):
    """Leave what a job leaves that is killed while it writes a file."""
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        (temporary,) = path.parent.glob(f".{path.name}.*")
        left = temporary.with_name(f"{temporary.name[:-4]}left")
        shutil.copyfile(temporary, left)
        raise KeyboardInterrupt
    return left


def test_what_is_current_stays_and_what_is_not_goes(profiled):
    ask("--yes")
    before = contents()
    assert "nothing to remove" in ask()
    unfinished = P1 / "plate.zarr/H/12/1/0/c/0"
    unfinished.mkdir(parents=True)
    (unfinished / "0").write_bytes(b"x" * 1000)
    half = half_written(P1 / "features/A01.parquet")
    partial = P1 / f"plate.zarr/A/01/1/0.{'0af3' * 8}.partial"
    partial.write_bytes(b"")
    old = P1 / "records/features/part-3.json"
    shutil.copyfile(P1 / "records/features/part-0.json", old)
    script = Path(".snakemake/scripts/tmpabc.segment_plate.py")
    script.parent.mkdir(parents=True)
    script.write_text("")
    meta = Path(".snakemake/metadata/abc")
    meta.parent.mkdir()
    meta.write_text("{}")
    with_those = contents()
    said = ask()
    for told in ("H/12", half.name, partial.name, "part-3.json", script.name):
        assert told in said, told
    assert contents() == with_those, "listing removes nothing"
    assert "removed: 5 files" in ask("--yes")
    assert contents() == before | {str(meta): file_digest(b"{}")}
    run_stages(profiled, TO_FEATURES)
    assert not any(read_json(P1 / f"records/{stage}/part-0.json")["computed"] for stage in TO_FEATURES)
    assert read_screen(".")["plates"]["P1"]["features"].state == "done"


def test_a_screen_is_named_from_wherever_one_stands(profiled, monkeypatch):
    monkeypatch.chdir(profiled.parent)
    call(clean.command, profiled.name, "--yes")
    half, old = profiled / ".snakemake/iocache/latest.pkl", profiled / P1 / "records/features/part-3.json"
    half.parent.mkdir(parents=True)
    half.write_text("")
    shutil.copyfile(old.with_name("part-0.json"), old)
    for folder in (profiled.name, f"./{profiled.name}", profiled):
        said = call(clean.command, folder)
        assert "latest.pkl" in said and "part-3.json" in said
    call(clean.command, profiled.name, "--yes")
    assert not half.exists() and not old.exists() and old.with_name("part-0.json").exists()


def test_a_damaged_well_that_a_record_vouches_for_is_left_to_verify(profiled):
    (P1 / "plate.zarr/A/02/zarr.json").unlink()
    assert "A/02" not in ask("--all")


def test_stale_results_are_told_and_left_to_the_next_run(profiled):
    ask("--yes")
    before = contents()
    assert "stale" not in ask()
    edit(profiled, lambda settings: settings["features"].update(row_group_rows=1))
    before |= {"config.yaml": contents()["config.yaml"]}
    assert "nothing to remove, the next run makes them anew" in ask("--yes") and contents() == before


def test_results_go_by_name_only(profiled):
    shutil.copytree(P1, "results/plates/P0")
    Path("logs/segment_plate/P0").mkdir(parents=True)
    Path("logs/segment_plate/P0/part-0.log").write_text("said")
    said = ask("--yes")
    assert "goes only with --plate P0" in said and Path("results/plates/P0/features/A01.parquet").exists()
    for wrong in (("--plate", "P1"), ("--stage", "features")):
        with pytest.raises(ConfigError, match="nothing is left of"):
            ask("--yes", *wrong)
    ask("--yes", "--plate", "P0")
    assert not Path("results/plates/P0").exists() and not Path("logs/segment_plate/P0").exists() and P1.exists()


def test_a_stage_that_is_switched_off_goes_by_name(profiled):
    settings = yaml.safe_load(Path("config.yaml").read_text())
    settings["latent"]["autoencoder"]["enabled"] = False
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    (P1 / "latent").mkdir()
    (P1 / "latent/A01.parquet").write_bytes(b"x")
    assert "goes only with --stage latent" in ask("--yes")
    ask("--yes", "--stage", "latent")
    assert not (P1 / "latent").exists() and (P1 / "features").exists()


def test_crops_go_when_their_model_is_there_or_a_later_training_is(profiled):
    model = Path("results/screen/models/autoencoder")
    for name in ("aaaa", "bbbb"):
        (model / f".work-{name}").mkdir(parents=True)
        (model / f".work-{name}/crops.npy").write_bytes(b"crops")
    said = ask("--all")
    assert ".work-aaaa" in said and ".work-bbbb" not in said, "an interrupted training goes on at its last epoch"
    (model / "model.json").write_text('{"plateloom": {"fingerprint": "bbbb"}}')
    ask("--yes")
    assert not list(model.glob(".work-*"))


def test_nothing_is_done_while_somebody_works_on_the_screen(profiled):
    half_written(P1 / "features/A01.parquet")
    before = contents()
    for lock in (locks.RUN, P1 / "records/features/.part-0.lock"):
        with locks.hold(lock, wait=False):
            for options in ((), ("--yes",)):
                with pytest.raises(LockedError):
                    ask(*options)
    assert contents() == before
    with pytest.raises(ConfigError, match="give one of them"):
        ask("--yes", "--dry-run")
