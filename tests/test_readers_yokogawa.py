"""CellVoyager plates: what the metadata say becomes the table, and whatever they hold, nothing else breaks."""

import os
import random
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from layouts import yokogawa as layout

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import yokogawa
from plateloom.readers.folders import list_files

POSITIONS = {1: (-20.8, -10.4), 2: (-20.8, 10.4), 3: (0.0, -10.4)}  # field 3 lies below field 1
KEEP = yokogawa.Params(absent="keep")


def make_planes(wells=("B03", "C04"), fields=(1, 2, 3), channels=(1, 2), zs=(1, 2), ts=(1, 2)):
    """Planes that all differ."""
    generator = np.random.default_rng(1)
    keys = [(w, f, c, z, t) for w in wells for f in fields for c in channels for z in zs for t in ts]
    return {key: generator.integers(0, 65536, (6, 8), dtype=np.uint16) for key in keys}


def scan(folder, **params):
    return yokogawa.scan(folder, yokogawa.Params(**params))


def keys_of(source):
    return [(i.well, i.field, int(i.channel), i.z, i.t) for i in source.images]


def noted(source, text):
    """Whether exactly one note says this."""
    return sum(text in note for note in source.notes) == 1


def edit(path, old, new, count=-1):
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")


def test_every_pixel_and_fact_of_a_plate_comes_back(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, pixel_size_um=0.325, positions=POSITIONS, shape=(16, 24))
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and source.notes == []
    assert source.shape == (16, 24) and source.finished is True
    assert source.channels == {"1": {"name": "DNA", "color": "002FFF"}, "2": {"name": "GFP", "color": "00FF00"}}
    order = list(planes)
    for key, image in zip(keys_of(source), source.images, strict=True):
        np.testing.assert_array_equal(yokogawa.load(tmp_path, image)[0], planes[key])
        assert (image.y_um, image.x_um) == POSITIONS[image.field]
        assert image.z_um == (image.z - 1) * layout.STEP_UM and image.pixel_size_um == 0.325
        assert image.seconds == layout.BEGIN.timestamp() + order.index(key)
        assert image.wavelength_nm == (445.0 if image.channel == "1" else 525.0)
        assert image.size == (tmp_path / image.file).stat().st_size and image.page == -1


def test_y_of_the_stage_grows_upwards_and_y_of_a_field_downwards(tmp_path):
    layout.write(tmp_path, make_planes(), positions=POSITIONS)
    assert 'bts:X="-10.4" bts:Y="20.8"' in (tmp_path / "MeasurementData.mlf").read_text(encoding="utf-8-sig")
    first, third = (next(i for i in scan(tmp_path).images if i.field == field) for field in (1, 3))
    assert first.y_um < third.y_um


@pytest.mark.parametrize("options", [{"suffix": ".png"}, {"big_endian": True}, {"suffix": ".TIFF"}])
def test_other_encodings_of_the_files_hold_the_same_pixels(tmp_path, options):
    planes = make_planes(("P24",), (1,))
    layout.write(tmp_path, planes, shape=(16, 24), **options)
    source = scan(tmp_path)
    for key, image in zip(keys_of(source), source.images, strict=True):
        np.testing.assert_array_equal(yokogawa.load(tmp_path, image)[0], planes[key])
    assert noted(source, "another suffix") == ("suffix" in options)


@pytest.mark.parametrize(("blocks", "name"), [(True, "H12.d4"), (False, "AF48")])
def test_wells_of_1536_come_back_in_either_spelling(tmp_path, blocks, name):
    planes = make_planes(("A01", "B03", "E05", "AF48"), (1,), (1,), (1,), (1,))
    layout.write(tmp_path, planes, shape=(32, 48), blocks=blocks)
    assert any(f"_{name}_" in file for file, _ in list_files(tmp_path))
    for _ in range(2):
        source = scan(tmp_path)
        assert keys_of(source) == sorted(planes)
        listed = {well for well, _ in yokogawa.listing(tmp_path, yokogawa.Params())}
        assert listed - {""} == {image.well for image in source.images}
        (tmp_path / "MeasurementData.mlf").unlink(missing_ok=True)


