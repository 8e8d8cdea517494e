"""OME-Zarr plates of both versions: pixels, geometry, conformance, and that no damage is read as data."""

import base64
import contextlib
import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import zarr
from conftest import ROOT

from plateloom.errors import CorruptStoreError, PlateLayoutError
from plateloom.store import integrity, plate, verification
from plateloom.store.integrity import ABSENT, SEAL, VouchedStore
from plateloom.store.plate import Format
from plateloom.store.provenance import read_json, write_json
from plateloom.wells import well_name

CHANNELS = [
    {"label": "DNA", "color": "0000FF", "window": [0, 9]},
    {"label": "GFP", "color": "00FF00", "window": [0, 9]},
]
RECORD = {"fingerprint": "f"}
BOTH = [Format(chunk_px=16), Format("0.4", chunk_px=16)]
SHARDED = [Format(chunk_px=16, shard_px=32), Format("0.4", chunk_px=16, shard_px=32)]


def of_format(format):
    return "-".join(str(value) for value in vars(format).values())


both_formats = pytest.mark.parametrize("format", BOTH, ids=of_format)


def write_field(path, image, **options):
    options = {"channels": CHANNELS, "pixel_size_um": 0.5, "levels": 3, "record": RECORD} | options
    plate.write_image(path, image, **options)


def write_labels(path, labels, **options):
    plate.write_labels(path, labels, **{"pixel_size_um": 0.5, "levels": 3, "record": RECORD} | options)


def random_image(shape, seed=0, dtype=np.uint16):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def make_plate(store, format, *, wells=("B03",), fields=(1, 2), shape=(50, 37), levels=2):
    """A small plate whose every plane is another."""
    for w, well in enumerate(wells):
        for field in fields:
            path = plate.field_path(store, well, field)
            seed = 10 * w + field
            write_field(path, random_image((2, *shape), seed), levels=levels, format=format, position_um=(100.0, 20.0))
            labels = {name: random_image(shape, seed + i, np.uint32) for i, name in enumerate(("Cells", "Nuclei"), 100)}
            write_labels(path, labels, levels=levels, format=format)
        plate.write_well(store, well, fields, RECORD)
    plate.write_plate(store, name="P", wells=wells, shape=(8, 12), field_count=len(fields), record=RECORD)
    return store


