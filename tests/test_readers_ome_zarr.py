"""OME-Zarr plates of every version and make become planes; broken or hostile ones a message."""

import json
import os
import pickle
import shutil
import time

import numpy as np
import pytest
import zarr
from conftest import soon
from layouts import ome_zarr as layout
from layouts.ome_zarr import edit, is_close

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import ome_zarr
from plateloom.readers.ome_zarr import Params
from plateloom.store import plate as store

ALL = Params()
PLACES = {1: (0.0, 0.0), 2: (0.0, 100.5), 3: (80.25, -20.0)}


def planes_of(axes="tczyx", wells=("A01", "B03"), fields=(1, 2, 3), shape=(12, 20)):
    random = np.random.default_rng(0)
    keys = [
        (well, field, channel, z, t)
        for well in wells
        for field in fields
        for channel in ((1, 2) if "c" in axes else (1,))
        for z in ((1, 2, 3) if "z" in axes else (1,))
        for t in ((1, 2) if "t" in axes else (1,))
    ]
    return {key: random.integers(1, 65535, shape, dtype=np.uint16) for key in keys}


def check(folder, planes, params=ALL, *, positions=PLACES, pixel_size_um=0.65, z_step_um=1.5, first_field=1):
    """Every plane and every fact of a written plate."""
    found = ome_zarr.scan(folder, params)
    assert len(found.images) == len(planes)
    names = ["DNA", "GFP"]
    for image in found.images:
        field = image.field + 1 - first_field
        channel = names.index(image.channel) + 1
        expected = planes[image.well, field, channel, image.z + 1, image.t + 1]
        pixels, _ = ome_zarr.load(folder, image)
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.dtype.isnative
        assert is_close(image.pixel_size_um, pixel_size_um)
        if positions:
            assert is_close(image.y_um, positions[field][0]) and is_close(image.x_um, positions[field][1])
        else:
            assert (image.y_um, image.x_um) == (None, None)
        if image.z_um is not None:
            assert is_close(image.z_um, image.z * z_step_um)
        assert image.size > 0 and image.modified > 0
    return found


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "tcyx", "cyx", "zyx", "tyx", "yx"])
def test_a_plate_of_any_version_and_axes_reads_back(tmp_path, version, axes):
    planes = planes_of(axes)
    layout.write(tmp_path / "P.zarr", planes, version=version, axes=axes, positions=PLACES)
    found = check(tmp_path / "P.zarr", planes)
    assert found.shape == (8, 12) and found.notes == [] and found.finished is None
    colors = {"DNA": "0000FF", "GFP": "00FF00"}
    assert found.channels == {
        name: {"name": name, "color": colors[name]} for name in (colors if "c" in axes else ["DNA"])
    }
    assert ome_zarr.recognize(tmp_path / "P.zarr", []) == {
        "reader": "ome_zarr",
        "params": {},
        "layout": "OME-Zarr",
        "share": 1.0,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"version": "0.4", "separator": "."},
        {"version": "0.4", "dtype": np.dtype(">u2")},
        {"chunks": (1, 1, 1, 5, 7)},
        {"chunks": (2, 2, 3, 12, 20)},
        {"chunks": (1, 1, 1, 4, 5), "sharded": True},
        {"unit": "nanometer", "pixel_size_um": 0.1625},
        {"unit": "millimeter", "pixel_size_um": 1.3},
        {"version": "0.6", "unit": "nanometer"},
        {"list_all": False},
        {"field_name": "fov_{}"},
        {"field_name": "Field{}"},
        {"acquisition": 3},
    ],
    ids=str,
)
def test_chunks_units_names_and_byte_orders_make_no_difference(tmp_path, options):
    planes = planes_of()
    layout.write(tmp_path / "P.zarr", planes, positions=PLACES, **options)
    found = check(tmp_path / "P.zarr", planes, pixel_size_um=options.get("pixel_size_um", 0.65))
    assert found.shape == (None if options.get("list_all") is False else (8, 12))