def test_wells_in_the_name_of_the_plate_are_no_wells(tmp_path):
    planes = make_planes(("D04",), (1,))
    layout.write(tmp_path, planes, plate="SC_my_B03_C03_T0009F001")
    assert keys_of(scan(tmp_path)) == sorted(planes)
    (tmp_path / "MeasurementData.mlf").unlink()
    assert keys_of(scan(tmp_path)) == sorted(planes)


def test_without_the_mlf_the_names_speak_and_the_rest_is_known(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, pixel_size_um=0.5, metadata=("mrf", "mes", "wpi"))
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and noted(source, "positions are unknown")
    assert all(i.y_um is None and i.x_um is None and i.seconds is None for i in source.images)
    assert {i.pixel_size_um for i in source.images} == {0.5} and source.shape == (8, 12) and source.finished
    assert {(i.z, i.z_um) for i in source.images} == {(1, -4.0), (2, -2.0)}
    assert source.channels["1"]["name"] == "DNA"


def test_without_the_mrf_positions_are_known_and_the_end_is_not(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, positions=POSITIONS, metadata=("mlf", "wpi"))
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and noted(source, "no MeasurementDetail.mrf")
    assert all((i.y_um, i.x_um) == POSITIONS[i.field] and i.pixel_size_um is None for i in source.images)
    assert source.finished is None and source.shape == (8, 12)


def test_names_alone_make_a_plate(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, metadata=())
    (tmp_path / "overview.png").write_bytes(b"")
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and source.shape is None and source.finished is None
    assert noted(source, "not named as planes") and noted(source, "positions are unknown")
    np.testing.assert_array_equal(yokogawa.load(tmp_path, source.images[5])[0], planes[sorted(planes)[5]])


def test_two_plates_in_one_folder_are_told(tmp_path):
    for plate, well in (("P1", "A01"), ("P2", "A02")):
        layout.write(tmp_path, make_planes((well,)), plate=plate, metadata=())
    assert noted(scan(tmp_path), "2 names of plates: 'P1', 'P2'")
    layout.write(tmp_path, make_planes(("A01",)), plate="P2", metadata=())
    with pytest.raises(PlateLayoutError, match=r"P1_A01.*P2_A01.*same plane"):
        scan(tmp_path)


def test_absent_files_are_counted_or_kept(tmp_path):
    planes = make_planes()
    absent = sorted(planes)[3:7]
    layout.write(tmp_path, planes, absent=absent)
    source = scan(tmp_path)
    assert set(keys_of(source)) == set(planes) - set(absent) and noted(source, "4 of 48 images")
    source = scan(tmp_path, absent="keep")
    assert keys_of(source) == sorted(planes)
    for key, image in zip(keys_of(source), source.images, strict=True):
        assert ((image.size, image.modified) == (0, 0)) == (key in absent)
    with pytest.raises(UnreadableImageError, match="no such file"):
        yokogawa.load(tmp_path, source.images[3])


def test_a_dangling_link_is_an_absent_file(tmp_path):
    planes = make_planes(("A01",), (1,), (1,), (1,), (1, 2))
    layout.write(tmp_path, planes)
    path = tmp_path / scan(tmp_path).images[0].file
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert noted(scan(tmp_path), "1 of 2 images")
    (tmp_path / "MeasurementData.mlf").unlink()
    assert len(scan(tmp_path).images) == 1


def test_metadata_alone_make_a_table_only_where_asked_for(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, absent=planes)
    with pytest.raises(PlateLayoutError, match="none of the 48 images.*`absent: keep`"):
        scan(tmp_path)
    assert keys_of(scan(tmp_path, absent="keep")) == sorted(planes)


def test_error_records_are_holes_and_are_counted(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, errors=[("C04", "AF Error at C04 No. 0"), ("H12", "AF Error at H12 No. 0")])
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes)
    assert noted(source, "2 error records in 'MeasurementData.mlf' in 2 wells: C04, H12")
    assert noted(source, "first: 'AF Error at C04 No. 0'")


