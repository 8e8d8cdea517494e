"""Whole images, or squares of them, as objects: for images in which cells cannot be segmented, or need not be.

A patch stands where a cell would: it is nucleus and cell in one, and has no cytoplasm. Every image has its patches, whatever
is on it.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from plateloom.segmentation.holes import find_covered

OBJECTS = "What is called a cell is a patch of an image here (segmentation.method patches)."
MEASURED = ("Cells",)  # nuclei would say the same once more, and cytoplasm nothing
SMALLEST_PX = 8


class Params(BaseModel):
    """Parameters of the patches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_um: float | None = Field(
        None,
        gt=0,
        description="Side of a patch [µm], about: as many as fit best share the image evenly; none: the image is one patch.",
    )


class Patches:
    """The method on the tiles of one image; see `plateloom.segmentation` for the order of its phases.

    Parameters
    ----------
    params : Params
    channels : sequence of str
        Of no influence.
    pixel_size_um : float
        Width of a pixel [µm/px].
    shape : tuple of int (Y, X)
        Size of the whole image [px].

    Raises
    ------
    ValueError
        If patches of that size cannot be cut: see `find_misfits`.
    """

    def __init__(self, params, channels, *, pixel_size_um, shape):
        if misfits := find_misfits(params, pixel_size_um):
            raise ValueError("; ".join(misfits))
        self.shape = tuple(int(size) for size in shape)
        side = max(*self.shape, 1) if params.size_um is None else params.size_um / pixel_size_um
        self.edges = [share_evenly(size, side) for size in self.shape]
        self.halo_px = {"measure": 0, "seed": 0, "grow": 0}

    def measure(self, view, origin, core):
        """Nothing: patches do not depend on pixels."""
        return {}

    def combine(self, measurements):
        """Nothing."""
        return {}

    def seed(self, view, origin, core, thresholds):
        """Patches of the core: 1 + index of the patch's first pixel in the raster of the whole image, int64.

        Pixels that no field covers are in none.
        """
        firsts = []
        for edges, start, part in zip(self.edges, origin, core, strict=True):
            place = np.arange(start + part.start, start + part.stop)
            firsts.append(edges[np.searchsorted(edges, place, side="right") - 1])
        ids = firsts[0][:, None] * self.shape[1] + firsts[1] + 1
        covered = find_covered(view)
        return ids if covered is None else np.where(covered[core], ids, 0)

    def grow(self, view, nuclei, origin, core, thresholds):
        """Cells are the patches: uint32."""
        return nuclei[core].astype(np.uint32)


Method = Patches


def notices(params):
    """What to know before using it."""
    return [
        "segmentation.method patches: what is called a cell in tables and on pages is a patch of an image; shape, place and "
        "neighbors say nothing of patches, so leave them out, features.families: [Intensity, Texture, Correlation, "
        "RadialDistribution, Granularity]"
    ]


def find_misfits(params, pixel_size_um):
    """Why images of a pixel size [µm/px] cannot be cut into patches of the size asked for: list of str."""
    if params.size_um is None:
        return []
    if not (pixel_size_um or 0) > 0:
        return [f"pixel_size_um is {pixel_size_um!r}, expected a width above 0"]
    if params.size_um < SMALLEST_PX * pixel_size_um:
        side = params.size_um / pixel_size_um
        smallest = SMALLEST_PX * pixel_size_um
        return [f"size_um is {params.size_um:g}, which is {side:.1f} px here; expected {smallest:g} or more"]
    return []


def share_evenly(size, side):
    """Where patches begin along an axis.

    Parameters
    ----------
    size : int
        Of the image [px].
    side : float
        Of a patch [px].

    Returns
    -------
    ndarray of int64

    Examples
    --------
    >>> share_evenly(100, 30)
    array([ 0, 33, 67])
    """
    count = max(1, round(size / side))
    return np.rint(np.arange(count) * size / count).astype(np.int64)
