"""Labels of cells -> the cells that they mean now, whatever segmentation they were given on."""

import numpy as np

from plateloom.classification.identity import match_cells
from plateloom.stages.mosaics import measure_nuclei
from plateloom.store import plate as store
from plateloom.store.layout import plate_store, well_table
from plateloom.store.tables import read_record


def short_row(row):
    """A label as a recipe and a job get it: class, field, object, and if it has them y, x [px], segmentation and why."""
    named = ("class", "field", "object") + (("y", "x", "segmentation", "why") if row["segmentation"] else ())
    return [row[name] for name in named]


def is_asked(row):
    """Whether a label (of `short_row`) is of a cell that a person was shown since a classifier was in doubt about it."""
    return len(row) > 6 and row[6] == "uncertain"


def assign_labels(plate, well, table, rows):
    """Say which label each cell of a well has; runs in a worker too.

    Parameters
    ----------
    plate, well : str
    table : DataFrame, shape (N, ...)
        The well's features, or some rows of them.
    rows : list of list
        Of `short_row`; of several of a cell the last holds.

    Returns
    -------
    held : ndarray of int64, shape (N,)
        Position of the cell's label in `rows`; -1: it has none.
    lost : list of int
        Positions of labels whose cell is gone, or can no longer be told: its nucleus was split, merged or moved away.
    """
    objects = {i: row[2] for i, row in enumerate(rows)}
    objects |= _find_again(plate, well, rows)
    fields, numbers = table["Metadata_Field"].to_numpy(), table["Metadata_ObjectNumber"].to_numpy()
    held = np.full(len(table), -1, np.int64)
    for i, row in enumerate(rows):
        chosen = np.ones(len(table), bool)
        if row[1] is not None:
            chosen &= fields == row[1]
        if row[2] is not None:
            chosen &= numbers == objects[i]
        held[chosen] = i
    return held, [i for i, number in objects.items() if number == 0]


def _find_again(plate, well, rows):
    """Present numbers of labels that were given on another segmentation, by position; 0: gone."""
    made = read_record(well_table(plate, "features", well))["inputs"]["labels"]
    moved = {}
    for i, row in enumerate(rows):
        if len(row) > 3 and row[5] != made:
            moved.setdefault((row[1], row[5]), {}).setdefault((row[3], row[4]), []).append(i)
    objects, nuclei = {}, {}
    for (field, _), points in moved.items():
        if field not in nuclei:
            nuclei[field] = find_nuclei(plate, well, field, made)
        values, centers, radii = nuclei[field]
        for positions, match in zip(points.values(), match_cells(list(points), centers, radii), strict=True):
            objects |= dict.fromkeys(positions, int(values[match]) if match >= 0 else 0)
    return objects


def find_nuclei(plate, well, field, made):
    """Find the nuclei of an image.

    Parameters
    ----------
    plate, well : str
    field : int
    made : str
        Fingerprint that its labels must have.

    Returns
    -------
    values : ndarray of int64, shape (N,)
        Labels.
    centers : ndarray of float64, shape (N, 2)
        Row and column [px].
    radii : ndarray of float64, shape (N,)
        Of circles as large [px].
    """
    path = store.field_path(plate_store(plate), well, field)
    if "Nuclei" not in store.list_labels(path):
        return np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0)
    values, centers, areas = measure_nuclei(path, made)
    return values.astype(np.int64), centers, np.sqrt(areas / np.pi)