def test_an_error_record_with_the_facts_of_a_plane_makes_a_hole(tmp_path):
    planes = make_planes(("A01",))
    layout.write(tmp_path, planes)
    edit(tmp_path / "MeasurementData.mlf", 'bts:Type="IMG"', 'bts:Type="ERR"', 1)
    source = scan(tmp_path)
    assert keys_of(source) == sorted(set(planes) - {next(iter(planes))})
    assert noted(source, "1 error records") and noted(source, "1 image files are in no record")


def test_a_measurement_of_errors_alone_says_so(tmp_path):
    layout.write(tmp_path, make_planes())
    edit(tmp_path / "MeasurementData.mlf", 'bts:Type="IMG"', 'bts:Type="ERR"')
    with pytest.raises(PlateLayoutError, match="lists no image .48 error records"):
        scan(tmp_path)


def test_records_of_an_unknown_type_are_left_out_and_counted(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)))
    edit(tmp_path / "MeasurementData.mlf", 'bts:Type="IMG"', 'bts:Type="LIVE"', 3)
    source = scan(tmp_path)
    assert len(source.images) == 21 and noted(source, "3 records of the unknown type 'LIVE'")


@pytest.mark.parametrize("metadata", [("mlf", "mrf"), ("mrf",)])
def test_a_stack_or_its_projection_counts_and_never_both(tmp_path, metadata):
    planes = make_planes(channels=(1, 2))
    projections = make_planes(channels=(1,), zs=(1,))
    layout.write(tmp_path, planes, projections=projections, metadata=metadata)
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and noted(source, "stack counts, not Maximum")
    source = scan(tmp_path, z="Maximum")
    assert keys_of(source) == sorted([*projections, *(key for key in planes if key[2] == 2)])
    assert noted(source, "Maximum counts, not stack")
    for key, image in zip(keys_of(source), source.images, strict=True):
        expected = projections[key] if key in projections else planes[key]
        np.testing.assert_array_equal(yokogawa.load(tmp_path, image)[0], expected)


def test_a_projection_counts_where_the_stack_was_deleted(tmp_path):
    planes, projections = make_planes(), make_planes(zs=(1,))
    layout.write(tmp_path, planes, projections=projections, absent=[key for key in planes if key[3] == 2])
    for path in tmp_path.glob("*Z01*"):
        path.unlink()
    assert keys_of(scan(tmp_path)) == sorted(projections)


def test_the_kind_of_each_absent_channel_is_chosen_for_itself(tmp_path):
    planes = make_planes(("A01",), (1,))
    layout.write(tmp_path, planes, absent=[key for key in planes if key[2] == 2])
    assert keys_of(scan(tmp_path, absent="keep")) == sorted(planes)
    source = scan(tmp_path)
    assert {image.channel for image in source.images} == {"1"} == set(source.channels)


def test_a_projection_without_a_file_is_kept(tmp_path):
    planes, projections = make_planes(("A01",), (1,), (1,)), make_planes(("A01",), (1,), (2,), (1,))
    layout.write(tmp_path, planes, projections=projections, absent=projections)
    assert keys_of(scan(tmp_path, absent="keep")) == sorted([*planes, *projections])


def test_a_channel_of_two_actions_is_two_channels(tmp_path):
    first, second = make_planes(("A01",), (1,), (1, 2)), make_planes(("A01",), (1,), (1,))
    layout.write(tmp_path, first, metadata=("mrf",))
    layout.write(tmp_path, second, actions={1: 2}, metadata=("mrf", "mes"))
    source = scan(tmp_path)
    assert {image.channel for image in source.images} == {"1-L1A1", "1-L1A2", "2"} == set(source.channels)
    assert noted(source, "counts as 1-L1A1, 1-L1A2") and source.channels["1-L1A2"]["name"] == "DNA"


def test_corrections_are_facts_of_a_channel_and_no_images(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes, corrections=True)
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and source.notes == []
    assert source.channels["1"]["correction"] == "SC_BP445-45_20x_M10_CH01.tif"
    listed = {line.split("/")[0]: well for well, line in yokogawa.listing(tmp_path, yokogawa.Params())}
    assert listed["SC_BP445-45_20x_M10_CH01.tif"] == listed["DC_sCMOS #1_CAM1.tif"] == ""


