"""Nuclei and cells that a person has painted -> labels in which one cell has one value: what is mended, what is refused."""

import numpy as np
from scipy import ndimage

LARGEST = 999_999
_ALL_SIDES = np.ones((3, 3), bool)


def find_faults(labels, before=None):
    """Say what is wrong with one painted label image.

    Parameters
    ----------
    labels : ndarray of int, shape (Y, X)
        0 is background.
    before : ndarray of int, shape (Y, X), optional
        What it was painted over; an object that is as it was is not judged.

    Returns
    -------
    list of str
        Values out of range, and values that stand for objects in several places.

    Examples
    --------
    >>> find_faults(np.array([[3, 0, 3]]))
    ['label 3 is in 2 pieces (1 and 1 px): give each object a value of its own']
    """
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0 or highest > LARGEST:
        found = lowest if lowest < 0 else highest
        return [f"label {found}: expected 0 for background and 1 to {LARGEST} for objects"]
    changed = np.unique(labels)
    if before is not None:
        other = labels != before
        changed = np.union1d(labels[other], before[other])
    faults = []
    labels = labels.astype(np.int32)
    boxes = ndimage.find_objects(labels)
    for value in changed[(changed > 0) & (changed <= highest)]:
        if boxes[value - 1] is None:
            continue
        pieces, count = ndimage.label(labels[boxes[value - 1]] == value, _ALL_SIDES)
        if count > 1:
            sizes = sorted(np.bincount(pieces.ravel())[1:].tolist(), reverse=True)
            shown = " and ".join(map(str, sizes[:3])) + (" …" if count > 3 else "")
            faults.append(f"label {value} is in {count} pieces ({shown} px): give each object a value of its own")
    return faults


def reconcile(nuclei, cells):
    """Make nuclei and cells agree, so that a cell has one value in both.

    A nucleus keeps its outline and its value. Where the cells do not fit to it, they are mended:

    1. A nucleus without a cell shares the cell in which most of it lies with the other nuclei there: each pixel goes to
       the nearest nucleus. Outside of all cells, the nucleus alone is its cell.
    2. A cell without a nucleus goes to the nuclei that reach into it, or, if there are none, it is removed.
    3. Pixels of a nucleus belong to its cell.

    Parameters
    ----------
    nuclei, cells : ndarray of int, shape (Y, X)
        Values 0 (background) to `LARGEST`.

    Returns
    -------
    cells : ndarray of uint32, shape (Y, X)
        The same values as the nuclei.
    faults : list of str
        Nuclei that have a cell somewhere else.

    Examples
    --------
    A nucleus, 1, was split into 1 and 2; a cell, 5, has lost its nucleus:

    >>> reconcile(np.array([[0, 1, 2, 0, 0, 0]]), np.array([[1, 1, 1, 1, 5, 5]]))[0]
    array([[1, 1, 2, 2, 0, 0]], dtype=uint32)
    """
    cells = np.array(cells, np.uint32)
    own = np.unique(nuclei[nuclei > 0])
    there = np.unique(cells[cells > 0])
    inside = (nuclei > 0) & (cells > 0)
    pairs, overlaps = np.unique(np.stack([nuclei[inside], cells[inside]]), axis=1, return_counts=True)
    fitting = set(pairs[0, pairs[0] == pairs[1]].tolist())
    faults = [
        f"nucleus {value} lies outside of cell {value}: one cell has one value in both images"
        for value in np.intersect1d(own, there).tolist()
        if value not in fitting
    ]
    home = {}  # of nuclei without a cell, the cell that most of their pixels lie in
    for nucleus, cell, overlap in zip(*pairs.tolist(), overlaps.tolist(), strict=True):
        if nucleus not in fitting and overlap > home.get(nucleus, (0, 0))[1]:
            home[nucleus] = (cell, overlap)
    sharing, reaching = {}, {}
    for nucleus, (cell, _) in home.items():
        sharing.setdefault(cell, []).append(nucleus)
    for nucleus, cell in zip(*pairs.tolist(), strict=True):
        reaching.setdefault(cell, []).append(nucleus)
    boxes = ndimage.find_objects(cells) if len(there) else []
    painted = cells.copy()
    for cell in there.tolist():
        heirs = ([cell] if cell in fitting else []) + sharing.get(cell, [])
        heirs = heirs or reaching.get(cell, [])
        if heirs == [cell]:
            continue
        box = boxes[cell - 1]
        region = painted[box] == cell
        cells[box][region] = _nearest(nuclei[box], heirs)[region] if heirs else 0
    cells[nuclei > 0] = nuclei[nuclei > 0]
    return cells, faults


def _nearest(nuclei, chosen):
    """The nearest of the chosen nuclei at every pixel."""
    seeds = np.isin(nuclei, chosen)
    places = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    return nuclei[tuple(places)]
