"""ImageXpress: two real plates, constructed ones in every variant of the layout, and metadata that are broken."""

import itertools
import os
import random

import numpy as np
import pytest
import tifffile
from conftest import soon
from layouts.imagexpress import index_text, replace_line, write

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import imagexpress, pattern
from plateloom.readers.folders import list_files

STACK, PROJECTION = imagexpress.Params(), imagexpress.Params(z="projection")
POSITIONS = {1: (-50.5, -60.25), 2: (-50.5, 60.25), 3: (50.5, 0.0)}


def make_planes(wells=("B02", "B03"), fields=(1, 2), channels=(1, 2), zs=(1,), ts=(1,), seed=0):
    """Noise for each plane; no two are alike."""
    keys = list(itertools.product(wells, fields, channels, zs, ts))
    pixels = np.random.default_rng(seed).integers(0, 60_000, (len(keys), 16, 20), dtype=np.uint16)
    return dict(zip(keys, pixels, strict=True))


def keys_of(source):
    return [image[:5] for image in source.images]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_an_exported_plate_with_copies_and_a_projection_is_read(data):
    source = imagexpress.scan(data / "imagexpress_htd_3434", STACK)
    fields = list(itertools.product(("B02", "B03"), (1, 2)))
    planes = [("1", 1), ("1", 2), ("2", 0), ("3", 0)]
    assert keys_of(source) == [(*field, channel, z, 1) for field in fields for channel, z in planes]
    assert source.shape == (8, 12) and source.finished is None
    assert {name: found["name"] for name, found in source.channels.items()} == {
        "1": "DAPI",
        "2": "FITC",
        "3": "Texas Red",
    }
    assert {image.pixel_size_um for image in source.images} == {1.3672}
    assert {(image.channel, image.wavelength_nm) for image in source.images} == {("1", 452), ("2", 520), ("3", 624)}
    assert {image.field: (image.y_um, image.x_um) for image in source.images} == {
        1: (-314.98, -315.02),
        2: (-314.98, 0.04),
    }
    assert {(image.z, image.z_um) for image in source.images} == {(0, None), (1, 0.0), (2, 3.0)}
    first = source.images[0]
    assert first.seconds == pytest.approx(1720530783.006, abs=1e-3)
    pixels, _ = imagexpress.load(data / "imagexpress_htd_3434", first)
    assert pixels.shape == (256, 256) and pixels.dtype == np.uint16


def test_what_the_real_htd_declares_and_the_folder_lacks_is_told(data):
    notes = imagexpress.scan(data / "imagexpress_htd_3434", STACK).notes
    for part in (
        "channel 2, 3: one plane, which the export repeats in every ZStep folder, counts once",
        "channel 1: of stack and projection, both there, the stack counts (parameter z)",
        "projection was made of 3 planes, 2 are there",
        "absent channels, 1 of 4 that '9987_Plate_3434/9987.HTD' declares: 4 (Cy5)",
        "absent z steps, 1 of 3 that '9987_Plate_3434/9987.HTD' declares: 3",
    ):
        assert sum(part in note for note in notes) == 1
    assert len(notes) == 5


def test_the_real_projection_is_at_least_the_maximum_of_the_planes_that_are_left(data):
    folder = data / "imagexpress_htd_3434"
    stack = [image for image in imagexpress.scan(folder, STACK).images if image.z]
    projections = {image[:3]: image for image in imagexpress.scan(folder, PROJECTION).images}
    for image in stack:
        assert (imagexpress.load(folder, projections[image[:3]])[0] >= imagexpress.load(folder, image)[0]).all()


def test_a_plate_of_the_database_with_mixed_channels_is_read(data):
    folder = data / "imagexpress_projection_mix"
    source = imagexpress.scan(folder, STACK)
    fields = list(itertools.product(("E07", "E08"), (1, 2)))
    planes = [*(("1", z) for z in (1, 2, 3)), *(("2", z) for z in (1, 2, 3)), ("3", 0), ("4", 1)]
    assert keys_of(source) == [(*field, channel, z, 0) for field in fields for channel, z in planes]
    assert not any("thumb" in image.file for image in source.images)
    assert source.shape is None
    assert {image.pixel_size_um for image in source.images} == {1.3668}
    assert {image.x_um for image in source.images} == {-349.92, 349.92}
    heights = {(image.channel, image.z): image.z_um for image in source.images}
    assert heights["1", 3] - heights["1", 1] == pytest.approx(9.92, abs=0.01)
    assert heights["4", 1] == pytest.approx(16.7, abs=0.01) and heights["3", 0] is None
    assert "channel 2: MetaXpress's projection is 'Best Focus', no maximum" in source.notes


def test_of_the_real_mixed_plate_the_projections_can_count(data):
    source = imagexpress.scan(data / "imagexpress_projection_mix", PROJECTION)
    planes = [("1", 0), ("2", 0), ("3", 0), ("4", 1)]
    fields = list(itertools.product(("E07", "E08"), (1, 2)))
    assert keys_of(source) == [(*field, channel, z, 0) for field in fields for channel, z in planes]
    assert source.notes == ["channel 1, 2: of stack and projection, both there, the projection counts (parameter z)"]


@pytest.mark.parametrize(
    ("folder", "layout"),
    [("imagexpress_htd_3434", "MetaXpress export"), ("imagexpress_projection_mix", "MetaXpress database")],
)
def test_real_plates_are_recognized_from_the_names_of_their_images(data, folder, layout):
    names = [name for name, _ in list_files(data / folder)]
    found = imagexpress.recognize(data / folder, names)
    assert found == {"reader": "imagexpress", "params": {}, "layout": layout, "share": 1.0}


