"""OME-TIFF of every make becomes planes; broken or hostile metadata a message."""

import datetime
import os
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tifffile
from conftest import soon
from layouts import ome_tiff as layout

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import ome_tiff, pattern
from plateloom.readers.folders import list_files
from plateloom.readers.ome_tiff import Params

ALL = Params()
PLACES = {1: (0.0, 0.0), 2: (0.0, 100.5), 3: (80.25, -20.0)}
NAMES = r"(?P<well>[A-P]\d\d)(?:_f(?P<field>\d+).*)?\.ome\.tif"


def planes_of(wells=("A01", "B03"), fields=(1, 2, 3), channels=2, depth=2, times=2, shape=(6, 9)):
    random = np.random.default_rng(0)
    return {
        (well, field, channel, z, t): random.integers(1, 65535, shape, dtype=np.uint16)
        for well in wells
        for field in fields
        for channel in range(1, channels + 1)
        for z in range(1, depth + 1)
        for t in range(1, times + 1)
    }


def check(folder, planes, params=ALL, *, positions=PLACES, pixel_size_um=0.65, notes=()):
    """Every plane and every fact of a written plate."""
    found = ome_tiff.scan(folder, params)
    assert len(found.images) == len(planes)
    names, start = ["DNA", "GFP"], datetime.datetime.fromisoformat(layout.DATE + "Z").timestamp()
    for image in found.images:
        channel = names.index(image.channel) + 1
        pixels, _ = ome_tiff.load(folder, image)
        np.testing.assert_array_equal(pixels, planes[image.well, image.field, channel, image.z + 1, image.t + 1])
        assert (
            image.pixel_size_um == pytest.approx(pixel_size_um)
            and image.wavelength_nm == layout.WAVELENGTHS[channel - 1]
        )
        assert image.seconds == pytest.approx(start + image.t + channel / 1000)
        assert image.size == (folder / image.file).stat().st_size
        if positions:
            assert (image.y_um, image.x_um) == pytest.approx(positions[image.field])
        else:
            assert (image.y_um, image.x_um) == (None, None)
    assert {len([note for note in found.notes if text in note]) for text in notes} <= {1} and len(found.notes) == len(
        notes
    )
    assert found.channels == {"DNA": {"name": "DNA", "color": "FF0000"}, "GFP": {"name": "GFP", "color": "00FF00"}}
    return found


@pytest.mark.parametrize("xml", ["companion", "own", "all", "first"])
@pytest.mark.parametrize("per", ["plate", "well", "field", "plane"])
def test_a_plate_reads_back_wherever_its_metadata_stand(tmp_path, per, xml):
    planes = planes_of()
    layout.write(tmp_path, planes, per=per, xml=xml, positions=PLACES)
    found = check(tmp_path, planes)
    assert found.shape == (8, 12) and found.finished is None
    names = [name for name, _ in list_files(tmp_path, ("",))]
    assert ome_tiff.recognize(tmp_path, names) == {
        "reader": "ome_tiff",
        "params": {},
        "layout": "OME-TIFF",
        "share": 1.0,
    }
    other = pattern.recognize(tmp_path, names)
    assert other is None or other["share"] < 1


@pytest.mark.parametrize("order", ["XYZCT", "XYZTC", "XYCZT", "XYCTZ", "XYTZC", "XYTCZ"])
@pytest.mark.parametrize("blocks", ["each", "counted", "open", "none"])
def test_pages_are_spread_in_the_order_of_dimensions(tmp_path, order, blocks):
    planes = planes_of(channels=2, depth=3, times=2)
    for per, xml in (("field", "companion"), ("field", "own"), ("well", "own")):
        if (xml, blocks) == ("companion", "none") or (per, blocks) == ("well", "open"):
            continue  # then nothing says which page it is
        folder = tmp_path / f"{per}{xml}"
        layout.write(folder, planes, order=order, blocks=blocks, per=per, xml=xml, positions=PLACES)
        check(folder, planes)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
