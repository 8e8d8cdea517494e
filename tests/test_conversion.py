"""Source folder -> plate.zarr: what is kept, what is refused, what is redone."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from plateloom.engine import parts
from plateloom.readers import pattern
from plateloom.stages import conversion
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

SETTINGS = {
    "channels": {
        "DNA": {"source": "1", "color": "0000FF", "window": None},
        "GFP": {"source": "2", "color": "00FF00", "window": [0, 500]},
    },
    "conversion": {"projection": "max", "pixel_size_um": 0.5, "levels": 2},
    "reader_params": {"pattern": pattern.KNOWN["plateloom"], "folders": False},
}
RECORD = "results/plates/P/records/conversion/part-0.json"


@pytest.fixture(autouse=True)
def plate_folder(tmp_path, monkeypatch):
    """Three wells of two fields and two channels, converted by threads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=2, cluster={"kind": "threads"}))
    rng = np.random.default_rng(0)
    for well in ("A01", "A02", "B01"):
        for field in (1, 2):
            for channel in (1, 2):
                write(f"{well}_s{field}_w{channel}.tif", rng.integers(0, 4000, (96, 128), dtype=np.uint16))
    return tmp_path


def write(name, pixels):
    Path("raw").mkdir(exist_ok=True)
    tifffile.imwrite(Path("raw") / name, pixels, compression="zlib")


def convert(settings=SETTINGS, part=0, of=1, max_failed_fields=0.5):
    record = RECORD.replace("part-0", f"part-{part}")
    conversion.convert_part(
        plate="P",
        part=part,
        parts=of,
        source="raw",
        reader="pattern",
        listing="",
        settings=settings,
        code="c",
        record=record,
    )
    return read_json(record)


def assemble(max_failed_fields=0.5, converted=(RECORD,)):
    record = "results/plates/P/records/assembly/part-0.json"
    conversion.assemble_plate(
        plate="P", max_failed_fields=max_failed_fields, code="c", converted=list(converted), record=record
    )
    return read_json(record)


def field_path(well, field):
    return store.field_path("results/plates/P/plate.zarr", well, field)


def bytes_of(folder="results/plates/P/plate.zarr"):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_pixels_arrive_as_they_were():
    convert()
    expected = np.stack([tifffile.imread(f"raw/A02_s2_w{channel}.tif") for channel in (1, 2)])
    np.testing.assert_array_equal(store.read_image(field_path("A02", 2)), expected)
    described = store.describe_image(field_path("A02", 2))
    assert described["channels"] == ["DNA", "GFP"] and described["pixel_size_um"] == 0.5
    assert described["windows"][1] == (0, 500)


def test_a_truncated_file_fails_its_field_and_nothing_else():
    convert()
    before = bytes_of()
    path = Path("raw/A01_s2_w1.tif")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    record = convert()
    assert record["status"] == "done" and record["computed"] == ["A01"]
    assert [(f["well"], f["field"], f["channel"]) for f in record["failures"]] == [("A01", 2, "DNA")]
    fields = read_table("results/plates/P/fields/A01.parquet")
    assert list(fields.loc[fields["Metadata_Field"] == 2, "Status"]) == ["failed", "failed"]
    assert store.read_group(field_path("A01", 2)) is None
    after = bytes_of()
    assert {name: digest for name, digest in after.items() if "A/01/1/0" in name} == {
        name: digest for name, digest in before.items() if "A/01/1/0" in name
    }
    path.write_bytes(whole)
    assert convert()["computed"] == ["A01"]
    assert bytes_of() == before


def test_a_missing_channel_makes_the_field_partial_and_its_pixels_mean_nothing():
    Path("raw/B01_s1_w2.tif").unlink()
    record = convert()
    assert store.describe_image(field_path("B01", 1))["missing"] == ["GFP"]
    assert record["failures"][0]["reason"] == "no file for this channel"
    fields = read_table("results/plates/P/fields/B01.parquet")
    assert dict(zip(fields["Channel"], fields["Status"], strict=False)) and "missing" in set(fields["Status"])


def test_a_missing_field_and_a_missing_well_shift_nothing():
    convert()
    before = bytes_of()
    for path in Path("raw").glob("A02_*"):
        path.unlink()
    for path in Path("raw").glob("A01_s1_*"):
        path.unlink()
    record = convert()
    assert record["removed"] == ["A02"]
    after = bytes_of()
    assert not any(name.startswith("A/02") for name in after)
    same = [name for name in before if name.startswith(("A/01/2/", "B/01/"))]
    assert same and {name: after[name] for name in same} == {name: before[name] for name in same}