def test_no_other_real_plate_is_recognized(data):
    for folder in data.iterdir():
        if folder.is_dir() and not folder.name.startswith("imagexpress"):
            names = [name for name, _ in itertools.islice(list_files(folder), 5000)]
            assert imagexpress.recognize(folder, names) is None, folder.name


@pytest.mark.parametrize("layout", ["export", "database"])
@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ({}, {}),
        ({"zs": (1, 2, 3)}, {}),
        ({"ts": (1, 2)}, {}),
        ({"zs": (1, 2), "ts": (1, 2, 3)}, {"thumbs": True}),
        ({"fields": (1,)}, {}),
        ({"fields": (1,)}, {"sites": True}),
        ({"channels": (1,)}, {}),
        ({"channels": (1,), "fields": (1,)}, {}),
        ({"channels": (1,), "fields": (1,)}, {"times": False, "index": False}),
        ({"wells": ("A01", "P24")}, {"shape": (16, 24)}),
        ({"wells": ("A01", "Z48", "AA01", "AF48")}, {"shape": (32, 48)}),
        ({"wells": ("A01", "B03")}, {"shape": (2, 3)}),
        ({}, {"name": "A01_C03_s2_w1 x"}),
        ({}, {"name": "thumb_B02"}),
        ({}, {"suffix": ".tif"}),
        ({}, {"suffix": ".TIF"}),
        ({}, {"suffix": ".tiff"}),
        ({"fields": (1, 2, 3)}, {"positions": POSITIONS}),
        ({"fields": (1, 2, 3), "zs": (1, 2)}, {"positions": POSITIONS, "pixel_size_um": 0.325}),
    ],
)
def test_every_plane_reads_back(tmp_path, layout, axes, options):
    planes = make_planes(**axes)
    write(tmp_path, planes, layout=layout, **options)
    source = imagexpress.scan(tmp_path, STACK)
    stacked = len({key[3] for key in planes}) > 1
    timed = options.get("times", True)
    found = {(image.well, image.field, int(image.channel), image.z, image.t): image for image in source.images}
    assert set(found) == {(*key[:3], key[3] * stacked, key[4] * timed) for key in planes}
    for key, pixels in planes.items():
        read, _ = imagexpress.load(tmp_path, found[(*key[:3], key[3] * stacked, key[4] * timed)])
        np.testing.assert_array_equal(read, pixels)
    assert source.shape == (options.get("shape", (8, 12)) if options.get("index", True) else None)
    assert {image.pixel_size_um for image in source.images} == {options.get("pixel_size_um", 0.65)}
    for image in source.images:
        if "positions" in options:
            assert (image.y_um, image.x_um) == POSITIONS[image.field]
        assert image.z_um == ((image.z - 1) * 2.5 if stacked else None)
        assert image.wavelength_nm == 400 + 50 * int(image.channel)
    assert source.notes == []
    assert imagexpress.recognize(tmp_path, [name for name, _ in list_files(tmp_path)])["share"] == 1.0


def test_positions_come_from_the_stage_where_tags_know_no_well(tmp_path):
    write(tmp_path, make_planes(fields=(1, 2, 3)), positions=POSITIONS, offsets=False)
    center = np.mean(list(POSITIONS.values()), axis=0)
    for image in imagexpress.scan(tmp_path, STACK).images:
        assert (image.y_um, image.x_um) == pytest.approx(tuple(POSITIONS[image.field] - center), abs=1.0)


@pytest.mark.parametrize(("wells", "offsets", "told"), [(3, False, True), (3, True, False), (2, False, False)])
def test_where_only_the_stage_is_known_further_wells_are_taken_on_trust_and_that_is_said(
    tmp_path, wells, offsets, told
):
    planes = make_planes(wells=("B02", "B03", "C01")[:wells], fields=(1, 2, 3))
    write(tmp_path, planes, positions=POSITIONS, offsets=offsets)
    notes = imagexpress.scan(tmp_path, STACK).notes
    assert any("positions: none" in note for note in notes) == told, notes


def test_positions_do_not_follow_the_order_of_files(tmp_path):
    positions = {1: (90.0, 0.0), 2: (0.0, 90.0), 3: (-90.0, -90.0)}
    write(tmp_path, make_planes(fields=(1, 2, 3)), positions=positions)
    assert {i.field: (i.y_um, i.x_um) for i in imagexpress.scan(tmp_path, STACK).images} == positions


def test_wells_with_fields_in_other_places_have_no_positions(tmp_path):
    write(tmp_path, make_planes(wells=("B02",)), positions={1: (0, 0), 2: (0, 100)})
    write(tmp_path, make_planes(wells=("B03",)), positions={1: (0, 0), 2: (100, 0)})
    source = imagexpress.scan(tmp_path, STACK)
    assert {(image.y_um, image.x_um) for image in source.images} == {(None, None)}
    assert "fields have no positions: wells B02 and B03 have their fields in other places" in source.notes


