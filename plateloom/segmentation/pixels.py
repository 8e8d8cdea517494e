"""Nuclei and cells by a pixel classifier that you train with scribbles or masks, as ilastik does.

Filters at several scales and a random forest give every pixel a probability per class. The map of the nuclei's class takes the
place of the nuclei's channel in the watershed, which parts touching nuclei; cells grow over the map of the cells' class, or as
in the watershed. Filters and forest are exact and look no farther than a known distance: a tile gets the labels of the
whole image.
"""

import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from plateloom.errors import ModelMismatchError, TileOverlapError, did_you_mean
from plateloom.segmentation import watershed
from plateloom.segmentation.filters import filter_image, reach_px
from plateloom.segmentation.holes import find_covered
from plateloom.segmentation.pixel_model import apply_forest, load_pixel_model
from plateloom.tiling import cut_tiles

NUCLEI, CELLS = "nuclei", "cells"
BLOCK_PX = 384  # pixels are filtered in squares of this width, so that memory does not grow with the image
PIXEL_SIZES = (0.8, 1.25)  # of an image, as a fraction of those that the classifier was trained on


class Params(watershed.SharedParams):
    """Parameters of the pixel classifier's method; for most assays model and diameter are all there is to set."""

    model: str = Field("", description="File that `plateloom train-pixels` wrote: a path, from the screen's folder.")
    nuclei_class: str = Field(NUCLEI, description="Class of the pixels in nuclei.")
    cells_class: str | None = Field(
        None,
        description="Class of the pixels in cells outside of nuclei: cells grow over these; none: by cells_channel, or by "
        "distance only.",
    )
    cells_channel: str | None = Field(
        None, description="Without cells_class: channel that cells grow over, as in the method watershed."
    )
    smoothing_um: float | None = Field(
        None,
        ge=0,
        description="Gaussian sigma of the smoothing of the probabilities [µm]; none: 0.05 × typical diameter.",
    )
    probability: float = Field(
        0.5, gt=0, lt=1, description="Pixels more likely than this to be in a nucleus are (dimensionless)."
    )
    cells_probability: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="With cells_class: pixels more likely than this to be in a cell are (dimensionless).",
    )
    declump: Literal["both", "shape", "intensity", "none"] = Field(
        "both",
        description="What separates touching nuclei: necks (shape), lines of less probability (intensity), both, or nothing.",
    )
    prominence: float = Field(
        0.1,
        ge=0,
        le=1,
        description="How far a neck or line must fall below the lesser of two peaks to part them, as a fraction of "
        "that peak (dimensionless); higher splits less.",
    )
    fill_holes: bool = Field(
        True, description="Fill holes in nuclei and cells up to the typical nucleus' radius (yes/no)."
    )
    cells_regularization: float = Field(
        0.3,
        gt=0,
        description="Difference of probability or intensity, as a fraction of the cells' brightness, that makes a step 41 % "
        "longer: higher makes borders between cells depend less on the image (dimensionless).",
    )

    def of_watershed(self, nuclei, cells, **more):
        """The same settings for what the watershed does here, on the channels named."""
        own = type(self).model_fields.keys() & watershed.Params.model_fields.keys() - {"cells_channel"}
        given = {name: getattr(self, name) for name in own}
        return watershed.Params(nuclei_channel=nuclei, cells_channel=cells, **given, **more)

    @model_validator(mode="after")
    def _needs_a_model(self):
        if not self.model:
            raise ValueError(
                "model: none given. `plateloom train-pixels` makes one from strokes that you paint; then set "
                "segmentation.parameters.model: pixels.safetensors"
            )
        return self


