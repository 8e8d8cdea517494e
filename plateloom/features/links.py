"""Links: an object's number, and which objects of the other compartments belong to the same cell.

The parts of one cell share their label, so a link is the label itself. Of two compartments the one that comes first in
`labels` is the parent. Columns are those of CellProfiler's identification modules.
"""

import numpy as np

from plateloom.features.pixels import occurring_labels


def columns(channels, *, compartment="", compartments=(), **options):
    """Column names without the compartment."""
    before, after = _relatives(compartment, compartments)
    return (
        [f"Children_{name}_Count" for name in after] + ["Number_Object_Number"] + [f"Parent_{name}" for name in before]
    )


def measure(index, image, channels, *, compartment="", labels=None, **options):
    """Measure the columns.

    Parameters
    ----------
    index : PixelIndex
        N objects.
    image, channels
        As in `measure_image`.
    compartment : str
        The one of `index`.
    labels : dict of str to ndarray of int, shape (Y, X)
        Label images of all compartments.

    Returns
    -------
    ndarray of float64, shape (N, number of compartments)
        The number of an object is its label. The parent is 0 where there is none.
    """
    before, after = _relatives(compartment, labels or {})
    own = index.labels

    def occurs(other):
        return np.isin(own, index.shared.once(("Links", other), lambda: occurring_labels(np.asarray(labels[other]))))

    blocks = [occurs(name) for name in after] + [own] + [np.where(occurs(name), own, 0) for name in before]
    return np.column_stack(blocks).astype(np.float64)


def _relatives(compartment, compartments):
    """Compartments before and after the own one."""
    names = list(compartments)
    place = names.index(compartment) if compartment in names else len(names)
    return names[:place], names[place + 1 :]