def test_a_plate_written_by_plateloom_reads_back(tmp_path):
    image = np.random.default_rng(0).integers(1, 99, (2, 64, 48), dtype=np.uint16)
    channels = [{"label": name, "color": "40FF40", "window": [0, 9]} for name in ("DNA", "GFP")]
    for well in ("A01", "B02"):
        store.write_image(
            store.field_path(tmp_path / "P.zarr", well, 4),
            image,
            channels=channels,
            pixel_size_um=0.325,
            levels=2,
            record={},
        )
        store.write_well(tmp_path / "P.zarr", well, [4], {})
    store.write_plate(tmp_path / "P.zarr", name="P", wells=["A01", "B02"], shape=(16, 24), field_count=1, record={})
    found = ome_zarr.scan(tmp_path / "P.zarr", Params())
    assert found.shape == (16, 24) and found.notes == []
    assert found.channels["GFP"] == {"name": "GFP", "color": "40FF40"}
    for image_of, plane in zip(found.images, [*image, *image], strict=True):
        np.testing.assert_array_equal(ome_zarr.load(tmp_path / "P.zarr", image_of)[0], plane)
        assert is_close(image_of.pixel_size_um, 0.325) and image_of.field == 4


def test_fields_without_a_number_are_counted_as_the_well_lists_them(tmp_path):
    planes = planes_of("yx", fields=(1, 2))
    layout.write(tmp_path / "P.zarr", planes, axes="yx")
    for well in ("A/1", "B/3"):
        for number, name in (("1", "left"), ("2", "right")):
            (tmp_path / "P.zarr" / well / number).rename(tmp_path / "P.zarr" / well / name)
        edit(tmp_path / "P.zarr" / well, lambda ome: ome["well"].update(images=[{"path": "left"}, {"path": "right"}]))
    check(tmp_path / "P.zarr", planes, positions=None, first_field=0)


def test_a_projection_beside_its_stack_needs_a_choice(tmp_path):
    planes = planes_of("zyx", fields=(1,))
    layout.write(tmp_path / "P.zarr", planes, axes="zyx")
    for well in ("A/1", "B/3"):
        shutil.copytree(tmp_path / "P.zarr" / well / "1", tmp_path / "P.zarr" / well / "1_mip")
        edit(tmp_path / "P.zarr" / well, lambda ome: ome["well"]["images"].append({"path": "1_mip"}))
    with pytest.raises(PlateLayoutError, match="'1' and '1_mip' are both field 1.*`images`"):
        ome_zarr.scan(tmp_path / "P.zarr", Params())
    check(tmp_path / "P.zarr", planes, Params(images="[0-9]+"), positions=None)
    assert {
        image.file.split("/")[2] for image in ome_zarr.scan(tmp_path / "P.zarr", Params(images=".*_mip")).images
    } == {"1_mip"}


def test_several_acquisitions_need_a_choice(tmp_path):
    planes, others = planes_of("cyx", fields=(1, 2)), planes_of("cyx", fields=(3, 4))
    layout.write(tmp_path / "P.zarr", planes, axes="cyx", acquisition=0)
    layout.write(tmp_path / "Q.zarr", others, axes="cyx", acquisition=7)
    for well in ("A/1", "B/3"):
        for field in ("3", "4"):
            shutil.copytree(tmp_path / "Q.zarr" / well / field, tmp_path / "P.zarr" / well / field)
        edit(
            tmp_path / "P.zarr" / well,
            lambda ome: ome["well"]["images"].extend({"path": p, "acquisition": 7} for p in "34"),
        )
    edit(tmp_path / "P.zarr", lambda ome: ome["plate"]["acquisitions"].append({"id": 7, "name": "second stain"}))
    with pytest.raises(
        PlateLayoutError, match=r"several acquisitions: 0 \(cycle 0\), 7 \(second stain\).*`acquisition`"
    ):
        ome_zarr.scan(tmp_path / "P.zarr", Params())
    check(tmp_path / "P.zarr", planes, Params(acquisition=0), positions=None)
    check(tmp_path / "P.zarr", others, Params(acquisition=7), positions=None)
    with pytest.raises(PlateLayoutError, match="no image of acquisition 2"):
        ome_zarr.scan(tmp_path / "P.zarr", Params(acquisition=2))