def test_a_field_of_a_later_well_that_lies_elsewhere_is_refused_unless_positions_are_of_no_account(tmp_path):
    write(tmp_path, make_planes(wells=("B02", "B03")), positions=POSITIONS)
    elsewhere = POSITIONS | {2: (POSITIONS[2][0] + 20, POSITIONS[2][1])}
    write(tmp_path, make_planes(wells=("B04",)), positions=elsewhere)
    source = imagexpress.scan(tmp_path, STACK)
    assert {image.field: (image.y_um, image.x_um) for image in source.images} == {i: POSITIONS[i] for i in (1, 2)}
    refused = {}
    for image in source.images:
        try:
            imagexpress.load(tmp_path, image)
        except UnreadableImageError as error:
            refused[image.well, image.field] = str(error)
    assert set(refused) == {("B04", 2)} and "positions: none" in refused["B04", 2]
    for image in imagexpress.scan(tmp_path, imagexpress.Params(positions="none")).images:
        assert image.y_um is None and image.pixel_size_um == 0.65
        imagexpress.load(tmp_path, image)


def test_fields_that_all_claim_one_place_have_no_positions(tmp_path):
    write(tmp_path, make_planes(), positions={1: (0, 0), 2: (0, 0)})
    source = imagexpress.scan(tmp_path, STACK)
    assert source.images[0].y_um is None and source.images[0].pixel_size_um == 0.65
    assert source.notes == ["fields have no positions: several fields of a well claim the same place"]


def test_positions_are_those_of_the_first_well_that_has_all_fields(tmp_path):
    planes = make_planes(wells=("B02", "B03", "B04"))
    write(tmp_path, {key: pixels for key, pixels in planes.items() if key[:2] != ("B02", 2)}, positions=POSITIONS)
    source = imagexpress.scan(tmp_path, STACK)
    assert {image.field: (image.y_um, image.x_um) for image in source.images} == {i: POSITIONS[i] for i in (1, 2)}
    assert source.notes == ["2 of 12 images are absent, the first in well B02, field 2, channel 1, t 1"]


@pytest.mark.parametrize("field", [1, 2, 3])
def test_one_damaged_file_does_not_cost_the_plate_its_positions(tmp_path, field):
    root = write(tmp_path, make_planes(fields=(1, 2, 3)), positions=POSITIONS)
    path = root / f"TimePoint_1/Screen_1_B02_s{field}_w1.TIF"
    path.write_bytes(path.read_bytes()[:200])
    source = imagexpress.scan(tmp_path, STACK)
    assert {image.field: (image.y_um, image.x_um) for image in source.images} == POSITIONS
    assert {image.pixel_size_um for image in source.images} == {0.65} and source.notes == []


def test_tiffs_without_tags_are_read_without_facts_and_a_note_says_so(tmp_path):
    planes = make_planes()
    write(tmp_path, planes, tags=False)
    source = imagexpress.scan(tmp_path, STACK)
    assert len(source.images) == len(planes)
    assert {image[9:] for image in source.images} == {(None,) * 6}
    assert len(source.notes) == 2
    assert "no positions" in source.notes[0] and "channel 1, 2: tags do not say the size" in source.notes[1]


def test_few_files_are_opened_whatever_the_size_of_a_plate(tmp_path):
    wells = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]
    write(tmp_path, make_planes(wells=wells, zs=(1, 2, 3), ts=(1, 2)))
    images = imagexpress.scan(tmp_path, STACK).images
    assert len(images) == 24 * 2 * 2 * 3 * 2
    taken = [image for image in images if image.seconds is not None]
    assert len(taken) < 12 and {image.t for image in taken} == {1, 2}
    assert {image.well for image in taken} == {"A01", "A02"}


def test_empty_files_are_listed_and_many_of_them_take_seconds(tmp_path):
    for t in (1, 2):
        folder = tmp_path / f"P_Plate_1/TimePoint_{t}"
        folder.mkdir(parents=True)
        for row, column, field, channel in itertools.product(
            "ABCDEFGHIJKLMNOP", range(1, 25), range(1, 7), range(1, 6)
        ):
            (folder / f"P_{row}{column:02d}_s{field}_w{channel}.TIF").touch()
    with soon():
        assert len(imagexpress.scan(tmp_path, STACK).images) == 23040


@pytest.mark.parametrize("layout", ["export", "database"])
def test_a_stack_or_its_projection_counts_never_both(tmp_path, layout):
    planes = make_planes(zs=(1, 2, 3))
    write(tmp_path, planes, layout=layout, projected=(1,))
    stacked = imagexpress.scan(tmp_path, STACK)
    assert {(image.channel, image.z) for image in stacked.images} == set(itertools.product("12", (1, 2, 3)))
    assert stacked.notes == ["channel 1: of stack and projection, both there, the stack counts (parameter z)"]
    projected = imagexpress.scan(tmp_path, PROJECTION)
    assert {(image.channel, image.z) for image in projected.images} == {("1", 0), *(("2", z) for z in (1, 2, 3))}
    one = next(image for image in projected.images if image[:3] == ("B02", 1, "1"))
    pixels, _ = imagexpress.load(tmp_path, one)
    np.testing.assert_array_equal(pixels, np.max([planes["B02", 1, 1, z, 1] for z in (1, 2, 3)], axis=0))


def test_where_one_field_lacks_its_stack_the_projection_counts_and_is_told(tmp_path):
    root = write(tmp_path, make_planes(zs=(1, 2)), projected=(1, 2))
    for z in (1, 2):
        (root / f"TimePoint_1/ZStep_{z}/Screen_1_B02_s2_w1.TIF").unlink()
    source = imagexpress.scan(tmp_path, STACK)
    assert [image.z for image in source.images if image[:3] == ("B02", 2, "1")] == [0]
    assert "images without a stack where others of their channel have one: 1; their projection counts" in source.notes
    assert "channel 1: 1 of 4 stacks lack planes that others have" in source.notes