def test_compressed_pages_read_back(tmp_path, compression):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, compression=compression, positions=PLACES)
    check(tmp_path, planes)


def test_a_tiff_per_channel_whose_names_the_metadata_hold(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, per="channel", blocks="counted", positions=PLACES)
    check(tmp_path, planes)


@pytest.mark.parametrize("unit", ["nm", "mm", "um", "μm", "Âµm", "µm", None])
def test_sizes_have_many_units(tmp_path, unit):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, unit=unit, positions=PLACES, pixel_size_um=1.3)
    check(tmp_path, planes, pixel_size_um=1.3)


@pytest.mark.parametrize("kind", ["plane", "first", "sample", "stage"])
@pytest.mark.parametrize("unit", ["µm", "mm", "nm"])
def test_positions_come_from_planes_samples_or_stage_labels(tmp_path, kind, unit):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=PLACES, positions_of=kind, position_unit=unit)
    check(tmp_path, planes)


@pytest.mark.parametrize("unit", [None, "reference frame", "pixel"])
def test_positions_without_a_unit_need_one(tmp_path, unit):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=PLACES, position_unit=unit)
    check(tmp_path, planes, positions=None, notes=["no unit of length"])
    if unit != "pixel":
        check(tmp_path, planes, Params(position_unit="µm"))
        millimeters = {field: (1e3 * y, 1e3 * x) for field, (y, x) in PLACES.items()}
        check(tmp_path, planes, Params(position_unit="mm"), positions=millimeters)


def test_axes_of_a_stage_may_point_the_other_way(tmp_path):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=PLACES)
    check(tmp_path, planes, Params(mirror="y"), positions={field: (-y, x) for field, (y, x) in PLACES.items()})
    check(tmp_path, planes, Params(mirror="xy"), positions={field: (-y, -x) for field, (y, x) in PLACES.items()})


def test_positions_that_are_all_the_same_are_none(tmp_path):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=dict.fromkeys(PLACES, (5.0, 6.0)))
    check(tmp_path, planes, positions=None, notes=["one position for all fields"])


def test_heights_come_from_planes_else_from_the_step(tmp_path):
    planes = planes_of(wells=("A01",), fields=(1,), depth=3)
    layout.write(tmp_path, planes, z_step_um=1.5)
    assert sorted({image.z_um for image in ome_tiff.scan(tmp_path, ALL).images}) == [0.0, 1.5, 3.0]

    def change(ome):
        for plane in ome.iter("Plane"):
            plane.attrib |= {"PositionZ": str(7.0 + float(plane.get("TheZ"))), "PositionZUnit": "mm"}

    layout.write(tmp_path, planes, change=change)
    assert sorted({image.z_um for image in ome_tiff.scan(tmp_path, ALL).images}) == [7000.0, 8000.0, 9000.0]


def test_pixels_that_are_not_square_have_no_size(tmp_path):
    def change(ome):
        for pixels in ome.iter("Pixels"):
            pixels.set("PhysicalSizeY", "0.7")

    layout.write(tmp_path, planes_of(wells=("A01",)), change=change)
    found = ome_tiff.scan(tmp_path, ALL)
    assert {image.pixel_size_um for image in found.images} == {None} and "3 fields have no size" in found.notes[0]


# Wells, fields, channels


@pytest.mark.parametrize("xml", ["companion", "own", "all"])
@pytest.mark.parametrize("per", ["well", "field", "channel", "plane"])
def test_without_a_plate_names_of_files_say_the_well(tmp_path, per, xml):
    planes = planes_of(fields=(1,) if per == "well" else (1, 2, 3))
    layout.write(tmp_path, planes, per=per, xml=xml, plate=False, positions=PLACES)
    with pytest.raises(PlateLayoutError, match="no Plate; give the reader's parameter `pattern`"):
        ome_tiff.scan(tmp_path, ALL)
    check(tmp_path, planes, Params(pattern=NAMES))
    names = [name for name, _ in list_files(tmp_path, ("",))]
    if xml != "companion":
        found = ome_tiff.recognize(tmp_path, names)
        assert found["share"] == 1
        check(tmp_path, planes, Params(**found["params"]))


