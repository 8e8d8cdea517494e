"""`plateloom verify`: damage is named with its well and stage, and only that is made again."""

import shutil

import pytest
import yaml
from conftest import simulate, snakemake
from test_cli import plateloom
from test_workflow import bytes_of

from plateloom import repair
from plateloom.engine import locks
from plateloom.store.provenance import read_json

PATTERNS = ("results/plates/P1/*/*.parquet", "results/plates/P1/*.parquet", "results/plates/P1/*.zarr/**/*")


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A small screen, run as far as features; copy it, do not change it."""
    folder = simulate(tmp_path_factory.mktemp("verify") / "screen", rows=2, columns=3)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"]["autoencoder"] = {"enabled": False}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    snakemake(folder, "--until", "measure_features")
    return folder


@pytest.fixture
def again(segmented, tmp_path):
    shutil.copytree(segmented, tmp_path / "screen", copy_function=shutil.copy2)
    return tmp_path / "screen"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_nothing_is_wrong_with_what_was_just_made(segmented):
    assert repair.find_damage(segmented, "P1", deep=True) == []
    code, text = plateloom("verify", segmented, "--deep")
    assert code == 0 and "nothing is damaged" in text


DAMAGES = {
    "a pixel": ("plate.zarr/A/02/1/0/c/0/0/0", flip, "conversion", "A02"),
    "a label": ("plate.zarr/B/01/1/labels/Nuclei/0/c/0/0", flip, "segmentation", "B01"),
    "metadata of an image": ("plate.zarr/A/03/1/zarr.json", flip, "conversion", "A03"),
    "the plate's list": ("plate.zarr/zarr.json", flip, "assembly", ""),
    "a flat-field": ("illumination.zarr/DNA/c/0/0", flip, "illumination", ""),
    "a missing shard": ("plate.zarr/B/02/1/1/c/0/0/0", lambda path: path.unlink(), "conversion", "B02"),
    "a table": ("features/A01.parquet", lambda path: path.write_bytes(path.read_bytes()[:900]), "features", "A01"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named_with_its_stage_and_well(again, what):
    name, damage, stage, well = DAMAGES[what]
    damage(again / "results/plates/P1" / name)
    found = repair.find_damage(again, "P1", deep=True)
    assert {(one.stage, one.well) for one in found} == {(stage, well)}
    code, text = plateloom("verify", again, "--deep")
    assert code == 1 and f"P1{f' {well}' if well else ''} {stage}: " in text


def test_a_shard_from_another_field_in_its_place_is_damage(again):
    base = again / "results/plates/P1/plate.zarr"
    shutil.copyfile(base / "A/01/1/0/c/0/0/0", base / "A/02/1/0/c/0/0/0")
    assert {(one.stage, one.well) for one in repair.find_damage(again, "P1", deep=True)} == {("conversion", "A02")}


def test_repair_makes_the_damaged_wells_again_and_nothing_else(again, segmented):
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
    assert bytes_of(again, *PATTERNS) == bytes_of(segmented, *PATTERNS)
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
    stray = again / "results/plates/P1/plate.zarr/notes.txt"
    stray.write_text("mine")
    code, text = plateloom("verify", again, "--repair")
    assert code == 1 and "notes.txt: no run makes it or reads it; remove it yourself" in text
    assert "making again" not in text and stray.exists()


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
