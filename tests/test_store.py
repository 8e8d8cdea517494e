"""Fingerprints, layout, tables and OME-Zarr groups."""

import numpy as np
import pandas as pd
import pytest
import zarr

from plateloom import wells
from plateloom.errors import PlateLayoutError
from plateloom.store import layout, plate, provenance, tables

CHANNELS = [
    {"label": "DNA", "color": "0000FF", "window": [0, 9]},
    {"label": "GFP", "color": "00FF00", "window": [0, 9]},
]


def test_a_recipe_does_not_depend_on_the_order_of_its_parameters():
    one = provenance.recipe("s", parameters={"a": 1, "b": 2}, code="c", inputs={})
    two = provenance.recipe("s", parameters={"b": 2, "a": 1}, code="c", inputs={})
    three = provenance.recipe("s", parameters={"b": 2, "a": 1}, code="d", inputs={})
    assert one["fingerprint"] == two["fingerprint"] != three["fingerprint"]


def code_of(tmp_path, text):
    path = tmp_path / "stage.py"
    path.write_text(text)
    provenance._read_module.cache_clear()
    return provenance.code_digest(str(path))


def test_comments_docstrings_and_layout_are_no_change_of_code(tmp_path):
    plain = code_of(tmp_path, "def f(x):\n    return x + 1\n")
    dressed = code_of(tmp_path, '"""Doc."""\n\n# why\ndef f(x):\n    """More."""\n    return (x\n            + 1)\n')
    other = code_of(tmp_path, "def f(x):\n    return x + 2\n")
    assert plain == dressed != other


def test_code_is_followed_through_imports_also_inside_functions():
    direct = provenance.code_digest("plateloom.store.layout")
    through = provenance.code_digest("plateloom.stages.conversion")
    assert direct != through
    name, imported = provenance._read_module("plateloom.stages.conversion")
    assert "plateloom.store.layout" in imported and "plateloom.readers" in imported


def test_json_is_there_whole_or_not_at_all(tmp_path):
    provenance.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        provenance.write_json(tmp_path / "a.json", {"x": object()})
    assert provenance.read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "cut.json").write_text('{"x": ')
    assert provenance.read_json(tmp_path / "cut.json") is None


@pytest.mark.parametrize("text", ["A1", "a01", "A-01", "A_1", " A01 "])
def test_a_well_has_one_spelling(text):
    assert wells.well_name(*wells.parse_well(text)) == "A01"


@pytest.mark.parametrize("text", ["A0", "1A", "A49", "AG01", "", "A001x"])
def test_what_is_no_well_is_refused(text):
    with pytest.raises(ValueError, match=r"well|1536"):
        wells.parse_well(text)


def test_every_well_of_a_1536_well_plate_reads_back():
    for row in range(32):
        for column in range(48):
            assert wells.parse_well(wells.well_name(row, column)) == (row, column)


def test_parts_are_even_for_rows_for_columns_and_for_whole_plates():
    names = [wells.well_name(row, column) for row in range(16) for column in range(24)]
    for chosen in (names, names[:24], names[::24]):
        sizes = np.bincount([layout.part_of(well, 8) for well in chosen], minlength=8)
        assert sizes.max() - sizes.min() <= 1


def test_the_same_table_and_record_give_the_same_bytes(tmp_path):
    table = pd.DataFrame({"Metadata_Well": ["A01", "A01"], "x": [1.0, np.nan]})
    for name in ("one", "two"):
        tables.write_table(tmp_path / f"{name}.parquet", table, {"fingerprint": "f"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert tables.read_record(tmp_path / "one.parquet") == {"fingerprint": "f"}
    pd.testing.assert_frame_equal(tables.read_table(tmp_path / "one.parquet"), table)


def test_a_cut_table_has_no_record(tmp_path):
    tables.write_table(tmp_path / "a.parquet", pd.DataFrame({"x": [1]}), {"fingerprint": "f"})
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-20])
    assert tables.read_record(tmp_path / "a.parquet") is None
    assert tables.read_record(tmp_path / "none.parquet") is None


def write_field(path, image, **options):
    options = {"channels": CHANNELS, "pixel_size_um": 0.5, "levels": 3, "record": {"fingerprint": "f"}} | options
    plate.write_image(path, image, **options)


