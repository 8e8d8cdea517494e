"""Harmony: the index says where every plane belongs, and what it says wrongly is refused."""

import contextlib
import os
import re
import shutil

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plateloom.errors import PlateLayoutError
from plateloom.readers import harmony
from plateloom.readers.folders import list_files
from tests.layouts import harmony as layout

PARAMS = harmony.Params()
TILTED = ((1.0064, 0.003), (0.0024, -1.0064))
POSITIONS = {1: (-50.0, -100.0), 2: (-50.0, 100.0), 3: (75.0, 0.0)}


def make_planes(wells=("A01", "C03"), fields=1, channels=2, z=1, t=1, seed=0):
    """Planes of noise, all different."""
    draw = np.random.default_rng(seed)
    return {
        (well, f, c, i, j): draw.integers(0, 65535, (5, 7), dtype=np.uint16)
        for well in wells
        for f in range(1, fields + 1)
        for c in range(1, channels + 1)
        for i in range(1, z + 1)
        for j in range(1, t + 1)
    }


def replace(old, new, count=1):
    """An edit of an index, which must change it."""

    def edit(text):
        assert old in text
        return text.replace(old, new, count)

    return edit


def drop(tag):
    """An edit that removes all elements of one name."""

    def edit(text):
        found, count = re.subn(f"<{tag}.*?</{tag}>", "", text, flags=re.DOTALL)
        assert count
        return found

    return edit


@pytest.fixture
def plate(tmp_path):
    """A function that writes a small plate and returns its folder."""

    def write(planes=None, **options):
        layout.write(tmp_path / "plate", planes or make_planes(), **options)
        return tmp_path / "plate"

    return write


# ---------------------------------------------------------------------------------------------------- real plates


def test_the_real_sample_is_read_with_positions_size_time_and_flatfield(data):
    source = harmony.scan(data / "operetta_harmony_ball", PARAMS)
    assert source.shape == (16, 24) and source.notes == [] and source.finished is None
    one, two = source.images
    assert [(image.well, image.field, image.z, image.t, image.page) for image in (one, two)] == [
        ("C03", 1, 1, 0, -1),
        ("C03", 2, 1, 0, -1),
    ]
    assert one.channel == "Fluorescein (FITC)" and one.wavelength_nm == 525
    assert one.pixel_size_um == pytest.approx(1.1959521619) and one.z_um == pytest.approx(20)
    assert two.seconds - one.seconds == pytest.approx(0.577) and one.seconds == pytest.approx(1671441566.58)
    flatfield = source.channels[one.channel]["flatfield"]
    assert flatfield["character"] == "NonFlat" and flatfield["mean"] == 373.69866
    assert flatfield["coefficients"][:2] == [[1.1282], [-0.0165, 0.0298]] and len(flatfield["coefficients"]) == 5
    assert flatfield["dims"] == [1080, 1080] and flatfield["origin"] == [539.5, 539.5]
    assert flatfield["foreground"]["coefficients"][0] == [1.0698] and "mean" not in flatfield["foreground"]


def test_positions_of_the_real_sample_are_where_its_pixels_overlap(data):
    folder = data / "operetta_harmony_ball"
    one, two = harmony.scan(folder, PARAMS).images
    left, right = (harmony.load(folder, image)[0].astype(float) for image in (one, two))

    def agreement(down, across):
        """Correlation of what two fields share if the second lies so far from the first."""
        wide, rows = left.shape[1] - across, np.s_[20:-20]
        moved = np.roll(right, down, axis=0)[:, :wide]
        return np.corrcoef(left[rows, across:].ravel(), moved[rows].ravel())[0, 1]

    seen = max(((down, across) for down in range(-8, 9) for across in range(1060, 1077)), key=lambda at: agreement(*at))
    assert agreement(*seen) > 0.9
    said = (two.y_um - one.y_um) / one.pixel_size_um, (two.x_um - one.x_um) / one.pixel_size_um
    assert said == pytest.approx(seen, abs=1.5)
    plain = harmony.scan(folder, harmony.Params(orientation=False)).images
    assert (plain[1].x_um - plain[0].x_um) / one.pixel_size_um == pytest.approx(1080)


