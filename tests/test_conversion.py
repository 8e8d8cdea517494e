"""Source folder -> plate.zarr: what is kept, what is refused, what is redone."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from plateloom.config import Conversion
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
    "conversion": Conversion(pixel_size_um=0.5, levels=2).model_dump(),
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


def write(name, pixels, compression="zlib"):
    Path("raw").mkdir(exist_ok=True)
    tifffile.imwrite(Path("raw") / name, pixels, compression=compression)


def convert(settings=SETTINGS, part=0, of=1, max_failed_fields=0.5, plate="P"):
    record = RECORD.replace("part-0", f"part-{part}").replace("/P/", f"/{plate}/")
    conversion.convert_part(
        plate=plate,
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


def assemble(max_failed_fields=0.5, converted=(RECORD,), plate="P"):
    record = f"results/plates/{plate}/records/assembly/part-0.json"
    conversion.assemble_plate(
        plate=plate, max_failed_fields=max_failed_fields, code="c", converted=list(converted), record=record
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


def test_a_missing_field_and_a_missing_well_shift_nothing_and_are_recorded():
    assert convert()["facts"]["notes"] == []
    before = bytes_of()
    for path in Path("raw").glob("A01_s1_*"):
        path.unlink()
    assert convert()["facts"]["notes"] == ["1 field that most wells have is not there: A01 field 1"]
    for path in Path("raw").glob("A02_*"):
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
        "conversion": SETTINGS["conversion"] | {"z": projection},
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


def settings_with(pattern=None, **conversion):
    found = SETTINGS | {"conversion": SETTINGS["conversion"] | conversion}
    return found | {"reader_params": {"pattern": pattern}} if pattern else found


def stack_of(times, heights):
    """One well whose file names carry z and t; pixels (C, T, Z, Y, X)."""
    for path in Path("raw").iterdir():
        path.unlink()
    pixels = np.random.default_rng(3).integers(0, 999, (2, times, heights, 64, 64), dtype=np.uint16)
    for c, t, z in np.ndindex(pixels.shape[:3]):
        write(f"A01_s1_t{t}_z{z}_w{c + 1}.tif", pixels[c, t, z])
    return pixels, r"(?P<well>A\d+)_s(?P<field>\d)_t(?P<t>\d)_z(?P<z>\d)_w(?P<channel>\d)\.tif"


def test_a_plate_that_was_imaged_again_says_so():
    again = "P-acquisition2"
    convert(plate=again)
    assemble(converted=[RECORD.replace("/P/", f"/{again}/")], plate=again)
    place = Path("results/plates", again, "plate.zarr")
    assert store.read_group(place)["ome"]["plate"]["acquisitions"] == [
        {"id": 2, "name": "acquisition 2", "maximumfieldcount": 2}
    ]
    well = store.read_group(store.well_path(place, "A01"))["ome"]["well"]
    assert [image["acquisition"] for image in well["images"]] == [2, 2]
    convert()
    assemble()
    plain = store.read_group("results/plates/P/plate.zarr")["ome"]["plate"]
    assert [one["id"] for one in plain["acquisitions"]] == [0]


def test_several_time_points_are_refused_until_the_config_names_one():
    pixels, pattern_ = stack_of(times=2, heights=1)
    record = convert(settings_with(pattern_))
    assert record["status"] == "failed" and "set conversion.time to one of them, or to keep" in record["reason"]
    convert(settings_with(pattern_, time=1))
    np.testing.assert_array_equal(store.read_image(field_path("A01", 1)), pixels[:, 1, 0])
    record = convert(settings_with(pattern_, time=7))
    assert record["status"] == "failed" and "no time point 7; there are 0, 1" in record["reason"]


@pytest.mark.parametrize(
    ("keep", "axes", "expected"),
    [
        ({"z": "keep", "time": 0}, "czyx", lambda pixels: pixels[:, 0]),
        ({"z": "max", "time": "keep"}, "tcyx", lambda pixels: pixels.max(2).swapaxes(0, 1)),
        ({"z": "keep", "time": "keep"}, "tczyx", lambda pixels: pixels.swapaxes(0, 1)),
    ],
)
def test_a_plate_that_keeps_z_or_time_is_converted_and_what_follows_says_so(keep, axes, expected):
    from plateloom.stages.illumination import require_one_time

    pixels, pattern_ = stack_of(times=2, heights=3)
    convert(settings_with(pattern_, **keep))
    found = store.read_group(field_path("A01", 1))["ome"]["multiscales"][0]["axes"]
    assert "".join(axis["name"] for axis in found) == axes
    import zarr

    array = zarr.open_array(field_path("A01", 1) / "0", mode="r")
    np.testing.assert_array_equal(array[...], expected(pixels))
    record = assemble()
    assert record["status"] == "done"
    if "t" not in axes:
        return require_one_time(record)
    with pytest.raises(parts.DataFault, match="keeps its time points .* what follows conversion works on one"):
        require_one_time(record)


def test_a_plane_missing_from_a_stack_is_said():
    _, pattern_ = stack_of(times=1, heights=3)
    for well in ("A02", "A03"):
        for path in list(Path("raw").glob("A01*")):
            shutil.copyfile(path, path.with_name(path.name.replace("A01", well)))
    Path("raw/A02_s1_t0_z1_w2.tif").unlink()
    record = convert(settings_with(pattern_))
    assert [(f["well"], f["channel"], f["reason"]) for f in record["failures"]] == [
        ("A02", "GFP", "2 of 3 planes are there")
    ]
    assert convert(settings_with(pattern_, z="keep"))["failures"][0]["reason"].endswith(
        "z 1 are missing, most fields have z 0, 1, 2"
    )
    # The one plane that is left of a stack does not stand for the others.
    Path("raw/A02_s1_t0_z0_w2.tif").unlink()
    assert convert(settings_with(pattern_, z="keep"))["failures"][0]["reason"].endswith(
        "z 0, 1 are missing, most fields have z 0, 1, 2"
    )


def test_a_channel_of_one_plane_stands_beside_stacks():
    pixels, pattern_ = stack_of(times=1, heights=3)
    for z in range(3):
        Path(f"raw/A01_s1_t0_z{z}_w2.tif").unlink()
    write("A01_s1_t0_z7_w2.tif", pixels[1, 0, 0])  # its number is none of the stack's
    record = convert(settings_with(pattern_, z="keep"))
    assert not record["failures"] and record["facts"]["planes"] == 3
    found = store.read_image(field_path("A01", 1))
    np.testing.assert_array_equal(found[0], pixels[0, 0])
    np.testing.assert_array_equal(found[1], np.repeat(pixels[1, 0, :1], 3, axis=0))
    for z in (0, 2):
        Path(f"raw/A01_s1_t0_z{z}_w1.tif").unlink()
    assert convert(settings_with(pattern_, z="keep"))["facts"]["planes"] == 1
    np.testing.assert_array_equal(store.read_image(field_path("A01", 1))[:, 0], [pixels[0, 0, 1], pixels[1, 0, 0]])


def test_a_gap_in_a_volume_is_said_and_not_closed():
    _, pattern_ = stack_of(times=1, heights=5)
    for well in ("A02", "A03"):
        for path in list(Path("raw").glob("A01*")):
            shutil.copyfile(path, path.with_name(path.name.replace("A01", well)))
    for c in (1, 2):  # in all channels of a well
        Path(f"raw/A02_s1_t0_z2_w{c}.tif").unlink()
    reasons = [one["reason"] for one in convert(settings_with(pattern_, z="keep"))["failures"]]
    assert len(reasons) == 2 and all("z 2 are missing, most fields have z 0, 1, 2, 3, 4" in one for one in reasons)
    for path in Path("raw").glob("*_z2_*"):
        path.unlink()
    record = convert(settings_with(pattern_, z="keep"))
    assert record["status"] == "failed" and "(0, 1, 3, 4) do not lie equally far apart" in record["reason"]


def test_without_any_pixel_size_nothing_is_converted():
    record = convert(settings_with(pixel_size_um=None))
    assert record["status"] == "failed" and "set conversion.pixel_size_um" in record["reason"]


@pytest.fixture
def placed(monkeypatch):
    """Give the raw fields positions, as metadata would: field 2 to the right of field 1, 8 px over it, 1 px lower."""
    scan = pattern.scan

    def with_positions(source, params):
        found = scan(source, params)
        where = {1: (100.0, 50.0), 2: (100.5, 110.0)}
        found.images = [i._replace(y_um=where[i.field][0], x_um=where[i.field][1]) for i in found.images]
        return found

    monkeypatch.setattr(pattern, "scan", with_positions)


def test_fields_are_stitched_by_their_positions_not_by_their_order(placed):
    record = convert(settings_with(layout="stitched"))
    assert record["status"] == "done" and not record["failures"]
    path = field_path("A01", 1)
    one, two = (
        np.stack([tifffile.imread(f"raw/A01_s{field}_w{channel}.tif") for channel in (1, 2)]) for field in (1, 2)
    )
    image = store.read_image(path)
    assert image.shape == (2, 97, 248)
    np.testing.assert_array_equal(image[:, :96, :120], one[:, :, :120])
    np.testing.assert_array_equal(image[:, 1:97, 128:], two[:, :, 8:])
    assert not image[:, 96, :119].any(), "no field lies there"
    assert not (path.parent / ".tiles").exists()
    transformations = store.read_group(path)["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transformations[1] == {"type": "translation", "translation": [0.0, 76.25, 18.25]}
    fields = read_table("results/plates/P/fields/A01.parquet")
    assert set(fields["Metadata_Field"]) == {1} and set(fields["SourceField"]) == {1, 2}
    assert assemble()["facts"]["fields"] == 6


def test_a_stitched_well_is_the_same_by_way_of_the_node_s_disk(placed, monkeypatch, tmp_path):
    convert(settings_with(layout="stitched"))
    expected = bytes_of()
    shutil.rmtree("results")
    monkeypatch.setattr(
        parts, "EXECUTION", parts.Execution(cluster={"kind": "threads"}, scratch=str(tmp_path / "node"))
    )
    saved, save = [], np.save
    monkeypatch.setattr(np, "save", lambda path, pixels: saved.append(Path(path)) or save(path, pixels))
    convert(settings_with(layout="stitched"))
    assert bytes_of() == expected
    assert len(saved) == 6 and all(path.is_relative_to(tmp_path / "node") for path in saved)
    assert list((tmp_path / "node").iterdir()) == []


def test_an_unreadable_field_is_a_hole_in_its_stitched_well(placed):
    convert(settings_with(layout="stitched"))
    assemble()
    before = bytes_of()
    path = Path("raw/A02_s1_w2.tif")
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    record = convert(settings_with(layout="stitched"))
    assert record["computed"] == ["A02"]
    assert {(f["well"], f["field"]) for f in record["failures"]} == {("A02", 1)}
    image = store.read_image(field_path("A02", 1))
    np.testing.assert_array_equal(image[1], tifffile.imread("raw/A02_s2_w2.tif"))
    assert assemble()["facts"]["failed_fields"] == 1
    path.write_bytes(whole)
    convert(settings_with(layout="stitched"))
    assemble()
    assert bytes_of() == before


def test_stitching_without_positions_is_refused():
    record = convert(settings_with(layout="stitched"))
    assert record["status"] == "failed" and "no positions" in record["reason"]


def test_every_field_of_a_stitched_well_is_corrected_with_its_own_shading(placed):
    from plateloom.stages.illumination import estimate_plate, read_corrected, shrink_field
    from plateloom.stages.segmentation import _segment_tiles, segment_field
    from plateloom.store.flatfields import write_flatfields

    convert(settings_with(layout="stitched"))
    assemble()
    flat = np.linspace(0.5, 1.5, 128, dtype=np.float32)[None].repeat(96, 0)
    write_flatfields("results/plates/P/illumination.zarr", {"DNA": flat, "GFP": flat}, {"fingerprint": "f"})
    whole = read_corrected("P", "A01", 1, "f")
    expected = tifffile.imread("raw/A01_s2_w1.tif")[:, 8:] / (flat[:, 8:] * 65535)
    np.testing.assert_allclose(whole[0, 1:97, 128:], expected, rtol=1e-5)
    window = (slice(3, 90), slice(100, 140))
    np.testing.assert_array_equal(read_corrected("P", "A01", 1, "f", window=window), whole[(slice(None), *window)])
    chain = [{"method": "background", "parameters": {"radius_um": 4.0}, "channels": None}]
    for restoration in ([], chain):
        write_flatfields(
            "results/plates/P/illumination.zarr",
            {"DNA": flat, "GFP": flat},
            {"fingerprint": "f"},
            restoration=restoration,
        )
        whole = read_corrected("P", "A01", 1, "f", uncovered=np.nan)
        nowhere = np.zeros((97, 248), bool)
        nowhere[96, :120] = nowhere[0, 128:] = True
        assert (np.isnan(whole) == nowhere).all()
        for window in ((slice(60, 97), slice(0, 150)), (slice(90, 97), slice(30, 60)), (slice(96, 97), slice(0, 9))):
            found = read_corrected("P", "A01", 1, "f", window=window, uncovered=np.nan)
            np.testing.assert_array_equal(found, whole[(slice(None), *window)])
        np.testing.assert_array_equal(read_corrected("P", "A01", 1, "f"), np.nan_to_num(whole))
    where, settings = ("P", "A01", 1, "f"), {"method": "patches", "parameters": {}}
    segment_field(*where, settings, "cpu", {"fingerprint": "whole"})
    labels = store.read_labels(field_path("A01", 1), "Cells", made="whole")
    np.testing.assert_array_equal(labels == 0, nowhere)
    tasks, results = _segment_tiles(*where, settings, "cpu", {"fingerprint": "tiles"}, 64, 1), None
    with pytest.raises(StopIteration):
        while True:
            results = [task[0](*task[1:]) for task in tasks.send(results)]
    np.testing.assert_array_equal(store.read_labels(field_path("A01", 1), "Cells", made="tiles"), labels)
    settings = {"method": "none", "parameters": {}, "fields": 64}
    assert set(shrink_field(str(field_path("A01", 1)), 2, settings)) == {"DNA", "GFP"}
    record = "results/plates/P/records/illumination/part-0.json"
    estimate_plate(
        plate="P",
        settings=settings,
        code="c",
        assembled="results/plates/P/records/assembly/part-0.json",
        converted=[RECORD],
        record=record,
    )
    assert read_json(record)["facts"]["DNA"] == "from 6 fields"


def test_a_version_needs_no_quotes():
    assert Conversion(ngff=0.4).ngff == Conversion(ngff="0.4").ngff == "0.4"
    with pytest.raises(ValueError, match="'0.5' or '0.4'"):
        Conversion(ngff=0.3)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_file_whose_end_has_not_come_yet_puts_the_plate_off(compression):
    path = Path("raw/A01_s1_w1.tif")
    write(path.name, tifffile.imread(path), compression)
    whole = path.read_bytes()
    path.write_bytes(whole[:6000] + bytes(len(whole) - 6000))
    record = convert()
    assert record["status"] == "failed" and record["facts"]["deferred"]
    assert "A01_s1_w1.tif" in record["reason"] and "still being copied" in record["reason"]
    assert not Path("results/plates/P/plate.zarr").exists()
    path.write_bytes(whole)
    assert convert()["status"] == "done"


def test_a_young_plate_is_put_off_where_the_config_asks_for_it(monkeypatch):
    options = {"threads": 2, "cluster": {"kind": "threads"}, "settle_minutes": 30}
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(**options))
    assert convert()["facts"]["deferred"]
    for path in Path("raw").iterdir():
        os.utime(path, (1e9, 1e9))
    assert convert()["status"] == "done"


def test_a_folder_that_changes_after_the_run_was_planned_is_put_off():
    from plateloom.readers.folders import digest_changes
    from plateloom.store.layout import part_of

    params = pattern.Params(**SETTINGS["reader_params"])
    (planned,) = digest_changes(pattern, "raw", params, part_of, 1)
    write("B02_s1_w1.tif", np.zeros((96, 128), np.uint16))
    arguments = {"plate": "P", "part": 0, "parts": 1, "source": "raw", "reader": "pattern", "code": "c"}
    conversion.convert_part(**arguments, settings=SETTINGS, record=RECORD, listing=planned)
    assert read_json(RECORD)["facts"]["deferred"] and "have changed since" in read_json(RECORD)["reason"]
    (now,) = digest_changes(pattern, "raw", params, part_of, 1)
    conversion.convert_part(**arguments, settings=SETTINGS, record=RECORD, listing=now, deferral="then")
    record = read_json(RECORD)
    assert record["status"] == "done" and record["facts"]["after_deferral"] == "then"


def test_a_plate_without_the_microscopes_end_marker_is_put_off_unless_told_otherwise(monkeypatch):
    scan = pattern.scan

    def unfinished(source, params):
        found = scan(source, params)
        found.finished = False
        return found

    monkeypatch.setattr(pattern, "scan", unfinished)
    record = convert()
    assert record["facts"]["deferred"] and "engine.end_marker" in record["reason"]
    options = {"threads": 2, "cluster": {"kind": "threads"}, "end_marker": False}
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(**options))
    assert convert()["status"] == "done"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_no_record_says_what_was_needed_and_resumes(monkeypatch, number):
    convert()
    expected = bytes_of()
    shutil.rmtree("results")
    write_well = store.write_well

    def full(folder, well, *arguments, **options):
        if well == "B01":
            raise OSError(number, os.strerror(number), str(folder))
        return write_well(folder, well, *arguments, **options)

    monkeypatch.setattr(store, "write_well", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        convert()
    assert not Path(RECORD).exists()
    monkeypatch.setattr(store, "write_well", write_well)
    record = convert()
    assert "B01" in record["computed"] and record["kept"] == sorted({"A01", "A02"} - set(record["computed"]))
    assert bytes_of() == expected


def test_a_field_that_lacks_a_kept_time_point_is_a_fault_not_a_shift():
    _, pattern_ = stack_of(times=3, heights=1)
    for path in list(Path("raw").glob("A01*")):
        shutil.copyfile(path, path.with_name(path.name.replace("s1", "s2")))
    for channel in (1, 2):
        Path(f"raw/A01_s2_t1_z0_w{channel}.tif").unlink()
    record = convert(settings_with(pattern_, time="keep"))
    assert {(f["field"], f["reason"].split(": ")[1]) for f in record["failures"]} == {(2, "time point 1 is missing")}
    assert store.image_shape(field_path("A01", 1))[0] == 3 and store.read_group(field_path("A01", 2)) is None


def test_a_source_that_is_not_mounted_is_put_off_and_costs_nothing():
    convert()
    before = bytes_of()
    Path("raw").rename("elsewhere")
    record = convert()
    assert record["facts"]["deferred"] and "not mounted" in record["reason"]
    Path("elsewhere").rename("raw")
    assert convert()["kept"] == ["A01", "A02", "B01"] and bytes_of() == before


def test_a_plate_without_a_usable_field_fails_in_one_line():
    for path in Path("raw").iterdir():
        path.write_bytes(b"II*\0")
    convert()
    record = assemble(max_failed_fields=1.0)
    assert record["status"] == "failed" and record["reason"] == "none of the plate's fields can be used"


def test_a_file_name_that_is_no_utf8_is_converted_all_the_same():
    for path in list(Path("raw").glob("B01*")):
        name = os.fsencode(path).replace(b"B01", b"\xff-B01")
        os.rename(os.fsencode(path), name)
    record = convert(settings_with(r".*?(?P<well>[AB]\d+)_s(?P<field>\d)_w(?P<channel>\d)\.tif"))
    assert record["status"] == "done" and "B01" in record["computed"]
    assert read_table("results/plates/P/fields/B01.parquet")["File"][0] == r"\xff-B01_s1_w1.tif"