def test_without_a_plate_names_of_images_say_the_well(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, per="plate", xml="own", plate=False, positions=PLACES)
    found = ome_tiff.recognize(tmp_path, ["plate.ome.tif"])
    assert found["params"]["names"] == "image" and found["share"] == 1
    check(tmp_path, planes, Params(**found["params"]))
    params = Params(pattern=r"(?P<well>[A-H]\d\d) field (?P<field>\d+)", names="image")
    check(tmp_path, planes, params)
    found = ome_tiff.scan(tmp_path, Params(pattern=r"(?P<row>A)(?P<column>\d\d) field (?P<field>\d)", names="image"))
    assert {image.well for image in found.images} == {"A01"} and "3 images do not match" in found.notes[0]


def test_names_may_say_channel_z_and_t_as_well(tmp_path):
    planes = planes_of(wells=("A01",), fields=(1,))
    for key, plane in planes.items():
        # Every TIFF is an image of one plane, that knows nothing of the others.
        layout.write(
            tmp_path,
            {(*key[:2], 1, 1, 1): plane},
            per="field",
            xml="own",
            plate=False,
            name=f"{key[0]}_w{key[2]}_z{key[3]}_t{key[4]}.ome.tif",
        )
    params = Params(pattern=r"(?P<well>[A-H]\d\d)_w(?P<channel>\d)_z(?P<z>\d)_t(?P<t>\d)\.ome\.tif")
    found = ome_tiff.scan(tmp_path, params)
    assert len(found.images) == len(planes)
    for image in found.images:
        np.testing.assert_array_equal(
            ome_tiff.load(tmp_path, image)[0], planes["A01", 1, int(image.channel), image.z, image.t]
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scan_1_MMStack_A1-Site_0.ome.tif", ("A01", "0")),
        ("scan_1_MMStack_H12-Site_3_1.ome.tif", ("H12", "3")),
        ("Plate1_B03.ome.tiff", ("B03", None)),
        ("B3_f2_488.ome.tif", ("B3", "2")),
        ("x_P24_site-07.ome.tif", ("P24", "07")),
        ("C05.ome.tif", ("C05", None)),
        ("A01_f02_c1.ome.tif", ("A01", "02")),
    ],
)
def test_a_pattern_is_proposed_for_usual_names(tmp_path, name, expected):
    layout.write(tmp_path, planes_of(wells=("A01",), fields=(1,)), xml="own", plate=False, name=name)
    found = ome_tiff.recognize(tmp_path, [name])
    match = pattern.matcher(pattern.Params(**found["params"]))(name)
    assert match["field"] == expected[1] and match["well"].replace("A1", "A01") == expected[0]


