"""Readers: names become planes, and nothing else does."""

import contextlib
import importlib
import os
import re
import shutil
import sys

import numpy as np
import pytest
import tifffile
import yaml
import yaozarrs

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import READERS, load_reader, markup, ome_zarr, pattern
from plateloom.readers.folders import list_files
from plateloom.store import plate

CYTATION = pattern.Params(pattern=pattern.KNOWN["cytation"])


def write(path, shape=(8, 8), dtype=np.uint16, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.zeros(shape, dtype), **options)


def planes():
    """Four wells of two fields, two channels and three planes each, every pixel random."""
    rng = np.random.default_rng(0)
    keys = [
        (well, field, channel, z, 1)
        for well in ("A01", "B02", "C12", "H07")
        for field in (1, 2)
        for channel in (1, 2)
        for z in (1, 2, 3)
    ]
    return {key: rng.integers(0, 4095, (16, 24), dtype=np.uint16) for key in keys}


# What bioio reads is another reader's layout as well, wherever it can be written here; its own tests lay plates out.
@pytest.fixture(params=[name for name in READERS if name != "bioio"])
def constructed(request, tmp_path):
    """A reader, a plate in its layout, and the planes that were laid out."""
    layout = importlib.import_module(f"layouts.{request.param}")
    laid_out = planes()
    folder = tmp_path / "plate"
    folder.mkdir()
    layout.write(folder, laid_out, pixel_size_um=0.65, positions={1: (0.0, -7.8), 2: (0.0, 7.8)})
    found = load_reader(request.param).recognize(folder, [name for name, _ in list_files(folder, ("",))])
    assert found, f"{request.param} does not recognize its own layout"
    module = load_reader(found["reader"])
    return request.param, module, folder, module.Params(**found["params"]), laid_out


def test_a_reader_recognizes_its_own_layout_and_no_other_does(constructed):
    name, module, folder, _, _ = constructed
    assert module is load_reader(name)
    names = [name for name, _ in list_files(folder, ("",))]
    shares = {other: (load_reader(other).recognize(folder, names) or {}).get("share", 0) for other in READERS}
    assert max(shares, key=shares.get) == name and sorted(shares.values())[-2] < shares[name]


def test_every_plane_comes_out_where_it_was_laid(constructed):
    _, module, folder, params, laid_out = constructed
    found = module.scan(folder, params)
    keys = [image[:5] for image in found.images]
    assert keys == sorted(keys) and len(set(keys)) == len(laid_out)
    expected = [laid_out[key] for key in sorted(laid_out)]
    for image, plane in zip(found.images, expected, strict=True):
        pixels, content = module.load(folder, image)
        np.testing.assert_array_equal(pixels, plane)
        assert content
    assert [image.well for image in found.images] == [key[0] for key in sorted(laid_out)]


def test_metadata_give_positions_with_y_downwards_and_pixel_size(constructed):
    name, module, folder, params, _ = constructed
    if name == "pattern":
        pytest.skip("its files say nothing of positions")
    by_field = {}
    for image in module.scan(folder, params).images:
        by_field.setdefault((image.well, image.field), (image.y_um, image.x_um))
        assert image.pixel_size_um == pytest.approx(0.65)
    fields = sorted({field for _, field in by_field})
    one, two = (by_field["A01", field] for field in fields)
    assert two[1] - one[1] == pytest.approx(15.6, abs=0.01) and two[0] - one[0] == pytest.approx(0, abs=0.01)


def test_a_listing_notices_a_changed_file_and_names_its_well(constructed):
    _, module, folder, params, _ = constructed
    before = set(module.listing(folder, params))
    assert {well for well, _ in before} - {""} in ({"A01", "B02", "C12", "H07"}, set())
    image = next(image for image in module.scan(folder, params).images if image.well == "C12")
    path = folder / image.file.split("/@")[0]
    if path.is_dir():
        path = next(path for path in sorted(path.rglob("*")) if path.is_file())
    os.utime(path, ns=(1, 1))
    changed = {well for well, line in before ^ set(module.listing(folder, params))}
    assert changed and changed <= {"C12", ""}, "other wells need not be looked at"


def test_scanning_reads_no_pixel(constructed, monkeypatch):
    _, module, folder, params, laid_out = constructed
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("pixels were read"))
    monkeypatch.setattr(tifffile.TiffFile, "asarray", lambda *_, **__: pytest.fail("pixels were read"))
    chunks = re.compile(r"/(c/[\d/]+|\d+([./]\d+)+)$")  # of a zarr's arrays, in either version
    opened, watching = [], True
    sys.addaudithook(lambda event, found: watching and event == "open" and opened.append(str(found[0])))
    try:
        assert len(module.scan(folder, params).images) == len(laid_out)
    finally:
        watching = False
    below = [path.removeprefix(str(folder)) for path in opened if path.startswith(str(folder))]
    assert not [path for path in below if chunks.search(path) or path.endswith(".png")]