@pytest.mark.parametrize("pixels", [np.zeros((96, 128), np.uint8), np.zeros((96, 64), np.uint16)])
def test_a_plane_of_another_kind_is_refused_by_name(pixels):
    write("A01_s1_w2.tif", pixels)
    record = convert()
    assert "A01_s1_w2.tif" in record["failures"][0]["reason"]
    assert store.read_group(field_path("A01", 1)) is None


def test_touching_a_file_changes_no_byte_of_the_plate():
    convert()
    before = bytes_of()
    Path("raw/A01_s1_w1.tif").touch()
    record = convert()
    assert record["computed"] == ["A01"] and bytes_of() == before


def test_parts_together_make_the_plate_of_one_part():
    convert()
    whole = bytes_of()
    shutil.rmtree("results")
    for part in range(3):
        convert(part=part, of=3)
    assert bytes_of() == whole


@pytest.mark.parametrize(("projection", "expected"), [("max", 9), ("mean", 5)])
def test_z_is_projected(projection, expected):
    for path in Path("raw").iterdir():
        path.unlink()
    for z, value in enumerate((1, 4, 9)):
        for channel in (1, 2):
            write(f"A01_s1_z{z}_w{channel}.tif", np.full((64, 64), value, np.uint16))
    settings = SETTINGS | {
        "conversion": SETTINGS["conversion"] | {"projection": projection},
        "reader_params": {"pattern": r"(?P<well>A\d+)_s(?P<field>\d)_z(?P<z>\d)_w(?P<channel>\d)\.tif"},
    }
    convert(settings)
    assert np.unique(store.read_image(field_path("A01", 1))) == [expected]


def test_too_many_failed_fields_fail_the_plate_in_one_line():
    for name in ("A01_s1_w1", "A01_s2_w1", "A02_s1_w1"):
        Path(f"raw/{name}.tif").write_bytes(b"II*\0")
    convert()
    record = assemble(max_failed_fields=0.2)
    assert record["status"] == "failed"
    assert record["reason"].startswith("3 of 6 fields failed, more than max_failed_fields 0.2 allows")
    assert "\n" not in record["reason"]
    assert assemble(max_failed_fields=0.5)["status"] == "done"


def test_a_folder_without_a_matching_file_says_so():
    for path in Path("raw").iterdir():
        path.unlink()
    assert convert()["status"] == "failed"
    record = assemble()
    assert record["status"] == "skipped" and "no image" in record["reason"]


def test_an_empty_mount_or_a_wrong_pattern_costs_no_well():
    convert()
    before = bytes_of()
    Path("raw").rename("elsewhere")
    Path("raw").mkdir()
    assert convert()["status"] == "failed"
    assert bytes_of() == before


def test_a_file_taken_for_another_channel_is_another_recipe():
    one = convert()["artefacts"]
    settings = SETTINGS | {"reader_params": {"pattern": r"(?P<well>[AB]\d+)_s(?P<field>\d)_w(?P<z>\d)\.tif"}}
    settings["channels"] = {"DNA": SETTINGS["channels"]["DNA"]}
    two = convert(settings)["artefacts"]
    assert one.keys() == two.keys() and not set(one.values()) & set(two.values())


def test_a_field_that_is_not_like_the_rest_of_the_plate_is_left_out_by_name():
    from plateloom.stages.illumination import usable_fields

    for channel in (1, 2):
        write(f"A02_s1_w{channel}.tif", np.zeros((48, 64), np.uint16))
    convert()
    record = assemble()
    assert {(f["well"], f["field"]) for f in record["failures"]} == {("A02", 1)}
    assert "A02_s1_w1.tif" in record["failures"][0]["reason"]
    assert ("A02", 1) not in usable_fields("P", ["A01", "A02", "B01"])


def test_converting_a_well_again_makes_its_labels_again():
    convert()
    marker = Path("results/plates/P/segmentation/A01.parquet")
    marker.parent.mkdir()
    marker.touch()
    Path("raw/A01_s1_w1.tif").touch()
    convert()
    assert not marker.exists()


def test_a_well_whose_images_were_removed_is_made_again():
    convert()
    before = bytes_of()
    store.remove_well("results/plates/P/plate.zarr", "A01")
    assert convert()["computed"] == ["A01"] and bytes_of() == before


def test_two_files_for_one_plane_fail_the_plate_and_are_named():
    Path("raw/again").mkdir()
    shutil.copy("raw/A01_s1_w1.tif", "raw/again/A01_s1_w1.tif")
    record = convert()
    assert record["status"] == "failed" and "again/A01_s1_w1.tif" in record["reason"]


def test_the_plate_validates_and_lists_its_wells():
    import zarr
    from ome_zarr_models.v05.hcs import HCS

    convert()
    assemble()
    found = HCS.from_zarr(zarr.open_group("results/plates/P/plate.zarr", mode="r")).ome_attributes.plate
    assert [well.path for well in found.wells] == ["A/01", "A/02", "B/01"]