class Gauge:
    """Background and brightness of an image's channels, which a classifier's filters are made independent of.

    Parameters
    ----------
    card : dict
        Of a `PixelModel`.
    channels, pixel_size_um, shape
        As of `Pixels`.
    """

    def __init__(self, card, channels, *, pixel_size_um, shape):
        self.parts = {}
        if card["intensities"] == "relative":
            for name in card["channels"]:
                params = watershed.Params(nuclei_channel=name, smoothing_um=card["pixel_size_um"])
                self.parts[name] = watershed.Watershed(params, channels, pixel_size_um=pixel_size_um, shape=shape)

    @property
    def halo_px(self):
        """Halo that `measure` needs [px]."""
        return max((part.halo_px["measure"] for part in self.parts.values()), default=0)

    def measure(self, view, origin, core):
        """Count the intensities of the core, channel by channel: see `Watershed.measure`."""
        return {name: part.measure(view, origin, core) for name, part in self.parts.items()}

    def combine(self, measurements):
        """Find what the whole image's channels are like: dict of channel to dict, see `Watershed.combine`."""
        return {
            name: part.combine([measured[name] for measured in measurements])["nuclei"]
            for name, part in self.parts.items()
        }


def scale_channels(image, channels, card, known):
    """Take a classifier's channels, such that background is 0 and the mean of what is brighter is 1.

    Parameters
    ----------
    image : ndarray of float32, shape (C, H, W)
    channels : sequence of str, length C
    card : dict
        Of a `PixelModel`.
    known : dict
        What `Gauge.combine` returned.

    Returns
    -------
    ndarray of float32, shape (number of the classifier's channels, H, W)
        Intensities as they are where the card says `absolute`; 0 where no field covers the image.
    """
    covered = find_covered(image)
    chosen = np.stack([image[list(channels).index(name)] for name in card["channels"]]).astype(np.float32)
    for plane, name in zip(chosen, card["channels"], strict=True):
        if name in known:
            low, high = known[name]["background"], known[name]["foreground"]
            plane -= np.float32(low)
            plane /= np.float32(max(high - low, 1e-9))
    if covered is not None:
        chosen[:, ~covered] = 0
    return chosen


def sigmas_px(card, pixel_size_um):
    """Sigmas of a classifier's filters in an image [px]: as wide in µm as in the images of the training."""
    return [sigma / pixel_size_um for sigma in card["sigmas_um"]]


def predict_pixels(model, image, *, pixel_size_um):
    """Say of every pixel what it is.

    Parameters
    ----------
    model : PixelModel
    image : ndarray of float32, shape (C, H, W)
        What `scale_channels` returned.
    pixel_size_um : float
        Width of a pixel [µm/px].

    Returns
    -------
    ndarray of float32, shape (K, H, W)
        Probability of each class. Filtered square by square, so that memory is that of one square.
    """
    sigmas = sigmas_px(model.card, pixel_size_um)
    found = np.empty((len(model.card["classes"]), *image.shape[1:]), np.float32)
    for tile in cut_tiles(image.shape[1:], BLOCK_PX, halo_px=reach_px(sigmas)):
        features = filter_image(image[:, *tile.window], sigmas)[:, *tile.inner]
        answer = apply_forest(model.forest, features.reshape(len(features), -1))
        found[:, *tile.core] = answer.reshape(len(found), *features.shape[1:])
    return found


