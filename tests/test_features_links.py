"""Links between compartments, against the table that CellProfiler published for a field."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.testing import assert_array_equal

from plateloom.features import feature_columns, measure_image

DATA = Path(__file__).parents[2] / "shared" / "data"


def links(labels):
    shape = next(iter(labels.values())).shape
    tables = measure_image(np.zeros((0, *shape), np.uint8), labels, [], families=["Links"])
    return {
        name: table.rename(columns=lambda column, prefix=f"{name}_": column.removeprefix(prefix))
        for name, table in tables.items()
    }


def test_links_are_those_that_cellprofiler_published():
    folder = DATA / "cellprofiler_reference/examplehuman"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    paths = json.loads((folder / "field.json").read_text())["labels"]
    found = links({name: tifffile.imread(folder / path) for name, path in paths.items()})
    for name, table in found.items():
        published = pd.read_csv(DATA / "examplehuman_cellprofiler" / f"{name}.csv").set_index("ObjectNumber")
        shared = [column for column in table if column in published]
        assert shared == [column for column in table if column != "Parent_Nuclei" or name != "Nuclei"]
        for column in shared:
            assert_array_equal(table[column], published[column].loc[table.index], err_msg=f"{name}_{column}")


def test_a_nucleus_without_a_cell_has_no_child_and_a_cell_without_a_nucleus_no_parent():
    nuclei, cells = np.array([[1, 0, 70_000, 0]]), np.array([[1, 1, 0, 5]])
    found = links({"Nuclei": nuclei, "Cells": cells, "Cytoplasm": np.where(nuclei > 0, 0, cells)})
    assert found["Nuclei"].to_dict("index") == {
        1: {"Children_Cells_Count": 1, "Children_Cytoplasm_Count": 1, "Number_Object_Number": 1},
        70_000: {"Children_Cells_Count": 0, "Children_Cytoplasm_Count": 0, "Number_Object_Number": 70_000},
    }
    assert found["Cells"]["Parent_Nuclei"].tolist() == [1, 0]
    assert found["Cytoplasm"][["Parent_Nuclei", "Parent_Cells"]].to_numpy().tolist() == [[1, 1], [0, 5]]


def test_the_columns_of_a_compartment_depend_on_its_place():
    names = ("Nuclei", "Cells", "Cytoplasm")
    assert feature_columns("Cells", ["DNA"], families=["Links"], compartments=names) == [
        "Cells_Children_Cytoplasm_Count",
        "Cells_Number_Object_Number",
        "Cells_Parent_Nuclei",
    ]
    assert feature_columns("Cells", ["DNA"], families=["Links"]) == ["Cells_Number_Object_Number"]