def test_tiffs_without_ome_xml_are_none_of_ours(tmp_path):
    for name in ("A01.ome.tif", "A02.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((4, 4), np.uint16), ome=False)
        assert ome_tiff.recognize(tmp_path, [name]) is None
    with pytest.raises(PlateLayoutError, match="no OME-XML"):
        ome_tiff.scan(tmp_path, ALL)


def test_vendors_folders_are_none_of_ours(data):
    for folder in ("imagexpress_htd_3434", "operetta_harmony_ball", "yokogawa_cv7000_metadata", "nf1_cytation_5wells"):
        names = [name for name, _ in list_files(data / folder, ("",))]
        assert ome_tiff.recognize(data / folder, names) is None


def test_metadata_without_any_tiff_are_none_of_ours(tmp_path):
    layout.write(tmp_path, planes_of())
    assert ome_tiff.recognize(tmp_path, ["plate.companion.ome", ".zattrs", "A/1/0/.zattrs"]) is None


def test_several_acquisitions_need_a_choice(tmp_path):
    planes = planes_of(wells=("A01",), fields=(1, 2))
    layout.write(tmp_path, planes, acquisitions=2, positions=PLACES)
    with pytest.raises(
        PlateLayoutError, match=r"'PlateAcquisition:0' \(run 0\), 'PlateAcquisition:1' \(run 1\).*`acquisition`"
    ):
        ome_tiff.scan(tmp_path, ALL)
    for number, wanted in ((1, "run 0"), (2, "PlateAcquisition:1")):
        found = ome_tiff.scan(tmp_path, Params(acquisition=wanted))
        assert len(found.images) == 8 and {image.field for image in found.images} == {1}
        np.testing.assert_array_equal(ome_tiff.load(tmp_path, found.images[0])[0], planes["A01", number, 1, 1, 1])
    with pytest.raises(PlateLayoutError, match="acquisition 'x'.*'PlateAcquisition:0'"):
        ome_tiff.scan(tmp_path, Params(acquisition="x"))
    layout.write(tmp_path, planes, acquisitions=1, positions=PLACES)
    check(tmp_path, planes)


def test_several_plates_need_a_choice(tmp_path):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=PLACES)
    text = (tmp_path / "plate.companion.ome").read_text()
    (tmp_path / "other.companion.ome").write_text(
        text.replace('Name="P"', 'Name="Q"').replace('ID="Plate:0"', 'ID="Plate:1"')
    )
    with pytest.raises(PlateLayoutError, match="plates 'P', 'Q'.*`plate`"):
        ome_tiff.scan(tmp_path, ALL)
    with pytest.raises(PlateLayoutError, match="plates 'P', 'Q'.*`plate`"):
        ome_tiff.scan(tmp_path, Params(plate="R"))
    check(tmp_path, planes, Params(plate="P"), notes=["belong to no well"])
    check(tmp_path, planes, Params(plate="Plate:1"), notes=["belong to no well"])


def test_a_stack_and_its_projection_with_a_metadata_file_each_need_a_choice(tmp_path):
    stack, projection = planes_of(depth=3), planes_of(depth=1)
    layout.write(tmp_path, stack, name="{}.tif", positions=PLACES)
    (tmp_path / "plate.companion.ome").rename(tmp_path / "MeasurementResult.ome.xml")
    layout.write(tmp_path, projection, name="{}_mip.tif", positions=PLACES)
    (tmp_path / "plate.companion.ome").rename(tmp_path / "MeasurementResultMIP.ome.xml")
    with pytest.raises(PlateLayoutError, match="same plane"):
        ome_tiff.scan(tmp_path, ALL)
    check(tmp_path, stack, Params(metadata="MeasurementResult.ome.xml"), notes=["named by no metadata"])
    check(tmp_path, projection, Params(metadata=".*MIP.*"), notes=["named by no metadata"])
    with pytest.raises(PlateLayoutError, match="no metadata file matches.*'MeasurementResult.ome.xml'"):
        ome_tiff.scan(tmp_path, Params(metadata="x"))


def test_a_metadata_file_of_each_well_is_joined(tmp_path):
    planes = planes_of(wells=("A01", "B03"))
    for well in ("A01", "B03"):
        layout.write(tmp_path / well, {key: plane for key, plane in planes.items() if key[0] == well}, positions=PLACES)
    check(tmp_path, planes)


def test_fields_are_counted_by_their_index_and_not_by_their_place(tmp_path):
    def change(ome):
        for well in ome.iter("Well"):
            well[:] = reversed(well)

    planes = planes_of()
    layout.write(tmp_path, planes, positions=PLACES, change=change)
    check(tmp_path, planes)

    def same_index(ome):
        for sample in ome.iter("WellSample"):
            sample.set("Index", "0")

    layout.write(tmp_path, planes, positions=PLACES, change=same_index)
    check(tmp_path, planes)