def test_the_correction_tells_the_filter_where_the_mes_is_absent(tmp_path):
    layout.write(tmp_path, make_planes(), metadata=("mlf", "mrf"))
    source = scan(tmp_path)
    assert {(i.channel, i.wavelength_nm) for i in source.images} == {("1", 445.0), ("2", 525.0)}
    assert source.channels == {"1": {}, "2": {}}


def test_files_in_no_record_are_told_and_left_out(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes)
    shutil.copy(tmp_path / scan(tmp_path).images[0].file, tmp_path / "SC_1_B03_T0001F001L01A01Z01C05.tif")
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and noted(source, "1 image files are in no record")


def test_images_in_another_folder_than_the_metadata_are_found(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes)
    (tmp_path / "META").mkdir()
    for path in [path for path in tmp_path.iterdir() if path.suffix in yokogawa.METADATA]:
        path.rename(tmp_path / "META" / path.name)
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and noted(source, "48 images lie elsewhere")
    assert source.channels["2"]["name"] == "GFP" and source.shape == (8, 12)


def test_a_measurement_below_the_source_is_found(tmp_path):
    planes = make_planes()
    layout.write(tmp_path / "20240506T070809", planes, corrections=True)
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and source.notes == []
    assert source.channels["1"]["correction"].startswith("20240506T070809/SC_")
    np.testing.assert_array_equal(yokogawa.load(tmp_path, source.images[0])[0], planes[sorted(planes)[0]])


def test_of_two_measurements_one_must_be_chosen(tmp_path):
    for name, well in (("one", "A01"), ("two", "B02")):
        layout.write(tmp_path / name, make_planes((well,)), plate=name)
    with pytest.raises(PlateLayoutError, match="parameter `records`"):
        scan(tmp_path)
    source = scan(tmp_path, records="two/MeasurementData.mlf")
    assert {image.well for image in source.images} == {"B02"} and noted(source, "24 image files are in no record")
    with pytest.raises(PlateLayoutError, match="no file 'three.mlf'.*`records`"):
        scan(tmp_path, records="three.mlf")
    with pytest.raises(PlateLayoutError, match="outside"):
        scan(tmp_path, records="../MeasurementData.mlf")


def test_one_file_that_could_be_two_is_refused(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)), suffix=".png")
    name = next(tmp_path.glob("*.png"))
    shutil.copy(name, name.with_suffix(".jpg"))
    with pytest.raises(PlateLayoutError, match="could both be"):
        scan(tmp_path)


def test_a_record_that_contradicts_the_well_of_its_file_is_refused(tmp_path):
    layout.write(tmp_path, make_planes())
    edit(tmp_path / "MeasurementData.mlf", 'bts:Row="2"', 'bts:Row="5"', 1)
    with pytest.raises(PlateLayoutError, match="record 1 of 'MeasurementData.mlf' puts .* into well E03.*B03"):
        scan(tmp_path)


@pytest.mark.parametrize(("old", "new"), [('bts:Row="2"', 'bts:Row="33"'), ('bts:Column="3"', 'bts:Column="49"')])
def test_a_well_of_no_plate_is_refused(tmp_path, old, new):
    layout.write(tmp_path, make_planes(("B03",)))
    edit(tmp_path / "MeasurementData.mlf", old, new)
    with pytest.raises(PlateLayoutError, match="record 1 of .*lies outside a 1536-well plate"):
        scan(tmp_path)


def test_the_field_of_a_record_counts_and_that_of_the_name_does_not(tmp_path):
    planes = make_planes()
    layout.write(tmp_path, planes)
    edit(tmp_path / "MeasurementData.mlf", 'bts:FieldIndex="3"', 'bts:FieldIndex="7"')
    source = scan(tmp_path)
    assert {image.field for image in source.images} == {1, 2, 7} and noted(source, "16 files are named for another")


def test_two_records_for_one_plane_are_refused(tmp_path):
    layout.write(tmp_path, make_planes())
    edit(tmp_path / "MeasurementData.mlf", 'bts:FieldIndex="3"', 'bts:FieldIndex="2"')
    with pytest.raises(PlateLayoutError, match="same plane"):
        scan(tmp_path)


