"""Clusters of the screen's cells, for its pages: how many there are in each well, and what typical cells look like."""

import logging

import numpy as np
import pandas as pd

from plateloom.stages.cell_crops import cut_picture
from plateloom.stages.fields import count_by_well
from plateloom.store.layout import model_folder, well_table
from plateloom.store.provenance import read_json
from plateloom.store.tables import KEYS, read_table

log = logging.getLogger(__name__)


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

    def count(cells):
        return [
            int(cells["PCA_1"].notna().sum()),
            *np.bincount(cells.loc[cells["Cluster"] >= 0, "Cluster"], minlength=number),
        ]

    names = ["cells", *(f"cluster {i}" for i in range(number))]
    return count_by_well(plate, "maps", ["PCA_1", "Cluster"], count, names, exclude_flagged)


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


def ask_examples(rows, plates, *, channels, size_um, out_px):
    """Say which tasks cut out the typical cells of clusters.

    Parameters
    ----------
    rows : list of dict
        Of `read_clusters`.
    plates : collection of str
        Of which pictures are shown.
    channels : list of str
    size_um : float
        Side of the squares [µm].
    out_px : int
        Side of the pictures [px].

    Returns
    -------
    owners : list of int
        Per task: the cluster of the cell.
    tasks : list of tuple
    """
    cells = [(row["cluster"], cell) for row in rows for cell in row["examples"] if cell[0] in plates]
    tasks = [(cut_picture, pd.DataFrame([cell], columns=list(KEYS)), size_um, out_px, channels) for _, cell in cells]
    return [cluster for cluster, _ in cells], tasks


def sort_examples(owners, pictures):
    """Pictures (C, out_px, out_px) that tasks of `ask_examples` gave, by cluster.

    A cell that is no longer there, or whose field lacks a channel, has none; nor has one that could not be cut, which is logged.
    """
    found = {}
    for cluster, picture in zip(owners, pictures, strict=True):
        if isinstance(picture, str):
            log.warning("a cell of cluster %d has no picture: %s", cluster, picture)
        elif np.isfinite(picture).all():
            found.setdefault(cluster, []).append(picture[0])
    return found