class Lazy:
    """An image that only gives regions, and remembers the largest."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.dtype, self.largest = pixels, pixels.shape, pixels.dtype, 0

    def __getitem__(self, region):
        assert isinstance(region, tuple) and all(isinstance(part, slice) for part in region)
        found = self.pixels[region]
        self.largest = max(self.largest, found.size)
        return found


# Pixels


def test_parts_of_an_array_of_shards_are_those_of_numpy_and_only_whole_shards_are_written(tmp_path):
    image = random_image((2, 70, 53))
    write_field(tmp_path / "1", image)
    array = plate.open_array(tmp_path / "1", plate.read_group(tmp_path / "1"), "0")
    for key in (1, (-1, 3), (..., 7), (slice(None), slice(60, 2000, 3)), (0, slice(5, 2), slice(-4, None, 2))):
        np.testing.assert_array_equal(array[key], image[key])
    for key in (2, (0, -71), (0, slice(9, 2, -1))):
        with pytest.raises(IndexError):
            array[key]
    for region in ((slice(0, 2), slice(1, 70), slice(0, 53)), (slice(0, 2), slice(0, 69), slice(0, 53))):
        with pytest.raises(IndexError, match="no whole shard"):
            array[region] = image[region]


@both_formats
def test_pixels_and_labels_read_back_also_by_window(tmp_path, format):
    image = random_image((2, 70, 53))
    write_field(tmp_path / "1", image, format=format)
    labels = {"Nuclei": random_image((70, 53), 1, np.uint32)}
    write_labels(tmp_path / "1", labels)
    window = (slice(50, 62), slice(13, 53))
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1"), image)
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1", channels=[1], window=window), image[1:, *window])
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", window=window), labels["Nuclei"][window])
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", level=1), labels["Nuclei"][::2, ::2])
    assert plate.read_labels(tmp_path / "1", "Nuclei").dtype == np.uint32
    assert plate.image_shape(tmp_path / "1", level=1) == (2, 35, 27)
    assert plate.list_labels(tmp_path / "1") == ["Nuclei"]
    assert plate.describe_image(tmp_path / "1") == {
        "channels": ["DNA", "GFP"],
        "colors": ["0000FF", "00FF00"],
        "windows": [(0, 9), (0, 9)],
        "missing": [],
        "pixel_size_um": 0.5,
        "levels": 3,
        "shape": (2, 70, 53),
        "axes": "cyx",
        "position_um": None,
        "z_step_um": None,
        "seconds": None,
    }


@both_formats
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">u2"])
def test_every_kind_of_pixel_reads_back(tmp_path, format, dtype):
    image = random_image((2, 20, 20), dtype=dtype)
    write_field(tmp_path / "1", image, format=format, levels=1)
    found = plate.read_image(tmp_path / "1")
    np.testing.assert_array_equal(found, image)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("codec", [("0.5", "zstd"), ("0.5", "blosc"), ("0.4", "zlib"), ("0.4", "blosc")])
def test_every_codec_reads_back(tmp_path, codec):
    image = random_image((2, 40, 40))
    write_field(tmp_path / "1", image, format=Format(*codec, level=4, chunk_px=16))
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1"), image)
    labels = image[0].astype(np.uint32)
    write_labels(tmp_path / "1", {"Nuclei": labels})
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei"), labels)
    encoded = [zarr.open_array(tmp_path / "1" / name, mode="r") for name in ("0", "labels/Nuclei/0")]
    kinds = [
        [(type(one), getattr(one, "clevel", getattr(one, "level", None))) for one in a.compressors] for a in encoded
    ]
    assert kinds[0] == kinds[1] and kinds[0][0][1] == 4


@pytest.mark.parametrize("wrong", [("0.4", "zstd"), ("0.5", "zlib"), ("0.6", "zstd")])
def test_a_codec_that_readers_of_a_version_lack_is_refused(wrong):
    with pytest.raises(ValueError, match="known"):
        Format(*wrong)


@pytest.mark.parametrize(("shape", "expected"), [((1, 2, 2), [[[3]]]), ((1, 1, 3), [[[1, 4]]])])
def test_shrinking_averages_and_repeats_an_odd_edge(shape, expected):
    image = np.array([0, 2, 4, 6], np.uint8)[: np.prod(shape)].reshape(shape)
    np.testing.assert_array_equal(plate.shrink_image(image), expected)


@pytest.mark.parametrize("format", SHARDED, ids=of_format)
@pytest.mark.parametrize("size", [(150, 97), (33, 129), (1, 70), (64, 64), (31, 31)])
def test_a_pyramid_made_piece_by_piece_is_that_of_the_whole_image(tmp_path, format, size):
    image = Lazy(random_image((2, *size)))
    labels = Lazy(random_image(size, 1, np.uint32))
    write_field(tmp_path / "1", image, levels=4, format=format)
    write_labels(tmp_path / "1", {"Nuclei": labels}, levels=4, format=format)
    assert max(image.largest, labels.largest) <= 48 * 48, "a shard, rounded up to whole chunks"
    expected, of_labels = image.pixels, labels.pixels
    for level in range(4):
        np.testing.assert_array_equal(plate.read_image(tmp_path / "1", level=level), expected)
        np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", level=level), of_labels)
        expected, of_labels = plate.shrink_image(expected), plate.shrink_labels(of_labels)


def test_no_more_than_a_shard_is_read_back_for_the_next_level(tmp_path, monkeypatch):
    largest = []
    shrink = plate.shrink_image
    monkeypatch.setattr(plate, "shrink_image", lambda image: largest.append(image.size) or shrink(image))
    write_field(tmp_path / "1", Lazy(random_image((2, 200, 200))), levels=3, format=Format(chunk_px=16, shard_px=32))
    assert max(largest) <= 48 * 48


@both_formats
@pytest.mark.parametrize("axes", ["czyx", "tcyx", "tczyx"])
def test_time_and_planes_read_back_with_their_scales(tmp_path, format, axes):
    sizes = {"t": 3, "c": 2, "z": 4, "y": 33, "x": 20}
    image = random_image([sizes[axis] for axis in axes])
    options = {"t": {"seconds": 60.0}, "z": {"z_step_um": 2.5}}
    options = {key: value for axis in axes for key, value in options.get(axis, {}).items()}
    write_field(tmp_path / "1", image, axes=axes, format=format, **options)
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1"), image)
    index = tuple({"t": 1, "c": slice(0, 1), "z": 3}.get(axis, slice(None)) for axis in axes)
    chosen = {axis: number for axis, number in (("t", 1), ("z", 3)) if axis in axes}
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1", channels=[0], **chosen), image[index])
    found = plate.describe_image(tmp_path / "1")
    assert (found["axes"], found["shape"]) == (axes, image.shape)
    assert {key: found[key] for key in options} == options
    first, second = (
        entry["coordinateTransformations"][0]["scale"] for entry in multiscale(tmp_path / "1")["datasets"][:2]
    )
    assert second == [step * (2 if axis in "yx" else 1) for step, axis in zip(first, axes, strict=True)]


def test_labels_may_have_planes(tmp_path):
    write_field(tmp_path / "1", random_image((2, 3, 40, 40)), axes="czyx", z_step_um=2.0)
    labels = random_image((3, 40, 40), 1, np.uint32)
    write_labels(tmp_path / "1", {"Nuclei": labels}, axes="zyx")
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", level=1), labels[:, ::2, ::2])
    scale = multiscale(tmp_path / "1/labels/Nuclei")["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == [2.0, 0.5, 0.5]


@pytest.mark.parametrize("wrong", [{"axes": "yxc"}, {"axes": "czyx"}, {"channels": CHANNELS[:1]}])
def test_an_image_that_is_not_as_described_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="axes"):
        write_field(tmp_path / "1", random_image((2, 20, 20)), **wrong)


def multiscale(path):
    return plate.read_group(path)["ome"]["multiscales"][0]


@both_formats
def test_a_pixel_of_every_level_lies_in_the_middle_of_those_that_it_covers(tmp_path, format):
    write_field(tmp_path / "1", random_image((2, 64, 64)), position_um=(100.0, -20.0), pixel_size_um=0.5, format=format)
    write_labels(tmp_path / "1", {"Nuclei": random_image((64, 64), 1, np.uint32)})
    assert plate.describe_image(tmp_path / "1")["position_um"] == (100.0, -20.0)
    for level, entry in enumerate(multiscale(tmp_path / "1")["datasets"]):
        scale, translation = entry["coordinateTransformations"]
        assert [scale["type"], translation["type"]] == ["scale", "translation"]
        covered = np.arange(64) * 0.5
        for axis, position in ((1, 100.0), (2, -20.0)):
            centers = position + covered.reshape(-1, 2**level).mean(1)
            np.testing.assert_allclose(
                translation["translation"][axis] + np.arange(len(centers)) * scale["scale"][axis], centers, atol=1e-9
            )
        of_labels = multiscale(tmp_path / "1/labels/Nuclei")["datasets"][level]["coordinateTransformations"]
        assert of_labels[0]["scale"] == scale["scale"][1:]
        assert of_labels[1]["translation"] == translation["translation"][1:]


# Labels and their colors


def test_labels_have_a_color_each_up_to_a_limit_and_none_beyond(tmp_path):
    side = 256
    write_field(tmp_path / "1", random_image((2, side, side)))
    numbers = np.arange(side * side, dtype=np.uint32).reshape(side, side)
    labels = {"None": np.zeros((side, side), np.uint32), "Few": numbers, "Many": numbers + 1}
    write_labels(tmp_path / "1", labels)
    found = {name: plate.read_group(tmp_path / "1/labels" / name)["ome"]["image-label"] for name in labels}
    assert [color["label-value"] for color in found["Few"]["colors"]] == list(range(1, side * side))
    assert len({tuple(color["rgba"]) for color in found["Few"]["colors"][:255]}) > 240
    assert "colors" not in found["None"] and "colors" not in found["Many"]


def test_labels_of_many_colors_are_those_that_lie_there_now(tmp_path):
    numbers = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64)
    for labels in (numbers, numbers[::-1], numbers.T):
        write_labels(tmp_path / "1", {"Nuclei": labels})
        assert (tmp_path / "1/labels/Nuclei/zarr.json").stat().st_size > plate.LARGE_GROUP
        for _ in range(2):
            np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei"), labels)
    shutil.rmtree(tmp_path / "1/labels/Nuclei")
    with pytest.raises(PlateLayoutError, match="no labels"):
        plate.read_labels(tmp_path / "1", "Nuclei")


@both_formats
def test_labels_written_later_lie_beside_those_that_are_there(tmp_path, format):
    write_field(tmp_path / "1", random_image((2, 40, 40)), format=format)
    for name in ("Nuclei", "Cells", "Nuclei"):
        write_labels(tmp_path / "1", {name: random_image((40, 40), 1, np.uint32)})
    assert plate.list_labels(tmp_path / "1") == ["Cells", "Nuclei"]
    assert plate.group_version(tmp_path / "1/labels/Nuclei") == format.ngff
    assert verification.check_group(tmp_path / "1", deep=True) == []


def test_labels_of_another_recipe_are_refused(tmp_path):
    write_field(tmp_path / "1", random_image((2, 40, 40)))
    write_labels(tmp_path / "1", {"Nuclei": random_image((40, 40), 1, np.uint32)})
    plate.read_labels(tmp_path / "1", "Nuclei", made="f")
    with pytest.raises(PlateLayoutError, match="expected g"):
        plate.read_labels(tmp_path / "1", "Nuclei", made="g")
    with pytest.raises(PlateLayoutError, match="no labels"):
        plate.read_labels(tmp_path / "1", "Cells")


# Files


@both_formats
def test_there_is_one_shard_per_field_and_level_and_a_field_has_as_many_files_as_is_said(tmp_path, format):
    write_field(tmp_path / "1", random_image((2, 70, 53)), format=format)
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) == plate.count_files((2, 70, 53), 3, format=format)
    if format.ngff == "0.5":
        assert len(files) == 7
    write_labels(
        tmp_path / "1", {name: random_image((70, 53), 1, np.uint32) for name in ("A", "B", "C")}, format=format
    )
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) == plate.count_files((2, 70, 53), 3, labels=3, format=format)
    assert format.ngff == "0.4" or len(files) <= 30


@pytest.mark.parametrize("format", [Format(chunk_px=16), Format(codec="zstd", chunk_px=16, shard_px=32)], ids=of_format)
@pytest.mark.parametrize("size, dtype", [((48, 48), "uint16"), ((41, 77), "uint16"), ((33, 50), "float32")])
def test_chunks_are_those_that_zarr_would_write(tmp_path, format, size, dtype):
    image = random_image((2, *size)).astype(dtype)
    write_field(tmp_path / "ours", image, levels=1, format=format)
    ours = zarr.open_array(tmp_path / "ours/0", mode="r")
    theirs = zarr.create_array(
        tmp_path / "theirs",
        shape=image.shape,
        chunks=ours.chunks,
        shards=ours.shards,
        dtype=dtype,
        compressors=plate._encoding(format, "cyx", ours.shards)["compressors"],
        config={"write_empty_chunks": True},
    )
    theirs[:] = image
    np.testing.assert_array_equal(ours[:], image)
    files = sorted(
        path.relative_to(tmp_path / "theirs/c") for path in (tmp_path / "theirs/c").rglob("*") if path.is_file()
    )
    assert files
    for file in files:
        found = []
        for data in ((tmp_path / "ours/0/c" / file).read_bytes(), (tmp_path / "theirs/c" / file).read_bytes()):
            count = np.prod([whole // part for whole, part in zip(ours.shards, ours.chunks, strict=True)])
            index = np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(-1, 2).tolist()
            found.append([data[start : start + length] if start != ABSENT else None for start, length in index])
        mine, other = found
        assert all(one == two for one, two in zip(mine, other, strict=True) if one is not None), file
        assert any(one is not None for one in mine)


@pytest.mark.parametrize("format", SHARDED, ids=of_format)
def test_the_files_of_a_stitched_well_are_counted(tmp_path, format):
    write_field(tmp_path / "1", random_image((2, 150, 97)), format=format)
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) == plate.count_files((2, 150, 97), 3, format=format)


class Watched:
    """Labels that remember how much of them was asked for at once."""

    def __init__(self, labels):
        self.labels, self.shape, self.dtype, self.largest = labels, labels.shape, labels.dtype, 0

    def __getitem__(self, region):
        found = self.labels[region]
        self.largest = max(self.largest, found.size)
        return found


@pytest.mark.parametrize("format", SHARDED, ids=of_format)
def test_labels_of_a_large_image_have_its_shards_and_are_never_asked_for_whole(tmp_path, format, monkeypatch):
    monkeypatch.setattr(plate, "SHARD_PX", format.shard_px)  # NGFF 0.4 does not tell
    write_field(tmp_path / "1", random_image((2, 150, 97)), format=format)
    labels = Watched(random_image((150, 97), 1, np.uint32))
    write_labels(tmp_path / "1", {"Nuclei": labels})
    assert labels.largest < labels.labels.size / 2
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei"), labels.labels)
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", level=2), labels.labels[::4, ::4])
    if format.ngff == "0.5":
        image, written = (zarr.open_array(tmp_path / "1" / name) for name in ("0", "labels/Nuclei/0"))
        assert written.shards == image.shards[1:]


@pytest.mark.parametrize("format", BOTH + SHARDED, ids=of_format)
def test_the_same_pixels_give_the_same_bytes(tmp_path, format):
    image = random_image((2, 150, 97))
    for name in ("one", "two"):
        write_field(tmp_path / name / "1", image, format=format)
    one, two = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_a_file_is_written_once(tmp_path):
    store = VouchedStore(tmp_path)
    array = zarr.create_array(store, name="0", shape=(8, 8), dtype="u1", chunks=(4, 4), shards=(8, 8), zarr_format=3)
    array[:4] = 1
    with pytest.raises(RuntimeError, match="twice"):
        array[4:] = 1


def test_an_array_that_is_not_whole_is_not_vouched_for(tmp_path):
    store = VouchedStore(tmp_path)
    array = zarr.create_array(store, name="0", shape=(8, 8), dtype="u1", chunks=(4, 4), zarr_format=3)
    array[:4] = 1
    with pytest.raises(RuntimeError, match="whole"):
        store.finish()


def test_a_format_may_change_between_runs(tmp_path):
    store = tmp_path / "P.zarr"
    for format in (*BOTH, BOTH[0]):
        plate.remove_well(store, "B03")
        make_plate(store, format)
        assert {plate.group_version(store), plate.group_version(store / "B"), plate.group_version(store / "B/03")} == {
            format.ngff
        }
        assert verification.check_group(store, deep=True) == []


@both_formats
def test_attributes_may_be_changed_by_reading_and_writing_them(tmp_path, format):
    image = random_image((2, 40, 40))
    write_field(tmp_path / "1", image, format=format)
    attributes = plate.read_group(tmp_path / "1")
    plate.write_group(tmp_path / "1", attributes | {"plateloom": attributes["plateloom"] | {"facts": {"x": 1}}})
    assert plate.read_group(tmp_path / "1")["plateloom"]["facts"] == {"x": 1}
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1"), image)
    assert verification.check_group(tmp_path / "1", deep=True) == []


@both_formats
def test_what_we_wrote_is_checked_as_it_stands_and_what_another_wrote_alike_by_its_meaning(
    tmp_path, format, monkeypatch
):
    path = tmp_path / "P.zarr/A/01"
    plate.write_well(tmp_path / "P.zarr", "A01", [1, 2], {"name": "é, \N{MICRO SIGN}m"}, ngff=format.ngff)
    expected, asked = plate.read_group(path), []
    digest = integrity.digest
    monkeypatch.setattr(integrity, "digest", lambda value: asked.append(value) or digest(value))
    assert plate.read_group(path) == expected and not asked
    file = path / ("zarr.json" if format.ngff == "0.5" else ".zattrs")
    file.write_text(json.dumps(read_json(file), indent=2, ensure_ascii=False))
    assert plate.read_group(path) == expected and len(asked) == 1
    file.write_text(file.read_text().replace(expected[SEAL]["digest"], "\\ud800"))
    with pytest.raises(CorruptStoreError, match="digest"):
        plate.read_group(path)


# What cannot be written


@contextlib.contextmanager
def no_room(monkeypatch, number, after):
    """Let the disk be full when the n-th file is flushed to it."""
    flush, count = os.fsync, []

    def fsync(handle):
        count.append(handle)
        if len(count) > after:
            raise OSError(number, os.strerror(number))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@both_formats
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 2, 6])
def test_a_full_disk_leaves_nothing_and_says_what_was_needed(tmp_path, monkeypatch, format, number, after):
    write_field(tmp_path / "1", random_image((2, 40, 40)), format=format)
    with no_room(monkeypatch, number, after), pytest.raises(OSError, match=r"MB in \d+ files were needed") as caught:
        write_field(tmp_path / "1", random_image((2, 40, 40)), format=format)
    assert caught.value.errno == number and not isinstance(caught.value, CorruptStoreError)
    assert not (tmp_path / "1").exists()
    write_field(tmp_path / "1", random_image((2, 40, 40)), format=format)
    with no_room(monkeypatch, number, after), pytest.raises(OSError, match="needed"):
        write_labels(tmp_path / "1", {"Nuclei": random_image((40, 40), 1, np.uint32)}, format=format)
    assert not (tmp_path / "1/labels/Nuclei").exists()
    assert plate.list_labels(tmp_path / "1") == []
    plate.read_image(tmp_path / "1")


def test_a_write_that_the_system_refuses_passes_through(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_field(tmp_path / "1", random_image((2, 200, 200)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "1").exists()


@both_formats
def test_an_image_that_was_not_finished_is_none(tmp_path, format):
    write_field(tmp_path / "1", random_image((2, 40, 40)), format=format)
    (tmp_path / "1" / ("zarr.json" if format.ngff == "0.5" else ".zattrs")).unlink()
    assert plate.read_group(tmp_path / "1") is None and plate.finished_record(tmp_path / "1") is None
    with pytest.raises(PlateLayoutError, match="no image"):
        plate.describe_image(tmp_path / "1")
    assert "not finished" in verification.check_group(tmp_path / "1")[0].reason


@both_formats
def test_metadata_come_after_everything_that_they_vouch_for(tmp_path, monkeypatch, format):
    written, replace = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda one, two: written.append(os.path.relpath(two, tmp_path)) or replace(one, two)
    )
    write_field(tmp_path / "1", random_image((2, 40, 40)), format=format)
    names = {os.path.basename(name) for name in written}
    assert len(written) == len(set(written)) == plate.count_files((2, 40, 40), 3, format=format)
    if format.ngff == "0.5":
        assert written[-1] == "1/zarr.json" and written[-4:-1] == [f"1/{level}/zarr.json" for level in range(3)]
    else:
        assert written[-2:] == ["1/.zgroup", "1/.zattrs"] and written[-5] == "1/0/.zarray"
    assert not any(name.endswith(".partial") for name in names)


# Damage


@both_formats
def test_a_flipped_bit_in_any_file_is_never_read_as_data(tmp_path, format):
    store = make_plate(tmp_path / "P.zarr", format, shape=(24, 20), wells=("B03", "B04"))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    found = verification.flip_bits(store, flips=1000, seed=22)
    assert found["silent"] == []
    assert found["metadata"] >= 100 and found["refused"] + found["equal"] == 1000
    assert found["refused"] > 900
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def chunk_file(path, level=0, number=0):
    """A file of pixels of an image group."""
    files = sorted(p for p in (path / str(level)).rglob("*") if p.is_file() and p.name not in verification.METADATA)
    return files[number]


def metadata_file(path, array=False):
    """Metadata of a group or an array."""
    names = ("zarr.json", ".zarray") if array else ("zarr.json", ".zattrs")
    return next(path / name for name in names if (path / name).exists())


def swap(one, two):
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def read_all(store, wells=("B03", "B04"), fields=(1, 2)):
    """Read whatever the plate holds."""
    plate.forget_opened()
    assert sorted(plate.list_fields(store)) == sorted(wells)
    for well in wells:
        if plate.read_group(plate.well_path(store, well).parent) is None:
            raise PlateLayoutError(f"no row for B/0 {well}")
        for field in fields:
            path = plate.field_path(store, well, field)
            plate.describe_image(path)
            if plate.list_labels(path) != ["Cells", "Nuclei"]:
                raise PlateLayoutError(f"no list of labels in {path}")
            for level in range(2):
                plate.read_image(path, level=level)
                for name in ("Nuclei", "Cells"):
                    plate.read_labels(path, name, level=level)


DAMAGES = {
    "truncated chunk": lambda one, two: os.truncate(chunk_file(one), 20),
    "empty chunk file": lambda one, two: os.truncate(chunk_file(one), 0),
    "missing chunk file": lambda one, two: chunk_file(one).unlink(),
    "missing level": lambda one, two: shutil.rmtree(one / "1"),
    "missing label level": lambda one, two: shutil.rmtree(one / "labels/Nuclei/1"),
    "missing label image": lambda one, two: shutil.rmtree(one / "labels/Nuclei"),
    "missing array metadata": lambda one, two: metadata_file(one / "0", array=True).unlink(),
    "missing group metadata": lambda one, two: metadata_file(one).unlink(),
    "swapped chunk file": lambda one, two: swap(chunk_file(one), chunk_file(two)),
    "swapped level": lambda one, two: swap(one / "0", two / "0"),
    "swapped label images": lambda one, two: swap(one / "labels/Nuclei", one / "labels/Cells"),
    "labels of another field": lambda one, two: swap(one / "labels", two / "labels"),
    "swapped group metadata": lambda one, two: swap(metadata_file(one), metadata_file(two)),
    "swapped fields": lambda one, two: swap(one, two),
    "swapped wells": lambda one, two: swap(one.parent, one.parent.with_name("04")),
    "zeros for metadata": lambda one, two: metadata_file(one).write_bytes(bytes(metadata_file(one).stat().st_size)),
    "missing well metadata": lambda one, two: metadata_file(one.parent).unlink(),
    "other array metadata": lambda one, two: metadata_file(one / "0", array=True).write_bytes(
        metadata_file(one / "1", array=True).read_bytes()
    ),
}


@pytest.fixture(scope="module", params=BOTH, ids=of_format)
def intact(request, tmp_path_factory):
    """A plate in which nothing is wrong; copy it to damage it."""
    store = make_plate(tmp_path_factory.mktemp("intact") / "P.zarr", request.param, wells=("B03", "B04"))
    read_all(store)
    assert verification.check_group(store) == [] == verification.check_group(store, deep=True)
    return store, request.param.ngff


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_when_read_and_found_when_checked(intact, tmp_path, damage):
    store = shutil.copytree(intact[0], tmp_path / "P.zarr")
    DAMAGES[damage](plate.field_path(store, "B03", 1), plate.field_path(store, "B03", 2))
    with pytest.raises((CorruptStoreError, PlateLayoutError), match="B/0"):
        read_all(store)
    found = verification.check_group(store, deep=True)
    assert found and all("B/0" in problem.file for problem in found)
    # Pixels of another field that have the same size show in 0.5 in the index of the shard, in 0.4 when all is read.
    assert verification.check_group(store) or (intact[1] == "0.4" and damage == "swapped chunk file")


def test_any_two_files_swapped_are_refused(intact, tmp_path):
    store, rng = shutil.copytree(intact[0], tmp_path / "P.zarr"), np.random.default_rng(5)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    for _ in range(25):
        one, two = (files[i] for i in rng.choice(len(files), 2, replace=False))
        if one.read_bytes() == two.read_bytes():
            continue
        swap(one, two)
        with pytest.raises((CorruptStoreError, PlateLayoutError)):
            read_all(store)
        swap(one, two)
    read_all(store)


@both_formats
def test_files_of_another_field_with_the_same_size_are_refused(tmp_path, format):
    store = make_plate(tmp_path / "P.zarr", format)
    one, two = (chunk_file(plate.field_path(store, "B03", field)) for field in (1, 2))
    two.write_bytes(two.read_bytes().ljust(one.stat().st_size, b"\0")[: one.stat().st_size])
    swap(one, two)
    with pytest.raises(CorruptStoreError):
        plate.read_image(plate.field_path(store, "B03", 1))


@pytest.mark.parametrize("format", [*BOTH, Format(codec="zstd", chunk_px=16)], ids=of_format)
def test_every_chunk_has_a_checksum_of_its_own(tmp_path, format):
    write_field(tmp_path / "1", random_image((2, 200, 200)), levels=1, format=format)
    manifest = plate.read_group(tmp_path / "1")[SEAL]["arrays"]["0"]
    checksums = np.frombuffer(base64.b64decode(manifest["crc32c"]), "<u4")
    assert len(checksums) == len(set(checksums.tolist())) >= 2 * 12 * 12
    assert checksums.max() > 2**31 > checksums.min() + 2**30


def test_swapped_chunks_within_a_shard_are_refused_and_named(tmp_path):
    write_field(tmp_path / "1", random_image((2, 32, 32)), levels=1, format=Format(codec="zstd", chunk_px=16))
    shard = chunk_file(tmp_path / "1")
    data = bytearray(shard.read_bytes())
    offsets = np.frombuffer(data[-132:-4], "<u8").reshape(8, 2).astype(int)
    start, other = offsets[1:3, 0]
    data[start : start + 30], data[other : other + 30] = data[other : other + 30], data[start : start + 30]
    shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"chunk \(0, 0, 1\)"):
        plate.read_image(tmp_path / "1", window=(slice(0, 5), slice(16, 20)))
    plate.read_image(tmp_path / "1", channels=[1])


@both_formats
def test_a_window_reads_and_checks_only_its_own_chunks(tmp_path, format):
    image = random_image((2, 64, 64))
    write_field(tmp_path / "1", image, levels=1, format=format)
    file = chunk_file(tmp_path / "1", number=-1)
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if format.ngff == "0.4" else -1000] ^= 1
    file.write_bytes(data)
    window = (slice(0, 20), slice(0, 20))
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1", window=window), image[:, *window])
    with pytest.raises(CorruptStoreError):
        plate.read_image(tmp_path / "1")
    assert verification.check_group(tmp_path / "1") == []
    (problem,) = verification.check_group(tmp_path / "1", deep=True)
    assert problem.file == str(file)


@pytest.mark.parametrize("key", ["plateloom", SEAL])
def test_metadata_that_lose_a_key_do_not_look_like_those_of_another_program(tmp_path, key):
    for path in ("1", "1/labels"):
        write_field(tmp_path / "1", random_image((2, 40, 40)))
        write_labels(tmp_path / "1", {"Nuclei": random_image((40, 40), 1, np.uint32)})
        metadata = read_json(tmp_path / path / "zarr.json")
        del metadata["attributes"][key]
        write_json(tmp_path / path / "zarr.json", metadata)
        with pytest.raises(CorruptStoreError, match="digest"):
            plate.read_group(tmp_path / path)
        assert plate.finished_record(tmp_path / path) is None


def test_an_image_that_is_replaced_by_zeros_of_the_format_is_refused(tmp_path):
    """A level made anew by another program is no level of this image."""
    write_field(tmp_path / "1", random_image((2, 40, 40)), levels=1)
    shutil.rmtree(tmp_path / "1/0")
    zarr.create_array(tmp_path / "1/0", shape=(2, 40, 40), dtype="uint16", chunks=(1, 40, 40))
    with pytest.raises(CorruptStoreError, match="digest"):
        plate.read_image(tmp_path / "1")


@both_formats
def test_what_is_left_over_is_named(tmp_path, format):
    store = make_plate(tmp_path / "P.zarr", format)
    path = plate.field_path(store, "B03", 1)
    left = [path / "0/.aside", path / "aside", store / "aside", chunk_file(path).with_name(".0.x")]
    for file in left:
        file.write_bytes(b"")
    shutil.copytree(path, path.with_name("9"))
    found = {problem.file for problem in verification.check_group(store)}
    assert found == {str(file) for file in [*left, path.with_name("9")]}
    read_all(store, wells=("B03",))


@both_formats
def test_an_image_of_another_plate_in_the_same_place_is_refused(tmp_path, format):
    store, pixels = make_plate(tmp_path / "P.zarr", format), random_image((2, 50, 37), 7)
    other = plate.field_path(tmp_path / "Q.zarr", "B03", 2)
    write_field(other, pixels, format=format, record={"fingerprint": "another"})
    here = plate.field_path(store, "B03", 2)
    shutil.rmtree(here)
    shutil.copytree(other, here)
    for read in (plate.read_image, plate.describe_image, plate.image_shape, plate.image_type):
        with pytest.raises(CorruptStoreError, match="not the image that its well was finished with"):
            read(here)
    (problem,) = verification.check_group(store)
    assert problem.file == str(here)
    plate.write_well(store, "B03", [1, 2], RECORD)
    np.testing.assert_array_equal(plate.read_image(here), pixels)


@both_formats
def test_a_plate_may_be_renamed_moved_and_copied_in_part(tmp_path, format):
    make_plate(tmp_path / "P.zarr", format)
    (tmp_path / "a.zarr").mkdir()
    moved = tmp_path / "a.zarr/Q.zarr"
    shutil.move(tmp_path / "P.zarr", moved)
    read_all(moved, wells=("B03",))
    assert verification.check_group(moved, deep=True) == []
    shutil.copytree(moved / "B/03/1", tmp_path / "alone")
    assert verification.check_group(tmp_path / "alone", deep=True) == []


def test_a_plate_whose_wells_lie_where_they_should_not_is_found(tmp_path):
    store = make_plate(tmp_path / "P.zarr", BOTH[0])
    attributes = plate.read_group(store)
    attributes["ome"]["plate"]["wells"][0]["rowIndex"] = 3
    attributes["ome"]["plate"]["wells"] *= 2
    plate.write_group(store, attributes)
    reasons = [problem.reason for problem in verification.check_group(store)]
    assert any("row and column" in reason for reason in reasons)
    assert any("more than once" in reason for reason in reasons)


def test_the_error_crosses_processes_and_ends_a_job():
    error = pickle.loads(pickle.dumps(CorruptStoreError("a/b", "is missing")))
    assert (error.file, error.reason, error.exit_code) == ("a/b", "is missing", 1)
    assert "'a/b' is missing" in str(error) and isinstance(error, OSError) and error.errno is None


def test_arrays_that_are_no_image_may_be_vouched_for_too(tmp_path):
    store = VouchedStore(tmp_path / "flat.zarr")
    for name in ("DNA", "GFP"):
        array = zarr.create_array(store, name=name, shape=(9, 8), dtype="f4", chunks=(9, 8), zarr_format=3)
        array[...] = random_image((9, 8), {"DNA": 2, "GFP": 3}[name], np.float32)
    plate.write_group(tmp_path / "flat.zarr", {"plateloom": RECORD}, arrays=store.finish())
    attributes = plate.read_group(tmp_path / "flat.zarr")
    found = plate.open_array(tmp_path / "flat.zarr", attributes, "GFP")[...]
    np.testing.assert_array_equal(found, random_image((9, 8), 3, np.float32))
    assert verification.check_group(tmp_path / "flat.zarr", deep=True) == []
    swap(chunk_file(tmp_path / "flat.zarr", "DNA"), chunk_file(tmp_path / "flat.zarr", "GFP"))
    with pytest.raises(CorruptStoreError):
        plate.open_array(tmp_path / "flat.zarr", attributes, "GFP")[...]
    assert len(verification.check_group(tmp_path / "flat.zarr", deep=True)) == 2


# Plates of other programs


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_an_image_that_plateloom_did_not_write_reads_as_it_is(tmp_path, ngff):
    import ngio

    image = random_image((2, 40, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ngio.create_ome_zarr_from_array(
            str(tmp_path / "1"), image, pixelsize=0.65, axes_names="cyx", levels=2, ngff_version=ngff
        )
        label = made.derive_label("nuclei")
        label.set_array(random_image((40, 50), 1, np.uint32))
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1"), image)
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "nuclei"), random_image((40, 50), 1, np.uint32))
    found = plate.describe_image(tmp_path / "1")
    assert (found["shape"], found["pixel_size_um"], found["levels"], found["missing"]) == ((2, 40, 50), 0.65, 2, [])
    assert plate.list_labels(tmp_path / "1") == ["nuclei"]
    assert verification.check_group(tmp_path / "1", deep=True) == []
    shutil.rmtree(tmp_path / "1/1")
    with pytest.raises(PlateLayoutError, match="no array"):
        plate.read_image(tmp_path / "1", level=1)
    assert verification.check_group(tmp_path / "1")


def test_units_and_transformations_of_the_whole_pyramid_count(tmp_path):
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "yx"]
    scale = [{"type": "scale", "scale": [100.0, 100.0]}, {"type": "translation", "translation": [1000.0, 2000.0]}]
    whole = [{"type": "scale", "scale": [2.0, 2.0]}]
    pyramid = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": scale}]}
    group = zarr.open_group(tmp_path / "1", mode="w")
    group.create_array("s0", data=random_image((9, 8)))
    group.attrs["ome"] = {"version": "0.5", "multiscales": [pyramid | {"coordinateTransformations": whole}]}
    found = plate.describe_image(tmp_path / "1")
    assert found["pixel_size_um"] == pytest.approx(0.2)
    assert found["position_um"] == pytest.approx((2.0, 4.0))
    assert (found["axes"], found["channels"]) == ("yx", ["0"])
    assert plate.read_image(tmp_path / "1").shape == (9, 8)


# What others read


@pytest.fixture(params=BOTH, ids=of_format)
def sparse_plate(request, tmp_path):
    return make_plate(tmp_path / "P.zarr", request.param, wells=("D06", "B03")), request.param.ngff


def test_a_sparse_plate_keeps_its_rows_and_columns(sparse_plate):
    store, ngff = sparse_plate
    found = plate.read_group(store)["ome"]["plate"]
    assert [well["path"] for well in found["wells"]] == ["B/03", "D/06"]
    assert (len(found["rows"]), len(found["columns"])) == (8, 12)
    assert (found["wells"][0]["rowIndex"], found["wells"][0]["columnIndex"]) == (1, 2)
    assert (found["version"], found["field_count"]) == (ngff, 2)
    assert found["acquisitions"] == [{"id": 0, "name": "acquisition 0", "maximumfieldcount": 2}]


def refused_by_ome_zarr_models(ngff, kinds):
    """What ome-zarr-models says against groups, by its classes ('hcs.HCS') and their paths; empty where it takes them."""
    package = f"ome_zarr_models.v{ngff.replace('.', '')}"
    code = ["import zarr"]
    for kind, path in kinds.items():
        module, _, name = kind.partition(".")
        code += [
            f"from {package}.{module} import {name}",
            f"{name}.from_zarr(zarr.open_group({str(path)!r}, mode='r'))",
        ]
    # In a process of its own: its models of 0.4 fail once ngio has been used.
    return subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=False).stderr


def test_a_plate_is_valid_to_ome_zarr_models(sparse_plate):
    store, ngff = sparse_plate
    kinds = {
        "hcs.HCS": store,
        "well.Well": store / "B/03",
        "image.Image": store / "B/03/1",
        "image_label.ImageLabel": store / "B/03/1/labels/Nuclei",
    }
    assert not refused_by_ome_zarr_models(ngff, kinds)


def test_a_plate_is_valid_to_yaozarrs(sparse_plate):
    import yaozarrs

    yaozarrs.validate_zarr_store(str(sparse_plate[0]))


def validators_of(folder):
    """Validators of a version of the specification, by the name of their schema."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    schemas = {path.stem: json.loads(path.read_text()) for path in (folder / "schemas").glob("*.schema")}
    known = Registry().with_resources([(s["$id"], DRAFT202012.create_resource(s)) for s in schemas.values()])
    return {name: Draft202012Validator(schema, registry=known) for name, schema in schemas.items()}


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_schemas_and_our_own_check_tell_right_from_wrong_in_every_case_of_the_specification(data, ngff):
    validators, cases = validators_of(data / "ngff_conformance" / ngff), 0
    for suite in (data / "ngff_conformance" / ngff / "tests").glob("*_suite.json"):
        content = json.loads(suite.read_text())
        validator = validators[content["schema"]["id"].split("/")[-1].removesuffix(".schema")]
        for case in content["tests"]:
            valid = validator.is_valid(case["data"])
            if valid and ngff == "0.5" and "plate" in suite.stem:  # what a schema cannot say, and 0.4 got wrong
                valid = not verification.misplaced_wells(case["data"]["ome"]["plate"])
            assert valid == case["valid"], case
            cases += 1
    assert cases > 80