def test_one_file_for_two_planes_is_refused(tmp_path):
    layout.write(tmp_path, make_planes(("A01",), (1,)))
    edit(tmp_path / "MeasurementData.mlf", "A01Z02C01.tif", "A01Z01C01.tif")
    with pytest.raises(PlateLayoutError, match="for two planes"):
        scan(tmp_path)


def test_a_plane_recorded_again_counts_once(tmp_path):
    planes = make_planes(("A01",), (1,))
    layout.write(tmp_path, planes)
    path = tmp_path / "MeasurementData.mlf"
    line = path.read_text(encoding="utf-8-sig").splitlines()[2]
    edit(path, line, line + "\n" + line.replace('bts:Z="0.0"', 'bts:Z="0.5"'))
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and noted(source, "1 images are recorded again")
    assert source.images[0].z_um == 0.5


def test_image_records_without_a_file_are_counted(tmp_path):
    layout.write(tmp_path, make_planes(("A01",), (1,)))
    edit(tmp_path / "MeasurementData.mlf", "PLATE_A01_T0001F001L01A01Z01C01.tif", "")
    source = scan(tmp_path, absent="keep")
    assert len(source.images) == 7 and noted(source, "1 image records in 'MeasurementData.mlf' name no file")


def test_file_names_of_any_kind_may_be_recorded(tmp_path):
    planes = make_planes(("A01",), (1,))
    layout.write(tmp_path, planes)
    for path in list(tmp_path.glob("*.tif")):
        path.rename(tmp_path / path.name.replace("PLATE_A01_", "image"))
    edit(tmp_path / "MeasurementData.mlf", "PLATE_A01_", "image")
    assert keys_of(scan(tmp_path)) == sorted(planes)
    assert {well for well, _ in yokogawa.listing(tmp_path, yokogawa.Params())} == {""}


def test_wells_outside_of_the_plate_make_its_shape_unknown(tmp_path):
    layout.write(tmp_path, make_planes(("A13", "H12", "I01")), shape=(8, 12))
    source = scan(tmp_path)
    assert source.shape is None and noted(source, "metadata say 8 × 12 wells; outside are 2 wells: A13, I01")


@pytest.mark.parametrize(
    ("old", "new", "finished"),
    [
        ("", "", True),
        ("bts:EndTime", "bts:Other", False),
        ('bts:EndTime="2024-05-06T10:08:09+00:00"', 'bts:EndTime="0001-01-01T00:00:00"', False),
        ('bts:EndTime="2024-05-06T10:08:09+00:00"', 'bts:EndTime="2024-05-06T12:08:09.1234567+02:00"', True),
        ('bts:EndTime="2024-05-06T10:08:09+00:00"', 'bts:EndTime="soon"', False),
    ],
)
def test_a_measurement_is_finished_once_the_mrf_says_when_it_ended(tmp_path, old, new, finished):
    layout.write(tmp_path, make_planes(("A01",)))
    edit(tmp_path / "MeasurementDetail.mrf", old, new)
    source = scan(tmp_path)
    assert source.finished is finished and noted(source, "still runs") is not finished


def test_times_without_a_zone_do_not_depend_on_this_machine(tmp_path, monkeypatch):
    layout.write(tmp_path, make_planes(("A01",)))
    edit(tmp_path / "MeasurementData.mlf", "+00:00", "")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert scan(tmp_path).images[0].seconds == layout.BEGIN.timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_channels_that_the_mrf_does_not_list_have_no_pixel_size(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)), channels=("DNA",))
    source = scan(tmp_path)
    assert {(i.channel, i.pixel_size_um) for i in source.images} == {("1", 0.65), ("2", None)}
    assert noted(source, "no pixel size of 1 channels: 2")


def test_pixels_that_are_no_squares_are_told(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)), channels=("DNA",))
    edit(tmp_path / "MeasurementDetail.mrf", 'VerticalPixelDimension="0.65"', 'VerticalPixelDimension="1.3"')
    assert noted(scan(tmp_path), "0.65 × 1.3 µm")


def test_a_mes_of_another_measurement_is_not_taken(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)))
    (tmp_path / "PLATE.mes").rename(tmp_path / "OTHER.mes")
    assert scan(tmp_path).channels == {"1": {}, "2": {}}