def test_a_field_that_is_declared_without_an_image_leaves_its_number_free(tmp_path):
    def change(ome):
        for sample in list(ome.iter("WellSample"))[1::3]:
            sample.remove(sample.find("ImageRef"))

    layout.write(tmp_path, planes_of(), change=change)
    found = ome_tiff.scan(tmp_path, ALL)
    assert {(image.well, image.field) for image in found.images} == {(w, f) for w in ("A01", "B03") for f in (1, 3)}
    assert any("2 fields of the plate have no image" in note for note in found.notes)


def test_channels_without_a_name_are_called_by_their_place_and_names_are_told_apart(tmp_path):
    planes = planes_of(wells=("A01",), fields=(1,), depth=1, times=1)
    for channels, expected in ((("", "GFP"), ["0", "GFP"]), (("X", "X"), ["X", "X (1)"])):
        layout.write(tmp_path, planes, channels=channels)
        found = ome_tiff.scan(tmp_path, ALL)
        assert [image.channel for image in found.images] == expected
        assert found.channels[expected[0]]["color"] == "FF0000"


def test_images_in_color_are_left_out(tmp_path):
    def change(ome):
        pixels = next(ome.iter("Pixels"))
        pixels.set("SizeC", "3")
        pixels.remove(pixels.findall("Channel")[1])
        pixels.find("Channel").set("SamplesPerPixel", "3")

    layout.write(tmp_path, planes_of(), change=change)
    found = ome_tiff.scan(tmp_path, ALL)
    assert ("A01", 1) not in {image[:2] for image in found.images} and "1 images have several samples" in found.notes[0]


# Files that are not as the metadata have them


def test_what_is_named_and_absent_or_there_and_not_named_is_a_note(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, positions=PLACES)
    (tmp_path / "A01_f02.ome.tif").unlink()
    (tmp_path / "B03_f01.ome.tif").rename(tmp_path / "stray.ome.tif")
    tifffile.imwrite(tmp_path / "overview.tif", np.zeros((4, 4), np.uint16))
    kept = {key: plane for key, plane in planes.items() if key[:2] not in (("A01", 2), ("B03", 1))}
    check(
        tmp_path,
        kept,
        notes=["2 files that metadata name are not there, e.g. 'A01_f02.ome.tif'", "2 TIFFs are named by no metadata"],
    )


def test_a_tiff_that_was_renamed_still_knows_itself(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, per="well", xml="all", positions=PLACES)
    layout.write(tmp_path, planes, per="well", xml="own", positions=PLACES)
    for path in sorted(tmp_path.glob("*.tif")):
        path.rename(path.with_name("exp7_" + path.name))
    check(tmp_path, planes)


def test_names_in_other_letters_and_with_backslashes_are_found(tmp_path):
    planes = planes_of()
    layout.write(tmp_path / "Image", planes, positions=PLACES)
    text = (tmp_path / "Image/plate.companion.ome").read_text().replace('FileName="A01', 'FileName="IMAGE\\a01')
    (tmp_path / "plate.companion.ome").write_text(text.replace('FileName="B03', 'FileName="./Image/B03'))
    (tmp_path / "Image/plate.companion.ome").unlink()
    check(tmp_path, planes)


def test_tiffs_whose_metadata_file_is_gone_say_so(tmp_path):
    layout.write(tmp_path, planes_of())
    (tmp_path / "plate.companion.ome").unlink()
    with pytest.raises(PlateLayoutError, match=r"'A01_f01.ome.tif'.*'plate.companion.ome', which is not there"):
        ome_tiff.scan(tmp_path, ALL)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(PlateLayoutError, match="no OME-TIFF"):
        ome_tiff.scan(tmp_path, ALL)
    with pytest.raises(PlateLayoutError, match="no folder"):
        ome_tiff.scan(tmp_path / "x", ALL)