@pytest.mark.parametrize("strict", ["", "strict_"])
def test_metadata_fit_the_schemas_of_the_specification(sparse_plate, data, strict):
    store, ngff = sparse_plate
    validators = validators_of(data / "ngff_conformance" / ngff)
    for kind, path in (
        ("plate", ""),
        ("well", "B/03"),
        ("image", "B/03/1"),
        ("label", "B/03/1/labels/Nuclei"),
        ("image", "B/03/1/labels/Nuclei"),
    ):
        found = zarr.open_group(store / path, mode="r").attrs.asdict()
        assert [error.message for error in validators[strict + kind].iter_errors(found)] == []


def test_a_plate_opens_in_ngio(sparse_plate):
    import ngio

    store, _ = sparse_plate
    found = ngio.open_ome_zarr_plate(str(store), mode="r")
    assert found.wells_paths() == ["B/03", "D/06"] and found.acquisition_ids == [0]
    image = found.get_image("B", "03", "1")
    path = plate.field_path(store, "B03", 1)
    np.testing.assert_array_equal(image.get_image().get_as_numpy(), plate.read_image(path))
    np.testing.assert_array_equal(image.get_label("Nuclei").get_as_numpy(), plate.read_labels(path, "Nuclei"))
    assert (image.get_image().pixel_size.x, image.get_image().channel_labels) == (0.5, ["DNA", "GFP"])