class Pixels:
    """The method on the tiles of one image; see `plateloom.segmentation` for the order of its phases.

    Parameters
    ----------
    params : Params
    channels : sequence of str, length C
        Names of the image's channels.
    pixel_size_um : float
        Width of a pixel [µm/px].
    shape : tuple of int (Y, X)
        Size of the whole image [px].
    model : PixelModel, optional
        In place of the stored one.

    Raises
    ------
    ValueError
        If a channel that the classifier or the parameters need is not among the image's.
    ModelMismatchError
        If the file is no pixel classifier, has not the classes named, or was trained at another pixel size.
    """

    def __init__(self, params, channels, *, pixel_size_um, shape, model=None):
        self.params, self.channels, self.shape = params, list(channels), tuple(int(size) for size in shape)
        self.pixel_size_um, self.given = pixel_size_um, model
        card = self.model.card
        if faults := find_faults(params, card, channels, pixel_size_um):
            raise ModelMismatchError(f"{params.model!r}: {'; '.join(faults)}")
        if params.cells_channel is not None and params.cells_channel not in channels:
            raise ValueError(
                f"cells_channel is {params.cells_channel!r}, but the image has the channels "
                f"{', '.join(map(repr, channels))}."
            )
        where = {"pixel_size_um": pixel_size_um, "shape": shape}
        self.gauge = Gauge(card, channels, **where)
        self.reach = reach_px(sigmas_px(card, pixel_size_um))
        # On the maps: probabilities of nuclei and of cells are its channels, and thresholds are given.
        on_map = {"local_threshold": 0.0, "outline": 0.0, "min_contrast": 0.0}
        cells = CELLS if params.cells_class else None
        self.on_map = watershed.Watershed(params.of_watershed(NUCLEI, cells, **on_map), [NUCLEI, CELLS], **where)
        self.on_image = None
        if not params.cells_class:
            wanted = params.of_watershed(card["channels"][0], params.cells_channel)
            self.on_image = watershed.Watershed(wanted, channels, **where)
        self.kept = None

    def __getstate__(self):
        return self.__dict__ | {"kept": None}

    @property
    def model(self):
        """The classifier; read by each process for itself."""
        return load_pixel_model(self.params.model) if self.given is None else self.given

    @property
    def halo_px(self):
        """Halo that each phase needs [px]: dict with ``measure``, ``seed`` and ``grow``."""
        seed, grow = (self.on_map.halo_px[phase] + self.reach for phase in ("seed", "grow"))
        measure = self.gauge.halo_px
        if self.on_image is not None:
            grow = self.on_image.halo_px["grow"]
            measure = max(measure, self.on_image.halo_px["measure"])
        return {"measure": measure, "seed": seed, "grow": grow}

    def measure(self, view, origin, core):
        """Count the intensities of the core: dict of ``channels`` and, with a cells channel, ``cells``."""
        covered = find_covered(view)
        for name in self.model.card["channels"]:
            pixels = view[self.channels.index(name)][core]
            if not np.isfinite(pixels if covered is None else pixels[covered[core]]).all():
                raise ValueError(
                    f"The channel {name} has pixels that are not finite numbers; mend or leave out the field."
                )
        measured = {"channels": self.gauge.measure(view, origin, core)}
        if self.params.cells_channel and self.on_image is not None:
            measured["cells"] = self.on_image.measure(view, origin, core)
        return measured

    def combine(self, measurements):
        """Find what the whole image's channels are like: dict of ``channels``, ``empty`` and ``cells``.

        ``empty`` says that no channel has anything above its background: then there are no nuclei, whatever the classifier
        would take noise for.
        """
        known = self.gauge.combine([measured["channels"] for measured in measurements])
        empty = bool(known) and all(one["foreground"] <= one["threshold"] for one in known.values())
        cells = [measured["cells"] for measured in measurements if "cells" in measured]
        return {
            "channels": known,
            "empty": empty,
            "cells": self.on_image.combine(cells)["cells"] if cells else {},
        }

    def seed(self, view, origin, core, thresholds):
        """Find the nuclei of the core: ids, int64, as of `Watershed.seed`."""
        if thresholds["empty"]:
            return np.zeros([part.stop - part.start for part in core], np.int64)
        maps, origin, core = self._maps(view, origin, core, thresholds, "seed")
        known = {"background": 0.0, "spread": 0.0, "threshold": self.params.probability, "foreground": 1.0}
        return self.on_map.seed(maps, origin, core, {"nuclei": known})

    def grow(self, view, nuclei, origin, core, thresholds):
        """Grow the cells of the core from the nuclei: labels, uint32, as of `Watershed.grow`."""
        if self.on_image is not None:
            return self.on_image.grow(view, nuclei, origin, core, thresholds)
        if self.on_map.distance_px < 1 or not nuclei.any():
            return nuclei[core].astype(np.uint32)
        maps, first, inner = self._maps(view, origin, core, thresholds, "grow")
        window = tuple(
            slice(start - before, start - before + size)
            for start, before, size in zip(first, origin, maps.shape[1:], strict=True)
        )
        known = {"background": 0.0, "threshold": self.params.cells_probability, "foreground": 1.0}
        return self.on_map.grow(maps, nuclei[window], first, inner, {"cells": known})

    def predict(self, view, thresholds):
        """Probability of each class: float32, shape (K, H, W); right where the view knows the filters' reach around."""
        scaled = scale_channels(view, self.channels, self.model.card, thresholds["channels"])
        return predict_pixels(self.model, scaled, pixel_size_um=self.pixel_size_um)

    def _maps(self, view, origin, core, thresholds, phase):
        """Probabilities of nuclei and of cells where the view knows enough, where that begins, and the core in it."""
        need = self.halo_px[phase]
        for part, start, size, whole in zip(core, origin, view.shape[1:], self.shape, strict=True):
            found = min(part.start if start > 0 else need, size - part.stop if start + size < whole else need)
            if found < need:
                raise TileOverlapError(
                    f"The tile at {tuple(origin)} has a halo of {found} px, but the phase {phase!r} needs {need} px, "
                    f"{self.reach} of them for the filters: widen the halo, or lower the diameter or cells_distance_um."
                )
        trims = [
            (self.reach if start > 0 else 0, self.reach if start + size < whole else 0)
            for start, size, whole in zip(origin, view.shape[1:], self.shape, strict=True)
        ]
        inside = tuple(
            slice(before, max(size - after, before))
            for size, (before, after) in zip(view.shape[1:], trims, strict=True)
        )
        maps = self._classify(view, thresholds)[:, *inside]
        origin = tuple(start + before for start, (before, _) in zip(origin, trims, strict=True))
        core = tuple(
            slice(part.start - before, part.stop - before) for part, (before, _) in zip(core, trims, strict=True)
        )
        return np.ascontiguousarray(maps), origin, core

    def _classify(self, view, thresholds):
        """Probabilities of nuclei and of cells of a view; those of a whole image are kept from phase to phase."""
        whole = view.shape[1:] == self.shape
        key = zlib.crc32(np.ascontiguousarray(view)) if whole else None
        if whole and self.kept is not None and self.kept[0] == key:
            return self.kept[1]
        classes = self.model.card["classes"]
        found = self.predict(view, thresholds)
        nuclei = found[classes.index(self.params.nuclei_class)]
        cells = nuclei + found[classes.index(self.params.cells_class)] if self.params.cells_class else nuclei
        maps = np.stack([nuclei, cells])
        if (covered := find_covered(view)) is not None:
            maps[:, ~covered] = np.nan
        if whole:
            self.kept = (key, maps)
        return maps