@pytest.mark.parametrize("data", [b"", b"II*\0", b"no TIFF at all"])
def test_a_tiff_that_cannot_be_read_stands_for_the_planes_of_its_name(tmp_path, data):
    planes = planes_of()
    layout.write(tmp_path, planes, xml="own", plate=False, positions=PLACES)
    (tmp_path / "A01_f02.ome.tif").write_bytes(data)
    found = ome_tiff.scan(tmp_path, Params(pattern=NAMES))
    assert len(found.images) == len(planes) and "1 TIFFs cannot be read" in found.notes[0]
    for image in found.images:
        if (image.well, image.field) == ("A01", 2):
            with pytest.raises(UnreadableImageError, match="A01_f02"):
                ome_tiff.load(tmp_path, image)
        else:
            ome_tiff.load(tmp_path, image)


def test_a_tiff_that_cannot_be_read_is_a_note_where_only_its_metadata_could_place_it(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, xml="own", per="well", positions=PLACES)
    (tmp_path / "A01.ome.tif").write_bytes(b"")
    check(
        tmp_path,
        {key: plane for key, plane in planes.items() if key[0] == "B03"},
        notes=["1 TIFFs cannot be read, 1 of them without a well"],
    )


def test_pages_that_are_not_there_are_unreadable(tmp_path):
    def change(ome):
        for pixels in ome.iter("Pixels"):
            pixels.set("SizeT", "4")
            for block in pixels.findall("TiffData"):
                pixels.remove(block)

    layout.write(tmp_path, planes_of(wells=("A01",), fields=(1,)), per="well", xml="own", change=change)
    images = ome_tiff.scan(tmp_path, ALL).images
    assert len(images) == 16
    with pytest.raises(UnreadableImageError, match="holds 8 pages, expected at least 16"):
        ome_tiff.load(tmp_path, max(images, key=lambda image: image.page))


def test_a_listing_tells_wells_by_a_pattern_and_notices_metadata(tmp_path):
    layout.write(tmp_path, planes_of(), xml="companion", plate=False)
    for params, wells in ((Params(pattern=NAMES), {"", "A01", "B03"}), (ALL, {""})):
        before = set(ome_tiff.listing(tmp_path, params))
        assert {well for well, _ in before} == wells and len(before) == 7
        os.utime(tmp_path / "plate.companion.ome", ns=(1, len(wells)))
        assert {well for well, _ in before ^ set(ome_tiff.listing(tmp_path, params))} == {""}


def test_headers_are_read_up_to_a_bound(tmp_path):
    layout.write(tmp_path, planes_of(), xml="own")
    with pytest.raises(PlateLayoutError, match="`headers`"):
        ome_tiff.scan(tmp_path, Params(headers=5))
    assert ome_tiff.scan(tmp_path, Params(headers=6)).images


def test_seventeen_thousand_images_in_one_metadata_file_take_seconds(tmp_path):
    planes = {
        (f"{row}{column:02d}", field, channel, 1, 1): None
        for row in "ABCDEFGHIJKLMNOP"
        for column in range(1, 25)
        for field in range(1, 10)
        for channel in range(1, 6)
    }
    one = np.zeros((4, 4), np.uint16)
    first = {key: one for key in planes if key[:2] == ("A01", 1)}
    layout.write(tmp_path, first, per="plane", name="{}.tif", channels="abcde")
    for well, field, channel, _, _ in planes:
        path = tmp_path / f"{well}_f{field:02d}_c{channel}_z1_t1.tif"
        if not path.exists():
            os.link(tmp_path / f"A01_f01_c{channel}_z1_t1.tif", path)
    text = (tmp_path / "plate.companion.ome").read_text()
    start, end = text.index("<Image "), text.index("</OME>")
    wells, images = [], []
    for number, well in enumerate(sorted({key[0] for key in planes})):
        samples = "".join(
            f'<WellSample ID="WellSample:{i}" Index="{i}"><ImageRef ID="Image:{i}"/></WellSample>'
            for i in range(9 * number, 9 * number + 9)
        )
        wells.append(
            f'<Well ID="Well:{number}" Row="{ord(well[0]) - 65}" Column="{int(well[1:]) - 1}">{samples}</Well>'
        )
        images += [
            text[start:end].replace('"Image:0"', f'"Image:{9 * number + f}"').replace("A01_f01", f"{well}_f{f + 1:02d}")
            for f in range(9)
        ]
    plate = f'<Plate ID="Plate:0" Rows="16" Columns="24">{"".join(wells)}</Plate>'
    (tmp_path / "plate.companion.ome").write_text(text[: text.index("<Plate")] + plate + "".join(images) + "</OME>")
    with soon():
        found = ome_tiff.scan(tmp_path, ALL)
        assert len(found.images) == len(planes) == 17_280 and not found.notes