def test_scales_of_an_image_and_of_all_its_levels_are_joined(tmp_path):
    planes = planes_of("yx", fields=(1, 2))
    layout.write(tmp_path / "P.zarr", planes, axes="yx", pixel_size_um=0.5, positions={1: (10, 20), 2: (30, 40)})

    def change(ome):
        ome["multiscales"][0]["coordinateTransformations"] = [
            {"type": "identity"},
            {"type": "scale", "scale": [2, 2]},
            {"type": "translation", "translation": [1, -1]},
        ]

    for well in ("A/1", "B/3"):
        for field in "12":
            edit(tmp_path / "P.zarr" / well / field, change)
    check(tmp_path / "P.zarr", planes, pixel_size_um=1.0, positions={1: (21, 39), 2: (61, 79)})


def test_a_field_without_translation_lies_at_the_origin_if_others_have_one(tmp_path):
    planes = planes_of("yx", fields=(1, 2))
    layout.write(tmp_path / "P.zarr", planes, axes="yx", positions={2: (50.0, 60.0)})
    check(tmp_path / "P.zarr", planes, positions={1: (5.5 * 0.65, 9.5 * 0.65), 2: (50.0, 60.0)})


def test_positions_that_are_all_the_same_are_none(tmp_path):
    planes = planes_of("yx", fields=(1, 2))
    layout.write(tmp_path / "P.zarr", planes, axes="yx", positions={1: (5, 5), 2: (5, 5)})
    assert "no usable positions" in check(tmp_path / "P.zarr", planes, positions=None).notes[0]


@pytest.mark.parametrize("unit", [None, "second", "furlong"])
def test_without_a_unit_of_length_a_scale_says_nothing(tmp_path, unit):
    layout.write(tmp_path / "P.zarr", planes_of("yx"), axes="yx", unit=unit, positions=PLACES)
    found = ome_zarr.scan(tmp_path / "P.zarr", Params())
    assert {image[9:13] for image in found.images} == {(None, None, None, None)}
    assert any("no size of pixels" in note for note in found.notes)


def test_pixels_that_are_not_square_have_no_size(tmp_path):
    layout.write(tmp_path / "P.zarr", planes_of("yx", fields=(1,)), axes="yx")

    def change(ome):
        ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1.0, 1.2]

    for well in ("A/1", "B/3"):
        edit(tmp_path / "P.zarr" / well / "1", change)
    found = ome_zarr.scan(tmp_path / "P.zarr", Params())
    assert {image.pixel_size_um for image in found.images} == {None} and "2 fields have no size" in found.notes[0]


def test_channels_without_a_name_are_called_by_their_index_and_names_are_told_apart(tmp_path):
    layout.write(
        tmp_path / "P.zarr", planes_of("cyx", wells=("A01",), fields=(1, 2)), axes="cyx", channels=("DNA", "DNA")
    )
    edit(tmp_path / "P.zarr/A/1/2", lambda ome: ome.pop("omero"))
    found = ome_zarr.scan(tmp_path / "P.zarr", Params())
    assert [(image.field, image.channel) for image in found.images] == [(1, "DNA"), (1, "DNA (1)"), (2, "0"), (2, "1")]
    assert found.channels["DNA (1)"] == {"name": "DNA", "color": "00FF00"} and found.channels["0"] == {}


def test_what_is_listed_and_absent_or_there_and_not_listed_is_a_note(tmp_path):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("yx", wells=("A01", "A02", "B03")), axes="yx")
    shutil.rmtree(plate / "A/2")
    shutil.rmtree(plate / "A/1/3")
    shutil.copytree(plate / "B/3", plate / "C/4")
    shutil.copytree(plate / "B/3/1", plate / "B/3/9")
    layout.write_group(plate / "B/3/labels", "0.5")
    edit(plate / "B/3", lambda ome: ome["well"]["images"].append({"path": "labels"}) or ome["well"]["images"].pop())
    found = ome_zarr.scan(plate, Params())
    assert {(image.well, image.field) for image in found.images} == {
        ("A01", 1),
        ("A01", 2),
        ("B03", 1),
        ("B03", 2),
        ("B03", 3),
    }
    text = "\n".join(found.notes)
    assert "1 wells of the plate's list are not there, e.g. 'A/2'" in text
    assert "1 fields of the wells' lists are not there, e.g. 'A/1/3'" in text
    assert "1 wells are there but not in the plate's list, e.g. 'C/4'" in text
    assert "e.g. 'B/3/9'" in text or "e.g. 'B/3/labels'" in text