def test_the_real_sample_is_recognized_and_its_files_decoded(data):
    folder = data / "operetta_harmony_ball"
    names = [name for name, _ in list_files(folder, (".tiff", ".xml"))]
    assert harmony.recognize(folder, names) == {"reader": "harmony", "params": {}, "layout": "harmony", "share": 1.0}
    (image, _) = harmony.scan(folder / "Images", PARAMS).images
    plane, content = harmony.load(folder / "Images", image)
    assert plane.shape == (1080, 1080) and plane.dtype == np.uint16 and content


def test_the_real_index_says_which_files_a_copy_lacks(data, tmp_path):
    shutil.copy(data / "operetta_harmony_ball" / "Images" / "Index.idx.xml", tmp_path)
    source = harmony.scan(tmp_path, PARAMS)
    assert source.images == [] and list(source.channels) == ["Fluorescein (FITC)"]
    assert source.notes == ["2 of 2 images listed in 'Index.idx.xml' are not there; nothing of 1 wells (C03)"]


# --------------------------------------------------------------------------------------------- constructed plates


@pytest.mark.parametrize("version", [4, 5, 6, 7])
@pytest.mark.parametrize("images", ["Images", "images", "", "Plate 1__2022-12-19T10_18_51-Measurement 1/Images"])
def test_every_pixel_comes_back_with_its_place(plate, version, images):
    planes = make_planes(("A01", "B12", "H07"), fields=3, channels=2, z=2, t=2)
    folder = plate(planes, version=version, images=images, positions=POSITIONS, matrix=TILTED, pixel_size_um=0.598)
    source = harmony.scan(folder, PARAMS)
    assert source.shape == (8, 12) and source.notes == []
    numbers = {"DNA": 1, "GFP": 2}
    found = {}
    for image in source.images:
        key = (image.well, image.field, numbers[image.channel], image.z, image.t + (version < 7))
        found[key] = harmony.load(folder, image)[0]
        assert (image.y_um, image.x_um) == pytest.approx(POSITIONS[image.field])
        assert image.pixel_size_um == pytest.approx(0.598)
        assert image.z_um == pytest.approx(2 * (image.z - 1))
        assert image.seconds == pytest.approx(1671441532 + 600 * (key[4] - 1))
        assert image.wavelength_nm == {"DNA": 456, "GFP": 525}[image.channel]
        assert (folder / image.file).stat().st_size == image.size
    assert found.keys() == planes.keys()
    assert all(np.array_equal(found[key], planes[key]) for key in planes)
    assert source.images == sorted(source.images)
    assert source.channels["GFP"] == {
        "name": "GFP",
        "flatfield": {
            "character": "NonFlat",
            "mean": 201.0,
            "coefficients": [[1.1], [-0.02, 0.03], [-0.8, -0.08, -0.3]],
            "origin": [3.0, 2.0],
            "scale": pytest.approx([1 / 7, 1 / 5]),
            "dims": [7, 5],
        },
    }


@pytest.mark.parametrize("namespace", ["", "http://www.perkinelmer.com/PEHH/HarmonyV9", "http://www.revvity.com/x"])
def test_namespaces_do_not_matter(plate, namespace):
    folder = plate(edit=replace(layout.NAMESPACES[5], namespace))
    assert len(harmony.scan(folder, PARAMS).images) == 4


@pytest.mark.parametrize("name", ["Index.xml", "INDEX.IDX.XML", "index.idx.xml", "Index.ref.xml"])
def test_the_index_may_be_spelled_in_several_ways(plate, name):
    folder = plate(index=name)
    assert len(harmony.scan(folder, PARAMS).images) == 4
    assert harmony.recognize(folder, [f"Images/{name}"])["share"] == 1.0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_encoding_is_read(plate, encoding):
    folder = plate(channels=("Grün", "µ"))
    path = folder / "Images" / "Index.idx.xml"
    path.write_text(path.read_text("utf-8-sig").replace("utf-8", encoding.removesuffix("-sig")), encoding=encoding)
    assert set(harmony.scan(folder, PARAMS).channels) == {"Grün", "µ"}


def test_the_images_folder_may_be_the_source(plate):
    folder = plate() / "Images"
    assert {image.file for image in harmony.scan(folder, PARAMS).images} == {
        path.name for path in folder.glob("*.tiff")
    }


def test_the_index_may_stand_above_its_planes(plate):
    folder = plate()
    (folder / "Images" / "Index.idx.xml").rename(folder / "index.idx.xml")
    assert [image.file[:7] for image in harmony.scan(folder, PARAMS).images] == ["Images/"] * 4