def test_a_table_that_ngio_adds_is_no_damage(sparse_plate):
    import ngio

    store, _ = sparse_plate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ngio.open_ome_zarr_container(str(store / "B/03/1"))
        image.add_table("FOV_ROI_table", image.build_image_roi_table("field"))
    assert (store / "B/03/1/tables").is_dir()
    assert verification.check_group(store, deep=True) == []


def test_a_plate_opens_in_ome_zarr_py(sparse_plate):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        store, _ = sparse_plate
        (whole,) = list(Reader(parse_url(str(store)))())
        nodes = list(Reader(parse_url(str(store / "B/03/1")))())
    assert whole.data[0].shape[0] == 2
    assert [node.metadata["name"] for node in nodes if node.data] == ["1", "Cells", "Nuclei"]
    np.testing.assert_array_equal(np.asarray(nodes[0].data[0]), plate.read_image(store / "B/03/1"))


def test_a_plate_opens_in_napari(sparse_plate):
    # napari brings a pytest plugin that warns at import, so it lives in an environment of its own.
    python = ROOT / "build/napari/bin/python"
    if not python.exists():
        pytest.skip("napari-ome-zarr is not installed; `make napari` does it")
    store, _ = sparse_plate
    code = (
        "import sys; from napari_ome_zarr import napari_get_reader as reader; "
        "print(*(reader(path)(path)[0][0][0].shape[0] for path in sys.argv[1:]))"
    )
    command = [python, "-c", code, store, store / "B/03/1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.split()[-2:] == ["2", "2"], found.stderr[-2000:]


def test_fields_are_listed_and_keep_their_acquisition(tmp_path):
    store = tmp_path / "P.zarr"
    for well, fields in (("A01", [1, 2]), ("C12", [4])):
        plate.write_well(store, well, fields, RECORD, acquisitions={2: 1})
    acquisitions = [{"id": 0, "name": "first", "starttime": 1700000000}, {"id": 1, "maximumfieldcount": 1}]
    plate.write_plate(
        store, name="P", wells=["C12", "A01"], shape=(8, 12), field_count=2, record=RECORD, acquisitions=acquisitions
    )
    assert plate.list_fields(store) == {"A01": [1, 2], "C12": [4]}
    images = plate.read_group(store / "A/01")["ome"]["well"]["images"]
    assert images == [{"path": "1", "acquisition": 0}, {"path": "2", "acquisition": 1}]
    assert plate.read_group(store)["ome"]["plate"]["acquisitions"] == [
        {"id": 0, "name": "first", "maximumfieldcount": 2, "starttime": 1700000000},
        {"id": 1, "name": "acquisition 1", "maximumfieldcount": 1},
    ]
    shutil.rmtree(store / "C/12")
    with pytest.raises(CorruptStoreError, match="missing"):
        plate.list_fields(store)
    with pytest.raises(PlateLayoutError, match="no plate"):
        plate.list_fields(store / "A/01")


def test_a_whole_plate_of_384_wells_is_listed(tmp_path):
    wells = [well_name(row, column) for row in range(16) for column in range(24)]
    for well in wells:
        plate.write_well(tmp_path / "P.zarr", well, range(1, 10), RECORD)
    plate.write_plate(tmp_path / "P.zarr", name="P", wells=wells, shape=(16, 24), field_count=9, record=RECORD)
    assert plate.list_fields(tmp_path / "P.zarr") == {well: list(range(1, 10)) for well in wells}


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_real_images_are_stored_in_less_than_seven_tenths_pyramid_included(tmp_path, data, ngff):
    import tifffile

    image = tifffile.imread(data / "bbbc022_crop/IXMtest_A02_s9.tif")
    write_field(tmp_path / "1", image, channels=[*CHANNELS, CHANNELS[0]], format=Format(ngff))
    stored = sum(path.stat().st_size for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert stored / image.nbytes <= 0.6


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_labels_of_few_values_cost_next_to_nothing(tmp_path, ngff):
    labels = np.zeros((512, 512), np.uint32)
    for i in range(256):
        y, x = divmod(i, 16)
        labels[32 * y + 5 : 32 * y + 27, 32 * x + 5 : 32 * x + 27] = np.tri(22, 22, 9, dtype=np.uint32) * i
    assert len(np.unique(labels)) == 256
    write_field(tmp_path / "1", random_image((2, 512, 512)), format=Format(ngff))
    write_labels(tmp_path / "1", {"Nuclei": labels})
    stored = sum(path.stat().st_size for path in (tmp_path / "1/labels").rglob("*") if path.is_file())
    assert stored / labels.nbytes <= 0.05


@pytest.mark.parametrize("axes", ["czyx", "tcyx", "tczyx"])
@pytest.mark.parametrize("format", BOTH, ids=of_format)
def test_images_that_keep_planes_or_times_are_valid_to_both_validators(tmp_path, format, axes):
    import yaozarrs

    image = random_image(tuple({"t": 2, "c": 2, "z": 3, "y": 40, "x": 40}[axis] for axis in axes))
    steps = {"axes": axes, "z_step_um": 1.5 if "z" in axes else None, "seconds": 60.0 if "t" in axes else None}
    write_field(tmp_path / "1", image, format=format, **steps)
    of_labels = axes.replace("c", "")
    labels = random_image(tuple({"t": 2, "z": 3, "y": 40, "x": 40}[axis] for axis in of_labels), dtype=np.uint32)
    write_labels(tmp_path / "1", {"Nuclei": labels}, axes=of_labels)
    kinds = {"image.Image": tmp_path / "1", "image_label.ImageLabel": tmp_path / "1/labels/Nuclei"}
    assert not refused_by_ome_zarr_models(format.ngff, kinds)
    yaozarrs.validate_zarr_store(str(tmp_path / "1"))
    yaozarrs.validate_zarr_store(str(tmp_path / "1/labels/Nuclei"))
