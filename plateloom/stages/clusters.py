"""Clusters of the screen's cells, for its pages: how many there are in each well, and what typical cells look like."""

import numpy as np
import pandas as pd

from plateloom.latent.crops import crop_cells
from plateloom.stages.cell_labels import find_nuclei
from plateloom.stages.illumination import read_corrected
from plateloom.stages.profiling import flagged_fields
from plateloom.store import plate as store
from plateloom.store.layout import model_folder, plate_folder, plate_store, well_table
from plateloom.store.provenance import read_json
from plateloom.store.tables import KEYS, read_metadata, read_record, read_table

LEAST_PX = 8


def read_clusters(records):
    """The clusters' part of the map's card: `config` and `rows`.

    Parameters
    ----------
    records : list of dict
        Of the map, or of a plate's places on it.

    Returns
    -------
    dict or None
        None where the records are not all done, or there are no clusters.
    """
    if not records or any(record["status"] != "done" for record in records):
        return None
    return (read_json(model_folder("map") / "map.json") or {}).get("clusters")


def count_clusters(plate, number, exclude_flagged):
    """Count the cells of each cluster in each well of a plate, with what is in the well; runs in a worker.

    Parameters
    ----------
    plate : str
    number : int
        Of clusters.
    exclude_flagged : bool
        Leave out fields that QC has flagged.

    Returns
    -------
    DataFrame
        One row per well: what it holds, `cells` that have a place on the map, and ``cluster 0``, ``cluster 1`` ….
    """
    bad = flagged_fields(plate) if exclude_flagged else set()
    wells = read_metadata(plate_folder(plate) / "aggregates.parquet")
    rows = []
    for well in wells["Metadata_Well"]:
        cells = read_table(well_table(plate, "maps", well), [*KEYS, "PCA_1", "Cluster"])
        excluded = {field for other, field in bad if other == well}
        if excluded:
            fields = read_table(well_table(plate, "features", well), [*KEYS, "Metadata_SourceField"])
            cells = cells.merge(fields, on=list(KEYS), validate="one_to_one")
            cells = cells[~cells["Metadata_SourceField"].isin(excluded)]
        counts = np.bincount(cells.loc[cells["Cluster"] >= 0, "Cluster"], minlength=number)
        rows.append([int(cells["PCA_1"].notna().sum()), *counts])
    counted = pd.DataFrame(rows, columns=["cells", *(f"cluster {i}" for i in range(number))])
    known = [f"Metadata_{name}" for name in ("Plate", "Well", "Treatment", "Dose", "Unit", "Control")]
    return pd.concat([wells[known].reset_index(drop=True), counted.astype(int)], axis=1)


def share_clusters(plate, wells, number):
    """Share of each cluster in each well of a plate.

    Returns
    -------
    list of dict of str to float
        Per cluster: well to share; wells without a cell are left out.
    """
    shares = [{} for _ in range(number)]
    for well in wells:
        cells = read_table(well_table(plate, "maps", well), ["PCA_1", "Cluster"])
        placed = cells.loc[cells["PCA_1"].notna(), "Cluster"]
        for i, of in enumerate(shares if len(placed) else ()):
            of[well] = float((placed == i).mean())
    return shares


def cut_example(plate, well, field, number, *, channels, size_um, out_px):
    """Cut a cell out of its field.

    Parameters
    ----------
    plate, well : str
    field, number : int
        Where the cell is, and its number.
    channels : list of str
    size_um : float
        Side of the square [µm].
    out_px : int
        Side of the picture [px].

    Returns
    -------
    ndarray of float32, shape (C, out_px, out_px), or None
        None: the cell is no longer there, or its field lacks one of the channels.
    """
    made = (read_record(well_table(plate, "features", well)) or {}).get("inputs")
    path = store.field_path(plate_store(plate), well, field)
    if made is None or store.read_group(path) is None:
        return None
    described = store.describe_image(path)
    if set(described["missing"]) & set(channels):
        return None
    values, centers, _ = find_nuclei(plate, well, field, made["labels"])
    place = np.flatnonzero(values == number)
    if not len(place):
        return None
    center = centers[place[0]]
    size = max(LEAST_PX, round(size_um / described["pixel_size_um"]))
    window = tuple(
        slice(max(int(at) - size, 0), min(int(at) + size, side))
        for at, side in zip(center, store.image_shape(path)[-2:], strict=True)
    )
    pixels = read_corrected(plate, well, field, made["illumination"], channels=channels, window=window)
    return crop_cells(pixels, [center - [part.start for part in window]], size_px=size, out_px=out_px)[0]
