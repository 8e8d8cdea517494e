"""Nuclei by an adaptive threshold and a bounded watershed, cells by growth from the nuclei; no training, no GPU.

Whatever this method says about a pixel depends on a window of known width around it (`Watershed.halo_px`) and on
thresholds from histograms of the whole image. Hence a tile with such a halo gets the labels that the whole image gets,
and no labels are stitched.
"""

import math
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.ndimage import binary_dilation, gaussian_filter

from plateloom.errors import TileOverlapError
from plateloom.segmentation.declumping import box_sum, climb, fill_holes, finish_nuclei, squared_distance
from plateloom.segmentation.holes import blur, fill, find_covered
from plateloom.segmentation.propagation import propagate_labels
from plateloom.segmentation.thresholds import (
    bin_values,
    count_intensities,
    find_background,
    leave_out_glare,
    minimum_cross_entropy,
    otsu,
    quantile,
)

_TRUNCATE = 3.0
_HEIGHT = 10_000  # steps of the landscape per nucleus radius or per mean brightness


class SharedParams(BaseModel):
    """Parameters that all methods of ours have: how large nuclei are, what becomes of those at the edge, how far cells reach."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nucleus_diameter_um: float = Field(12.0, gt=0, description="Diameter of a typical nucleus [µm].")
    nucleus_diameter_min_um: float | None = Field(
        None,
        gt=0,
        description="Nuclei of less area than a disc (in volumes: volume, a ball) of this diameter [µm] are dropped; none: 0.4 × typical.",
    )
    nucleus_diameter_max_um: float | None = Field(
        None,
        gt=0,
        description="Nuclei of more area than a disc (in volumes: volume, a ball) of this diameter [µm] are dropped; none: 2.2 × typical.",
    )
    border: Literal["keep", "drop"] = Field(
        "keep",
        description="Keep or drop a nucleus that touches the edge of the image, or of the volume; cells nearby may grow into the place "
        "of a dropped one.",
    )
    cells_channel: str | None = Field(
        None, description="Channel that shows the whole cell; none: cells grow by distance only."
    )
    cells_distance_um: float | None = Field(
        None,
        ge=0,
        description="No cell reaches farther than this from the nuclei [µm]; none: 2.5 × typical diameter with a cells "
        "channel or class, no growth without.",
    )
    cells_threshold_correction: float = Field(
        0.3, gt=0, description="The cells' threshold above background is multiplied by this (dimensionless)."
    )

    @model_validator(mode="after")
    def _diameters_are_in_order(self):
        low, high = self.diameters_um
        if not low <= self.nucleus_diameter_um <= high:
            raise ValueError(
                f"nucleus_diameter_um is {self.nucleus_diameter_um:g}, expected between nucleus_diameter_min_um "
                f"({low:g}) and nucleus_diameter_max_um ({high:g})."
            )
        return self

    @property
    def diameters_um(self):
        """Smallest and largest diameter of a nucleus [µm]."""
        typical = self.nucleus_diameter_um
        low, high = self.nucleus_diameter_min_um, self.nucleus_diameter_max_um
        return 0.4 * typical if low is None else low, 2.2 * typical if high is None else high


class ThresholdParams(SharedParams):
    """Parameters that planes and volumes share: the nuclei's channel and thresholds."""

    nuclei_channel: str = Field("DNA", description="Channel that shows the nuclei.")
    smoothing_um: float | None = Field(
        None, ge=0, description="Gaussian sigma of the smoothing before thresholds [µm]; none: 0.05 × typical diameter."
    )
    threshold: Literal["minimum_cross_entropy", "otsu", "background"] = Field(
        "minimum_cross_entropy",
        description="Global threshold: minimum_cross_entropy (Li), otsu, or background (min_contrast alone).",
    )
    threshold_correction: float = Field(
        1.0, gt=0, description="The nuclei's threshold above background is multiplied by this (dimensionless)."
    )
    local_threshold: float = Field(
        0.9,
        ge=0,
        description="A nucleus' pixel must also be above background by this fraction of the mean around it "
        "(dimensionless); 0: no local threshold.",
    )
    min_contrast: float = Field(
        6.0,
        ge=0,
        description="Nuclei and cells must rise above the background by this many of its standard deviations "
        "(dimensionless); keeps empty fields empty.",
    )
    outline: float = Field(
        0.45,
        ge=0,
        lt=1,
        description="A nucleus ends where its intensity falls to this fraction of its own brightness (dimensionless).",
    )