def test_an_archive_keeps_index_and_wells_in_folders(plate):
    folder = plate(index="7b0b.xml")
    (folder / "index").mkdir()
    (folder / "Images" / "7b0b.xml").rename(folder / "index" / "7b0b.xml")
    for path in (folder / "Images").glob("*.tiff"):
        (folder / "images" / path.name[:6]).mkdir(parents=True, exist_ok=True)
        path.rename(folder / "images" / path.name[:6] / path.name)
    source = harmony.scan(folder, PARAMS)
    assert source.images[0].file == "images/r01c01/r01c01f01p01-ch1sk1fk1fl1.tiff" and source.notes == []
    assert harmony.recognize(folder, ["index/7b0b.xml"])


def test_two_files_that_may_be_meant_are_refused(plate):
    folder = plate()
    (folder / "Images" / "Index.idx.xml").rename(folder / "Index.idx.xml")
    shutil.copytree(folder / "Images", folder / "Copy")
    with pytest.raises(PlateLayoutError, match="may be Copy/r01c01f01p01-ch1sk1fk1fl1.tiff, Images/"):
        harmony.scan(folder, PARAMS)


def test_a_copy_beside_the_listed_files_is_left_out_and_said(plate):
    folder = plate()
    shutil.copytree(folder / "Images", folder / "Copy", ignore=shutil.ignore_patterns("*.xml"))
    source = harmony.scan(folder, PARAMS)
    assert len(source.images) == 4
    assert [note[:27] for note in source.notes] == ["4 TIFF files are not listed"]


def test_several_measurements_below_one_folder_are_named(tmp_path):
    for name in ("Measurement 1", "Measurement 2"):
        layout.write(tmp_path / name, make_planes())
    with pytest.raises(PlateLayoutError, match="2 measurements.*Measurement 1/Images.*Measurement 2/Images.*one of"):
        harmony.scan(tmp_path, PARAMS)


def test_an_index_of_something_else_is_no_measurement(plate):
    folder = plate()
    (folder / "web").mkdir()
    (folder / "web" / "index.xml").write_text("<html/>")
    assert len(harmony.scan(folder, PARAMS).images) == 4


def test_of_two_indexes_in_one_folder_one_is_read_and_that_is_said(plate):
    folder = plate()
    (folder / "Images" / "Index.xml").write_text("<Other/>")
    source = harmony.scan(folder, PARAMS)
    assert source.notes == ["'Images/Index.idx.xml' is read, Images/Index.xml beside it is not"]


# ------------------------------------------------------------------------------------------ what an index may lack


def test_absent_files_are_counted_by_wells_and_fields(plate):
    planes = make_planes(("A01", "A02", "B01"), fields=2)
    absent = [key for key in planes if key[0] == "A02" or key[:2] == ("B01", 2)] + [("A01", 1, 2, 1, 1)]
    source = harmony.scan(plate(planes, absent=absent), PARAMS)
    assert len(source.images) == 5
    assert source.notes == [
        "7 of 12 images listed in 'Images/Index.idx.xml' are not there; nothing of 1 wells (A02); "
        "nothing of 1 fields (B01 field 2)"
    ]


def test_a_plane_that_was_never_recorded_has_no_url(plate):
    folder = plate(edit=lambda text: re.sub(r"<URL>r01c01f01p01-ch2\S*</URL>", "<URL />", text))
    source = harmony.scan(folder, PARAMS)
    assert len(source.images) == 3
    assert source.notes == [
        "1 of 4 images listed in 'Images/Index.idx.xml' are not there, 1 of them never recorded",
        "1 TIFF files are not listed in 'Images/Index.idx.xml' and left out (Images/r01c01f01p01-ch2sk1fk1fl1.tiff)",
    ]


def test_images_whose_state_is_not_ok_do_not_count_unless_asked_for(plate):
    folder = plate(states={("A01", 1, 2, 1, 1): "Error", ("C03", 1, 1, 1, 1): "ok"})
    source = harmony.scan(folder, PARAMS)
    assert [(image.well, image.channel) for image in source.images] == [("A01", "DNA"), ("C03", "DNA"), ("C03", "GFP")]
    assert source.notes == ["1 images listed in 'Images/Index.idx.xml' do not count (State 'Error': 1)"]
    assert len(harmony.scan(folder, harmony.Params(only={"State": ["Ok", "Error"]})).images) == 4