Method = Pixels


def weights_files(params):
    """Paths of the models of the user that the result depends on."""
    return [params.model]


def needed_channels(params):
    """Channels that a field must have; none known where the model cannot be read."""
    try:
        return list(load_pixel_model(params.model).card["channels"])
    except ModelMismatchError:
        return []


def find_misfits(params, pixel_size_um):
    """Why the classifier does not serve images of a pixel size [µm/px]: list of str."""
    return find_faults(params, load_pixel_model(params.model).card, None, pixel_size_um)


def check_model(params, channels, folder):
    """What is wrong with the model before anything runs: list of str.

    Parameters
    ----------
    params : Params
    channels : sequence of str
        Of the screen.
    folder : path
        The screen's.
    """
    try:
        card = load_pixel_model(Path(folder, params.model)).card
    except ModelMismatchError as error:
        return [str(error)]
    return [f"{params.model!r}: {fault}" for fault in find_faults(params, card, channels)]


def find_faults(params, card, channels=None, pixel_size_um=None):
    """What of a classifier's card does not fit the parameters and the image: list of str.

    Parameters
    ----------
    params : Params
    card : dict
    channels : sequence of str, optional
        Of the image.
    pixel_size_um : float, optional
        Of the image [µm/px].
    """
    faults = []
    for role in ("nuclei_class", "cells_class"):
        name, known = getattr(params, role), card["classes"]
        if name is not None and name not in known:
            faults.append(f"{role} is {name!r}.{did_you_mean(name, known)} Its classes: {', '.join(known)}")
    if channels is not None and not set(card["channels"]) <= set(channels):
        faults.append(
            f"it was trained on {', '.join(map(repr, card['channels']))}, but the image has the channels "
            f"{', '.join(map(repr, channels))}"
        )
    if pixel_size_um is not None:
        low, high = (factor * card["pixel_size_um"] for factor in PIXEL_SIZES)
        if not low <= pixel_size_um <= high or math.isnan(pixel_size_um):
            faults.append(
                f"it was trained at {card['pixel_size_um']:g} µm/px and serves {low:.3g} to {high:.3g} µm/px; the image has "
                f"{pixel_size_um:g} µm/px"
            )
    return faults
