"""`plateloom verify`: damage is named with its well and stage, and only that is made again."""

import shutil

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import simulate, snakemake
from in_process import run_stages
from test_run import plateloom
from test_workflow import bytes_of

from plateloom import repair
from plateloom.cli import verify
from plateloom.engine import locks
from plateloom.export.screen import SCREEN_TABLES, TABLES
from plateloom.planning import STAGES
from plateloom.store.plate import read_group, write_group
from plateloom.store.provenance import read_json, write_json
from plateloom.store.tables import read_record, read_table, write_table

PATTERNS = (
    "results/plates/P1/*/*.parquet",
    "results/plates/P1/*.parquet",
    "results/plates/P1/*.zarr/**/*",
    "results/screen/*.parquet",
    "results/screen/models/*/*",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small screen that has run through; copy it, do not change it."""
    folder = simulate(tmp_path_factory.mktemp("verify") / "screen", rows=2, columns=3)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"] = {"autoencoder": {"enabled": False}, "maps": {"method": "pca", "cells": 100}}
    settings["classification"] = {"labels": ""}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run_stages(folder)
    return folder


@pytest.fixture
def again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "screen", copy_function=shutil.copy2)
    return tmp_path / "screen"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_page(path):
    """Flip a bit of a table's values: what lies behind them, its footer, has no checksum."""
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 4
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def remake(path):
    """Write a table whose record says that it was made from something else."""
    write_table(path, read_table(path), read_record(path) | {"fingerprint": "another"})


def pass_off(path):
    """Let an image be one that was made from something else, whole in itself."""
    found = read_group(path)
    write_group(path, found | {"plateloom": found["plateloom"] | {"fingerprint": "another"}})


def test_every_stage_has_its_artefacts_and_every_table_that_is_exported_is_one():
    assert set(STAGES) == {*repair.PLATE_ARTEFACTS, *repair.SCREEN_ARTEFACTS}
    for tables, artefacts in ((TABLES, repair.PLATE_ARTEFACTS), (SCREEN_TABLES, repair.SCREEN_ARTEFACTS)):
        known = {file.partition("/")[0] for files in artefacts.values() for file in files}
        assert set(tables) <= known


def test_nothing_is_wrong_with_what_was_just_made(finished):
    assert repair.find_damage(finished, "P1", deep=True) == [] == repair.find_damage(finished, "", deep=True)
    code, text = plateloom("verify", finished, "--deep")
    assert code == 0 and "nothing is damaged" in text


DAMAGES = {
    "a pixel": ("plate.zarr/A/02/1/0/c/0/0/0", flip, "conversion", "A02"),
    "a label": ("plate.zarr/B/01/1/labels/Nuclei/0/c/0/0", flip, "segmentation", "B01"),
    "metadata of an image": ("plate.zarr/A/03/1/zarr.json", flip, "conversion", "A03"),
    "the plate's list": ("plate.zarr/zarr.json", flip, "assembly", ""),
    "a flat-field": ("illumination.zarr/DNA/c/0/0", flip, "illumination", ""),
    "an image that is not the well's": ("plate.zarr/A/03/1", pass_off, "conversion", "A03"),
    "a missing shard": ("plate.zarr/B/02/1/1/c/0/0/0", lambda path: path.unlink(), "conversion", "B02"),
    "a row of wells": ("plate.zarr/B/01", shutil.rmtree, "conversion", "B01"),
    "labels of a field": ("plate.zarr/B/01/1/labels", shutil.rmtree, "segmentation", "B01"),
    "a table of the plate": ("profiles.parquet", flip_page, "profiling", ""),
    "a table that goes with another": ("aggregates.parquet", lambda path: path.unlink(), "profiling", ""),
    "a table of another recipe": ("qc.parquet", remake, "flagging", ""),
    "the page of the plate": ("report.html", cut, "report", ""),
    "a record": ("records/quality/part-0.json", cut, "quality", ""),
    "a table of the screen": ("../../screen/hits.parquet", flip_page, "profiles", ""),
    "a model": ("../../screen/models/map/map.npz", flip, "map", ""),
    "the card of a model": ("../../screen/models/map/map.json", cut, "map", ""),
    "a model that is gone": ("../../screen/models/map/map.npz", lambda path: path.unlink(), "map", ""),
    "the page of the screen": ("../../screen/report.html", lambda path: path.unlink(), "screen_report", ""),
    "a table": ("features/A01.parquet", lambda path: path.write_bytes(path.read_bytes()[:900]), "features", "A01"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named_with_its_stage_and_well(again, what):
    name, damage, stage, well = DAMAGES[what]
    damage(again / "results/plates/P1" / name)
    plate = "" if "screen" in name else "P1"
    found = repair.find_damage(again, plate, deep=True)
    assert {(one.stage, one.well) for one in found} == {(stage, well)}
    code, text = plateloom("verify", again, "--deep")
    assert code == 1 and f"{plate or 'the screen'}{f' {well}' if well else ''} {stage}: " in text


def test_a_record_that_is_gone_is_damage_where_something_was_made_from_it(again):
    looked_at = 0
    for stage in [*repair.PLATE_ARTEFACTS, *repair.SCREEN_ARTEFACTS]:
        plate = "P1" if stage in repair.PLATE_ARTEFACTS else ""
        name = f"records/{stage}/part-0.json" if plate else f"records/{stage}.json"
        path = repair.results_folder(again, plate) / name
        if not path.exists():  # the config leaves it out
            continue
        looked_at += 1
        kept = path.rename(path.with_suffix(".kept"))
        found = [(one.stage, one.well, one.file) for one in repair.find_damage(again, plate, deep=False)]
        assert found == ([] if stage in ("comparison", "screen_report") else [(stage, "", name)]), (
            "they go into no plate"
        )
        kept.rename(path)
    assert looked_at == len(STAGES) - len(
        ("training", "autoencoder", "latent", "latent_profiling", "classifier", "classes")
    )


def test_a_page_that_was_not_made_yet_is_not_missed_by_the_profiles_of_the_screen(again):
    for stage, plate in (("screen_report", ""), ("report", "P1")):
        name = f"records/{stage}/part-0.json" if plate else f"records/{stage}.json"
        (repair.results_folder(again, plate) / name).unlink()
    assert repair.find_damage(again, "P1", deep=False) == []


def test_records_of_some_parts_that_are_gone_are_named_and_those_of_a_run_on_its_way_are_not(again):
    base = again / "results/plates/P1/records"
    for stage in ("conversion", "quality", "segmentation", "features"):
        for part in (1, 0):
            record = read_json(base / stage / "part-0.json") | {"part": part, "parts": 2}
            write_json(base / stage / f"part-{part}.json", record | ({} if part == 0 else {"artefacts": {}}))
    (base / "segmentation/part-1.json").unlink()
    (lost,) = repair.find_damage(again, "P1", deep=False)
    assert (lost.file, lost.reason) == ("records/segmentation/part-1.json", repair.LOST)
    for stage in ("features/part-1", "profiling/part-0", "maps/part-0", "report/part-0"):
        (base / f"{stage}.json").unlink()
    profiles = again / "results/screen/records/profiles.json"
    write_json(profiles, read_json(profiles) | {"facts": {"plates": []}})
    assert repair.find_damage(again, "P1", deep=False) == []


def test_results_without_any_record_are_not_called_good(again):
    shutil.rmtree(again / "results/plates/P1/records")
    code, text = plateloom("verify", again)
    assert "P1: no job has left a record" in text
    shutil.rmtree(again / "results/screen")
    code, text = plateloom("verify", again)
    assert code == 2 and "was not run yet" in text


def test_a_plate_that_is_gone_is_damage_of_its_wells(again):
    shutil.rmtree(again / "results/plates/P1/plate.zarr")
    code, text = plateloom("verify", again)
    assert code == 1 and "P1 assembly: plate.zarr: is missing" in text
    assert all(f"P1 {well} conversion: plate.zarr/{well[0]}/{well[1:]}: is missing" in text for well in ("A01", "B03"))


def test_a_quarantined_plate_need_not_be_whole(again):
    path = again / "results/plates/P1/records/assembly/part-0.json"
    write_json(path, read_json(path) | {"status": "failed", "reason": "no field can be used", "artefacts": {}})
    for reason in ("its list is that of an earlier time", "it never had one"):
        shutil.rmtree(again / "results/plates/P1/plate.zarr/A/02", ignore_errors=True)
        (again / "results/plates/P1/fields/A02.parquet").unlink(missing_ok=True)
        for stage in ("conversion", "quality", "segmentation", "features", "maps"):
            record = again / f"results/plates/P1/records/{stage}/part-0.json"
            artefacts = {well: made for well, made in read_json(record)["artefacts"].items() if well != "A02"}
            write_json(record, read_json(record) | {"artefacts": artefacts})
        assert repair.find_damage(again, "P1", deep=False) == [], reason
        (again / "results/plates/P1/plate.zarr/zarr.json").unlink(missing_ok=True)


def test_records_of_a_run_that_cut_the_plate_otherwise_vouch_for_nothing(again):
    folder = again / "results/plates/P1/records/features"
    stale = read_json(folder / "part-0.json") | {"part": 3, "parts": 4, "artefacts": {"A01": "of an earlier run"}}
    write_json(folder / "part-3.json", stale)
    assert repair.find_damage(again, "P1", deep=False) == []


@pytest.mark.slow
def test_a_finished_screen_is_repaired_to_the_last_byte(again, finished):
    base = again / "results/plates/P1"
    shutil.rmtree(base / "plate.zarr/A/02")
    for what in ("a label", "a table of the plate", "a table of the screen", "a model", "the page of the plate"):
        name, damage, _, _ = DAMAGES[what]
        damage(base / name)
    code, text = plateloom("verify", again, "--deep", "--repair")
    assert code == 0, text
    assert "making again: P1 A02, P1 B01, P1 profiling, P1 report, the screen map, the screen profiles" in text
    made = {stage: read_json(base / f"records/{stage}/part-0.json")["computed"] for stage in ("conversion", "features")}
    assert made == {"conversion": ["A02"], "features": []}
    assert bytes_of(again, *PATTERNS) == bytes_of(finished, *PATTERNS)
    code, text = plateloom("verify", again, "--deep")
    assert code == 0, text


def test_a_repair_after_which_something_is_damaged_still_does_not_end_with_0(again, monkeypatch, capsys):
    flip(again / "results/plates/P1/plate.zarr/A/02/1/0/c/0/0/0")
    monkeypatch.setattr(verify, "_run", lambda *_: 0)
    with pytest.raises(SystemExit) as ended:
        verify.command.callback(path=again, plates=(), deep=True, repair=True, profiles=(), cores=None)
    assert ended.value.code == 3
    assert "damaged still: P1 A02 conversion: " in (said := capsys.readouterr().err) and "was not made again" in said


def test_what_no_run_makes_again_is_not_removed(again):
    flip(again / "results/plates/P1/plate.zarr/A/02/1/0/c/0/0/0")
    sheet = (again / "plates.tsv").read_text()
    (again / "plates.tsv").write_text(sheet.replace("P1\t", "other\t", 1))
    code, text = plateloom("verify", again, "--deep", "--repair")
    assert code == 1 and "P1: plate.zarr/A/02/1/0/c/0/0/0: the plate is not on the screen's list" in text
    (again / "plates.tsv").write_text(sheet)
    shutil.rmtree(again / "raw")
    code, text = plateloom("verify", again, "--deep", "--repair")
    assert code == 2 and "P1: no source folder" in text
    assert (again / "results/plates/P1/plate.zarr/A/02/1/zarr.json").exists()


def test_paths_that_hold_no_results_are_told_apart(raw_screen, finished, again, tmp_path):
    code, text = plateloom("verify", raw_screen)
    assert code == 2 and "was not run yet" in text and f"plateloom run {raw_screen}" in text
    for folder in (raw_screen, finished):
        code, text = plateloom("verify", folder, "--plate", "P7")
        assert code == 2 and "no plate 'P7'. Plates: P1" in text
    code, text = plateloom("verify", tmp_path)
    assert code == 2 and "verify takes a screen" in text
    assert plateloom("verify", finished / "logs")[0] == 2
    with open(again / "plates.tsv", "a") as sheet:
        sheet.write("P2\traw/P2\tpattern\n")
    code, text = plateloom("verify", again)
    assert code == 0 and "P2: not run yet" in text


def test_the_results_that_all_plates_share_can_be_checked_alone(again):
    (again / "results/screen/report.html").unlink()
    (again / "results/plates/P1/report.html").unlink()
    code, text = plateloom("verify", again / "results/screen")
    assert code == 1 and "the screen screen_report" in text and "P1" not in text
    code, text = plateloom("verify", again / "results/plates/P1")
    assert code == 1 and "P1 report" in text and "the screen" not in text


def test_an_export_is_verified_as_a_whole_and_in_parts(finished, tmp_path):
    out = tmp_path / "handed on"
    code, text = plateloom("export", finished, out, "--no-tables", "--copy")
    assert code == 0, text
    code, text = plateloom("verify", out, "--deep")
    assert code == 0 and "nothing is damaged" in text
    assert plateloom("verify", out, "--repair")[0] == 2 == plateloom("verify", out, "--plate", "P7")[0]
    for file in ("plates/P1.zarr/A/01/1/0/c/0/0/0", "plates/P1/features/A01.parquet", "screen/hits.parquet"):
        (flip_page if file.endswith(".parquet") else flip)(out / file)
        code, text = plateloom("verify", out, "--deep")
        assert code == 1 and file in text
    code, text = plateloom("verify", out / "plates/P1", "--deep")
    assert code == 1 and "features/A01.parquet" in text and "zarr" not in text and "hits" not in text
    code, text = plateloom("verify", out, "--plate", "P1", "--deep")
    assert code == 1 and "features/A01.parquet" in text and "P1.zarr" in text and "hits" not in text
    shutil.rmtree(out / "plates/P1/maps")
    code, text = plateloom("verify", out)
    assert code == 1 and f"{out / 'plates/P1/maps'}: is missing" in text


def test_a_shard_from_another_field_in_its_place_is_damage(again):
    base = again / "results/plates/P1/plate.zarr"
    shutil.copyfile(base / "A/01/1/0/c/0/0/0", base / "A/02/1/0/c/0/0/0")
    assert {(one.stage, one.well) for one in repair.find_damage(again, "P1", deep=True)} == {("conversion", "A02")}


def test_a_repair_goes_as_far_as_the_screen_was_run(again):
    assert repair.last_made(again) == []
    shutil.rmtree(again / "results/screen")
    base = again / "results/plates/P1/records"
    shutil.rmtree(base / "report")
    assert set(repair.last_made(again)) == {"profiling", "maps"}
    for stage in ("maps", "profiling", "features", "segmentation", "quality", "flagging"):
        shutil.rmtree(base / stage)
    assert repair.last_made(again) == ["illumination"]


@pytest.mark.slow
def test_a_repair_of_a_plate_that_was_only_converted_converts_it(raw_screen, tmp_path):
    screen = shutil.copytree(raw_screen, tmp_path / "screen", copy_function=shutil.copy2)
    assert plateloom("run", screen, "--until", "conversion")[0] == 3  # one file cannot be read
    base = screen / "results/plates/P1"
    flip(base / "plate.zarr/A/02/1/0/c/0/0/0")
    code, text = plateloom("verify", screen, "--deep", "--repair")
    assert code == 3, text
    assert read_json(base / "records/conversion/part-0.json")["computed"] == ["A02"]
    assert sorted(path.name for path in (base / "records").iterdir()) == ["assembly", "conversion"]
    assert plateloom("verify", screen, "--deep")[0] == 0


@pytest.mark.slow
def test_repair_makes_the_damaged_wells_again_and_nothing_else(again, finished):
    base = again / "results/plates/P1"
    for what in ("a pixel", "a label", "a table"):
        name, damage, _, _ = DAMAGES[what]
        damage(base / name)
    repair.remove_damaged(again, repair.find_damage(again, "P1", deep=True))
    snakemake(again, "--until", "measure_features")
    made = {
        stage: read_json(base / f"records/{stage}/part-0.json")["computed"] for stage in ("conversion", "segmentation")
    }
    assert made == {"conversion": ["A02"], "segmentation": ["A02", "B01"]}
    assert bytes_of(again, *PATTERNS) == bytes_of(finished, *PATTERNS)
    assert repair.find_damage(again, "P1", deep=True) == []


def test_a_plate_of_no_screen_is_checked_and_cannot_be_repaired(again, tmp_path):
    shutil.move(again / "results/plates/P1/plate.zarr", tmp_path / "alone.zarr")
    code, text = plateloom("verify", tmp_path / "alone.zarr", "--deep")
    assert code == 0, text
    flip(tmp_path / "alone.zarr/A/02/1/0/c/0/0/0")
    code, text = plateloom("verify", tmp_path / "alone.zarr", "--deep")
    assert code == 1 and "A/02/1" in text
    assert plateloom("verify", tmp_path / "alone.zarr", "--repair")[0] == 2


def test_what_somebody_put_beside_the_wells_is_named_and_left(again):
    base = again / "results/plates/P1/plate.zarr"
    for name in ("notes.txt", "A/01/notes.txt", "A/01/1/labels/by hand/notes.txt"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("mine")
    code, text = plateloom("verify", again, "--repair")
    assert code == 1 and "making again" not in text
    for name in ("notes.txt", "A/01/notes.txt", "A/01/1/labels/by hand"):
        assert f"{name}: no run makes it or reads it; remove it yourself" in text and (base / name).exists()


@pytest.mark.parametrize("stage", ["conversion", "segmentation"])
def test_a_damaged_record_costs_no_well(again, stage):
    base = again / "results/plates/P1"
    flip_to_nothing = base / f"records/{stage}/part-0.json"
    flip_to_nothing.write_text(flip_to_nothing.read_text()[:100])
    before = bytes_of(again, *PATTERNS)
    repair.remove_damaged(again, repair.find_damage(again, "P1", deep=False))
    assert not flip_to_nothing.exists() and bytes_of(again, *PATTERNS) == before


def test_a_well_that_the_source_has_lost_is_not_removed(again):
    flip(again / "results/plates/P1/plate.zarr/A/02/1/0/c/0/0/0")
    for path in (again / "raw/P1").glob("A02_*"):
        path.unlink()
    code, text = plateloom("verify", again, "--deep", "--repair")
    assert code == 1 and "the source has no image of this well any more" in text
    assert (again / "results/plates/P1/plate.zarr/A/02/1/zarr.json").exists()


def test_wells_are_checked_though_the_list_of_the_plate_is_gone(again):
    base = again / "results/plates/P1/plate.zarr"
    (base / "zarr.json").unlink()
    flip(base / "A/02/1/0/c/0/0/0")
    assert {(one.stage, one.well) for one in repair.find_damage(again, "P1", deep=True)} == {
        ("assembly", ""),
        ("conversion", "A02"),
    }


def test_a_repair_waits_for_nobody_and_removes_nothing_while_a_run_works(again):
    flip(again / "results/plates/P1/plate.zarr/A/02/1/0/c/0/0/0")
    with locks.hold(again / ".plateloom.lock", wait=False):
        code, text = plateloom("verify", again, "--repair")
    assert code == 1 and "is held by process" in text
    assert (again / "results/plates/P1/plate.zarr/A/02/1/zarr.json").exists()