def test_a_second_sequence_of_the_same_planes_is_left_out_by_a_parameter(plate):
    folder = plate(make_planes(("A01",), fields=2, channels=1), version=6, channels=("DNA",))
    path = folder / "Images" / "Index.xml"
    head, one, two = path.read_text("utf-8-sig").split('<Image Version="1">')
    two = two.replace("<FieldID>2", "<FieldID>1").replace("<SequenceID>1", "<SequenceID>2")
    path.write_text('<Image Version="1">'.join((head, one, two)))
    with pytest.raises(PlateLayoutError, match="claim the same plane"):
        harmony.scan(folder, PARAMS)
    (image,) = harmony.scan(folder, harmony.Params(only={"SequenceID": [2]})).images
    assert image.file.endswith("f02p01-ch1sk1fk1fl1.tiff")
    assert len(harmony.scan(folder, harmony.Params(only={"SequenceID": [2], "ImageType": ["signal"]})).images) == 1
    with pytest.raises(PlateLayoutError, match="no image in 'Images/Index.xml' has a 'Sequence'"):
        harmony.scan(folder, harmony.Params(only={"Sequence": [2]}))


def test_wells_that_were_selected_and_not_imaged_are_said(plate):
    folder = plate(edit=replace("</Plate>", '<Well id="0812" /><Well id="9999" /><Well id="x" /></Plate>'))
    assert harmony.scan(folder, PARAMS).notes == ["1 wells were selected and have no image listed (H12)"]


def test_an_index_without_images_is_an_empty_plate_that_says_so(plate):
    source = harmony.scan(plate(edit=drop("Images")), PARAMS)
    assert source.images == [] and source.notes[0] == "'Images/Index.idx.xml' lists no images"


def test_what_stands_once_counts_wherever_its_map_stands(plate):
    folder = plate(version=6)
    path = folder / "Images" / "Index.xml"
    text = path.read_text("utf-8-sig")
    maps = re.search("<Maps>.*</Maps>", text, re.DOTALL)[0]
    before = harmony.scan(folder, PARAMS)
    path.write_text(text.replace(maps, "").replace("</Images>", f"</Images>{maps}"))
    after = harmony.scan(folder, PARAMS)
    assert after.images == before.images and after.channels == before.channels


def test_what_an_image_says_itself_goes_before_what_stands_once(plate):
    own = "".join(f'<ImageResolution{axis} Unit="um">0.5</ImageResolution{axis}>' for axis in "XY") + "</Image>"
    images = harmony.scan(plate(version=6, edit=replace("</Image>", own)), PARAMS).images
    assert [image.pixel_size_um for image in images] == pytest.approx([0.5, 0.65, 0.65, 0.65])


def test_facts_of_a_channel_may_stand_in_a_bracketed_text(plate):
    facts = '{"ChannelName": "Alexa 488", ImageResolutionX: 3E-07, MainEmissionWavelength: 522}'
    planes = make_planes(channels=1)

    def edit(text):
        return drop("FlatfieldProfile")(re.sub("<ChannelName>.*?</OrientationMatrix>", facts, text, flags=re.DOTALL))

    def wrap(text):
        return edit(text).replace(facts, f"<Facts>{facts}</Facts>")

    source = harmony.scan(plate(planes, version=6, channels=("DNA",), edit=wrap), PARAMS)
    image = source.images[0]
    assert (image.channel, image.wavelength_nm) == ("Alexa 488", 522)
    assert image.pixel_size_um == pytest.approx(0.3)


def test_a_flatfields_name_serves_where_there_is_no_other(plate):
    source = harmony.scan(plate(edit=lambda text: re.sub("(?m)^ *<ChannelName>.*$", "", text)), PARAMS)
    assert set(source.channels) == {"DNA", "GFP"}


@pytest.mark.parametrize("text", ["1e300", "inf", "x", "", "5"])
def test_a_length_that_is_none_is_not_there(plate, text):
    unit = "furlong" if text == "5" else "m"
    edit = replace('<PositionX Unit="m">0.0<', f'<PositionX Unit="{unit}">{text}<')
    assert [image.x_um for image in harmony.scan(plate(edit=edit), PARAMS).images] == [None, 0, 0, 0]


