"""What the adapters of other people's networks share: parameters, normalization, nuclei and cells on tiles, weights.

An adapter is a module with a `Params` that adds to `NetworkParams`, a `Method` that adds one function, ``find``, to
`NetworkMethod`, and for the config's checks ``PACKAGE`` and ``INSTALL`` (what must be there, and how it comes there),
``weights_files(params)`` (what the result depends on) and ``notices(params)`` (what a person must know before using it).
"""

import functools
import importlib
import importlib.util
import math
import os
import threading

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from plateloom.errors import ModelMismatchError
from plateloom.segmentation import watershed
from plateloom.segmentation.blocks import Blocks
from plateloom.segmentation.holes import fill, find_covered
from plateloom.segmentation.thresholds import bin_values, quantile


class NetworkParams(BaseModel):
    """Parameters that all of these methods have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str = Field(
        "",
        description="Model that finds nuclei: a path, from the screen's folder. Empty: as the method watershed finds them.",
    )
    cells_weights: str = Field(
        "",
        description="Model that finds whole cells: a path. Empty: cells grow from the nuclei as in the method watershed.",
    )
    nuclei_channel: str = Field("DNA", description="Channel that shows the nuclei.")
    cells_channel: str | None = Field(None, description="Channel that shows the whole cell; needed for cells_weights.")
    nucleus_diameter_um: float = Field(12.0, gt=0, description="Diameter of a typical nucleus [µm].")
    nucleus_diameter_max_um: float | None = Field(
        None, gt=0, description="Nuclei longer than this [µm] are left out; none: 2.5 × typical."
    )
    cell_diameter_um: float | None = Field(
        None, gt=0, description="Diameter of a typical cell [µm], for cells_weights; none: 2.5 × the nucleus'."
    )
    cell_diameter_max_um: float | None = Field(
        None, gt=0, description="Cells longer than this [µm] are left out, for cells_weights; none: 2.5 × typical."
    )
    min_contrast: float = Field(
        6.0,
        ge=0,
        description="Objects must on average rise above the background by this many of its standard deviations "
        "(dimensionless); keeps empty fields empty.",
    )
    cells_distance_um: float | None = Field(
        None,
        ge=0,
        description="Without cells_weights: no cell reaches farther than this from the nuclei [µm]; none: 2.5 × typical "
        "diameter with a cells channel, no growth without.",
    )

    @model_validator(mode="after")
    def _some_weights(self):
        if not self.weights and not self.cells_weights:
            raise ValueError(f"weights: none given. {self.whence()}")
        if self.cells_weights and self.cells_channel is None:
            raise ValueError("cells_weights: a model of whole cells needs a cells_channel")
        return self

    @classmethod
    def whence(cls):
        """Where weights come from, as a sentence that ends an error."""
        raise NotImplementedError

    @property
    def diameters_um(self):
        """Smallest and largest diameter of a nucleus [µm]; nothing is too small."""
        return 0.0, self.nucleus_diameter_max_um or 2.5 * self.nucleus_diameter_um

    def of_cells(self):
        """Typical and largest diameter of a cell [µm]."""
        typical = self.cell_diameter_um or 2.5 * self.nucleus_diameter_um
        return typical, self.cell_diameter_max_um or 2.5 * typical

    def of_watershed(self):
        """Parameters of the method watershed, which finds what no weights are given for."""
        names = ("nuclei_channel", "cells_channel", "nucleus_diameter_um", "min_contrast", "cells_distance_um")
        largest = max(self.nucleus_diameter_max_um or 0, 2.2 * self.nucleus_diameter_um)
        return watershed.Params(nucleus_diameter_max_um=largest, **{name: getattr(self, name) for name in names})


class NetworkMethod:
    """A network on the tiles of one image; see `plateloom.segmentation` for the order of its phases.

    Parameters
    ----------
    params : NetworkParams
    channels : sequence of str, length C
        Names of the image's channels.
    pixel_size_um : float
        Width of a pixel [µm/px].
    shape : tuple of int (Y, X)
        Size of the whole image [px].
    device : {'require', 'prefer', 'cpu'}
        Whether to use a GPU.

    Attributes
    ----------
    PERCENTILES : tuple of float
        What the network's authors scale to 0 and 1 [%]; taken of the whole image.
    """

    PERCENTILES = (1.0, 99.0)

    def __init__(self, params, channels, *, pixel_size_um, shape, device="prefer"):
        self.watershed = watershed.Watershed(params.of_watershed(), channels, pixel_size_um=pixel_size_um, shape=shape)
        self.params, self.pixel_size_um, self.device = params, pixel_size_um, device
        self.nuclei_px = params.nucleus_diameter_um / pixel_size_um
        cell_um, largest_um = params.of_cells()
        self.cells_px = cell_um / pixel_size_um
        longest = math.ceil(params.diameters_um[1] / pixel_size_um)
        self.nuclei_blocks = Blocks(shape, longest_px=longest, context_px=32)
        self.cells_blocks = Blocks(shape, longest_px=math.ceil(largest_um / pixel_size_um), context_px=32)

    def find(self, pixels, role, weights, diameter_px):
        """Run the network on one block.

        Parameters
        ----------
        pixels : ndarray of float32, shape (K, h, w)
            The nuclei's channel, for cells followed by the cells' channel; 0 … 1 are `PERCENTILES` of the whole image.
        role : {'nuclei', 'cells'}
        weights : str
            Path.
        diameter_px : float
            Of a typical object [px].

        Returns
        -------
        ndarray of int, shape (h, w)
            Labels; 0 is background.
        """
        raise NotImplementedError

    @property
    def halo_px(self):
        """Halo that each phase needs [px]: dict with ``measure``, ``seed`` and ``grow``."""
        halo = self.watershed.halo_px
        if self.params.weights:
            halo["seed"] = self.nuclei_blocks.halo_px
        if self.params.cells_weights:
            halo["grow"] = self.cells_blocks.halo_px + self.cells_blocks.longest_px
        return halo

    def measure(self, view, origin, core):
        """Count the intensities of the core: see `Watershed.measure`."""
        return self.watershed.measure(view, origin, core)

    def combine(self, measurements):
        """Find the thresholds of the whole image.

        Returns
        -------
        dict of str to dict of str to float
            As of `Watershed.combine`, and for each of them ``low`` and ``high``: the `PERCENTILES` [intensity].
        """
        thresholds = self.watershed.combine(measurements)
        for role, known in thresholds.items():
            counts = sum(measured[role][3] for measured in measurements)
            low, high = (quantile(counts, bin_values(), share / 100) for share in self.PERCENTILES)
            known |= {"low": low, "high": max(high, low + 1e-6)}
        return thresholds

    def seed(self, view, origin, core, thresholds):
        """Find the nuclei of the core: ids, int64, as of `Watershed.seed`."""
        if not self.params.weights:
            return self.watershed.seed(view, origin, core, thresholds)
        find = functools.partial(self._find, role="nuclei", thresholds=thresholds)
        return self.nuclei_blocks.find_objects(find, view, origin, core)

    def grow(self, view, nuclei, origin, core, thresholds):
        """Find the cells of the core: labels, uint32, as of `Watershed.grow`.

        A cell of the network is that of the nucleus which most of its nuclear pixels belong to. One without a nucleus is
        left out; a nucleus without a cell is its own cell.
        """
        if not self.params.cells_weights:
            return self.watershed.grow(view, nuclei, origin, core, thresholds)
        longest = self.cells_blocks.longest_px
        around = tuple(
            slice(max(part.start - longest, 0), min(part.stop + longest, size))
            for part, size in zip(core, view.shape[1:], strict=True)
        )
        find = functools.partial(self._find, role="cells", thresholds=thresholds)
        objects = self.cells_blocks.find_objects(find, view, origin, around)
        inner = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around, strict=True))
        return _name_cells(objects, nuclei[around])[inner]

    def _find(self, window, *, role, thresholds):
        """Labels of one block, without what is too faint to be an object."""
        known, index = thresholds[role], self._index(role)
        if not (window[index] > known["threshold"]).any():
            return np.zeros(window.shape[1:], np.int32)
        names = ["nuclei"] if role == "nuclei" else ["nuclei", "cells"]
        covered = find_covered(window)
        planes = {name: fill(window[self._index(name)], covered, thresholds[name]["background"]) for name in names}
        pixels = np.stack(
            [
                (planes[name] - thresholds[name]["low"]) / (thresholds[name]["high"] - thresholds[name]["low"])
                for name in names
            ]
        ).astype(np.float32)
        weights = self.params.weights if role == "nuclei" else self.params.cells_weights
        labels = self.find(pixels, role, weights, self.nuclei_px if role == "nuclei" else self.cells_px)
        labels = np.asarray(labels).astype(np.int32)
        if covered is not None:
            labels[~covered] = 0
        total = np.bincount(labels.ravel(), weights=planes[role].ravel())
        mean = total / np.maximum(np.bincount(labels.ravel()), 1)
        faint = mean < known["background"] + self.params.min_contrast * known["spread"]
        return np.where(faint[labels], 0, labels)

    def _index(self, role):
        return self.watershed.nuclei_index if role == "nuclei" else self.watershed.cells_index


def _name_cells(objects, nuclei):
    """Give cells the labels of their nuclei: uint32, same shape."""
    cells = np.zeros(nuclei.shape, np.uint32)
    both = (objects > 0) & (nuclei > 0)
    pairs, counts = np.unique(np.stack([objects[both], nuclei[both]]), axis=1, return_counts=True)
    order = np.lexsort([-pairs[1], counts, pairs[0]])  # the last of each object is the best
    names = dict(pairs[:, order].T.tolist())
    for value, nucleus in names.items():
        cells[objects == value] = nucleus
    cells[nuclei > 0] = nuclei[nuclei > 0]
    return cells


def weights_of(params):
    """Paths of the models that are given."""
    return list(dict.fromkeys(filter(None, [params.weights, params.cells_weights])))


def import_package(name, install):
    """Import a package that is not installed with Plateloom; `install` is the command that does it.

    Raises
    ------
    ModelMismatchError
        If it is not there, or cannot be imported; says what to type.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise ModelMismatchError(f"the package {name.partition('.')[0]!r} is not installed: {install}")
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # e.g. a torchvision that was built for another torch
        said = " ".join(str(error).split())
        raise ModelMismatchError(
            f"the package {name!r} cannot be imported ({said}); install it from the same index as torch: {install}"
        ) from error


def kept(load):
    """Decorate what loads a model: two are kept while the process lives, and of many threads one loads."""
    cached, lock = functools.lru_cache(maxsize=2)(load), threading.Lock()

    @functools.wraps(load)
    def once(*key):
        with lock:
            return cached(*key)

    return once


def stamp(path):
    """What tells a file, or a folder of files, from what lay there before: part of the key of a cache of models.

    Raises
    ------
    ModelMismatchError
        If nothing is there. No package is asked to fetch it.
    """
    try:
        found = os.stat(path)
    except OSError:
        raise ModelMismatchError(f"no weights at {path!r}; nothing is downloaded, so put them there yourself") from None
    return found.st_mtime_ns, found.st_size