@pytest.mark.parametrize("name", READERS)
def test_an_empty_folder_is_a_layout_error_or_an_empty_table(name, tmp_path):
    module = load_reader(name)
    assert module.recognize(tmp_path, []) is None
    with contextlib.suppress(PlateLayoutError):
        assert module.scan(tmp_path, module.Params()).images == []


@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("bbbc013", "Channel2-03-A-03.tif", ("A03", 1, "2")),
        ("cytation", "B7_01_1_3_DAPI_001.tif", ("B07", 3, "DAPI")),
        ("plateloom", "P24_s9_w5.tif", ("P24", 9, "5")),
        ("plateloom", "AF48_s1_w1.tiff", ("AF48", 1, "1")),
        ("metaxpress", "exp_A02_s2_w1.TIF", ("A02", 2, "1")),
        ("metaxpress", "exp_A02_w3.TIF", ("A02", 1, "3")),
    ],
)
def test_names_become_planes(tmp_path, layout, name, expected):
    write(tmp_path / name)
    params = pattern.Params(pattern=pattern.KNOWN[layout])
    (image,) = pattern.scan(tmp_path, params).images
    assert (image.well, image.field, image.channel) == expected


def test_files_in_subfolders_are_found_and_others_left_out(tmp_path):
    write(tmp_path / "TimePoint_1" / "A01_s1_w1.tif")
    (tmp_path / "notes.txt").write_text("x")
    write(tmp_path / "A01_s1_w1_thumb.tif")
    (image,) = pattern.scan(tmp_path, pattern.Params()).images
    assert image.file == "TimePoint_1/A01_s1_w1.tif" and image.size > 0


def test_a_listing_names_the_wells_of_a_scan_and_notices_another_time(tmp_path):
    for name in ("A01_s1_w1", "A01_s1_w2", "B02_s1_w1"):
        write(tmp_path / f"{name}.tif")
    params = pattern.Params()
    before = sorted(pattern.listing(tmp_path, params))
    assert [well for well, _ in before] == sorted(image.well for image in pattern.scan(tmp_path, params).images)
    os.utime(tmp_path / "B02_s1_w1.tif", ns=(1, 1))
    changed = {well for well, line in set(before) ^ set(pattern.listing(tmp_path, params))}
    assert changed == {"B02"}


def test_two_files_for_one_plane_are_refused_and_both_named(tmp_path):
    write(tmp_path / "a" / "A01_s1_w1.tif")
    write(tmp_path / "b" / "A01_s1_w1.tif")
    with pytest.raises(PlateLayoutError, match=r"a/A01_s1_w1.tif.*b/A01_s1_w1.tif"):
        pattern.scan(tmp_path, pattern.Params())


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    write(tmp_path / "outside" / "A01_s1_w1.tif")
    (tmp_path / "plate").mkdir()
    (tmp_path / "plate" / "link").symlink_to(tmp_path / "outside")
    assert pattern.scan(tmp_path / "plate", pattern.Params()).images == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(?P<well>[A-P", "no regular expression"),
        ("(?P<channel>.)", "needs a group `well`"),
        ("(?P<wel>.)", "unknown groups"),
    ],
)
def test_a_wrong_pattern_says_what_is_missing(text, message):
    with pytest.raises(ValueError, match=message):
        pattern.Params(pattern=text)


def image_of(path):
    return pattern.scan(path.parent, pattern.Params()).images[0]


def test_a_truncated_file_is_unreadable(tmp_path):
    path = tmp_path / "A01_s1_w1.tif"
    for options in ({}, {"compression": "zlib"}):
        tifffile.imwrite(path, np.arange(4096, dtype=np.uint16).reshape(64, 64), **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UnreadableImageError, match="A01_s1_w1.tif"):
            pattern.load(tmp_path, image_of(path))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), np.float32), ((8, 8), np.uint32), ((8, 8), np.int16), ((2, 8, 8), np.uint16)]
)
def test_what_is_no_plane_of_counts_is_refused_not_cast(tmp_path, shape, dtype):
    path = tmp_path / "A01_s1_w1.tif"
    write(path, shape, dtype, photometric="minisblack")
    with pytest.raises(UnreadableImageError, match="A01_s1_w1.tif"):
        pattern.load(tmp_path, image_of(path))


def test_an_empty_file_is_unreadable(tmp_path):
    (tmp_path / "A01_s1_w1.tif").touch()
    with pytest.raises(UnreadableImageError):
        pattern.load(tmp_path, image_of(tmp_path / "A01_s1_w1.tif"))