def test_a_single_plane_that_the_export_repeats_counts_once(tmp_path):
    planes = {key: pixels for key, pixels in make_planes(zs=(1, 2, 3)).items() if key[2] == 1 or key[3] == 1}
    write(tmp_path, planes, repeated=(2,), projected=(1,))
    source = imagexpress.scan(tmp_path, STACK)
    assert {(image.channel, image.z) for image in source.images} == {("1", 1), ("1", 2), ("1", 3), ("2", 0)}
    assert "channel 2: one plane, which the export repeats in every ZStep folder, counts once" in source.notes
    read, _ = imagexpress.load(tmp_path, next(image for image in source.images if image[:3] == ("B03", 2, "2")))
    np.testing.assert_array_equal(read, planes["B03", 2, 2, 1, 1])


def test_planes_of_equal_size_are_a_stack_unless_their_tags_are_the_same(tmp_path):
    write(tmp_path, make_planes(zs=(1, 2, 3)))
    sizes = {image.size for image in imagexpress.scan(tmp_path, STACK).images}
    assert len(sizes) < 4 and len(imagexpress.scan(tmp_path, STACK).images) == 24
    write(tmp_path / "untagged", make_planes(zs=(1, 2, 3)), tags=False)
    assert len(imagexpress.scan(tmp_path / "untagged", STACK).images) == 24


def test_a_stack_whose_sizes_differ_is_no_copy_though_the_sampled_one_is(tmp_path):
    planes = {key: pixels for key, pixels in make_planes(zs=(1, 2)).items() if key[2] == 1 or key[3] == 1}
    root = write(tmp_path, planes, repeated=(2,))
    tifffile.imwrite(root / "TimePoint_1/ZStep_2/Screen_1_B03_s2_w2.TIF", np.zeros((16, 20), np.uint16))
    source = imagexpress.scan(tmp_path, STACK)
    assert [image.z for image in source.images if image[:3] == ("B03", 2, "2")] == [1, 2]
    assert [image.z for image in source.images if image[:3] == ("B03", 1, "2")] == [1]


@pytest.mark.parametrize(
    ("declared", "note"),
    [
        ({"TimePoints": "3"}, "absent time points, 2 of 3 that 'Screen_1_Plate_77/Screen_1.HTD' declares: 2, 3"),
        ({"ZSeries": "TRUE", "ZSteps": "4"}, "absent z steps, 3 of 4 that"),
        ({"NWavelengths": "4"}, "absent channels, 2 of 4 that"),
        ({"NWavelengths": "1"}, "channels that 'Screen_1_Plate_77/Screen_1.HTD' does not declare, 1 of 2: 2 (GFP)"),
        ({"Waves": "FALSE"}, "channels that 'Screen_1_Plate_77/Screen_1.HTD' does not declare, 1 of 2"),
        ({"XSites": "3", "SiteSelection1": "TRUE, TRUE, TRUE"}, "absent fields, 1 of 3 that"),
        ({"Sites": "FALSE"}, "fields that 'Screen_1_Plate_77/Screen_1.HTD' does not declare, 1 of 2: 2"),
        ({"WellsSelection1": ", ".join(["TRUE"] * 12)}, "absent wells, 12 of 14 that"),
        (
            {"WellsSelection2": ", ".join(["FALSE", "TRUE", *["FALSE"] * 10])},
            "wells that 'Screen_1_Plate_77/Screen_1.HTD' does not declare, 1 of 2: B03",
        ),
        ({"XWells": "2", "YWells": "1"}, "declares 1 × 2 wells, but there are images of others"),
    ],
)
def test_what_is_declared_and_what_is_there_are_compared(tmp_path, declared, note):
    planes = make_planes()
    write(tmp_path, planes, declared=declared)
    source = imagexpress.scan(tmp_path, STACK)
    assert len(source.images) == len(planes)
    assert len(source.notes) == 1 and note in source.notes[0]


def test_time_points_that_nobody_declared_are_read(tmp_path):
    write(tmp_path, make_planes(ts=(1, 2, 3)), declared={"TimePoints": "1"})
    source = imagexpress.scan(tmp_path, STACK)
    assert {image.t for image in source.images} == {1, 2, 3}
    assert source.notes == ["time points that 'Screen_1_Plate_77/Screen_1.HTD' does not declare, 2 of 3: 2, 3"]


def test_one_time_point_is_one_time_point(tmp_path):
    write(tmp_path, make_planes())
    assert {image.t for image in imagexpress.scan(tmp_path, STACK).images} == {1}


def test_a_stack_of_which_only_the_projection_was_kept_is_nothing_to_tell(tmp_path):
    write(tmp_path, make_planes(), declared={"ZSeries": "TRUE", "ZSteps": "9", "ZProjection": "TRUE"})
    assert imagexpress.scan(tmp_path, STACK).notes == []