@pytest.mark.parametrize("tag", ["PositionX", "PositionY"])
def test_half_a_position_is_none(plate, tag):
    assert {(image.x_um, image.y_um) for image in harmony.scan(plate(edit=drop(tag)), PARAMS).images} == {(None, None)}


def test_the_objectives_height_serves_where_there_is_no_other(plate):
    source = harmony.scan(plate(edit=drop("PositionZ")), PARAMS)
    assert source.images[0].z_um == pytest.approx(137_500)


@pytest.mark.parametrize(
    ("edit", "seconds"),
    [
        (drop("AbsTime"), 1671441532),
        (replace("<AbsTime>2022-12-19T10:18:52+01:00", "<AbsTime>2022-12-19T09:18:52.2439831Z", 99), 1671441532.243983),
        (replace("<AbsTime>2022-12-19T10:18:52+01:00", "<AbsTime>2022-12-19T09:18:52", 99), 1671441532),
        (lambda text: drop("MeasurementStartTime")(drop("AbsTime")(text)), None),
        (lambda text: drop("MeasurementStartTime")(text).replace("<AbsTime>2022", "<AbsTime>0001"), None),
        (lambda text: drop("MeasurementStartTime")(text).replace("<AbsTime>2022", "<AbsTime>x"), None),
    ],
)
def test_times_are_absolute_or_none(plate, edit, seconds):
    assert [image.seconds for image in harmony.scan(plate(edit=edit), PARAMS).images] == [pytest.approx(seconds)] * 4


def test_brightfield_has_no_wavelength_and_a_size_of_zero_is_none(plate):
    def edit(text):
        return text.replace(">456<", ">0<").replace(">525<", ">NaN<").replace(">6.5e-07<", ">0<")

    images = harmony.scan(plate(edit=edit), PARAMS).images
    assert {(image.wavelength_nm, image.pixel_size_um) for image in images} == {(None, None)}


def test_oblong_pixels_are_said(plate):
    edit = replace('<ImageResolutionY Unit="m">6.5e-07', '<ImageResolutionY Unit="m">1.3e-06')
    found = harmony.scan(plate(edit=edit), PARAMS)
    assert found.notes == ["pixels of 1 images are not square, so their size is left out"]
    assert sorted(image.pixel_size_um or 0 for image in found.images)[:2] == [0, pytest.approx(0.65)]


def test_without_a_matrix_y_is_flipped(plate):
    source = harmony.scan(plate(positions={1: (30.0, -20.0)}, edit=drop("OrientationMatrix")), PARAMS)
    assert (source.images[0].y_um, source.images[0].x_um) == pytest.approx((30, -20)) and source.notes == []


@pytest.mark.parametrize(
    "matrix", ["[[1,0],[1,0]]", "[[100,0,0],[0,-1,0]]", "[[1,0", "[1,0]", "[]", "x", "{a: 1}", "[[1],[2]]"]
)
def test_a_matrix_that_is_none_is_said_and_not_used(plate, matrix):
    edit = replace("[[1.0,0.0,0,-35.6],[0.0,-1.0,0,67.3],[0,0,1.33,-15.125]]", matrix, 99)
    source = harmony.scan(plate(positions={1: (30.0, -20.0)}, edit=edit), PARAMS)
    assert source.images[0].y_um == pytest.approx(30)
    assert source.notes == ["OrientationMatrix of 4 images cannot be read; their positions are not turned"]


def test_a_camera_turned_by_a_quarter_turns_its_fields(plate):
    source = harmony.scan(plate(positions={1: (30.0, -20.0)}, matrix=((0.0, 1.0), (1.0, 0.0))), PARAMS)
    assert (source.images[0].y_um, source.images[0].x_um) == pytest.approx((30, -20))


# --------------------------------------------------------------------------------------------------------- channels


def test_channels_are_called_by_number_where_asked(plate):
    source = harmony.scan(plate(), harmony.Params(channel="number"))
    assert {image.channel for image in source.images} == {"1", "2"}
    assert source.channels["1"]["name"] == "DNA"


def test_channels_that_share_a_name_are_called_by_number(plate):
    planes = make_planes(channels=3)
    source = harmony.scan(plate(planes, channels=("Brightfield", "DNA", "Brightfield")), PARAMS)
    assert list(source.channels) == ["1", "DNA", "3"]
    assert source.notes == ["names of channels 1, 3 are not their own; they are called by their numbers"]
    source = harmony.scan(plate(planes, channels=("Brightfield", "3", "Brightfield")), PARAMS)
    assert list(source.channels) == ["1", "2", "3"]


