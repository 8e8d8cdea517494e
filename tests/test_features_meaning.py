"""What columns mean, and what becomes of it in tables, in the documentation and in the command."""

import sys
import types

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, TO_FEATURES, simulate
from test_run import plateloom

from plateloom.features import FAMILIES, feature_columns, measure_image
from plateloom.features.meaning import add_physical, describe_columns, unit_of
from plateloom.stages import features as stage
from plateloom.store.tables import read_table, write_table

COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")


def test_every_column_names_the_module_that_measures_it():
    described = describe_columns(COMPARTMENTS, ["DNA", "ER"])
    assert {column["family"] for column in described.values()} == set(FAMILIES)
    assert all(column["source"] for column in described.values())
    for name, source in {
        "Nuclei_AreaShape_Zernike_0_0": "MeasureObjectSizeShape",
        "Nuclei_RadialDistribution_ZernikePhase_DNA_1_1": "MeasureObjectIntensityDistribution",
        "Nuclei_Location_CenterMassIntensity_X_DNA": "MeasureObjectIntensity",
        "Cells_Parent_Nuclei": "RelateObjects",
    }.items():
        assert described[name]["source"] == source
    for name in ("Nuclei_Location_Center_X", "Nuclei_Number_Object_Number"):
        assert described[name]["source"].startswith("IdentifyPrimaryObjects")


def test_a_family_is_one_file_and_one_line(monkeypatch):
    module = types.ModuleType("sparkle")
    module.columns = lambda channels, **_: [f"Sparkle_{channel}" for channel in channels]
    module.measure = lambda index, image, channels, **_: np.full((len(index.labels), len(channels)), 7.0)
    monkeypatch.setitem(sys.modules, "sparkle", module)
    monkeypatch.setitem(FAMILIES, "Sparkle", "sparkle")
    described = describe_columns(["Nuclei"], ["DNA"], families=["Sparkle"])
    assert list(described) == ["Nuclei_Sparkle_DNA"] and described["Nuclei_Sparkle_DNA"]["source"] == ""
    labels = np.kron([[1, 0], [0, 2]], np.ones((4, 4))).astype(np.uint32)
    found = measure_image(np.zeros((1, 8, 8), np.uint16), {"Nuclei": labels}, ["DNA"], families=["Sparkle"])
    assert found["Nuclei"]["Nuclei_Sparkle_DNA"].tolist() == [7.0, 7.0]


def test_every_column_is_described_in_the_order_of_the_tables():
    channels = ["DNA", "E_R", "ER"]
    described = describe_columns(COMPARTMENTS, channels, texture_scales=(3, 5), neighbor_distance=4)
    assert list(described) == [
        name
        for compartment in COMPARTMENTS
        for name in feature_columns(
            compartment, channels, compartments=COMPARTMENTS, texture_scales=(3, 5), neighbor_distance=4
        )
    ]
    assert described["Cells_Texture_Contrast_E_R_3_00_256"]["channel"] == "E_R"
    assert described["Cells_Correlation_Manders_ER_E_R"] == {
        "compartment": "Cells",
        "family": "Correlation",
        "channel": "E_R/ER",
        "unit": "1",
        "source": "MeasureColocalization",
    }
    assert described["Nuclei_AreaShape_Area"]["channel"] == ""
    assert described["Cytoplasm_Parent_Cells"]["unit"] == "label"


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("Nuclei_AreaShape_Area", "px^2"),
        ("Nuclei_AreaShape_BoundingBoxMaximum_X", "px"),
        ("Nuclei_AreaShape_SpatialMoment_2_3", "px^7"),
        ("Nuclei_AreaShape_NormalizedMoment_2_3", "1"),
        ("Nuclei_AreaShape_InertiaTensorEigenvalues_0", "px^2"),
        ("Nuclei_AreaShape_Orientation", "degree"),
        ("Nuclei_Intensity_MassDisplacement_DNA", "px"),
        ("Nuclei_Neighbors_FirstClosestDistance_5", "px"),
        ("Nuclei_Neighbors_FirstClosestObjectNumber_5", "label"),
        ("Nuclei_RadialDistribution_ZernikePhase_DNA_9_9", "rad"),
    ],
)
def test_units(column, unit):
    assert unit_of(column) == unit


def test_the_name_of_a_channel_is_no_measurement():
    described = describe_columns(["Nuclei"], ["Parent_GFP", "Location_ER"], families=["Intensity", "Texture"])
    assert {one["unit"] for name, one in described.items() if "MassDisplacement" not in name} == {"1"}