@pytest.mark.parametrize(
    "key",
    [
        "XWells",
        "YWells",
        "XSites",
        "YSites",
        "SiteSelection1",
        "Sites",
        "Waves",
        "NWavelengths",
        "WaveName1",
        "WaveCollect1",
    ]
    + ["TimePoints", "ZSteps", "ZSeries", "ZProjection", "WellsSelection2", "EndFile", "Description"],
)
@pytest.mark.parametrize("value", [None, "", '"', "-1", "1e999", "TRUE", "9" * 5000, "\x00", "µ, µ, µ"])
def test_no_key_of_an_htd_is_needed_and_none_is_trusted(tmp_path, key, value):
    write(tmp_path, make_planes(wells=("B02",)), declared={key: value})
    assert len(imagexpress.scan(tmp_path, STACK).images) == 4


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"WaveName1", "Texas Red, 594"', "Texas Red, 594"),
        ('"WaveName1", "\xb5-Dye"', "µ-Dye"),
        ('"WaveName1","DAPI"', "DAPI"),
        ("WaveName1, DAPI", "DAPI"),
        ('"WaveName1", "a\x07b"', "ab"),
    ],
)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
def test_names_of_channels_survive_quotes_bytes_and_line_ends(tmp_path, text, names, encoding, newline):
    root = write(tmp_path, make_planes(wells=("B02",)), index=False)
    lines = newline.join(['"HTSInfoFile", Version 1.0', '"XWells", 12', '"YWells", 8', text])
    (root / "Other.HTD").write_bytes(lines.encode(encoding))
    source = imagexpress.scan(tmp_path, STACK)
    assert source.channels["1"] == {"name": names} and source.shape == (8, 12)


def test_without_an_htd_channels_are_named_by_the_microscopes_setting(tmp_path):
    write(tmp_path, make_planes(), index=False, channels=("Cy5 & more", "GFP"))
    assert imagexpress.scan(tmp_path, STACK).channels == {"1": {"name": "Cy5 & more"}, "2": {"name": "GFP"}}


def test_of_several_htds_the_one_that_is_named_for_the_plate_counts(tmp_path):
    root = write(tmp_path, make_planes(), shape=(16, 24))
    (tmp_path / "A.HTD").write_bytes(index_text(make_planes(), shape=(8, 12), channels=("X",)).encode("latin-1"))
    (root / "._Screen_1.HTD").write_bytes(b"\0\x05\x16\x07")
    assert imagexpress.scan(tmp_path, STACK).shape == (16, 24)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"hello", b"\xff\xfeH\0T\0S\0", b" " * 100, b"\r\n\r\n", b"PK\3\4" * 9]
)
def test_an_htd_that_is_none_is_refused_and_named(tmp_path, content):
    root = write(tmp_path, make_planes(wells=("B02",)))
    (root / "Screen_1.HTD").write_bytes(content)
    with pytest.raises(PlateLayoutError, match=r"Screen_1\.HTD.*copy it again"):
        imagexpress.scan(tmp_path, STACK)


def test_a_huge_htd_is_refused(tmp_path):
    root = write(tmp_path, make_planes(wells=("B02",)))
    (root / "Screen_1.HTD").write_bytes(b'"HTSInfoFile", Version 1.0\r\n' + b"x" * (1 << 21))
    with pytest.raises(PlateLayoutError, match="larger than 1 MiB"):
        imagexpress.scan(tmp_path, STACK)


def damage(content, rng):
    """Flip, cut out or repeat some bytes."""
    content = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        kind, at = rng.randrange(4), rng.randrange(len(content) or 1)
        if kind == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del content[at : at + rng.randrange(40)]
        elif kind == 2:
            content[at:at] = bytes(rng.choices(b'",\r\n0123456789<>&;\0\xb5TRUE', k=rng.randrange(9)))
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def test_an_htd_of_another_plates_folder_says_nothing_of_this_one(tmp_path):
    root = write(tmp_path / "a", make_planes(wells=("B02",)))
    (tmp_path / "b").mkdir()
    (root / "Screen_1.HTD").rename(tmp_path / "b/Screen_1.HTD")
    found = imagexpress.scan(tmp_path, STACK)
    assert any("in another plate's folder: 'b/Screen_1.HTD'" in note for note in found.notes)
    (tmp_path / "b/Screen_1.HTD").rename(tmp_path / "Screen_1.HTD")
    assert not any("another plate" in note for note in imagexpress.scan(tmp_path, STACK).notes)


def test_a_damaged_htd_is_read_or_refused(tmp_path):
    root = write(tmp_path, make_planes(wells=("B02",)))
    path, rng, refused = root / "Screen_1.HTD", random.Random(0), 0
    whole = path.read_bytes()
    with soon():
        for _ in range(400):
            path.write_bytes(damage(whole, rng))
            try:
                source = imagexpress.scan(tmp_path, STACK)
                assert len(source.images) == 4 and all("\n" not in note for note in source.notes)
            except PlateLayoutError as error:
                assert "Screen_1.HTD" in str(error)
                refused += 1
        assert 0 < refused < 200


def test_damaged_tiffs_lose_facts_and_nothing_else(tmp_path):
    root = write(tmp_path, make_planes(wells=("B02",), zs=(1, 2)), projected=(1,))
    rng = random.Random(1)
    whole = {path: path.read_bytes() for path in root.rglob("*.TIF")}
    with soon():
        for _ in range(150):
            for path, content in whole.items():
                path.write_bytes(damage(content, rng))
            source = imagexpress.scan(tmp_path, STACK)
            assert len(source.images) == 8
            for image in source.images:
                for value in image[9:]:
                    assert value is None or np.isfinite(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spatial-calibration-units", "pixels"),
        ("spatial-calibration-units", ""),
        ("spatial-calibration-state", "off"),
        ("spatial-calibration-x", "0"),
        ("spatial-calibration-x", "nan"),
        ("spatial-calibration-y", "1.3"),
        ("spatial-calibration-x", "1e400"),
    ],
)
def test_a_pixel_size_that_means_nothing_is_none(tmp_path, key, value):
    root = write(tmp_path, make_planes(wells=("B02",)))
    change_tags(root, {key: value})
    source = imagexpress.scan(tmp_path, STACK)
    assert {image.pixel_size_um for image in source.images} == {None}
    assert source.notes == ["channel 1, 2: tags do not say the size of a pixel"]