def test_channels_that_a_parameter_leaves_out_share_no_name(plate):
    planes = make_planes(channels=2)
    folder = plate(planes, version=6, channels=("DNA", "DNA"))
    assert list(harmony.scan(folder, PARAMS).channels) == ["1", "2"]
    assert list(harmony.scan(folder, harmony.Params(only={"ChannelID": [2]})).channels) == ["DNA"]


def test_absent_files_change_no_channels_name(plate):
    planes = make_planes(channels=2)
    absent = [key for key in planes if key[2] == 2]
    source = harmony.scan(plate(planes, channels=("BF", "BF"), absent=absent), PARAMS)
    assert {image.channel for image in source.images} == {"1"}


def test_columbus_keeps_planes_as_pages_of_one_file(plate, tmp_path):
    planes = make_planes(("A01",), z=2)
    folder = plate(planes, index="ImageIndex.ColumbusIDX.xml")
    path = folder / "Images" / "ImageIndex.ColumbusIDX.xml"
    text = path.read_text("utf-8-sig")
    for page, key in enumerate(sorted(planes)):
        old = f"<URL>r01c01f01p{key[3]:02d}-ch{key[2]}sk1fk1fl1.tiff"
        text = replace(old, f'<ChannelColor>4287795858</ChannelColor><URL BufferNo="{page}">001001000.tif')(text)
    path.write_text(text)
    for old in (folder / "Images").glob("*.tiff"):
        old.unlink()
    tifffile.imwrite(
        folder / "Images" / "001001000.tif", np.stack([planes[key] for key in sorted(planes)]), photometric="minisblack"
    )
    source = harmony.scan(folder, PARAMS)
    found = {
        (image.well, image.field, {"DNA": 1, "GFP": 2}[image.channel], image.z, 1): image for image in source.images
    }
    assert all(np.array_equal(harmony.load(folder, found[key])[0], planes[key]) for key in planes)
    assert source.channels["DNA"]["color"] == "929292"
    path.write_text(text.replace('BufferNo="1"', 'BufferNo="0"'))
    with pytest.raises(PlateLayoutError, match="'Images/001001000.tif' for two planes"):
        harmony.scan(folder, PARAMS)
    for page in ("-1", "x", "0" * 5000):
        path.write_text(text.replace('BufferNo="1"', f'BufferNo="{page}"'))
        with pytest.raises(PlateLayoutError, match=f"BufferNo is '{page[:40]}'"):
            harmony.scan(folder, PARAMS)


# ------------------------------------------------------------------------------------------------------- flat-fields


def move_flatfields(folder, name="FFC_Profile"):
    """Move the flat-fields of a plate from its index into a file of their own."""
    path = folder / "Images" / "Index.idx.xml"
    text = path.read_text("utf-8-sig")
    maps = re.search("<Maps>.*</Maps>", text, re.DOTALL)[0]
    path.write_text(text.replace(maps, ""))
    (folder / name).mkdir()
    target = folder / name / "FFC_Profile_Measurement 1.xml"
    target.write_text(f"<FFC xmlns='x'>{maps}</FFC>")
    return target


def test_flatfields_are_read_from_a_file_of_their_own(plate):
    folder = plate()
    before = harmony.scan(folder, PARAMS)
    move_flatfields(folder)
    assert harmony.scan(folder, PARAMS).channels == before.channels


def test_a_broken_file_of_flatfields_is_said_and_no_fault(plate):
    folder = plate()
    move_flatfields(folder).write_text("<FFC>")
    source = harmony.scan(folder, PARAMS)
    assert "flatfield" not in source.channels["DNA"] and len(source.images) == 4
    assert source.notes == ["flat-fields that cannot be read: FFC_Profile/FFC_Profile_Measurement 1.xml"]