# Hostile and broken metadata


@pytest.mark.parametrize("name", ["../outside.ome.tif", "/etc/passwd", "C:\\x.tif", "a/../../x.tif", "link.ome.tif"])
@pytest.mark.parametrize("xml", ["companion", "own"])
def test_metadata_that_point_out_of_the_folder_are_refused(tmp_path, name, xml):
    folder = tmp_path / "P"
    layout.write(folder, planes_of(wells=("A01",)), xml=xml)
    os.link(folder / "A01_f01.ome.tif", tmp_path / "outside.ome.tif")
    (folder / "link.ome.tif").symlink_to(tmp_path / "outside.ome.tif")

    def change(ome):
        for uuid in ome.iter("UUID"):
            uuid.set("FileName", name)
            uuid.text = "urn:uuid:0"

    layout.write(folder, planes_of(wells=("A01",)), xml=xml, change=change)
    with pytest.raises(PlateLayoutError, match="points outside"):
        ome_tiff.scan(folder, ALL)


def test_a_metadata_file_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    layout.write(tmp_path / "P", planes_of(wells=("A01",)))
    (tmp_path / "P/plate.companion.ome").rename(tmp_path / "plate.companion.ome")
    (tmp_path / "P/plate.companion.ome").symlink_to(tmp_path / "plate.companion.ome")
    with pytest.raises(PlateLayoutError, match="points outside"):
        ome_tiff.scan(tmp_path / "P", ALL)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><OME>&b;</OME>'
)


def test_an_entity_bomb_is_refused_in_a_file_and_in_a_header(tmp_path):
    (tmp_path / "x.companion.ome").write_text(BOMB)
    with pytest.raises(PlateLayoutError, match="document type"):
        ome_tiff.scan(tmp_path, ALL)
    (tmp_path / "x.companion.ome").unlink()
    for text in (BOMB, BOMB.replace('"1.0"', '"1.0" encoding="cp037"')):
        tifffile.imwrite(tmp_path / "A01.ome.tif", np.zeros((4, 4), np.uint16), description=text, metadata=None)
        with pytest.raises(PlateLayoutError, match="document type"):
            ome_tiff.scan(tmp_path, ALL)
        assert ome_tiff.recognize(tmp_path, ["A01.ome.tif"]) is None


@pytest.mark.parametrize(
    ("tag", "attribute", "value"),
    [
        ("Well", "Row", "99"),
        ("Well", "Row", None),
        ("Well", "Column", "-1"),
        ("Pixels", "SizeZ", "1000000000"),
        ("Pixels", "SizeT", "0"),
        ("Pixels", "SizeC", "x"),
        ("Pixels", "SizeC", "9" * 5000),
        ("Pixels", "DimensionOrder", "YXZCT"),
        ("Pixels", "DimensionOrder", "XYZZT"),
        ("Channel", "SamplesPerPixel", "0"),
        ("TiffData", "IFD", "1e3"),
        ("TiffData", "FirstC", "7"),
        ("TiffData", "PlaneCount", "-1"),
        ("Plane", "TheZ", "one"),
        ("WellSample", "Index", "½"),
    ],
)
def test_numbers_that_mean_nothing_are_named(tmp_path, tag, attribute, value):
    def change(ome):
        for element in ome.iter(tag):
            element.attrib.pop(attribute, None)
            if value is not None:
                element.set(attribute, value)

    layout.write(tmp_path, planes_of(), change=change)
    with pytest.raises(PlateLayoutError, match="plate.companion.ome"):
        ome_tiff.scan(tmp_path, ALL)