@pytest.mark.parametrize(("unit", "size"), [("nm", 0.00065), ("\xb5m", 0.65), ("UM", 0.65), ("&#181;m", 0.65)])
def test_pixel_sizes_are_converted(tmp_path, unit, size):
    root = write(tmp_path, make_planes(wells=("B02",)), pixel_size_um=0.65)
    change_tags(root, {"spatial-calibration-units": unit})
    found = imagexpress.scan(tmp_path, STACK).images[0].pixel_size_um
    assert found == (pytest.approx(size) if size > 1e-3 else None)


@pytest.mark.parametrize("value", ["nan", "inf", "-1e308", "1e308", "", "x"])
def test_a_position_or_height_that_is_no_number_is_none(tmp_path, value):
    root = write(tmp_path, make_planes(wells=("B02",), zs=(1, 2)))
    wrong = dict.fromkeys(("OffsetFromWellCenterUmX", "stage-position-x", "z-position", "wavelength"), value)
    change_tags(root, wrong | {"acquisition-time-local": value})
    for image in imagexpress.scan(tmp_path, STACK).images:
        found = image.y_um, image.x_um, image.z_um, image.wavelength_nm, image.seconds
        assert found == (None,) * 5


def change_tags(root, values):
    """Write all TIFFs again with other properties in their description."""
    for path in root.rglob("*.TIF"):
        with tifffile.TiffFile(path) as tiff:
            text, pixels = tiff.pages[0].tags[270].value, tiff.pages[0].asarray()
        lines = text.split("\r\n")
        for key, value in values.items():
            lines = [
                f'<prop id="{key}" type="string" value="{value}"/>' if f'id="{key}"' in line else line for line in lines
            ]
        tifffile.imwrite(path, pixels, description="\r\n".join(lines).encode(), metadata=None)


def test_entities_and_huge_descriptions_cost_nothing(tmp_path):
    root = write(tmp_path, make_planes(wells=("B02",), fields=(1,), channels=(1,)))
    bomb = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><prop id="wavelength" type="" value="&c;"/>'
    for text in (bomb, b"<prop " * 500_000, b'<prop id="' + b" " * 3_000_000, b"<prop" + b" " * 3_000_000):
        path = next(root.rglob("*.TIF"))
        tifffile.imwrite(path, np.zeros((4, 4), np.uint16), description=text, metadata=None)
        with soon(20):
            assert imagexpress.scan(tmp_path, STACK).images[0].wavelength_nm is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_are_read_in_either_byte_order(tmp_path, order):
    root = write(tmp_path, make_planes(wells=("B02",), fields=(1,), channels=(1,)))
    path = next(root.rglob("*.TIF"))
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages[0].tags[270].value
    tifffile.imwrite(path, np.zeros((4, 4), np.uint16), description=text.encode(), metadata=None, byteorder=order)
    assert imagexpress.scan(tmp_path, STACK).images[0].pixel_size_um == 0.65


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P_B02_s1_w1.TIF", ("B02", 1, "1")),
        ("P_B02_w2.tif", ("B02", 1, "2")),
        ("P_B02_s12.tiff", ("B02", 12, "1")),
        ("P_B02.TIF", ("B02", 1, "1")),
        ("B02_s3_w4.TIF", ("B02", 3, "4")),
        ("P_AF48_s1_w10.TIF", ("AF48", 1, "10")),
        ("A01_B02_C03_s4_w5.tif", ("C03", 4, "5")),
        ("2024_H12_s1_w1_D04_s2_w2.tif", ("D04", 2, "2")),
        ("P_B02_S1_W2.tif", ("B02", 1, "2")),
        ("P_B02_s1_w13F6A1B2C-0000-1111-2222-333344445555.tif", ("B02", 1, "1")),
        ("P_B02_s1_w123F6A1B2-0000-1111-2222-333344445555.tif", ("B02", 1, "1")),
        ("P_B02_s1_w1123F6A1B-0000-1111-2222-333344445555.tif", ("B02", 1, "1")),
        ("P_B02_s1_w10123F6A1B-0000-1111-2222-333344445555.tif", ("B02", 1, "10")),
        ("P_B02_s1_w1_[3F6A1B2C-0000-1111-2222-333344445555].tif", ("B02", 1, "1")),
        ("P_B02_s1_[3F6A1B2C-0000-1111-2222-333344445555].tif", ("B02", 1, "1")),
        ("P_B02_w23f6a1b2c-0000-1111-2222-333344445555.tif", ("B02", 1, "2")),
        ("P_B02_s1_w1_thumb.tif", None),
        ("P_B02_s1_w1_Thumb3F6A1B2C-0000-1111-2222-333344445555.tif", None),
        ("P_B02_s1_thumb_[3F6A1B2C-0000-1111-2222-333344445555].tif", None),
        ("thumb_B02_s1_w1.tif", ("B02", 1, "1")),
        ("P_AG01_s1_w1.TIF", None),
        ("P_A49_s1_w1.TIF", None),
        ("P_A00_s1_w1.TIF", None),
        ("P_A\u0661\u0662_s1_w1.TIF", None),
        ("P_B02_s1_w1.TIF.bak", None),
        ("P_B02_s1_w1.png", None),
        ("r01c01f01p01-ch1sk1fk1fl1.tiff", None),
        ("P_B02_T0001F001L01A01Z01C01.tif", None),
        ("._P_B02_s1_w1.TIF", None),
    ],
)
def test_names_become_planes(tmp_path, name, expected):
    touch(tmp_path / name)
    images = imagexpress.scan(tmp_path, STACK).images
    if expected is None:
        assert images == []
    else:
        assert [image[:3] for image in images] == [expected]