@pytest.mark.parametrize(
    ("old", "new"), [("[[1.1]", "[[x]"), ("[[1.1]", "[[1.1}"), ("[[1.1]", "[[NaN]"), ("{Background", "{Background{")]
)
def test_a_flatfield_that_cannot_be_read_is_said_and_no_fault(plate, old, new):
    source = harmony.scan(plate(edit=replace(old, new)), PARAMS)
    assert source.notes == ["flat-fields that cannot be read: channel 2"]
    assert "flatfield" in source.channels["DNA"] and "flatfield" not in source.channels["GFP"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ("{Channel: 1, Version: Acapella:2013}", {}),
        ("{Background: {Character: Null, Mean: NaN, Profile: {Type: Identity}}}", {"character": "Null"}),
        ('{"Foreground": {"Character": "Flat"}}', {"foreground": {"character": "Flat"}}),
        ("{ Background :{ Mean : 1E2 } }", {"mean": 100.0}),
    ],
)
def test_a_flatfield_has_what_its_text_has(text, expected):
    assert harmony.read_flatfield(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "{", "{a}", "{a: {b: 1}", "{a: [1, 2}", "{a: 1} b", "{a: [1]]}", "[" * 50, "{a:" * 50 + "}" * 50]
    + [
        "{Background: 3}",
        "{Background: {Profile: 3}}",
        "{Background: {Profile: {Coefficients: 3}}}",
        "{a: " + "x" * 10**6,
    ]
    + ["{Background: {Profile: {Coefficients: [[1]], Dims: [1e999]}}}", "{a: [1 [2]]}"],
)
def test_a_text_that_is_no_flatfield_is_a_value_error(text):
    with pytest.raises(ValueError):
        harmony.read_flatfield(text)


@given(st.text(alphabet='{}[]:,"\\ aB1.-\n', max_size=300))
@settings(deadline=None, max_examples=300)
def test_any_text_is_parsed_or_a_value_error(text):
    try:
        value = harmony.parse_braces(text)
    except ValueError:
        return
    assert isinstance(value, str | list | dict)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("unit", ["{", "[", "a:", ",", '"', '\\"', " ", "a ,", "{a:", "[1],", ",a", 'a: "'])