def test_bbbc013_and_cytation_are_recognized(data):
    for folder, layout, wells, channels in (
        ("bbbc013_sbs_rows_ABEF", "bbbc013", 48, {"1", "2"}),
        ("nf1_cytation_5wells/Plate_2_images", "cytation", 5, {"DAPI", "GFP", "RFP"}),
    ):
        source = data / folder
        names = [name for name, _ in list_files(source)]
        found = pattern.recognize(source, names)
        assert found["layout"] == layout and found["share"] == 1
        images = pattern.scan(source, pattern.Params(**found["params"])).images
        assert len({image.well for image in images}) == wells
        assert {image.channel for image in images} == channels
        assert pattern.load(source, images[0])[0].ndim == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wells", "options"),
    [
        ("bbbc013_sbs_rows_ABEF", 48, ["--pixel-size", "0.65"]),  # BMP and TIFF without a size
        ("nf1_cytation_5wells", 5, ["--pixel-size", "0.65"]),
        ("imagexpress_projection_mix", None, []),
        ("imagexpress_htd_3434", None, []),
        ("operetta_harmony_ball", None, []),
    ],
)
def test_real_plates_are_recognized_checked_and_converted_to_valid_ones(data, tmp_path, name, wells, options):
    from in_process import run_stages
    from test_plate import refused_by_ome_zarr_models
    from test_run import plateloom

    screen = tmp_path / "screen"
    for command in (
        ["init", screen, "--source", data / name, *options],
        ["check", screen],
        ["run", screen, "--until", "conversion", "--cores", "2"],
        ["verify", screen, "--deep"],
    ):
        code, text = plateloom(*command)
        assert code == 0, text
    for ngff in ("0.5", "0.4"):
        if ngff == "0.4":
            shutil.rmtree(screen / "results")
            settings = yaml.safe_load((screen / "config.yaml").read_text())
            settings["conversion"] = (settings.get("conversion") or {}) | {"ngff": ngff}
            (screen / "config.yaml").write_text(yaml.safe_dump(settings))
            run_stages(screen, ("conversion", "assembly"))
        (found,) = screen.glob("results/plates/*/plate.zarr")
        listed = plate.list_fields(found)
        assert wells in (None, len(listed))
        well, fields = next(iter(listed.items()))
        position = plate.field_path(found, well, fields[0])
        assert plate.read_image(position).any(axis=(-2, -1)).all(), "every channel has pixels"
        kinds = {"hcs.HCS": found, "well.Well": position.parent, "image.Image": position}
        assert not refused_by_ome_zarr_models(ngff, kinds)
        yaozarrs.validate_zarr_store(str(found))


def ome_plate(folder):
    image = np.random.default_rng(0).integers(0, 99, (2, 32, 32), dtype=np.uint16)
    channels = [{"label": name, "color": "FFFFFF", "window": [0, 9]} for name in ("DNA", "GFP")]
    for well in ("A01", "B02"):
        path = plate.field_path(folder, well, 1)
        plate.write_image(path, image, channels=channels, pixel_size_um=1.0, levels=1, record={})
        plate.write_well(folder, well, [1], {})
    plate.write_plate(folder, name="P", wells=["A01", "B02"], shape=(2, 3), field_count=1, record={})
    return image


def test_an_ome_zarr_plate_reads_back(tmp_path):
    image = ome_plate(tmp_path / "P.zarr")
    images = ome_zarr.scan(tmp_path / "P.zarr", ome_zarr.Params()).images
    assert [(i.well, i.field, i.channel) for i in images] == [(w, 1, c) for w in ("A01", "B02") for c in ("DNA", "GFP")]
    pixels, content = ome_zarr.load(tmp_path / "P.zarr", images[1])
    np.testing.assert_array_equal(pixels, image[1])
    assert content != ome_zarr.load(tmp_path / "P.zarr", images[0])[1]


def test_metadata_that_point_out_of_the_plate_are_refused(tmp_path):
    ome_plate(tmp_path / "P.zarr")
    path = tmp_path / "P.zarr/zarr.json"
    path.write_text(path.read_text().replace('"path":"A/01"', '"path":"../A/01"'))
    with pytest.raises((PlateLayoutError, ValueError), match="outside|not a well"):
        ome_zarr.scan(tmp_path / "P.zarr", ome_zarr.Params())


@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_elements_come_in_order_whatever_they_lie_in_and_wherever_chunks_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(markup, "CHUNK", chunk)
    inner = "".join(f"<n:w n:k='{i}'><w>in {i}</w> x <b n:j='1'/></n:w><skip><w k='s{i}'/></skip>" for i in range(9))
    path = tmp_path / "x.xml"
    path.write_text(f"<top xmlns:n='here' n:at='1'><list>{inner}</list><w k='last'>é</w></top>", encoding="utf-8")
    root, *found = markup.elements(path, "w", root=True)
    assert root.tag == "top" and root.get("at") == "1"
    assert [one.get("k") for one in found] == [key for i in range(9) for key in (str(i), f"s{i}")] + ["last"]
    assert [child.tag for child in found[0]] == ["w", "b"] and found[0][1].get("j") == "1" and found[-1].text == "é"
    assert [one.tag for one in markup.elements(path, "top")] == ["top"], "also the root itself"
    path.write_text("<a>" * 5000 + "</a>" * 5000)
    with pytest.raises(PlateLayoutError, match="more than 200 deep"):
        list(markup.elements(path, "w"))