@pytest.mark.parametrize(
    ("folder", "z", "t"),
    [
        ("", 0, 0),
        ("TimePoint_1", 0, 1),
        ("ZStep_3", 3, 0),
        ("TimePoint_12/ZStep_0", 0, 12),
        ("a/b/TimePoint_2/ZStep_10", 10, 2),
        ("zstep_4/timepoint_5", 4, 5),
        ("TimePoint_x/ZStep_", 0, 0),
        ("2023-02-21/1334/ZStep_1", 1, 0),
    ],
)
def test_folders_say_time_and_height(tmp_path, folder, z, t):
    touch(tmp_path / folder / "P_B02_s1_w1.TIF")
    (image,) = imagexpress.scan(tmp_path, STACK).images
    assert (image.z, image.t) == (z, t)


def test_pictures_that_people_saved_beside_the_plate_are_left_out(tmp_path):
    root = write(tmp_path, make_planes())
    for name in ("overview_B02.tif", "B02 montage.tif", "figures/Screen_1_B03_w1.tif", "figures/map.tiff"):
        touch(root / name)
    source = imagexpress.scan(tmp_path, STACK)
    assert len(source.images) == 8
    assert len(source.notes) == 1 and source.notes[0].startswith("4 TIFF files left out")


def test_a_file_that_is_absent_costs_its_channel_no_fact(tmp_path):
    root = write(tmp_path, make_planes())
    path = root / "TimePoint_1/Screen_1_B02_s1_w1.TIF"
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    source = imagexpress.scan(tmp_path, STACK)
    assert len(source.images) == 7 and {image.pixel_size_um for image in source.images} == {0.65}
    assert source.notes == ["1 of 8 images are absent, the first in well B02, field 1, channel 1, t 1"]


def test_names_that_are_no_utf8_can_be_told(tmp_path):
    root = write(tmp_path, make_planes())
    with open(os.path.join(os.fsencode(root), b"\xff\xfe.tif"), "wb"):
        pass
    for note in imagexpress.scan(tmp_path, STACK).notes:
        assert note.encode()


def test_two_acquisitions_in_one_folder_are_refused(tmp_path):
    for number in ("1334", "1335"):
        touch(tmp_path / "2023-02-21" / number / f"P_B0{number[-1]}_s1_w1.tif")
    with pytest.raises(PlateLayoutError, match=r"2 acquisitions \('2023-02-21/1334', '2023-02-21/1335'\)"):
        imagexpress.scan(tmp_path, STACK)


def test_two_plates_in_one_folder_are_refused_unless_the_htd_names_one(tmp_path):
    write(tmp_path, make_planes(), name="P1", layout="database", index=False)
    root = write(tmp_path, make_planes(), name="P2", layout="database", index=False)
    with pytest.raises(PlateLayoutError, match=r"2 plates \('P1', 'P2'\)"):
        imagexpress.scan(tmp_path, STACK)
    (root / "p2.htd").write_bytes(b'"HTSInfoFile", Version 1.0\r\n')
    source = imagexpress.scan(tmp_path, STACK)
    assert len(source.images) == 8 and all("/P2_" in image.file for image in source.images)
    assert source.notes[0].startswith("8 TIFF files left out")


def test_two_files_for_one_plane_are_refused_and_both_named(tmp_path):
    for guid in ("11111111-0000-1111-2222-333344445555", "22222222-0000-1111-2222-333344445555"):
        touch(tmp_path / f"P_B02_s1_w1{guid}.tif")
    with pytest.raises(PlateLayoutError, match=r"w11{8}-.*w12{8}-.*claim the same plane"):
        imagexpress.scan(tmp_path, STACK)


def test_a_folder_that_is_not_there_and_one_without_images(tmp_path):
    with pytest.raises(PlateLayoutError, match="no folder"):
        imagexpress.scan(tmp_path / "gone", STACK)
    assert imagexpress.scan(tmp_path, STACK).images == []
    assert list(imagexpress.listing(tmp_path, STACK)) == []


def test_a_truncated_image_is_unreadable_and_the_others_are_not(tmp_path):
    root = write(tmp_path, make_planes())
    path = root / "TimePoint_1/Screen_1_B02_s1_w1.TIF"
    path.write_bytes(path.read_bytes()[:100])
    source = imagexpress.scan(tmp_path, STACK)
    with pytest.raises(UnreadableImageError, match="Screen_1_B02_s1_w1.TIF"):
        imagexpress.load(tmp_path, source.images[0])
    assert imagexpress.load(tmp_path, source.images[1])[0].shape == (16, 20)