def test_lengths_and_areas_in_micrometers_stand_beside_those_in_pixels():
    described = describe_columns(["Nuclei"], ["DNA"], families=["AreaShape"], physical_units=True)
    plain = describe_columns(["Nuclei"], ["DNA"], families=["AreaShape"])
    added = set(described) - set(plain)
    assert {described[name]["unit"] for name in added} == {"um", "um^2"}
    assert "Nuclei_AreaShape_Area_um2" in added and "Nuclei_AreaShape_Eccentricity_um" not in added
    table = pd.DataFrame(2.0, index=[7], columns=list(plain))
    found = add_physical(table, 0.5, described)
    assert set(found) == set(described)
    assert found.loc[7, "Nuclei_AreaShape_Area_um2"] == 0.5 and found.loc[7, "Nuclei_AreaShape_Perimeter_um"] == 1.0
    pd.testing.assert_frame_equal(add_physical(table, 0.5, plain), table)


def test_row_groups_are_whole_fields_and_columns_say_what_they_are(tmp_path):
    described = describe_columns(["Nuclei"], ["DNA"], families=["Intensity"])
    table = pd.DataFrame(
        {
            "Metadata_Plate": "P1",
            "Metadata_Well": "A01",
            "Metadata_Field": [1, 1, 2, 5, 5, 6],
            "Metadata_ObjectNumber": [1, 2, 1, 1, 2, 1],
        }
    )
    table = table.join(pd.DataFrame(np.random.default_rng(0).random((6, len(described))), columns=list(described)))
    for least, rows in ((1, [2, 1, 2, 1]), (2, [2, 4]), (1000, [6])):
        write_table(tmp_path / "A01.parquet", table, {"a": 1}, described=described, group_rows=least)
        file = pq.ParquetFile(tmp_path / "A01.parquet")
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == rows
    assert file.schema_arrow.field("Nuclei_Intensity_MeanIntensity_DNA").metadata[b"unit"] == b"1"
    pd.testing.assert_frame_equal(read_table(tmp_path / "A01.parquet"), table)
    once = (tmp_path / "A01.parquet").read_bytes()
    write_table(tmp_path / "A01.parquet", table, {"a": 1}, described=described)
    assert (tmp_path / "A01.parquet").read_bytes() == once


def test_a_table_without_cells_has_the_columns_of_one_with_cells():
    settings = {"families": ["AreaShape", "Links"], "texture_scales": [3], "neighbor_distance": 5}
    described = stage.describe_table(settings | {"physical_units": True}, ["DNA"])
    assert list(stage.empty_table(described)) == [*stage.METADATA, *described]


def test_the_page_lists_what_is_measured():
    code, text = plateloom("features", "--markdown")
    assert code == 0 and text in (ROOT / "docs/features.md").read_text(), "plateloom features --markdown has changed"


def test_the_command_counts_a_screens_columns(tmp_path):
    folder = simulate(tmp_path / "screen")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["features"] = {
        "families": ["Intensity", "Texture", "Neighbors"],
        "texture_scales": [3],
        "precision": "float32",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    code, text = plateloom("features", folder)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines()[2:]}
    assert rows.pop("Intensity") == ["135", "540"]
    assert rows == {"Texture": ["468", "1,872"], "Neighbors": ["42", "168"], "all": ["645", "2,580"]}
    code, text = plateloom("features", folder, "--columns")
    assert len(text.splitlines()) == 646 and text.splitlines()[1].split("\t")[1:3] == ["Nuclei", "Intensity"]


def test_the_command_times_the_families_that_a_screen_measures(tmp_path):
    folder = simulate(tmp_path / "screen")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings |= {"features": {"families": ["AreaShape", "Location"], "channels": ["DNA"]}, "profiling": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    code, text = plateloom("features", folder, "--time")
    head, columns, *rows = text.splitlines()
    assert (
        code == 0
        and head.startswith("channels: DNA;")
        and columns.split()[:6] == ["family", "columns", "bytes", "a", "cell", "ms"]
    )
    spent = {row.split()[0]: float(row.split()[3]) for row in rows[:3]}
    assert spent.keys() == {"AreaShape", "Location", "all"} and min(spent.values()) > 0
    assert rows[3].startswith("ms: one thread")


def test_a_screen_measures_the_channels_that_it_names_and_writes_a_row_group_per_field_where_asked(tmp_path):
    from in_process import run_stages

    folder = simulate(tmp_path / "screen", rows=2, columns=2, fields=2)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    families = ["Intensity", "Correlation", "AreaShape"]
    settings["features"] = {"families": families, "channels": ["DNA", "GFP"], "row_group_rows": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert set(settings["channels"]) > {"DNA", "GFP"}
    run_stages(folder, TO_FEATURES)
    paths = sorted(folder.glob("results/plates/P1/features/*.parquet"))
    assert len(paths) == 4
    described = describe_columns(["Nuclei", "Cells", "Cytoplasm"], ["DNA", "GFP"], families=families)
    for path in paths:
        with pq.ParquetFile(path) as file:
            assert [name for name in file.schema_arrow.names if not name.startswith("Metadata_")] == list(described)
            groups = [file.read_row_group(i)["Metadata_Field"].to_pylist() for i in range(file.num_row_groups)]
        assert [set(group) for group in groups] == [{field} for field in sorted(set(sum(groups, [])))]
    assert any(pq.read_metadata(path).num_row_groups == 2 for path in paths)