def test_blocks_that_declare_planes_without_end_are_refused(tmp_path):
    def change(ome):
        for pixels in ome.iter("Pixels"):
            pixels.set("SizeT", "100000")
            for block in pixels.iter("TiffData"):
                block.set("PlaneCount", "400000")
                block.find("UUID").set("FileName", "absent.tif")

    layout.write(tmp_path, planes_of(wells=("A01",), fields=(1, 2)), change=change)
    with soon(), pytest.raises(PlateLayoutError, match="declares more than"):
        ome_tiff.scan(tmp_path, ALL)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "x", "", "-0.65"])
def test_sizes_and_positions_that_are_no_numbers_are_unknown(tmp_path, value):
    def change(ome):
        for pixels in ome.iter("Pixels"):
            pixels.set("PhysicalSizeX", value)
        for plane in ome.iter("Plane"):
            plane.set("PositionX", value)
            plane.set("DeltaT", value)
        for channel in ome.iter("Channel"):
            channel.attrib |= {"EmissionWavelength": value, "Color": value}
        for date in ome.iter("AcquisitionDate"):
            date.text = value

    layout.write(tmp_path, planes_of(), positions=PLACES, change=change)
    for image in ome_tiff.scan(tmp_path, ALL).images:
        assert (image.pixel_size_um, image.wavelength_nm, image.seconds) == (None, None, None)
        assert image.x_um is None or value == "-0.65"


@pytest.mark.parametrize("xml", ["companion", "own", "first"])
def test_any_broken_byte_in_the_metadata_is_a_layout_error_or_nothing(tmp_path, xml):
    names = layout.write(
        tmp_path, planes_of(wells=("A01",), fields=(1, 2), depth=1, times=1), xml=xml, positions=PLACES
    )
    path = tmp_path / ("plate.companion.ome" if xml == "companion" else names[0])
    good, random = path.read_bytes(), np.random.default_rng(3)
    begin = good.index(b"<OME")
    end = good.index(b"</OME>") + 6
    with soon():
        for _ in range(400):
            data = bytearray(good)
            if random.random() < 0.2:
                del data[random.integers(begin, end) :]
            for _ in range(random.integers(1, 4)):
                data[random.integers(0 if random.random() < 0.3 else begin, max(len(data), begin + 1))] = (
                    random.integers(256)
                )
            path.write_bytes(data)
            for params in (ALL, Params(pattern=NAMES)):
                try:
                    for image in ome_tiff.scan(tmp_path, params).images:
                        ome_tiff.load(tmp_path, image)
                except (PlateLayoutError, UnreadableImageError) as error:
                    assert str(error)


def test_any_lost_or_foreign_attribute_is_a_layout_error_or_nothing(tmp_path):
    layout.write(tmp_path, planes_of(wells=("A01",), fields=(1,), depth=1, times=1), positions=PLACES, acquisitions=1)
    path = tmp_path / "plate.companion.ome"
    good = path.read_text()
    count = sum(1 + len(element.attrib) for element in ElementTree.fromstring(good).iter())
    for number in range(count):
        for value in (None, "", "x", "-1", "99999999999999999999", "\u00bd", "nan"):
            tree = ElementTree.fromstring(good)
            places = [(element, name) for element in tree.iter() for name in (None, *element.attrib)]
            element, name = places[number]
            if name is None:
                element.tag, element.text = "Other" if value is None else element.tag, value
            elif value is None:
                del element.attrib[name]
            else:
                element.set(name, value)
            path.write_text(ElementTree.tostring(tree, encoding="unicode"))
            try:
                ome_tiff.scan(tmp_path, ALL)
            except PlateLayoutError as error:
                assert str(error)


def test_params_tell_a_wrong_expression():
    for wrong in ({"pattern": "("}, {"pattern": "(?P<field>.)"}, {"metadata": "("}):
        with pytest.raises(ValueError, match="regular expression|needs a group"):
            Params(**wrong)