def test_a_field_with_broken_metadata_is_unreadable_and_the_others_are_not(tmp_path):
    plate = tmp_path / "P.zarr"
    planes = planes_of("czyx", wells=("A01",))
    layout.write(plate, planes, axes="czyx", positions=PLACES)
    (plate / "A/1/2/zarr.json").write_text('{"zarr_format": 3, "attr')
    (plate / "A/1/3/0/zarr.json").write_bytes(b"\x00\xff")
    found = ome_zarr.scan(plate, Params())
    assert len(found.images) == len(planes) and "2 fields cannot be read, e.g. 'A/1/2'" in found.notes[0]
    for image in found.images:
        if image.field == 1:
            ome_zarr.load(plate, image)
            assert image.y_um is not None
        else:
            with pytest.raises(UnreadableImageError, match="is not JSON"):
                ome_zarr.load(plate, image)


def test_a_plate_without_any_readable_field_says_why(tmp_path):
    layout.write(tmp_path / "P.zarr", planes_of("yx", wells=("A01",), fields=(1,)), axes="yx")
    (tmp_path / "P.zarr/A/1/1/zarr.json").write_text("[")
    with pytest.raises(PlateLayoutError, match="no field.*'A/1/1'.*not JSON"):
        ome_zarr.scan(tmp_path / "P.zarr", Params())


# What is wrong with a plate


def one_field(folder, **options):
    layout.write(folder, planes_of("yx", wells=("A01",), fields=(1,)), **{"axes": "yx", **options})
    return folder


def test_other_stores_are_refused_clearly(tmp_path):
    (tmp_path / "P.ozx").write_bytes(b"PK\x03\x04")
    for source in (tmp_path / "P.ozx", "s3://bucket/P.zarr", "https://host/P.zarr"):
        with pytest.raises(PlateLayoutError, match="local folders: unzip or download"):
            ome_zarr.scan(source, Params())
    with pytest.raises(PlateLayoutError, match="no OME-Zarr group"):
        ome_zarr.scan(tmp_path, Params())
    assert ome_zarr.recognize(tmp_path, []) is None
    one_field(tmp_path / "P.zarr")
    with pytest.raises(PlateLayoutError, match="single image"):
        ome_zarr.scan(tmp_path / "P.zarr/A/1/1", Params())


@pytest.mark.parametrize("version", ["0.1", "0.3", "0.7", "1.0", "0.40", "foo", 4, None])
def test_an_unknown_version_is_named(tmp_path, version):
    one_field(tmp_path / "P.zarr")
    edit(tmp_path / "P.zarr", lambda ome: ome.update(version=version))
    with pytest.raises(PlateLayoutError, match="0.4, 0.5 and 0.6"):
        ome_zarr.scan(tmp_path / "P.zarr", Params())


@pytest.mark.parametrize("version", ["0.4", "0.5.2", "0.6", "0.6rc0", "0.6.dev4"])
def test_releases_of_known_versions_are_read(tmp_path, version):
    one_field(tmp_path / "P.zarr")
    edit(tmp_path / "P.zarr", lambda ome: ome.update(version=version))
    assert ome_zarr.scan(tmp_path / "P.zarr", Params()).images


@pytest.mark.parametrize(
    "path", ["../P.zarr/A/1", "/etc", "A/../A/1", "C:/A/1", "link/1", "A/1\x00", "\ud800/1", "circle/1"]
)
@pytest.mark.parametrize("place", ["well", "image", "dataset"])
def test_metadata_that_point_out_of_the_plate_are_refused(tmp_path, path, place):
    plate = one_field(tmp_path / "P.zarr")
    one_field(tmp_path / "other.zarr")
    for folder in (plate, plate / "A/1", plate / "A/1/1"):
        (folder / "link").symlink_to(tmp_path / "other.zarr/A")
        (folder / "circle").symlink_to(folder / "circle")
    if place == "well":
        edit(plate, lambda ome: ome["plate"]["wells"][0].update(path=path))
    elif place == "image":
        edit(plate / "A/1", lambda ome: ome["well"]["images"][0].update(path=path))
    else:
        edit(plate / "A/1/1", lambda ome: ome["multiscales"][0]["datasets"][0].update(path=path))
    with pytest.raises(PlateLayoutError):
        found = ome_zarr.scan(plate, Params())
        assert not found.images  # a circle of links leads nowhere, as a well that is not there
        raise PlateLayoutError


