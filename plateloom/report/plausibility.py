"""Whether a segmentation can be true: what was measured on the cells against what the method was told to expect."""

import math

import numpy as np

from plateloom.report.charts import format_number

ENOUGH = 20  # nuclei: of fewer, no distribution is judged
MOST_RATIO = 1.7  # of the median diameter to the typical one
NEAR = 1.1  # within this factor of a limit an object is at it
MOST_AT_LIMIT = 0.1  # share of the nuclei, or of the cells
MOST_EMPTY = 0.5  # share of the fields
LEAST_CELL = 1.2  # area of the median cell that is looked for in the image, over its nucleus'
DEFAULT_PIXEL_UM = 1.0


def doubt_segmentation(
    diameters_um,
    areas_um2,
    counts,
    *,
    nucleus_um=None,
    limits_um=None,
    reach_um=None,
    settings="segmentation.parameters",
):
    """Say what makes a segmentation implausible.

    Parameters
    ----------
    diameters_um : array of float, shape (N,)
        Diameter of each nucleus [µm].
    areas_um2 : array of float, shape (N,)
        Area of each cell [µm²]; NaN where it has none.
    counts : array of int, shape (F,)
        Nuclei of each field that was segmented.
    nucleus_um : float, optional
        Typical diameter that the method was told [µm].
    limits_um : tuple of float, optional
        Smallest and largest diameter that it keeps [µm].
    reach_um : float, optional
        How far from its nucleus a cell may reach [µm]; 0 or None: cells are not looked for in the image.
    settings : str, optional
        Where in the config these are set.

    Returns
    -------
    list of str
        Whole sentences with what was found, what was expected and which setting to look at; empty if nothing is odd.
    """
    diameters, areas = np.asarray(diameters_um, float), np.asarray(areas_um2, float)
    counts = np.asarray(counts)
    said = []
    empty = int((counts == 0).sum())
    if len(counts) and empty > MOST_EMPTY * len(counts):
        said.append(
            f"{empty:,} of {len(counts):,} fields have not a single nucleus. If there are some, look at {settings}.nuclei_channel "
            "and nucleus_diameter_um, and lower min_contrast."
        )
    known = np.isfinite(diameters)
    if known.sum() < ENOUGH:
        return said
    median = float(np.median(diameters[known]))
    if nucleus_um and not 1 / MOST_RATIO <= median / nucleus_um <= MOST_RATIO:
        said.append(
            f"The median nucleus is {format_number(median)} µm wide, but {settings}.nucleus_diameter_um is "
            f"{format_number(nucleus_um)} µm: one of the two, or the pixel size, is wrong. If the outlines fit the nuclei, set "
            f"nucleus_diameter_um: {format_number(median)}; if they hold several or cut them, measure one nucleus and set its width."
        )
    if limits_um:
        low, high = limits_um
        for share, end, limit, name, what in (
            (
                np.mean(diameters[known] < low * NEAR),
                *("smallest", low, "min"),
                "smaller ones are dropped. Lower it if these are nuclei; if they are pieces, raise nucleus_diameter_um; if noise, min_contrast",
            ),
            (
                np.mean(diameters[known] > high / NEAR),
                *("largest", high, "max"),
                "larger ones are dropped or cut. Raise nucleus_diameter_um if these are single nuclei, lower it if they are several",
            ),
        ):
            if share > MOST_AT_LIMIT:
                said.append(
                    f"{share:.0%} of the nuclei are nearly as wide as the {end} one allowed ({format_number(limit)} µm, "
                    f"{settings}.nucleus_diameter_{name}_um): {what}."
                )
    both = known & np.isfinite(areas)
    if reach_um and both.sum() >= ENOUGH:
        whole = math.pi * (diameters[both] / 2 + reach_um) ** 2
        share = np.mean(areas[both] * NEAR > whole)
        if share > MOST_AT_LIMIT:
            said.append(
                f"{share:.0%} of the cells fill the whole disc that they may ({format_number(reach_um)} µm round the nucleus, "
                f"{settings}.cells_distance_um): their outlines are this limit and not the cells' edges."
            )
        size = float(np.median(areas[both] / (math.pi * (diameters[both] / 2) ** 2)))
        if size < LEAST_CELL:
            said.append(
                f"The median cell has {format_number(size)} times the area of its nucleus: hardly any cytoplasm is found. Choose another "
                f"{settings}.cells_channel, lower cells_threshold_correction, or leave cells_channel out and set cells_distance_um, a ring."
            )
    return said


def doubt_light(refused):
    """Say which channels are not corrected for the light, and why.

    Parameters
    ----------
    refused : dict of str to str
        Reason, by channel.

    Returns
    -------
    list of str
        Whole sentences, one per reason.

    Examples
    --------
    >>> doubt_light({"DNA": "only 2 fields, at least 4 are needed"})
    ['Uneven light is not corrected in DNA: only 2 fields, at least 4 are needed.']
    """
    channels = {}
    for channel, reason in refused.items():
        channels.setdefault(reason, []).append(channel)
    return [f"Uneven light is not corrected in {', '.join(names)}: {reason}." for reason, names in channels.items()]


def doubt_pixel_size(pixel_size_um, given):
    """Say that a pixel of exactly 1 µm is what stands in a config that nobody has filled in.

    Parameters
    ----------
    pixel_size_um : float
        [µm/px].
    given : float or None
        What the config says; None: the files said so themselves.

    Returns
    -------
    str
        A whole sentence; empty if nothing is odd.
    """
    if given is None or pixel_size_um != DEFAULT_PIXEL_UM:
        return ""
    return (
        "conversion.pixel_size_um is 1, which no microscope has by chance: if nobody has measured it, every µm is a "
        "pixel, and the segmentation looks for nuclei of the wrong size."
    )
