"""Plate map, features and regions as tables inside an exported plate, as ngio and Fractal read them.

All tables use the parquet backend: float64 stays float64 (the AnnData backend would make it float32), an empty well keeps
its columns. ngio is no dependency: it is asked for only where tables are wanted.
"""

import importlib.util

import numpy as np
import pandas as pd

from plateloom.errors import ConfigError
from plateloom.store.plate import describe_image, field_path, list_labels, read_group, read_labels
from plateloom.store.tables import read_table
from plateloom.wells import parse_well, row_name

BACKEND = "parquet"
CONDITIONS, FIELDS, WELL = "condition_table", "FOV_ROI_table", "well_ROI_table"
FEATURES = "{compartment}_feature_table"
INDEX = "label"


def require_ngio():
    """Refuse to go on where ngio is not installed."""
    if importlib.util.find_spec("ngio") is None:
        raise ConfigError("--tables needs ngio, which is not installed: `pip install ngio`, or give --no-tables")


def add_tables(store, fields, *, plate_map, features):
    """Add all tables to a plate.

    Parameters
    ----------
    store : Path
        The exported plate; the original must not be given.
    fields : dict of str to list of int
        Fields by well.
    plate_map : list of dict
        Rows of `read_plate_map`; empty where the plate has none.
    features : callable(str) -> Path
        Where a well's table of features lies, if there is one.

    Returns
    -------
    int
        Number of tables.
    """
    import ngio

    count = 0
    if plate_map:
        table = ngio.ConditionTable(condition_rows(plate_map, fields))
        plate = ngio.open_ome_zarr_plate(str(store), mode="r+")
        plate.add_table(CONDITIONS, table, backend=BACKEND, overwrite=True)
        count += 1
    for well, numbers in fields.items():
        path = features(well)
        cells = read_table(path) if path.exists() else None
        for number in numbers:
            image = field_path(store, well, number)
            container = ngio.open_ome_zarr_container(str(image), mode="r+", cache=True)
            for name, table in _tables_of_image(image, cells, container).items():
                container.add_table(name, table, backend=BACKEND, overwrite=True)
                count += 1
    return count


def condition_rows(plate_map, fields):
    """Make one row per well of the plate map, and per well with images that the map lacks.

    Parameters
    ----------
    plate_map : list of dict
    fields : dict of str to list of int

    Returns
    -------
    DataFrame
        `row` and `column` as the plate's metadata name them, `well`, then the map's columns; `dose` float64, NaN where there
        is none, everything else text. A column of the map's own that is called `row` or `column` gets `_of_map` behind it.
    """
    of_map = [name for name in plate_map[0] if name != "well"]
    unmapped = [{"well": well} for well in fields if well not in {row["well"] for row in plate_map}]
    rows = []
    for known in sorted([*plate_map, *unmapped], key=lambda row: parse_well(row["well"])):
        row, column = parse_well(known["well"])
        conditions = {name: known.get(name, float("nan") if name == "dose" else "") for name in of_map}
        renamed = {f"{name}_of_map" if name in ("row", "column") else name: cell for name, cell in conditions.items()}
        rows.append({"row": row_name(row), "column": f"{column + 1:02d}", "well": known["well"]} | renamed)
    table = pd.DataFrame(rows)
    return table.astype({name: "str" for name in table if name != "dose"})


def feature_rows(cells, image, compartment):
    """One field's features of a compartment, one row per label.

    Parameters
    ----------
    cells : DataFrame
        A well's table of features.
    image : Path
        The field's group.
    compartment : str

    Returns
    -------
    DataFrame of float64
        The index, `label`, is the object's number in the label image. Objects that lack the compartment have no row.
    """
    columns = [name for name in cells if name.startswith(f"{compartment}_")]
    rows = (
        cells[cells["Metadata_Field"] == int(image.name)].set_index("Metadata_ObjectNumber")[columns].rename_axis(INDEX)
    )
    if columns and rows.isna().all(axis=1).any():  # not measurable, or not there: the label image tells
        rows = rows[rows.index.isin(np.unique(read_labels(image, compartment)))]
    return rows


def _tables_of_image(image, cells, container):
    """All tables of one image, by name."""
    import ngio

    tables = {
        WELL: container.build_image_roi_table("well"),
        FIELDS: ngio.RoiTable(rois=_fields_of_image(image, container)),
    }
    for compartment in list_labels(image) if cells is not None else []:
        rows = feature_rows(cells, image, compartment)
        if len(rows.columns):
            name = FEATURES.format(compartment=compartment)
            tables[name] = ngio.FeatureTable(rows, reference_label=compartment)
    return tables


def _fields_of_image(image, container):
    """Regions of the fields on an image [µm]: all of it, or where each lies on a stitched well."""
    import ngio

    (whole,) = container.build_image_roi_table("well").rois()
    slices = {part.axis_name: (part.start, part.length) for part in whole.slices}
    described, record = describe_image(image), read_group(image).get("plateloom", {})
    position, size = described["position_um"], described["pixel_size_um"]

    def region(number, top=0, left=0, shape=None):
        place = {} if shape is None else {"y": (top * size, shape[0] * size), "x": (left * size, shape[1] * size)}
        stage = {}
        if position is not None:
            stage = {
                "y_micrometer_original": position[0] + top * size,
                "x_micrometer_original": position[1] + left * size,
            }
        return ngio.Roi.from_values(slices | place, name=f"FOV_{number}", space="world", **stage)

    if "tiles" not in record:
        return [region(image.name)]
    return [region(tile["field"], tile["y"], tile["x"], record["tile_shape"]) for tile in record["tiles"]]