def test_metadata_behind_a_link_out_of_the_plate_are_refused(tmp_path):
    plate = one_field(tmp_path / "P.zarr")
    (plate / "A/1/1/zarr.json").rename(tmp_path / "zarr.json")
    (plate / "A/1/1/zarr.json").symlink_to(tmp_path / "zarr.json")
    with pytest.raises(PlateLayoutError, match="outside"):
        ome_zarr.scan(plate, Params())


def test_chunks_behind_a_link_out_of_the_plate_are_refused(tmp_path):
    plate = one_field(tmp_path / "P.zarr")
    (image,) = ome_zarr.scan(plate, Params()).images
    (plate / "A/1/1/0/c").rename(tmp_path / "c")
    (plate / "A/1/1/0/c").symlink_to(tmp_path / "c")
    with pytest.raises(UnreadableImageError, match="outside"):
        ome_zarr.load(plate, image)


class Trap:
    """An object that, unpickled, leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_program_in_a_chunk_is_not_run(tmp_path):
    plate = one_field(tmp_path / "P.zarr", version="0.4", separator=".")
    array = plate / "A/1/1/0"
    (image,) = ome_zarr.scan(plate, Params()).images
    metadata = json.loads((array / ".zarray").read_text())
    metadata |= {"compressor": None, "filters": [{"id": "pickle"}], "dtype": "|O", "fill_value": None}
    (array / ".zarray").write_text(json.dumps(metadata))
    (array / "0.0").write_bytes(pickle.dumps(Trap(tmp_path / "run")))
    with pytest.raises(PlateLayoutError, match="unknown codec 'pickle'"):
        ome_zarr.scan(plate, Params())
    with pytest.raises(UnreadableImageError, match="unknown codec 'pickle'"):
        ome_zarr.load(plate, image)
    assert not (tmp_path / "run").exists()


def test_codecs_inside_of_shards_are_looked_at(tmp_path):
    plate = one_field(tmp_path / "P.zarr", sharded=True, chunks=(4, 5))
    path = plate / "A/1/1/0/zarr.json"
    path.write_text(path.read_text().replace('"zstd"', '"shell"'))
    with pytest.raises(PlateLayoutError, match="unknown codec 'shell'"):
        ome_zarr.scan(plate, Params())


@pytest.mark.parametrize(
    "change",
    [
        {"type": "affine", "affine": [[1, 0, 0], [0, 1, 0]]},
        {"type": "rotation", "rotation": [[0, 1], [1, 0]]},
        {"type": "scale", "path": "scales"},
        {"type": "scale", "scale": [1, 1, 1]},
        {"type": "scale", "scale": [0, 1]},
        {"type": "scale", "scale": [-1, 1]},
        {"type": "scale", "scale": [float("nan"), 1]},
        {"type": "scale", "scale": ["1", 1]},
        {"type": "translation", "translation": [True, 1]},
        {"type": "sequence", "transformations": [{"type": "affine"}]},
        {"type": "sequence", "transformations": None},
        {},
        "scale",
    ],
    ids=str,
)
@pytest.mark.parametrize("version", ["0.5", "0.6"])
def test_a_transformation_that_is_no_scale_or_translation_is_named(tmp_path, change, version):
    plate = one_field(tmp_path / "P.zarr", version=version)
    edit(plate / "A/1/1", lambda ome: ome["multiscales"][0]["datasets"][0]["coordinateTransformations"].append(change))
    with pytest.raises(PlateLayoutError, match="'A/1/1'"):
        ome_zarr.scan(plate, Params())


@pytest.mark.parametrize(
    "data",
    [
        {"shape": [12]},
        {"shape": [12, 0]},
        {"shape": [12, True]},
        {"shape": None},
        {"shape": [10**30, 10**30]},
        {"codecs": "zstd"},
        {"codecs": None},
        {"chunk_grid": None},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 1 << 40]}}},
    ],
)
def test_array_metadata_that_mean_nothing_are_refused(tmp_path, data):
    plate = one_field(tmp_path / "P.zarr")
    path = plate / "A/1/1/0/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | data))
    with pytest.raises(PlateLayoutError, match="'A/1/1"):
        ome_zarr.scan(plate, Params())


def test_an_array_that_declares_more_than_any_plane_is_not_decoded(tmp_path):
    plate = one_field(tmp_path / "P.zarr")
    path = plate / "A/1/1/0/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [1 << 20, 1 << 20]}))
    (image,) = ome_zarr.scan(plate, Params()).images
    with pytest.raises(UnreadableImageError, match="has no plane"):
        ome_zarr.load(plate, image)
    grid = {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [1 << 10, 1 << 10], "chunk_grid": grid}))
    (image,) = ome_zarr.scan(plate, Params()).images
    with pytest.raises(UnreadableImageError, match="chunks"):
        ome_zarr.load(plate, image)


def test_too_many_planes_are_refused_before_they_are_listed(tmp_path):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("zyx", wells=("A01",), fields=(1,)), axes="zyx")
    path = plate / "A/1/1/0/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [1 << 40, 12, 20]}))
    with pytest.raises(PlateLayoutError, match="planes"):
        ome_zarr.scan(plate, Params())


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16, np.bool_])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_no_plane_of_counts_is_refused_not_cast(tmp_path, dtype, version):
    plate = one_field(tmp_path / "P.zarr", dtype=dtype, version=version)
    (image,) = ome_zarr.scan(plate, Params()).images
    with pytest.raises(UnreadableImageError, match="expected uint8 or uint16"):
        ome_zarr.load(plate, image)


@pytest.mark.parametrize("sharded", [True, False])
def test_a_plane_of_which_no_chunk_is_there_is_unreadable_and_not_zeros(tmp_path, sharded):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("zyx", wells=("A01",), fields=(1,)), axes="zyx", sharded=sharded, chunks=(1, 12, 20))
    images = ome_zarr.scan(plate, Params()).images
    shutil.rmtree(plate / ("A/1/1/0/c" if sharded else "A/1/1/0/c/1"))
    with pytest.raises(UnreadableImageError, match="none of its chunks"):
        ome_zarr.load(plate, images[1])
    if not sharded:
        ome_zarr.load(plate, images[0])


@pytest.mark.parametrize("sharded", [True, False])
def test_a_truncated_chunk_is_unreadable(tmp_path, sharded):
    plate = one_field(tmp_path / "P.zarr", sharded=sharded, chunks=(12, 20))
    (image,) = ome_zarr.scan(plate, Params()).images
    (chunk,) = [path for path in (plate / "A/1/1/0/c").rglob("*") if path.is_file()]
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with pytest.raises(UnreadableImageError, match="A/1/1/0"):
        ome_zarr.load(plate, image)


# Changes


def lines(plate, params):
    return sorted(ome_zarr.listing(plate, params))


@pytest.mark.parametrize("chunks", [(12, 20), (2, 3)])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_changed_chunk_is_noticed_in_its_own_well(tmp_path, version, chunks):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("yx", fields=(1,)), axes="yx", chunks=chunks, version=version)
    assert (layout.count_chunks(plate / "A/1/1") > ome_zarr.FEW) == (chunks == (2, 3))
    before = {watch: lines(plate, Params(watch=watch)) for watch in ("chunks", "metadata")}
    assert [well for well, _ in before["chunks"]] == ["A01", "B03"]
    time.sleep(0.02)
    array = zarr.open_array(str(plate / "B/3/1/0"), mode="r+")
    array[0, 0] = 7
    after = lines(plate, Params())
    assert [well for well, _ in set(before["chunks"]) ^ set(after)] == ["B03", "B03"]
    assert lines(plate, Params(watch="metadata")) == before["metadata"]


def test_changed_metadata_are_noticed(tmp_path):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("yx"), axes="yx", positions=PLACES)
    before = lines(plate, Params())
    edit(
        plate / "A/1/2",
        lambda ome: ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][1].update(translation=[1, 2]),
    )
    assert {well for well, _ in set(before) ^ set(lines(plate, Params()))} == {"A01"}


# Conformance and broken metadata


def suite(data, version, name):
    return json.loads((data / "ngff_conformance" / version / "tests" / f"{name}_suite.json").read_text())["tests"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_plates_of_the_conformance_suite_are_read_or_refused(data, tmp_path, version):
    for number, case in enumerate(suite(data, version, "plate") + suite(data, version, "strict_plate")):
        plate = tmp_path / str(number)
        plate.mkdir()
        attributes = case["data"]
        name = ".zattrs" if version == "0.4" else "zarr.json"
        (plate / name).write_text(
            json.dumps(attributes if version == "0.4" else {"node_type": "group", "attributes": attributes})
        )
        try:
            found = ome_zarr.scan(plate, Params())
        except PlateLayoutError:
            assert not case["valid"], case
        else:
            assert found.images == [] and "not there" in found.notes[0]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_wells_and_images_of_the_conformance_suite_are_read_or_refused(data, tmp_path, version):
    wrap = (lambda found: found) if version == "0.4" else (lambda found: {"node_type": "group", "attributes": found})
    name = ".zattrs" if version == "0.4" else "zarr.json"
    plate = one_field(tmp_path / "P.zarr", version=version)
    good = (plate / "A/1" / name).read_text()
    for case in suite(data, version, "well") + suite(data, version, "strict_well"):
        (plate / "A/1" / name).write_text(json.dumps(wrap(case["data"])))
        try:
            ome_zarr.scan(plate, Params())
        except PlateLayoutError:
            assert not case["valid"], case
    (plate / "A/1" / name).write_text(good)
    for case in suite(data, version, "image") + suite(data, version, "strict_image"):
        (plate / "A/1/1" / name).write_text(json.dumps(wrap(case["data"])))
        try:
            ome_zarr.scan(plate, Params())
        except PlateLayoutError as error:
            # The suite's images have other arrays than ours, and valid ones have axes that no microscope needs.
            assert not case["valid"] or "no array at" in str(error) or "axes" in str(error) or "shape" in str(error), (
                case
            )


@pytest.mark.parametrize("version", ["v04", "v05"])
def test_images_of_ngio_are_understood(data, tmp_path, version):
    folder = data / "ngio_fixtures/tests/data" / version / "images"
    for source in sorted(folder.iterdir()):
        axes = source.stem.removeprefix("test_image_")
        plate = tmp_path / version / axes
        layout.write_group(
            plate,
            "0.4",
            "plate",
            {
                "wells": [{"path": "B/03", "rowIndex": 0, "columnIndex": 0}],
                "rows": [{"name": "B"}],
                "columns": [{"name": "03"}],
            },
        )
        layout.write_group(plate / "B/03", "0.4", "well", {"images": [{"path": "0"}]})
        shutil.copytree(source, plate / "B/03/0")
        found = ome_zarr.scan(plate, Params())
        for axis, attribute in (("c", "channel"), ("z", "z"), ("t", "t")):
            several = axis in axes
            assert (len({getattr(image, attribute) for image in found.images}) > 1) == several, axes
        assert {image.pixel_size_um for image in found.images} == {0.5} and found.images[0].well == "B03"
        assert found.shape is None
        with pytest.raises(UnreadableImageError, match="none of its chunks"):  # the fixtures are metadata alone
            ome_zarr.load(plate, found.images[0])


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
def test_any_broken_byte_in_any_metadata_file_is_a_layout_error_or_nothing(tmp_path, version):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("cyx", wells=("A01",), fields=(1, 2)), axes="cyx", version=version, positions=PLACES)
    files = [path for path in plate.rglob("*") if path.name in ("zarr.json", ".zattrs", ".zarray", ".zgroup")]
    random = np.random.default_rng(1)
    with soon():
        for _ in range(250):
            path = files[random.integers(len(files))]
            good = path.read_bytes()
            if not good:
                continue
            data = bytearray(good)
            if random.random() < 0.3:
                del data[random.integers(len(data)) :]
            for _ in range(random.integers(1, 4)):
                if data:
                    data[random.integers(len(data))] = random.integers(256)
            path.write_bytes(data)
            try:
                for image in ome_zarr.scan(plate, Params()).images:
                    ome_zarr.load(plate, image)
            except (PlateLayoutError, UnreadableImageError) as error:
                assert str(error)
            path.write_bytes(good)


JUNK = [None, True, 0, -1, 1.5, 10**40, "", "x", [], {}, [None], [[]], {"a": 1}, [{}], "\x00", [1, "a"]]


def walk(found, path=()):
    """Paths of every value in nested JSON."""
    yield path
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


@pytest.mark.parametrize("name", ["zarr.json", "A/1/zarr.json", "A/1/1/zarr.json", "A/1/1/0/zarr.json"])
def test_any_value_of_the_wrong_kind_is_a_layout_error_or_nothing(tmp_path, name):
    plate = tmp_path / "P.zarr"
    layout.write(plate, planes_of("cyx", wells=("A01",), fields=(1,)), axes="cyx", version="0.6", positions=PLACES)
    edit(
        plate,
        lambda ome: ome["plate"].update(
            rows=[{"name": "A"}], columns=[{"name": "1"}], acquisitions=[{"id": 0, "name": "x"}]
        ),
    )
    good = (plate / name).read_text()
    for place in walk(json.loads(good)):
        for junk in JUNK:
            found = json.loads(good)
            if place:
                holder = found
                for key in place[:-1]:
                    holder = holder[key]
                holder[place[-1]] = junk
            else:
                found = junk
            (plate / name).write_text(json.dumps(found))
            try:
                ome_zarr.scan(plate, Params(watch="metadata"))
            except PlateLayoutError as error:
                assert str(error)


def test_a_huge_or_deep_metadata_file_is_refused(tmp_path):
    plate = one_field(tmp_path / "P.zarr")
    (plate / "zarr.json").write_text("[" * 200_000)
    with pytest.raises(PlateLayoutError, match="not JSON"):
        ome_zarr.scan(plate, Params())
    with open(plate / "zarr.json", "wb") as file:
        file.truncate(ome_zarr.METADATA_LIMIT + 1)
    with pytest.raises(PlateLayoutError, match="larger than"):
        ome_zarr.scan(plate, Params())


def test_params_tell_a_wrong_expression():
    with pytest.raises(ValueError, match="no regular expression"):
        Params(images="(")


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_an_image_of_plateloom_is_checked_as_it_is_read(tmp_path, ngff):
    """Its manifest knows every chunk, so a missing one is no zeros and a flipped bit no pixel."""
    folder, size = tmp_path / "P.zarr", 64
    pixels = np.random.default_rng(0).integers(100, 4000, (1, size, size), dtype=np.uint16)
    format = store.Format(ngff=ngff, chunk_px=32)
    store.write_image(
        store.field_path(folder, "A01", 1),
        pixels,
        channels=[{"label": "DNA", "color": "4080FF", "window": (0, 4000)}],
        pixel_size_um=1.0,
        levels=1,
        record={},
        format=format,
    )
    store.write_well(folder, "A01", [1], {})
    store.write_plate(folder, name="P", wells=["A01"], shape=(8, 12), field_count=1, record={})
    (image,) = ome_zarr.scan(folder, ome_zarr.Params()).images
    np.testing.assert_array_equal(ome_zarr.load(folder, image)[0], pixels[0])
    files = [
        path
        for path in (folder / image.file).rglob("*")
        if path.is_file() and path.name not in (".zarray", "zarr.json")
    ]
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        store.forget_opened()
        with pytest.raises(UnreadableImageError, match="damaged"):
            ome_zarr.load(folder, image)
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    if len(files) > 1:
        files[-1].unlink()
        store.forget_opened()
        with pytest.raises(UnreadableImageError, match="damaged"):
            ome_zarr.load(folder, image)