def test_a_listing_names_each_image_once_for_its_well_and_shared_files_for_all(tmp_path):
    wells = ("B02", "B03", "B04", "B05")
    root = write(tmp_path, make_planes(wells=wells), thumbs=True)
    lines = list(imagexpress.listing(tmp_path, STACK))
    assert sorted(well for well, _ in lines if well) == sorted(well for well in wells for _ in range(4))
    shared = [line.rpartition("/")[0].rpartition("/")[0] for well, line in lines if not well]
    assert sum(line.endswith(".HTD") for line in shared) == 2
    assert {line.rpartition("/")[2][9:12] for line in shared if line.endswith(".TIF")} == {"B02", "B03", "B04"}
    assert not any("thumb" in line for _, line in lines)
    os.utime(root / "TimePoint_1/Screen_1_B05_s1_w1.TIF", ns=(1, 1))
    assert {well for well, _ in set(lines) ^ set(imagexpress.listing(tmp_path, STACK))} == {"B05"}
    os.utime(root / "Screen_1.HTD", ns=(1, 1))
    assert {well for well, _ in set(lines) ^ set(imagexpress.listing(tmp_path, STACK))} == {"B05", ""}


def test_a_late_well_changes_no_other(tmp_path):
    planes = make_planes(wells=("B02", "B03", "C01"))
    write(tmp_path, {key: pixels for key, pixels in planes.items() if key[0] != "C01"})
    before = imagexpress.scan(tmp_path, STACK).images
    late = {key: pixels for key, pixels in planes.items() if key[0] == "C01"}
    write(tmp_path, late, positions={1: (3, 3), 2: (3, 61.5)}, index=False)
    after = imagexpress.scan(tmp_path, STACK).images
    assert [image for image in after if image.well != "C01"] == before


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["A01_s1_w1.tif"],
        ["P_B02_s1_w1.TIF"],
        ["P_B02.tif", "P_B03.tif"],
        ["Images/r01c01f01p01-ch1sk1fk1fl1.tiff", "Images/Index.idx.xml"],
        ["P_B02_T0001F001L01A01Z01C01.tif", "MeasurementData.mlf"],
        ["B7_01_1_3_DAPI_001.tif"],
        ["Channel1-01-A-01.tif"],
        ["TimePoint_1/picture.tif"],
        ["P_B02_s1_w1_thumb3F6A1B2C-0000-1111-2222-333344445555.tif"],
        ["TimePoint_1/P_B02_s1_w1.TIF", "a.tif", "b.tif", "c.tif"],
    ],
)
def test_folders_of_others_are_not_recognized(tmp_path, names):
    for name in names:
        touch(tmp_path / name)
    assert imagexpress.recognize(tmp_path, names) is None


def test_an_htd_makes_sure_and_one_that_is_none_does_not(tmp_path):
    touch(tmp_path / "P_B02_s1_w1.TIF")
    touch(tmp_path / "other.tif")
    names = ["P_B02_s1_w1.TIF", "other.tif"]
    (tmp_path / "P.HTD").write_bytes(b"hello")
    assert imagexpress.recognize(tmp_path, names) is None
    assert imagexpress.recognize(tmp_path, [*names, "P.HTD"]) is None
    (tmp_path / "P.HTD").write_bytes(b'"HTSInfoFile", Version 1.0\r\n')
    assert imagexpress.recognize(tmp_path, [*names, "P.HTD"])["share"] == 1.0


def test_what_a_tiff_says_of_itself_makes_sure(tmp_path):
    write(tmp_path, make_planes(), times=False, index=False)
    names = [name for name, _ in list_files(tmp_path)]
    assert imagexpress.recognize(tmp_path, names)["layout"] == "MetaXpress export"


@pytest.mark.parametrize("name", ["TimePoint_1/P1_{}.TIF", "P1_{}3F6A1B2C-0000-1111-2222-333344445555.tif"])
def test_a_plate_of_one_field_and_one_wavelength_is_recognized(tmp_path, name):
    names = [name.format(well) for well in ("A01", "A02", "B01")]
    for name in names:
        touch(tmp_path / name)
    assert imagexpress.recognize(tmp_path, names)["share"] == 1.0
    assert [image[:3] for image in imagexpress.scan(tmp_path, STACK).images] == [
        (well, 1, "1") for well in ("A01", "A02", "B01")
    ]


def test_names_that_are_not_there_any_more_are_judged_by_names_alone(tmp_path):
    assert imagexpress.recognize(tmp_path / "gone", ["P_B02_s1_w1.TIF"]) is None
    assert imagexpress.recognize(tmp_path / "gone", ["P/TimePoint_1/P_B02_s1_w1.TIF"])["share"] == 1.0


def test_the_pattern_reader_agrees_on_a_plain_plate(tmp_path):
    write(tmp_path, make_planes())
    params = pattern.Params(pattern=pattern.KNOWN["metaxpress"])
    ours, theirs = imagexpress.scan(tmp_path, STACK).images, pattern.scan(tmp_path, params).images
    assert [(*image[:4], image.file) for image in ours] == [(*image[:4], image.file) for image in theirs]


def test_a_wrong_parameter_is_refused():
    with pytest.raises(ValueError, match="projection"):
        imagexpress.Params(z="both")
    with pytest.raises(ValueError, match="Extra inputs"):
        imagexpress.Params(pattern="x")


def test_the_lines_of_an_index_can_be_replaced():
    text = index_text(make_planes(), shape=(8, 12), channels=("A", "B"))
    assert '"XWells"' not in replace_line(text, "XWells", None) and '"XWells", 3\r\n' in replace_line(
        text, "XWells", "3"
    )
