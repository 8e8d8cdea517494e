"""Which fields' cells are known: a plate that segmentation fails on fails, and no field that is left out looks like death."""

import numpy as np
import pandas as pd
import pytest
from conftest import TRUNCATED, WITHOUT_GFP, edit
from in_process import run_stages

from plateloom.config import read_config
from plateloom.errors import PlateLayoutError
from plateloom.planning import Screen
from plateloom.segmentation import COMPARTMENTS
from plateloom.stages.features import measure_field
from plateloom.stages.fields import count_fields, empty_fields
from plateloom.stages.profiling import check_segmented
from plateloom.store import plate as store
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_record, read_table, write_table

PROFILED = "results/plates/P1/records/profiling/part-0.json"
CELLS = {"readout": "Metadata_CellsPerField", "readout_denominator": None, "readout_log": False}


def quality_of(rows):
    """A plate's table of quality: rows are well, image, source field, and the flags of a channel."""
    table = pd.DataFrame(rows, columns=["Metadata_Well", "Metadata_Field", "SourceField", "flags"])
    for name in ("Blurred", "Saturated", "Empty", "Debris"):
        table[f"Flag_{name}"] = [name in flags for flags in table["flags"]]
    return table.assign(Reason=table.pop("flags").map("; ".join))


def test_fields_that_failed_or_are_left_out_do_not_count_but_empty_ones_do():
    quality = quality_of(
        [
            ("A01", 1, 1, []),
            ("A01", 1, 1, ["Empty"]),  # another channel
            ("A01", 2, 2, ["Empty"]),
            ("A01", 2, 2, ["Empty", "Blurred"]),
            ("A01", 3, 3, []),
            ("A02", 1, 1, []),
            ("B01", 1, 1, []),  # one image of three fields
            ("B01", 1, 2, ["Debris"]),
            ("B01", 1, 3, []),
        ]
    )
    assert empty_fields(quality) == {("A01", 1)}
    segmented = pd.DataFrame(
        [("A01", 1, "done"), ("A01", 2, "done"), ("A01", 3, "failed"), ("A02", 1, "failed"), ("B01", 1, "done")],
        columns=["Metadata_Well", "Metadata_Field", "Status"],
    )
    assert count_fields(segmented, quality, {("A01", 2), ("B01", 2)}).to_dict() == {"A01": 1, "B01": 2}
    assert count_fields(segmented, quality, set()).to_dict() == {"A01": 2, "B01": 3}


def test_segmentation_may_fail_on_so_many_fields_and_no_more():
    segmented = pd.DataFrame({"Status": ["done"] * 4 + ["failed"], "Reason": [""] * 4 + ["needs DNA"]})
    check_segmented(segmented, 0.2)
    with pytest.raises(PlateLayoutError, match=r"1 of 5 fields failed in segmentation.* 0\.1 allows; first: needs DNA"):
        check_segmented(segmented, 0.1)
    check_segmented(pd.DataFrame(), 0.0)


def test_a_plate_that_segmentation_fails_on_fails_with_the_reason(profiled):
    for path in sorted((profiled / "results/plates/P1/segmentation").glob("*.parquet"))[:6]:
        table = read_table(path).assign(Status="failed", Reason="segmentation needs DNA, which this field lacks")
        write_table(path, table, read_record(path))
    assert read_json(profiled / PROFILED)["status"] == "done"
    run_stages(profiled, ("profiling", "profiles"))
    record = read_json(profiled / PROFILED)
    assert record["status"] == "failed" and "fields failed in segmentation" in record["reason"]
    assert "which this field lacks" in record["reason"]
    assert read_json(profiled / "results/screen/records/profiles.json")["status"] == "failed", "there is no other plate"
    edit(profiled, lambda settings: settings.update(max_failed_fields=0.9))
    run_stages(profiled, ("profiling",))
    assert read_json(profiled / PROFILED)["status"] == "done"


def test_cells_per_field_are_a_readout_that_a_lost_well_has_no_value_of(profiled):
    edit(profiled, lambda settings: settings["profiling"]["parameters"].update(CELLS))
    run_stages(profiled, ("profiling", "profiles"))
    wells = read_table(profiled / "results/plates/P1/aggregates.parquet").set_index("Metadata_Well")
    known = wells["Metadata_FieldCount"] > 0
    assert not known[TRUNCATED] and np.isnan(wells.at[TRUNCATED, "Metadata_Readout"])
    expected = wells["Metadata_CellCount"] / wells["Metadata_FieldCount"]
    assert known.sum() >= 8
    np.testing.assert_array_equal(wells.loc[known, "Metadata_Readout"], expected[known])
    assert (read_table(profiled / "results/screen/wells.parquet")["Metadata_Readout"].notna().sum()) == known.sum()
    run_stages(profiled, ("report", "screen_report"))
    for page in ("plates/P1", "screen"):
        html = (profiled / "results" / page / "report.html").read_text()
        assert (
            f"{TRUNCATED}: 0 cells" not in html
            and f"{WITHOUT_GFP}: {wells.at[WITHOUT_GFP, 'Metadata_CellCount']} cells" in html
        )


def test_a_cell_without_cytoplasm_keeps_its_row_with_nothing_in_it(profiled):
    path = store.field_path("results/plates/P1/plate.zarr", "A01", 1)
    labels = {name: store.read_labels(path, name) for name in COMPARTMENTS}
    bare = int(labels["Nuclei"].max())
    labels["Cytoplasm"][labels["Cytoplasm"] == bare] = 0
    labels["Cells"][(labels["Cells"] == bare) & (labels["Nuclei"] != bare)] = 0
    made = store.finished_record(path / "labels/Nuclei")
    levels = len(store.read_group(path)["ome"]["multiscales"][0]["datasets"])
    pixel_size_um = store.describe_image(path)["pixel_size_um"]
    store.write_labels(path, labels, pixel_size_um=pixel_size_um, levels=levels, record=made)
    flat = read_json("results/plates/P1/records/illumination/part-0.json")["artefacts"]["illumination"]
    settings = Screen(read_config(profiled).model_dump(mode="json"), profiled).settings("features", "P1")
    table = measure_field("P1", "A01", 1, flat, made["fingerprint"], settings).set_index("Metadata_ObjectNumber")
    assert list(table.index) == sorted(set(np.unique(labels["Nuclei"])) - {0})
    row, others = table.loc[bare], table.drop(bare)
    cytoplasm = [name for name in table if name.startswith("Cytoplasm_")]
    assert len(cytoplasm) > 50 and row[cytoplasm].isna().all()
    assert row[[name for name in table if name.startswith(("Nuclei_AreaShape", "Cells_AreaShape"))]].notna().any()
    assert row["Cells_AreaShape_Area"] == row["Nuclei_AreaShape_Area"]
    assert others["Cytoplasm_AreaShape_Area"].notna().all()