def test_a_broken_mes_costs_names_and_no_plate(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)))
    (tmp_path / "PLATE.mes").write_text("<bts:")
    source = scan(tmp_path)
    assert source.channels == {"1": {}, "2": {}} and noted(source, "channels have no names")


def test_one_bracket_too_many_at_the_end_is_no_fault(tmp_path):
    planes = make_planes(("A01",))
    layout.write(tmp_path, planes)
    for name in ("MeasurementData.mlf", "MeasurementDetail.mrf", "PLATE.mes"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().rstrip() + b">\r\n")
    source = scan(tmp_path)
    assert keys_of(source) == sorted(planes) and source.notes == [] and source.channels["1"]["name"] == "DNA"
    (tmp_path / "MeasurementData.mlf").write_bytes(path.read_bytes().rstrip() + b"<a/>")
    with pytest.raises(PlateLayoutError, match="MeasurementData.mlf"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('bts:Row="1"', 'bts:Row="x"'),
        ('bts:Row="1"', 'bts:Row="0"'),
        ('bts:Row="1"', 'bts:Row="33"'),
        ('bts:Row="1"', 'bts:Row="99999999999999999999"'),
        ('bts:Row="1"', 'bts:Row="-1"'),
        ('bts:Row="1"', 'bts:Row="١"'),
        ('bts:Row="1"', 'bts:Other="1"'),
        ('bts:Column="1"', 'bts:Column="49"'),
        ('bts:FieldIndex="1"', 'bts:FieldIndex=""'),
        ('bts:FieldIndex="1"', 'bts:FieldIndex="1.5"'),
        ('bts:Ch="1"', 'bts:Ch="one"'),
        ('bts:ZIndex="1"', 'bts:ZIndex="z"'),
        ('bts:X="', 'bts:X="nan'),
        ('bts:Y="', 'bts:Y="1e999'),
        ('bts:Z="0', 'bts:Z="inf" bts:Q="0'),
        ("PLATE_A01", "../PLATE_A01"),
        ("PLATE_A01", "/tmp/PLATE_A01"),
        ("PLATE_A01", "C:\\PLATE_A01"),
        ("PLATE_A01", "C:PLATE_A01"),
        ("PLATE_A01", "\\\\host\\share\\PLATE_A01"),
        ("PLATE_A01_T0001F001L01A01Z01C01.tif", ".."),
        ("<bts:MeasurementData ", "<bts:Other "),
        ("</bts:MeasurementData>", ""),
        ("</bts:MeasurementData>", "</bts:MeasurementData><a/>"),
        ("bts:Type", "bts:Type='IMG' bts:Type"),
        ("PLATE", "&#0;PLATE"),
        ('encoding="utf-8"', 'encoding="no-such"'),
        ("?>", '?><!DOCTYPE a [<!ENTITY b "bb">]>'),
    ],
)
def test_broken_records_are_named(tmp_path, old, new):
    layout.write(tmp_path, make_planes(("A01",), (1,), (1,), (1,), (1,)))
    edit(tmp_path / "MeasurementData.mlf", old, new)
    for params in (yokogawa.Params(), KEEP):
        with pytest.raises(PlateLayoutError, match="MeasurementData|outside") as found:
            yokogawa.scan(tmp_path, params)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('bts:Ch="1"', 'bts:Ch=""'),
        ('HorizontalPixelDimension="0.65"', 'HorizontalPixelDimension="wide"'),
        ("<bts:MeasurementDetail ", "<bts:Other "),
        ("</bts:MeasurementDetail>", ""),
        ("?>", '?><!DOCTYPE a [<!ENTITY b "bb">]>'),
    ],
)
def test_a_broken_mrf_is_named(tmp_path, old, new):
    layout.write(tmp_path, make_planes(("A01",), (1,), (1,), (1,), (1,)))
    edit(tmp_path / "MeasurementDetail.mrf", old, new)
    with pytest.raises(PlateLayoutError, match="MeasurementDetail.mrf"):
        scan(tmp_path)