def test_no_text_takes_long(unit):
    for text in (unit * (harmony.TEXT_LIMIT // len(unit)), "{a: " + unit * (harmony.TEXT_LIMIT // len(unit) - 4)):
        with contextlib.suppress(ValueError):
            harmony.parse_braces(text)


# ------------------------------------------------------------------------------------------------- what is refused


def test_strange_names_of_files_keep_notes_on_one_line(plate):
    folder = plate()
    for name in (b"a\nb.tif", b"\xff.tif"):
        shutil.copy(folder / "Images" / "r01c01f01p01-ch1sk1fk1fl1.tiff", os.fsencode(folder) + b"/" + name)
    (note,) = harmony.scan(folder, PARAMS).notes
    assert note == "2 TIFF files are not listed in 'Images/Index.idx.xml' and left out (a?b.tif, ?.tif)"
    assert len(list(harmony.listing(folder, PARAMS))) == 7


def test_a_folder_without_an_index_is_refused(plate, tmp_path):
    folder = plate()
    (folder / "Images" / "Index.idx.xml").unlink()
    with pytest.raises(PlateLayoutError, match="no Index.idx.xml"):
        harmony.scan(folder, PARAMS)
    with pytest.raises(PlateLayoutError, match="no folder"):
        harmony.scan(tmp_path / "nowhere", PARAMS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace("EvaluationInputData", "OME", 99), "root element is 'OME'"),
        (replace("<Row>1</Row>\n      <Col>1</Col>\n      <FieldID>", "<Col>1</Col>\n      <FieldID>"), "Row is ''"),
        (replace("<FieldID>1", "<FieldID>-1"), "image '0101K1F1P1R1': FieldID is '-1', expected a whole number"),
        (replace("<FieldID>1", "<FieldID>1.5"), "FieldID is '1.5'"),
        (replace("<ChannelID>1", "<ChannelID>" + "9" * 5000), "ChannelID is '999"),
        (replace("<PlaneID>1", "<PlaneID>²"), "PlaneID is '²'"),
        (replace("<TimepointID>0", "<TimepointID>x"), "TimepointID is 'x'"),
        (replace("<Row>3", "<Row>33", 99), "Row is '33', expected a whole number from 1 to 32"),
        (replace("<Row>3", "<Row>0", 99), "Row is '0'"),
        (replace("<PlateRows>8", "<PlateRows>2"), "well C03, which is not on its plate of 2 × 12"),
        (replace("<Col>3", "<Col>4", 99), "shows well C04, its name says otherwise"),
        (replace("<URL>r01", "<URL>../../r01"), "points outside"),
        (replace("<URL>r01", "<URL>/etc/r01"), "points outside"),
        (replace("<URL>r01", r"<URL>C:\data\r01"), "points outside"),
        (replace("-ch2sk1fk1fl1.tiff", "-ch1sk1fk1fl1.tiff"), "'Images/r01c01f01p01-ch1sk1fk1fl1.tiff' for two planes"),
        (lambda text: text.replace("<ChannelID>2", "<ChannelID>1"), "claim the same plane"),
        (lambda text: text[: len(text) // 2], "not well-formed"),
        (lambda text: text + "x", "not well-formed"),
        (lambda text: "", "not well-formed"),
        (replace("<User>", "<User>\0"), "not well-formed"),
        (replace("<EvaluationInputData", '<!DOCTYPE a [<!ENTITY b "c">]>\n<EvaluationInputData'), "document type"),
    ],
)
def test_an_index_that_is_wrong_is_refused_in_one_line(plate, edit, message):
    folder = plate(edit=edit)
    with pytest.raises(PlateLayoutError, match=re.escape(message)) as caught:
        harmony.scan(folder, PARAMS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_plate_of_unknown_size_has_no_shape(plate):
    assert harmony.scan(plate(edit=drop("PlateRows")), PARAMS).shape is None
    assert harmony.scan(plate(edit=replace("<PlateRows>8", "<PlateRows>99")), PARAMS).shape is None


SMALL = make_planes(("A01", "B02"), fields=1)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Folders of one plate in two versions, and their indexes as they were."""
    folders = [tmp_path_factory.mktemp(f"V{version}") for version in (5, 6)]
    paths = [layout.write(folder, SMALL, version=4 + number) for number, folder in enumerate(folders, 1)]
    return [(folder, path, path.read_bytes()) for folder, path in zip(folders, paths, strict=True)]


@given(st.data())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_index_is_read_or_refused(indexes, data):
    folder, path, good = data.draw(st.sampled_from(indexes))
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "digit"]))
        if kind == "flip":
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del damaged[max(at, 1) :]
        elif kind == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del damaged[at : min(at + data.draw(st.integers(1, 200)), len(damaged) - 1)]
        elif digits := [i for i, byte in enumerate(damaged) if chr(byte).isdigit()]:
            damaged[digits[at % len(digits)]] = data.draw(st.sampled_from(b"0123456789-.eE"))
    path.write_bytes(bytes(damaged))
    try:
        source = harmony.scan(folder, PARAMS)
    except PlateLayoutError as error:
        assert "\n" not in str(error)
        return
    assert all((folder / image.file).is_file() for image in source.images)


# ------------------------------------------------------------------------------------------- listing and recognition


def test_a_listing_names_wells_and_notices_changes_of_planes_and_index(plate):
    folder = plate(make_planes(("A01", "C03"), fields=2))
    (folder / "Assaylayout").mkdir()
    (folder / "Assaylayout" / "Unnamed.xml").write_text("<AssayLayout/>")
    (folder / "Images" / "overview.tif").write_bytes(b"")
    (folder / "Images" / "r99c99f01.tiff").write_bytes(b"")
    lines = sorted(harmony.listing(folder, PARAMS))
    assert {well for well, _ in lines} == {"", "A01", "C03"} and len(lines) == 11
    assert not any("Assaylayout" in line for _, line in lines)
    os.utime(folder / "Images" / "r03c03f01p01-ch1sk1fk1fl1.tiff", ns=(1, 1))
    assert {well for well, _ in set(lines) ^ set(harmony.listing(folder, PARAMS))} == {"C03"}
    os.utime(folder / "Images" / "Index.idx.xml", ns=(1, 1))
    assert {well for well, _ in set(lines) ^ set(harmony.listing(folder, PARAMS))} == {"", "C03"}


@pytest.mark.parametrize("text", ["<MetaXpress/>", "", "no xml", "<EvaluationInputData", "<!DOCTYPE a><a/>"])
def test_an_index_of_another_kind_is_not_recognized(tmp_path, text):
    (tmp_path / "Index.xml").write_text(text)
    assert harmony.recognize(tmp_path, ["Index.xml"]) is None
    assert harmony.recognize(tmp_path, ["absent/Index.xml", "r01c01f01p01-ch1sk1fk1fl1.tiff"]) is None
    assert harmony.recognize(tmp_path, []) is None


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match="extra"):
        harmony.Params(pattern="x")
