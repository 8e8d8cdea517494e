"""Names become planes: every layout known by name, every suffix, and files that are not what they say."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from conftest import soon
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagecodecs import jpeg8_encode, png_encode
from layouts import pattern as layout

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import SourceImage, pattern
from plateloom.readers.folders import list_files
from plateloom.readers.planes import load_plane

# What a layout's names have no room for.
WITHOUT = {
    "plateloom": "zt",
    "bbbc013": "fzt",
    "cellomics": "zt",
    "kinetic": "z",
    "generic": "zt",
}


def plane(seed, shape=(6, 7), dtype=np.uint16):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def planes_of(without, wells=("A01", "B12", "H03")):
    keys = [
        (well, field, channel, z, t)
        for well in wells
        for field in ((1,) if "f" in without else (1, 2))
        for channel in (1, 2)
        for z in ((1,) if "z" in without else (1, 2))
        for t in ((1,) if "t" in without else (1, 3))
    ]
    return {key: plane(seed) for seed, key in enumerate(keys)}


def names_of(source):
    return sorted(name for name, _ in list_files(source))


@pytest.mark.parametrize("name", layout.NAMES)
def test_every_known_layout_is_recognized_and_reads_back(tmp_path, name):
    without = WITHOUT.get(name, "")
    planes = planes_of(without)
    layout.write(tmp_path, planes, layout=name)
    found = pattern.recognize(tmp_path, names_of(tmp_path))
    assert found["layout"] == name and 0.9 < found["share"] <= 1
    images = pattern.scan(tmp_path, pattern.Params(**found["params"])).images
    assert len(images) == len(planes)
    for image in images:
        channel = next(
            i
            for i, text in enumerate(("DNA", "GFP"), 1)
            if text in image.channel or image.channel.lstrip("0") == str(i)
        )
        z, t = 1 if "z" in without else image.z, 1 if "t" in without else image.t
        np.testing.assert_array_equal(pattern.load(tmp_path, image)[0], planes[image.well, image.field, channel, z, t])
        assert (image.y_um, image.x_um, image.pixel_size_um) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("bbbc013", "Channel 1-01-A-01-00.tif", ("A01", 0, "1", 0, 0)),
        ("cytation", "A1_-1_2_1_Stitched[GFP 469,525]_001.tif", ("A01", 1, "Stitched[GFP 469,525]", 0, 1)),
        (
            "cytation",
            "A1_-2_1_1_Tsf[Stitched[Channel1 300,400]]_001.tif",
            ("A01", 1, "Tsf[Stitched[Channel1 300,400]]", 0, 1),
        ),
        ("cytation", "B3_02_1_2Z1_Bright Field_001.tif", ("B03", 2, "Bright Field", 1, 1)),
        (
            "cytation_roi",
            "A1ROI3_02_1_1_Bright Field_High Contrast_003.tif",
            ("A01", 3, "Bright Field_High Contrast", 0, 3),
        ),
        ("gen5", "P24_1_Bright Field_1_001_02.tif", ("P24", 1, "Bright Field", 0, 1)),
        (
            "gen5",
            "A1_1_Stitched[AandB_Phase Contrast]_1_001_-1.tif",
            ("A01", 1, "Stitched[AandB_Phase Contrast]", 0, 1),
        ),
        ("gen5", "A1_1Z4_DAPI_1_001_.tif", ("A01", 1, "DAPI", 4, 1)),
        ("harmony", "r16c24f01p07rc1-ch4sk2fk1fl1.tiff", ("P24", 1, "4", 7, 2)),
        ("harmony", "r02c07f12p01-ch01t03.tiff", ("B07", 12, "01", 1, 3)),
        ("metaxpress", "Week1_150607_B02_s1_w107447158-AC92-4844-8008-68C8C0B4C4DB.tif", ("B02", 1, "1", 0, 0)),
        ("metaxpress", "mcf-z-stacks-03212011_a01_s1_w1a57cb3ac.tif", ("A01", 1, "1", 0, 0)),
        ("yokogawa", "A_B_Cycle1_B03_T0001F036L01A01Z18C02.png", ("B03", 36, "02", 18, 1)),
        ("incell", "A - 01(fld 01 wv DAPI - DAPI).tif", ("A01", 1, "DAPI - DAPI", 0, 0)),
        ("incell", "Plate1_HA41_B - 01(fld 3 wv 390 - Blue).tif", ("B01", 3, "390 - Blue", 0, 0)),
        ("incell", "F - 001(fld 01 wv TL-Brightfield - DAPI).tif", ("F01", 1, "TL-Brightfield - DAPI", 0, 0)),
        ("incell", "A - 01(fld 1 wv UV - DAPI z 3 time 2 - 2636ms).tif", ("A01", 1, "UV - DAPI", 3, 2)),
        ("incell", "B - 02(fld 01 wv Blue - FITC - time 01 - 0 ms).tif", ("B02", 1, "Blue - FITC", 0, 1)),
        ("incell", "B - 4(fld 1 wv Cy3 - Cy3- time 7 - 500 ms).tif", ("B04", 1, "Cy3 - Cy3", 0, 7)),
        ("incell", "H - 12(fld 1 z 1- time 1 - 0 ms).tif", ("H12", 1, "1", 1, 1)),
        ("incell", "C - 6(fld 1 wv TL - Bright field - open z 01).tif", ("C06", 1, "TL - Bright field - open", 1, 0)),
        ("incell", "002_CD8_B - 2(fld 1 wv Cy3 - Cy3 wix 1).tif", ("B02", 1, "Cy3 - Cy3", 0, 0)),
        ("incell", "AF - 48(wv DAPI - DAPI).tif", ("AF48", 1, "DAPI - DAPI", 0, 0)),
        ("cellomics", "MFGTMP_140206180002_A01f00d0.TIF", ("A01", 0, "0", 0, 0)),
        ("cellomics", "A01f01d2.TIFF", ("A01", 1, "2", 0, 0)),
        ("kinetic", "020506plateruni3t001A01f01d2.TIF", ("A01", 1, "2", 0, 1)),
        ("evos", "scan_R_p2_z1_0_B03f01d0.tif", ("B03", 1, "0", 1, 2)),
        ("scanr", "A1--W00001--P00001--Z00000--T00000--Alexa 488.tif", ("A01", 1, "Alexa 488", 0, 0)),
    ],
)
def test_a_name_is_understood_and_its_layout_recognized(tmp_path, name, file, expected):
    (tmp_path / file).touch()
    assert pattern.recognize(tmp_path, [file])["layout"] == name
    (image,) = pattern.scan(tmp_path, pattern.Params(pattern=pattern.KNOWN[name])).images
    assert image[:5] == expected


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg"])
@pytest.mark.parametrize(
    ("layout", "stem"),
    [
        ("plateloom", "A01_s1_w1"),
        ("bbbc013", "Channel 1-01-A-01-00"),
        ("cytation", "B3_02_1_2Z1_Bright Field_001"),
        ("incell", "A - 01(fld 01 wv DAPI - DAPI)"),
        ("metaxpress", "mcf-z-stacks-03212011_a01_s1_w1a57cb3ac-ac92-4844-8008-68c8c0b4c4db"),
        ("yokogawa", "A_B_Cycle1_B03_T0001F036L01A01Z18C02"),
        ("generic", "A02_f3_DAPI"),
    ],
)
def test_a_layout_is_recognized_whatever_the_kind_of_its_files(tmp_path, layout, stem, suffix):
    (tmp_path / f"{stem}{suffix}").touch()
    found = pattern.recognize(tmp_path, [f"{stem}{suffix}"])
    assert found["layout"] == layout
    assert len(pattern.scan(tmp_path, pattern.Params(**found["params"])).images) == 1


def test_pictures_beside_the_images_are_no_images(tmp_path):
    names = [f"A0{column}_s1_w1{suffix}" for column in (1, 2, 3) for suffix in (".jpg", ".tif")]
    for name in names:
        (tmp_path / name).touch()
    found = pattern.recognize(tmp_path, names)
    images = pattern.scan(tmp_path, pattern.Params(**found["params"])).images
    assert [image.file for image in images] == names[1::2]


def test_the_folders_of_a_stack_say_the_plane(tmp_path):
    names = [f"BBBC006_v1_images_z_{z:02d}/mcf-z-stacks_a01_s1_w{w}1a57.tif" for z in (0, 1) for w in (1, 2)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = pattern.recognize(tmp_path, names)
    assert found["layout"] == "bbbc_stack"
    images = pattern.scan(tmp_path, pattern.Params(**found["params"])).images
    assert sorted((image.well, image.channel, image.z) for image in images) == [
        ("A01", channel, z) for channel in ("1", "2") for z in (0, 1)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "B7_01_1_3_DAPI_001_MaskNuclei.tiff",
        "scan_D_p2_z1_0_B03f01d0.tif",
        "exp_A02_s2_w1_thumb0815.tif",
        "image--L00--S00--U00--V00--J20--E00--O00--X00--Y00--T00--Z00--C00.ome.tif",
        "W0262F0001T0001Z000C2.tif",
        "IMG_2041.jpg",
        "A01_img1_DAPI.tif",  # no well stands in the middle of a word
        "field1_DAPI.tif",
        "ctrl_xh48_DAPI.tif",
    ],
)
def test_what_is_no_plane_of_a_known_layout_matches_none(name):
    assert pattern.recognize("nowhere", [name]) is None


def test_the_specific_layout_goes_before_the_guess(tmp_path):
    # Every one of these names fits `generic` too, and more of them do.
    names = [f"A{i:02d}_01_1_1_DAPI_001.tif" for i in range(1, 4)] + ["A04_f1_DAPI.tif"]
    assert pattern.recognize(tmp_path, names)["layout"] == "cytation"
    assert pattern.recognize(tmp_path, ["A04_f1_DAPI.tif", "A04_f1_GFP.tif"])["share"] < 1


@pytest.mark.parametrize(
    "file", ["Images/Index.idx.xml", "9987.HTD", "MeasurementData.mlf", "P.xdce", "P.companion.ome"]
)
def test_a_vendors_metadata_file_lets_its_own_reader_go_before(tmp_path, file):
    names = ["Images/A01_s1_w1.tif"]
    assert pattern.recognize(tmp_path, names)["share"] == 1
    assert 0.9 < pattern.recognize(tmp_path, [*names, file])["share"] < 1
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert 0.9 < pattern.recognize(tmp_path, names)["share"] < 1


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("IXMtest_A02_s9.tif", ("A02", 9, "1")),
        ("A02_site12.tif", ("A02", 12, "1")),
        ("A02_f3_DAPI.tif", ("A02", 3, "DAPI")),
        ("A02_DAPI.tif", ("A02", 1, "DAPI")),
        ("A02_site.tif", ("A02", 1, "site")),
    ],
)
def test_a_guess_takes_no_site_for_a_channel(tmp_path, file, expected):
    (tmp_path / file).touch()
    found = pattern.recognize(tmp_path, [file])
    (image,) = pattern.scan(tmp_path, pattern.Params(**found["params"])).images
    assert found["layout"] == "generic" and image[:3] == expected


@pytest.mark.parametrize("form", ["P1_{}.tif", "{}.TIF", "P01_{}.png", "screen 2 plate-3 {}.tif"])
def test_a_well_behind_the_plates_name_is_a_well(tmp_path, form):
    names = [form.format(well) for well in ("A01", "A02", "B01", "P24")]
    for name in names:
        (tmp_path / name).touch()
    found = pattern.recognize(tmp_path, names)
    images = pattern.scan(tmp_path, pattern.Params(**found["params"])).images
    assert [image[:3] for image in images] == [(well, 1, "1") for well in ("A01", "A02", "B01", "P24")]
    assert found["layout"] == "single" and found["share"] < 1


@pytest.mark.parametrize(
    ("names", "wells"),
    [
        (["A01_C01.tif", "A01_C02.tif", "B02_C01.tif", "B02_C02.tif"], {"A01", "B02"}),
        (["A01_C01.tif", "B02_C01.tif"], {"A01", "B02"}),
        (["A01_F01.tif", "A01_F02.tif"], {"A01"}),
    ],
)
def test_a_channel_or_a_site_that_is_called_like_a_well_is_none(tmp_path, names, wells):
    for name in names:
        (tmp_path / name).touch()
    found = pattern.recognize(tmp_path, names)
    images = pattern.scan(tmp_path, pattern.Params(**found["params"])).images
    assert found["layout"] == "generic" and len(images) == len(names) and {image.well for image in images} == wells


def test_names_that_another_reader_knows_better_are_left_to_it():
    for name in ("r01c01f01p01-ch1sk1fk1fl1.tiff", "x_B03_T0001F001L01A01Z01C01.png", "exp_A02_s2_w1.TIF"):
        assert 0.9 < pattern.recognize("nowhere", [name])["share"] < 1


def test_the_real_harmony_and_yokogawa_names_are_read_as_plain_names(data):
    found = pattern.scan(data / "operetta_harmony_ball", pattern.Params(pattern=pattern.KNOWN["harmony"])).images
    assert [image[:5] for image in found] == [("C03", 1, "1", 1, 1), ("C03", 2, "1", 1, 1)]
    folder = data / "yokogawa_cv7000_metadata/png_layout"
    found = pattern.scan(folder, pattern.Params(pattern=pattern.KNOWN["yokogawa"])).images
    assert [image[:5] for image in found] == [("B03", f, "01", z, 2) for f, z in ((1, 1), (1, 2), (2, 1), (2, 2))]
    assert pattern.load(folder, found[0])[0].ndim == 2


def test_other_image_files_are_counted_in_one_note(tmp_path):
    layout.write(tmp_path, planes_of("fzt"), layout="plateloom")
    for i in range(3):
        (tmp_path / f"overview{i}.png").touch()
    (note,) = pattern.scan(tmp_path, pattern.Params()).notes
    assert note.startswith("3 image files") and "overview0.png" in note


def test_a_link_to_nothing_is_no_image(tmp_path):
    layout.write(tmp_path, planes_of("fzt"), layout="plateloom")
    (tmp_path / "C01_s1_w1.tif").symlink_to(tmp_path / "gone.tif")
    assert len(pattern.scan(tmp_path, pattern.Params()).images) == 6


@pytest.mark.parametrize("text", ["x", "²", "1.5"])
def test_a_group_that_holds_no_number_is_named(tmp_path, text):
    (tmp_path / f"A01_{text}_2.tif").touch()
    params = pattern.Params(pattern=r"(?P<well>[A-P]\d\d)_(?P<field>.+)_(?P<channel>.+)\.tif")
    with pytest.raises(PlateLayoutError, match="`field` holds"):
        pattern.scan(tmp_path, params)


@pytest.mark.parametrize("text", ["r33c01", "r00c01", "r+c01", "r01c49", "r²c01", "rc"])
def test_a_row_or_column_that_no_plate_has_is_refused(tmp_path, text):
    (tmp_path / f"{text}.tif").touch()
    params = pattern.Params(pattern=r"r(?P<row>[^c]*)c(?P<column>.*)\.tif")
    for call in (lambda: pattern.scan(tmp_path, params), lambda: list(pattern.listing(tmp_path, params))):
        with pytest.raises(PlateLayoutError, match=r"not a well|outside"):
            call()


def test_a_listing_and_a_scan_agree_on_numbered_rows(tmp_path):
    layout.write(tmp_path, planes_of(""), layout="harmony")
    params = pattern.Params(pattern=pattern.KNOWN["harmony"])
    listed = sorted(well for well, _ in pattern.listing(tmp_path, params))
    assert listed == sorted(image.well for image in pattern.scan(tmp_path, params).images)


def test_a_pattern_may_match_folders(tmp_path):
    for step in (1, 2):
        layout.write(tmp_path / f"ZStep_{step}", planes_of("fzt"), layout="plateloom")
    params = pattern.Params(folders=True, pattern=r"ZStep_(?P<z>\d+)/(?P<well>[A-H]\d\d)_s\d_w(?P<channel>\d)\.tif")
    assert {image.z for image in pattern.scan(tmp_path, params).images} == {1, 2}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(min_size=1, max_size=40), max_size=6))
def test_no_name_makes_recognition_stumble(names):
    found = pattern.recognize("nowhere", names)
    assert found is None or 0 < found["share"] <= 1


def test_a_hundred_thousand_names_take_seconds():
    names = [
        f"r{r:02d}c{c:02d}f{f:02d}p{p:02d}-ch{k}sk1fk1fl1.tiff"
        for r in range(1, 17)
        for c in range(1, 25)
        for f in range(1, 10)
        for p in range(1, 6)
        for k in range(1, 7)
    ]
    with soon():
        assert pattern.recognize("nowhere", names)["layout"] == "harmony"
    assert len(names) > 100_000


# One plane of a file


def image(name, page=-1):
    return SourceImage("A01", 1, "1", 0, 0, name, 0, 0, page)


def load(path, page=-1):
    return load_plane(path.parent, image(path.name, page))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png", ".PNG"])
def test_a_plane_of_any_lossless_kind_reads_back(tmp_path, suffix, dtype):
    pixels = plane(0, dtype=dtype)
    layout.write(tmp_path, {("A01", 1, 1, 1, 1): pixels}, layout="plateloom", suffix=suffix)
    found, content = load(tmp_path / f"A01_s1_w1{suffix}")
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == dtype and len(content) == 32


@pytest.mark.parametrize(
    "options", [{"byteorder": ">"}, {"compression": "lzw", "byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}]
)
def test_a_tiff_of_any_make_reads_back_in_native_order(tmp_path, options):
    pixels = plane(0, (40, 50))
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    found, _ = load(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype.isnative and found.dtype == np.uint16


def test_a_jpeg_is_read(tmp_path):
    pixels = np.full((16, 24), 130, np.uint8)
    (tmp_path / "a.jpg").write_bytes(jpeg8_encode(pixels, level=95))
    found, _ = load(tmp_path / "a.jpg")
    assert found.shape == (16, 24) and abs(int(found.mean()) - 130) < 3


def test_one_of_several_pages_is_read_alone(tmp_path):
    stack = np.stack([plane(i) for i in range(4)])
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    contents = set()
    for page in range(4):
        found, content = load(tmp_path / "a.tif", page)
        np.testing.assert_array_equal(found, stack[page])
        contents.add(content)
    assert len(contents) == 4
    with pytest.raises(UnreadableImageError, match="holds 4 pages, expected at least 5"):
        load(tmp_path / "a.tif", 4)
    with pytest.raises(UnreadableImageError, match="holds 4 pages, expected one"):
        load(tmp_path / "a.tif")


def test_a_stack_of_imagej_with_one_page_is_no_single_plane(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", plane(0), description="ImageJ=1.53t\nimages=3\nslices=3\n", metadata=None)
    with pytest.raises(UnreadableImageError, match="holds 3 pages"):
        load(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_colors_are_refused(tmp_path, name):
    pixels = np.zeros((8, 8, 3), np.uint8)
    data = {"a.png": png_encode, "a.jpg": jpeg8_encode}
    if name in data:
        (tmp_path / name).write_bytes(data[name](pixels))
    else:
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb")
    with pytest.raises(UnreadableImageError, match="gray"):
        load(tmp_path / name)


def huge_jpeg(width, height):
    """A JPEG whose header, behind a comment, a fill byte and two tables, declares any size."""
    data = jpeg8_encode(np.zeros((8, 8), np.uint8))
    at = data.index(b"\xff\xc0")
    comment = b"\xff\xfe" + struct.pack(">H", 5) + b"\xff\xc0x"
    return (
        data[:2]
        + comment
        + b"\xff"
        + data[2:at]
        + data[at : at + 5]
        + struct.pack(">HH", height, width)
        + data[at + 9 :]
    )


def huge_png(width, height):
    data = bytearray(png_encode(np.zeros((8, 8), np.uint16)))
    data[16:24] = struct.pack(">II", width, height)
    return bytes(data)


@pytest.mark.parametrize(("name", "make"), [("a.jpg", huge_jpeg), ("a.png", huge_png), ("a.jpeg", huge_png)])
def test_what_declares_a_huge_plane_is_refused_before_it_is_decoded(tmp_path, name, make):
    (tmp_path / name).write_bytes(make(65000, 65000))
    with soon(20), pytest.raises(UnreadableImageError, match="declares 65000 × 65000 pixels"):
        load(tmp_path / name)


def test_a_tiff_that_declares_more_than_it_holds_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", plane(0, (64, 64)))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        at = tiff.pages[0].tags["ImageLength"].valueoffset
    data[at : at + 4] = struct.pack("<I", 60000)
    (tmp_path / "a.tif").write_bytes(data)
    for page in (-1, 0):
        with pytest.raises(UnreadableImageError, match="declares"):
            load(tmp_path / "a.tif", page)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_a_dark_plane_is_read_and_a_small_file_whose_zeros_would_fill_the_memory_is_not(tmp_path, name):
    path, zeros = tmp_path / name, np.zeros((3000, 3000), np.uint16)
    path.write_bytes(png_encode(zeros, level=9))
    if name == "a.tif":
        tifffile.imwrite(path, zeros, compression="zlib")
    assert zeros.nbytes > 100 * path.stat().st_size and not load(path)[0].any()
    path.write_bytes(huge_png(14000, 14000) + bytes(800_000))
    if name == "a.tif":
        rows = zlib.compress(bytes(2 * 14000 * 100))
        layout = {"shape": (14000, 14000), "dtype": np.uint16, "rowsperstrip": 100, "compression": "zlib"}
        tifffile.imwrite(path, iter([rows] * 140), **layout)
    for page in (-1, 0) if name == "a.tif" else (-1,):
        with pytest.raises(UnreadableImageError, match="declares"):
            load(path, page)


def test_a_strip_that_was_never_written_is_no_strip_of_zeros(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", plane(0, (64, 64)), rowsperstrip=16, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        counts = list(tiff.pages[0].tags["StripByteCounts"].value)
        tiff.pages[0].tags["StripByteCounts"].overwrite([*counts[:3], 0])
    with pytest.raises(UnreadableImageError, match="strips"):
        load(tmp_path / "a.tif")


@pytest.mark.parametrize("page", [-1, 0, 1])
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_flipped_and_missing_bytes_make_a_file_unreadable_and_nothing_worse(tmp_path, name, page):
    path = tmp_path / name
    if name == "a.tif":
        tifffile.imwrite(
            path, np.stack([plane(0)] * (1 if page < 0 else 2)), compression="zlib", photometric="minisblack"
        )
    else:
        path.write_bytes((png_encode if name == "a.png" else jpeg8_encode)(plane(0, dtype=np.uint8)))
    good, random = path.read_bytes(), np.random.default_rng(page + 7)
    for _ in range(150):
        data = bytearray(good)
        if random.random() < 0.3:
            del data[random.integers(len(data)) :]
        for _ in range(random.integers(1, 5)):
            if data:
                data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data)
        try:
            found, _ = load(path, page)
        except UnreadableImageError as error:
            assert name in str(error)
        else:
            assert found.ndim == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kept", [2, 5])
def test_an_old_copy_that_broke_off_in_space_set_aside_is_not_read_as_black(tmp_path, dtype, kept):
    path, pixels = tmp_path / "a.tif", np.maximum(plane(0, (200, 300), dtype), 1)
    tifffile.imwrite(path, pixels)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept * 4096] + bytes(len(whole) - kept * 4096))
    with pytest.raises(UnreadableImageError, match=f"damaged; copy it .*zeros from byte {kept * 4096} of {len(whole)}"):
        load(path)
    for rows in range(0, 200, 7):  # what is black at its bottom may be so
        pixels[rows:] = 0
        tifffile.imwrite(path, pixels)
        np.testing.assert_array_equal(load(path)[0], pixels)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
@pytest.mark.parametrize("kept", [0, 6, 50, 200, 0.5, 0.99])
def test_a_truncated_tiff_is_called_truncated(tmp_path, compression, kept):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, plane(0, (80, 80)), compression=compression, rowsperstrip=20)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else kept])
    with pytest.raises(
        UnreadableImageError, match=r"a.tif: truncated or damaged; copy it from the microscope again \(.+\)"
    ):
        load(path)


def test_a_file_of_a_kind_that_is_not_read_is_not_called_damaged(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint16), photometric="minisblack")
    with pytest.raises(UnreadableImageError, match=r"a.tif: cannot be decoded \(holds 3 pages"):
        load(tmp_path / "a.tif")