def test_correction_and_settings_names_cannot_leave_the_folder(tmp_path):
    (tmp_path / "outside.tif").write_bytes(b"")
    plate = tmp_path / "plate"
    layout.write(plate, make_planes(("A01",)))
    edit(plate / "MeasurementDetail.mrf", "SC_BP445-45_20x_M10_CH01.tif", "../outside.tif")
    edit(plate / "MeasurementDetail.mrf", "PLATE.mes", "../../PLATE.mes")
    assert "correction" not in scan(plate).channels["1"]


@pytest.mark.parametrize("name", ["MeasurementData.mlf", "MeasurementDetail.mrf", "PLATE.mes", "PLATE.wpi"])
def test_damaged_metadata_raise_nothing_but_layout_errors(tmp_path, name):
    layout.write(tmp_path, make_planes(("A01", "H12"), (1,), (1, 2), (1,), (1,)), errors=[("B02", "AF Error")])
    path = tmp_path / name
    intact = path.read_bytes()
    generator = random.Random(7)
    for trial in range(250):
        data = bytearray(intact)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.choice(b'\x00 ">\xff.-019AZaz')
        path.write_bytes(bytes(data) if trial % 3 else intact[: generator.randrange(len(intact))])
        for params in (yokogawa.Params(), KEEP):
            try:
                source = yokogawa.scan(tmp_path, params)
            except PlateLayoutError as error:
                assert "\n" not in str(error)
            else:
                assert all("\n" not in note for note in source.notes)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    strategies.dictionaries(
        strategies.sampled_from(["Row", "Column", "FieldIndex", "Ch", "ZIndex", "TimePoint", "X", "Y", "Z", "Time"]),
        strategies.text(strategies.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f")),
    ),
    strategies.text(strategies.characters(min_codepoint=32, max_codepoint=0x2FFF), max_size=20),
)
def test_any_values_in_a_record_give_a_table_or_a_layout_error(tmp_path_factory, facts, file):
    folder = tmp_path_factory.mktemp("plate")
    whole = {"Type": "IMG", "Row": 1, "Column": 1, "FieldIndex": 1, "Ch": 1} | facts
    text = layout.document("MeasurementData", {}, [layout.element("MeasurementRecord", whole, file)])
    (folder / "MeasurementData.mlf").write_text(text, encoding="utf-8")
    try:
        assert len(yokogawa.scan(folder, KEEP).images) == 1
    except PlateLayoutError as error:
        assert str(error)


def test_a_folder_that_is_no_plate_says_so(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PlateLayoutError, match="CellVoyager|no folder"):
            scan(folder)
    (tmp_path / "A01_s1_w1.tif").write_bytes(b"")
    with pytest.raises(PlateLayoutError, match="CellVoyager"):
        scan(tmp_path)


def test_a_name_of_no_well_is_refused_and_named(tmp_path):
    (tmp_path / "P_ZZ99_T0001F001L01A01Z01C01.tif").write_bytes(b"")
    with pytest.raises(PlateLayoutError, match="P_ZZ99_T0001"):
        scan(tmp_path)
    assert [well for well, _ in yokogawa.listing(tmp_path, yokogawa.Params())] == [""]
    layout.write(tmp_path, make_planes(("A01",)))
    assert noted(scan(tmp_path), "1 image files are in no record")


def test_a_listing_notices_each_file_that_matters_and_its_wells(tmp_path):
    layout.write(tmp_path, make_planes(), corrections=True)
    before = sorted(yokogawa.listing(tmp_path, yokogawa.Params()))
    assert {well for well, _ in before} == {"", "B03", "C04"}
    images = [image.well for image in scan(tmp_path).images]
    assert sorted(well for well, _ in before if well) == images
    for name, wells in (
        ("MeasurementData.mlf", {""}),
        ("MeasurementDetail.mrf", {""}),
        ("PLATE.mes", {""}),
        ("PLATE.wpi", {""}),
        (scan(tmp_path).images[0].file, {"B03"}),
    ):
        os.utime(tmp_path / name, ns=(1, 1))
        after = sorted(yokogawa.listing(tmp_path, yokogawa.Params()))
        assert {well for well, _ in set(before) ^ set(after)} == wells
        before = after