class Params(ThresholdParams):
    """Parameters of the watershed; for most assays the channels and the diameter are all there is to set."""

    local_window_um: float | None = Field(
        None, gt=0, description="Width of the window of the local threshold [µm]; none: 1.6 × typical diameter."
    )
    declump: Literal["both", "shape", "intensity", "none"] = Field(
        "both", description="What separates touching nuclei: necks (shape), dark lines (intensity), both, or nothing."
    )
    prominence: float = Field(
        0.07,
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
        description="Intensity difference (mean of 3 × 3 pixels), as a fraction of the cells' brightness, that makes a step "
        "41 % longer: higher makes borders between cells depend less on the image (dimensionless).",
    )


class Watershed:
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

    Raises
    ------
    ValueError
        If a channel named in the parameters is not among the image's.
    """

    def __init__(self, params, channels, *, pixel_size_um, shape):
        for role in ("nuclei_channel", "cells_channel"):
            name = getattr(params, role)
            if name is not None and name not in channels:
                raise ValueError(
                    f"{role} is {name!r}, but the image has the channels {', '.join(map(repr, channels))}."
                )
        if not pixel_size_um > 0:
            raise ValueError(f"pixel_size_um is {pixel_size_um!r}, expected a width above 0.")
        self.params, self.shape = params, tuple(int(size) for size in shape)
        self.nuclei_index = list(channels).index(params.nuclei_channel)
        self.cells_index = None if params.cells_channel is None else list(channels).index(params.cells_channel)

        diameter = params.nucleus_diameter_um / pixel_size_um
        self.diameter_px = diameter
        self.min_diameter_px, self.max_diameter_px = (size / pixel_size_um for size in params.diameters_um)
        self.smoothing_px = (
            max(0.7, 0.05 * diameter) if params.smoothing_um is None else params.smoothing_um / pixel_size_um
        )
        window = 1.6 * diameter if params.local_window_um is None else params.local_window_um / pixel_size_um
        self.window_px = round(window / 2) if params.local_threshold > 0 else 0
        self.hole_px = math.ceil(diameter / 2) if params.fill_holes else 0
        self.cap_px = math.ceil(self.max_diameter_px / 2)
        self.reach_px = math.ceil(0.75 * self.max_diameter_px)
        self.flood_px = math.ceil(0.75 * diameter)
        self.ring_px = max(2, round(diameter / 4))
        self.shape_sigma_px = max(0.5, 0.03 * diameter)
        self.texture_sigma_px = max(0.5, 0.08 * diameter)
        self.texture_window_px = math.ceil(diameter)
        distance = params.cells_distance_um
        if distance is None:
            distance = 0.0 if self.cells_index is None else 2.5 * params.nucleus_diameter_um
        self.distance_px = distance / pixel_size_um

    @property
    def halo_px(self):
        """Halo that each phase needs [px]: dict with ``measure``, ``seed`` and ``grow``."""
        smoothing = _radius(self.smoothing_px)
        mask = smoothing + self.window_px + self.hole_px + 1
        landscape = max(
            mask + self.cap_px + _radius(self.shape_sigma_px),
            max(mask, smoothing + _radius(self.texture_sigma_px)) + self.texture_window_px,
        )
        growth = math.ceil(self.distance_px)
        foreground = smoothing + self.hole_px + 1
        return {
            "measure": smoothing + self._lag_px(),
            # A nucleus is decided by the window around its peak, and the peak is within reach of each of its pixels.
            "seed": 2 * self.reach_px + max(self.flood_px + 1 + landscape, self.ring_px + smoothing),
            "grow": 2 * growth + max(growth, foreground) + 1 if growth else 0,
        }

    def measure(self, view, origin, core):
        """Count the intensities of the core, as one part of the whole image's histogram.

        Parameters
        ----------
        view : ndarray of float32, shape (C, H, W)
        origin : tuple of int (Y, X)
            Where the view begins in the image [px].
        core : tuple of slice
            The tile within the view.

        Returns
        -------
        dict of str to ndarray of int64, shape (4, B)
            For ``nuclei``, and ``cells`` where they have a channel: histograms of the smoothed intensities, of their
            differences at a distance, of second differences between direct neighbors, and of the intensities as they
            came; pixels that no field covers are in none. They add up over tiles.
        """
        self._check(view, origin, core, "measure")
        covered, measured = find_covered(view), {}
        for name, index in self._roles():
            plane = view[index]
            if not np.isfinite(plane[core] if covered is None else plane[core][covered[core]]).all():
                raise ValueError(
                    f"The {name} channel has pixels that are not finite numbers; mend or leave out the field."
                )
            smooth = fill(blur(plane, self.smoothing_px, covered, truncate=_TRUNCATE), covered, np.nan)
            rows, columns = core
            lag = self._lag_px()
            strip = smooth[rows, columns.start : columns.stop + lag]
            fine = plane[rows, columns.start : columns.stop + 2]
            parts = (
                smooth[core],
                np.abs(strip[:, lag:] - strip[:, :-lag]),
                np.abs(fine[:, 2:] - 2 * fine[:, 1:-1] + fine[:, :-2]),
                plane[core],
            )
            if covered is not None:
                parts = [part[~np.isnan(part)] for part in parts]
            measured[name] = np.stack([count_intensities(part) for part in parts])
        return measured

    def combine(self, measurements):
        """Find the thresholds of the whole image.

        Parameters
        ----------
        measurements : sequence of dict
            What `measure` returned for its tiles, in any order.

        Returns
        -------
        dict of str to dict of str to float
            For ``nuclei`` (and ``cells``): ``background``, its ``spread`` (standard deviation), ``threshold``, and the
            mean brightness of the ``foreground`` [intensity].
        """
        params, values = self.params, bin_values()
        thresholds = {}
        for name, _ in self._roles():
            histogram, differences, bends, raw = sum(measured[name] for measured in measurements)
            # Where objects crowd, the commonest intensity is theirs: background is looked for among the darker pixels.
            dark = values <= minimum_cross_entropy(histogram, values)
            background, spread = find_background(np.where(dark, histogram, 0), values)
            # Normal noise has 5 % of its absolute differences within 0.0887 standard deviations, and 25 % of its second
            # differences within 0.7805. Where objects crowd, differences are theirs at any distance but the shortest;
            # where noise is correlated, only those at a distance show it whole.
            noise = quantile(differences, values, 0.05) / 0.0887
            white = quantile(bends, values, 0.25) / 0.7805 / max(1.0, 2 * math.sqrt(math.pi) * self.smoothing_px)
            noise = min(noise, 3 * white) if white > 0 else noise
            # Uneven light widens the background, but so do the gaps of a crowd: it is held to some times the noise.
            spread = max(min(spread, 5 * noise) if noise > 0 else spread, noise, background / 1024)
            if raw[0] > 0.5 * raw.sum():
                # The camera's zero was cut off and the noise with it: what is left is as coarse as one gray level.
                raw[0] = 0
                spread = max(spread, 0.2 * quantile(raw, values, 0.05))
            correction = params.threshold_correction if name == "nuclei" else params.cells_threshold_correction
            threshold = self._threshold(histogram, values, background, spread, correction)
            # One saturated patch of a stitched well must not hide the nuclei of all its fields.
            rest = leave_out_glare(histogram, values - background, max(params.min_contrast * spread, values[1]))
            without = self._threshold(rest, values, background, spread, correction)
            if rest[values > without].sum() > histogram.sum() - rest.sum() > 0:
                histogram, threshold = rest, without
            above = np.where(values > threshold, histogram, 0)
            foreground = float((above * values).sum() / above.sum()) if above.any() else threshold
            thresholds[name] = {
                "background": background,
                "spread": spread,
                "threshold": threshold,
                "foreground": foreground,
            }
        return thresholds

    def _threshold(self, histogram, values, background, spread, correction):
        """The global threshold of a histogram [intensity]."""
        split = background
        if self.params.threshold == "otsu":
            split = otsu(histogram, values)
        elif self.params.threshold == "minimum_cross_entropy":
            split = background + minimum_cross_entropy(histogram, values - background)
        return max(background + correction * (split - background), background + self.params.min_contrast * spread)

    def seed(self, view, origin, core, thresholds):
        """Find the nuclei of the core.

        Parameters
        ----------
        view : ndarray of float32, shape (C, H, W)
        origin : tuple of int (Y, X)
            Where the view begins in the image [px].
        core : tuple of slice
            The tile within the view.
        thresholds : dict
            What `combine` returned.

        Returns
        -------
        ndarray of int64, shape of the core
            1 + index of the nucleus' first pixel in the raster of the whole image; 0 is background.

        Raises
        ------
        TileOverlapError
            If the halo is narrower than the largest nucleus needs.
        """
        self._check(view, origin, core, "seed")
        params, known = self.params, thresholds["nuclei"]
        background = known["background"]
        covered = find_covered(view)
        smooth = blur(view[self.nuclei_index], self.smoothing_px, covered, truncate=_TRUNCATE)
        mask = smooth > np.float32(known["threshold"])
        if not mask.any():
            return np.zeros(smooth[core].shape, np.int64)
        if self.window_px:
            mask &= self._above_surroundings(smooth, background, covered)
        if self.hole_px:
            fill_holes(mask, self.hole_px)
        solid = mask
        if covered is not None:  # what lies beyond a rim counts as inside, as beyond the edge of the image
            mask &= covered
            solid = mask | ~covered
        distance = squared_distance(solid, self.cap_px)
        peak_of = climb(
            self._landscape(smooth, mask, distance, background, covered),
            mask,
            distance,
            1.0 if params.declump == "none" else params.prominence,
            int((0.3 * self.diameter_px / 2) ** 2),
            self.flood_px,
            self.reach_px,
        )
        return self._finish(peak_of, smooth, known, params.outline, origin, core, covered)

    def grow(self, view, nuclei, origin, core, thresholds):
        """Grow the cells of the core from the nuclei.

        Parameters
        ----------
        view : ndarray of float32, shape (C, H, W)
        nuclei : ndarray of uint32, shape (H, W)
            Labels of the nuclei in the view.
        origin : tuple of int (Y, X)
            Where the view begins in the image [px].
        core : tuple of slice
            The tile within the view.
        thresholds : dict
            What `combine` returned.

        Returns
        -------
        ndarray of uint32, shape of the core
            Labels of the cells, those of their nuclei; 0 is background.

        Raises
        ------
        TileOverlapError
            If the halo is narrower than cells may grow.
        """
        self._check(view, origin, core, "grow")
        nuclei = np.ascontiguousarray(nuclei, dtype=np.uint32)
        if self.distance_px < 1 or not nuclei.any():
            return nuclei[core].copy()
        cap = math.ceil(self.distance_px)
        allowed = squared_distance(nuclei == 0, cap + 1) <= self.distance_px**2
        covered = find_covered(view)
        if covered is not None:
            allowed &= covered
        if self.cells_index is None:
            # A path over a pixel grid is up to 8 % longer than the straight line.
            smooth, weight, reach_px = np.zeros(nuclei.shape, np.float32), 1.0, 1.09 * cap
        else:
            known = thresholds["cells"]
            smooth = blur(view[self.cells_index], self.smoothing_px, covered, truncate=_TRUNCATE)
            if covered is not None:
                smooth[np.isnan(smooth)] = known["background"]
            bright = smooth > np.float32(known["threshold"])
            if self.hole_px:
                fill_holes(bright, self.hole_px)
            allowed &= bright
            # A step's cost is of the differences between 3 × 3 pixels.
            weight = 9 * max(self.params.cells_regularization * (known["foreground"] - known["background"]), 1e-9)
            reach_px = 2 * cap
        labels, _ = propagate_labels(nuclei, allowed, smooth, weight, reach_px * weight)
        return labels[core]

    def _finish(self, peak_of, smooth, known, outline, origin, core, covered):
        """Make nuclei of the pixels of each peak; returns the core's ids in the whole image."""
        ids = finish_nuclei(
            peak_of,
            smooth,
            known["background"],
            outline,
            self.params.min_contrast * known["spread"],
            self.ring_px,
            max(1, round(math.pi / 4 * self.min_diameter_px**2)),
            round(math.pi / 4 * self.max_diameter_px**2),
        )
        if self.params.border == "drop":
            ids[np.isin(ids, self._at_border(ids, origin, covered))] = 0
        ids = ids[core].astype(np.int64)
        inside = ids != 0
        y, x = np.divmod(ids[inside] - 1, smooth.shape[1])
        ids[inside] = (y + origin[0]) * self.shape[1] + x + origin[1] + 1
        return ids

    def _roles(self):
        """Pairs of role and channel index in use."""
        roles = [("nuclei", self.nuclei_index)]
        return roles if self.cells_index is None else [*roles, ("cells", self.cells_index)]

    def _lag_px(self):
        """Distance from which on smoothed noise is independent [px]."""
        return max(2, math.ceil(4 * self.smoothing_px))

    def _above_surroundings(self, smooth, background, covered):
        """Where the image is above the mean of its window by the local threshold; sums are of whole numbers."""
        whole = np.rint(fill(smooth, covered, 0).astype(np.float64) * 2**24).astype(np.int64)
        total = box_sum(whole, self.window_px)
        if covered is None:
            rows, columns = (
                np.minimum(np.arange(size) + self.window_px + 1, size) - np.maximum(np.arange(size) - self.window_px, 0)
                for size in smooth.shape
            )
            count = np.outer(rows, columns)
        else:
            count = np.maximum(box_sum(covered.astype(np.int64), self.window_px), 1)
        mean = total / count / 2**24
        return smooth - background > self.params.local_threshold * (mean - background)

    def _landscape(self, smooth, mask, distance, background, covered):
        """Heights that peak in the nuclei: depth in the mask, brightness relative to the surroundings, or both."""
        height = np.ones(mask.shape, np.float64)
        if self.params.declump != "intensity":
            depth = gaussian_filter(np.sqrt(distance.astype(np.float32)), self.shape_sigma_px, truncate=_TRUNCATE)
            height *= depth / (self.diameter_px / 2)
        if self.params.declump in ("both", "intensity"):
            texture = fill(blur(smooth, self.texture_sigma_px, covered, truncate=_TRUNCATE), covered, background)
            texture = np.maximum(texture.astype(np.float64) - background, 0.0)
            total = box_sum(np.where(mask, np.rint(texture * 2**24), 0).astype(np.int64), self.texture_window_px)
            count = box_sum(mask.astype(np.int64), self.texture_window_px)
            relative = texture * count * 2**24 / np.maximum(total, 1)
            height *= np.sqrt(relative) if self.params.declump == "both" else relative
        return np.minimum(np.rint(height * _HEIGHT), 2**30).astype(np.int32) + 1

    def _at_border(self, ids, origin, covered):
        """Ids that touch an edge of the view that is an edge of the image, or what no field covers."""
        edges = [] if covered is None else [ids[binary_dilation(~covered)]]
        if origin[0] == 0:
            edges.append(ids[0])
        if origin[1] == 0:
            edges.append(ids[:, 0])
        if origin[0] + ids.shape[0] == self.shape[0]:
            edges.append(ids[-1])
        if origin[1] + ids.shape[1] == self.shape[1]:
            edges.append(ids[:, -1])
        touching = np.unique(np.concatenate(edges)) if edges else np.zeros(0, ids.dtype)
        return touching[touching != 0]

    def _check(self, view, origin, core, phase):
        """Refuse a view whose halo is too narrow where it does not end at the edge of the image."""
        need = self.halo_px[phase]
        for axis, name in enumerate(("y", "x")):
            size = view.shape[1 + axis]
            before, after = core[axis].start, size - core[axis].stop
            found = min(before if origin[axis] > 0 else need, after if origin[axis] + size < self.shape[axis] else need)
            if found < need:
                setting, wide = {
                    "measure": ("smoothing_um", self.smoothing_px),
                    "seed": ("nucleus_diameter_max_um", self.max_diameter_px),
                    "grow": ("cells_distance_um", self.distance_px),
                }[phase]
                raise TileOverlapError(
                    f"The tile at {tuple(origin)} has a halo of {found} px along {name}, but with {setting} = "
                    f"{wide:.0f} px the phase {phase!r} needs a halo of {need} px: widen the halo to {need} px or "
                    f"lower {setting}."
                )


Method = Watershed


def _radius(sigma_px):
    """Radius of the Gaussian kernel that scipy makes [px]."""
    return int(_TRUNCATE * sigma_px + 0.5)