def test_pixels_and_labels_read_back_also_by_window(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4000, (2, 700, 531), dtype=np.uint16)
    write_field(tmp_path / "1", image)
    labels = {"Nuclei": rng.integers(0, 9, (700, 531), dtype=np.uint32)}
    plate.write_labels(tmp_path / "1", labels, pixel_size_um=0.5, levels=3, record={"fingerprint": "f"})
    window = (slice(500, 620), slice(13, 531))
    np.testing.assert_array_equal(plate.read_image(tmp_path / "1", channels=[1], window=window), image[1:, *window])
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", window=window), labels["Nuclei"][window])
    np.testing.assert_array_equal(plate.read_labels(tmp_path / "1", "Nuclei", level=1), labels["Nuclei"][::2, ::2])
    assert plate.describe_image(tmp_path / "1") == {
        "channels": ["DNA", "GFP"],
        "colors": ["0000FF", "00FF00"],
        "windows": [(0, 9), (0, 9)],
        "missing": [],
        "pixel_size_um": 0.5,
        "levels": 3,
        "shape": (2, 700, 531),
    }


def test_there_is_one_shard_per_field_and_level(tmp_path):
    write_field(tmp_path / "1", np.ones((2, 700, 531), np.uint16))
    files = [path for path in (tmp_path / "1").rglob("*") if path.is_file() and path.name != "zarr.json"]
    assert len(files) == 3


def test_a_flipped_bit_is_never_read_as_pixels(tmp_path):
    image = np.random.default_rng(1).integers(0, 4000, (2, 64, 64), dtype=np.uint16)
    write_field(tmp_path / "1", image, levels=1)
    shard = tmp_path / "1/0/c/0/0/0"
    good = shard.read_bytes()
    for position in range(0, len(good), len(good) // 60):
        data = bytearray(good)
        data[position] ^= 0x10
        shard.write_bytes(data)
        try:
            found = plate.read_image(tmp_path / "1")
        except Exception:  # any codec's error will do: what counts is that no wrong pixel comes back
            continue
        np.testing.assert_array_equal(found, image)


def test_a_missing_shard_is_an_error_not_zeros(tmp_path):
    write_field(tmp_path / "1", np.ones((2, 64, 64), np.uint16), levels=1)
    (tmp_path / "1/0/c/0/0/0").unlink()
    with pytest.raises(PlateLayoutError, match="shard"):
        plate.read_image(tmp_path / "1")


def test_an_image_that_was_not_finished_is_none(tmp_path):
    write_field(tmp_path / "1", np.ones((2, 64, 64), np.uint16))
    (tmp_path / "1/zarr.json").unlink()
    with pytest.raises(PlateLayoutError, match="no image"):
        plate.describe_image(tmp_path / "1")


def test_a_sparse_plate_keeps_its_rows_and_columns_and_validates(tmp_path):
    from ome_zarr_models.v05.hcs import HCS
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel

    store = tmp_path / "plate.zarr"
    for well in ("B03", "D06"):
        path = plate.field_path(store, well, 1)
        write_field(path, np.ones((2, 128, 128), np.uint16))
        labels = {"Nuclei": np.ones((128, 128), np.uint32)}
        plate.write_labels(path, labels, pixel_size_um=0.5, levels=3, record={"fingerprint": "f"})
        plate.write_well(store, well, [1], {"fingerprint": "f"})
    plate.write_plate(store, name="P", wells=["D06", "B03"], shape=(4, 6), field_count=1, record={"fingerprint": "f"})
    group = zarr.open_group(store, mode="r")
    found = HCS.from_zarr(group).ome_attributes.plate
    assert [well.path for well in found.wells] == ["B/03", "D/06"]
    assert (len(found.rows), len(found.columns)) == (4, 6)
    assert (found.wells[0].rowIndex, found.wells[0].columnIndex) == (1, 2)
    Image.from_zarr(group["B/03/1"])
    ImageLabel.from_zarr(group["B/03/1/labels/Nuclei"])


@pytest.mark.parametrize(("shape", "expected"), [((1, 2, 2), [[[3]]]), ((1, 1, 3), [[[1, 4]]])])
def test_shrinking_averages_and_repeats_an_odd_edge(shape, expected):
    image = np.array([0, 2, 4, 6], np.uint8)[: np.prod(shape)].reshape(shape)
    np.testing.assert_array_equal(plate.shrink_image(image), expected)