def test_a_plate_is_recognized_by_its_metadata_or_by_all_of_its_names(tmp_path):
    layout.write(tmp_path, make_planes(("A01",)), corrections=True)
    images = [name for name, _ in list_files(tmp_path)]
    expected = {"reader": "yokogawa", "params": {}, "layout": "CellVoyager", "share": 1.0}
    assert yokogawa.recognize(tmp_path, images) == yokogawa.recognize(tmp_path, []) == expected
    assert yokogawa.recognize(tmp_path / "nowhere", images) == expected
    assert yokogawa.recognize(tmp_path / "nowhere", ["sub/MeasurementData.mlf"]) == expected


@pytest.mark.parametrize(
    "name",
    [
        "A01_s1_w1.tif",
        "r02c03f01p01-ch1sk1fk1fl1.tiff",
        "B7_01_1_3_DAPI_001.tif",
        "W0001F0001T0001Z001C1.tif",
        "plate_B03_T1F1C1.tif",
        "Channel1-01-A-01.tif",
        "SC_BP445-45_20x_M10_CH01.tif",
    ],
)
def test_folders_of_other_microscopes_are_not_recognized(tmp_path, name):
    assert yokogawa.recognize(tmp_path, [name]) is None
    assert yokogawa.recognize(tmp_path, []) is None


def test_the_real_png_layout_reads(data):
    folder = data / "yokogawa_cv7000_metadata/png_layout"
    names = [name for name, _ in list_files(folder)]
    assert yokogawa.recognize(folder, names)["share"] == 1
    source = scan(folder)
    assert keys_of(source) == [("B03", field, 1, z, 2) for field in (1, 2) for z in (1, 2)]
    assert source.notes == [] and source.shape == (8, 12) and source.finished is True
    assert [(i.y_um, i.x_um, i.z_um) for i in source.images[::2]] == [
        (-1517.7, -1448.3, -2.0),
        (-1517.7, -1032.3, -2.0),
    ]
    assert {i.pixel_size_um for i in source.images} == {0.1625} and {i.wavelength_nm for i in source.images} == {445.0}
    assert source.images[0].seconds == 1597246596.234
    for image in source.images:
        assert yokogawa.load(folder, image)[0].dtype == np.uint16


def test_the_real_grid_is_of_whole_images_with_y_upwards(data):
    folder = data / "yokogawa_cv7000_metadata/metadata_files"
    source = scan(
        folder, absent="keep", records="MeasurementData_2x2_well.mlf", detail="MeasurementDetail_2x2_well.mrf"
    )
    assert len(source.images) == 120 and {i.channel for i in source.images} == {"1", "2", "3"}
    where = {i.field: (i.y_um, i.x_um) for i in source.images}
    height, width = 2160 * 0.1625, 2560 * 0.1625
    expected = {1: (0, 0), 2: (0, width), 3: (height, 0), 4: (height, width)}
    for field, (y_um, x_um) in expected.items():
        assert where[field] == pytest.approx((where[1][0] + y_um, where[1][1] + x_um))
    assert {i.wavelength_nm for i in source.images} == {445.0, 675.0, 525.0}


def test_the_real_metadata_make_tables_without_images(data):
    folder = data / "yokogawa_cv7000_metadata/metadata_files"
    for name, wells, count in (
        ("MeasurementData_SingleWell2Sites_MultiZ.mlf", {"B03"}, 4),
        ("MeasurementData_SingleWell2Sites_SingleZ.mlf", {"B03"}, 2),
        ("MeasurementData_SingleWell2Sites_MultiZ_another_well_name_in_plate_name.mlf", {"B03", "C03", "D04"}, 16),
        ("overlapping_ROIs/MeasurementData.mlf", {"B03"}, 4),
    ):
        source = scan(folder, absent="keep", records=name)
        assert len(source.images) == count and {i.well for i in source.images} == wells
        assert all((i.size, i.modified) == (0, 0) for i in source.images)
        with pytest.raises(PlateLayoutError, match="none of the"):
            scan(folder, records=name)


def test_folders_of_other_microscopes_in_the_real_data_are_not_recognized(data):
    for folder in ("bbbc013_sbs_rows_ABEF", "nf1_cytation_5wells/Plate_2_images", "operetta_harmony_ball"):
        names = [name for name, _ in list_files(data / folder)]
        assert yokogawa.recognize(data / folder, names) is None
