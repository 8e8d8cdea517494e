"""Pictures that let a person judge a segmentation: which fields are shown, contrast-stretched, with thin outlines."""

import math
from dataclasses import dataclass

import numpy as np

OUTLINES = {"Cells": "#ffd43b", "Nuclei": "#ffffff", "Cytoplasm": "#ff922b"}
EXTREMES = ("fewest cells", "most cells", "lowest readout", "highest readout")
SPARE = ("#74c0fc", "#f783ac", "#8ce99a", "#e599f7")


@dataclass(frozen=True, eq=False, kw_only=True)
class Tile:
    """One picture of the montage.

    Parameters
    ----------
    well : str
    picture : array of uint8, shape (H, W, 3), or None
        From `composite_image`; best 320 to 640 px wide. None: there is no picture, and `why` says why.
    outlines : array of uint8, shape (H, W, 4), optional
        From `outline_layer`; a separate layer can be switched off on the page, and compressing the picture does not blur it.
    treatment : str, optional
    dose : float, optional
        [`unit`]; NaN: none.
    unit : str, optional
        Of the dose.
    cells : int, optional
        Number of cells in the picture (or in the well: say so in `caption`); None: not counted.
    control : str, optional
        ``negative``, ``positive``, ``empty`` or nothing.
    caption : str, optional
        What part of which field is shown, e.g. ``"field 3, central 480 × 480 of 1080 × 1080 px"``.
    why : str, optional
        Why this field is shown, e.g. ``"fewest cells"``.
    width_um : float, optional
        Width of what is shown [µm], for the scale bar; NaN: unknown.
    length_unit : str, optional
        What the scale bar is labeled in: ``px`` where the pixel size is only a stand-in of 1.
    """

    well: str
    picture: np.ndarray | None
    outlines: np.ndarray | None = None
    treatment: str = ""
    dose: float = math.nan
    unit: str = ""
    cells: int | None = None
    control: str = ""
    caption: str = ""
    why: str = ""
    width_um: float = math.nan
    length_unit: str = "µm"


def choose_tiles(wells, count, *, flagged=(), failed=(), order=(), readout="Metadata_Readout"):
    """Choose the fields that tell most about a plate, and say why each was chosen.

    One control of each kind and treatment come first; then what was flagged or has failed, at most a third of all; then
    the samples with the fewest and the most cells and the lowest and highest readout; second controls; the highest dose
    of each treatment; and wells in the order given. Wells that shall be empty show nothing and are not chosen for it.

    Parameters
    ----------
    wells : DataFrame, shape (W, ...)
        ``Metadata_Well``, ``Metadata_Treatment``, ``Metadata_Dose``, ``Metadata_Control``, ``Metadata_CellCount``, and
        the readout if there is one.
    count : int
        Pictures wanted.
    flagged, failed : sequence of (str, int, str), optional
        Well, field and reason.
    order : sequence of str, optional
        Wells for the places that are left.
    readout : str, optional
        Column of the readout.

    Returns
    -------
    list of (str, int or None, str)
        Well, field (None: any), and why; no well twice.
    """
    known = wells.drop_duplicates("Metadata_Well").set_index("Metadata_Well", drop=False)
    chosen = {}

    def add(well, field, why):
        if well in chosen and why in EXTREMES:
            chosen[well] = (*chosen[well][:2], f"{chosen[well][2]}, {why}")
        elif well in known.index and well not in chosen and len(chosen) < count:
            chosen[well] = (well, field, why)

    trouble = [(well, field, f"failed: {reason}") for well, field, reason in failed]
    trouble += [(well, field, f"flagged: {reason}") for well, field, reason in flagged]
    bad = {well for well, *_ in trouble}
    good = known[~known["Metadata_Well"].isin(bad)]
    kinds = [
        members["Metadata_Well"]
        for kind in ("negative", "positive")
        for _, members in good[good["Metadata_Control"] == kind].groupby("Metadata_Treatment", dropna=False, sort=True)
    ]
    for members in kinds:
        add(members.iloc[0], None, "control")
    spread = [trouble[i] for i in np.linspace(0, len(trouble) - 1, min(len(trouble), max(count // 3, 1))).astype(int)]
    for well, field, why in spread:
        add(well, field, why)
    filled = good[good["Metadata_CellCount"] > 0]
    treated = filled[filled["Metadata_Control"] == ""]
    for column, (low, high) in (("Metadata_CellCount", EXTREMES[:2]), (readout, EXTREMES[2:])):
        if column in treated and treated[column].notna().any():
            ranked = treated.loc[treated[column].notna()].sort_values(column, kind="stable")["Metadata_Well"]
            add(ranked.iloc[0], None, low)
            add(ranked.iloc[-1], None, high)
    for members in kinds:
        for well in members.iloc[1:2]:
            add(well, None, "control")
    highest = treated.sort_values("Metadata_Dose", ascending=False, kind="stable")
    for well in highest[highest["Metadata_Treatment"].notna()].drop_duplicates("Metadata_Treatment")["Metadata_Well"]:
        add(well, None, "highest dose")
    blank = set(known.loc[known["Metadata_Control"] == "empty", "Metadata_Well"])
    for well in [*order, *known["Metadata_Well"]]:
        if well not in blank:
            add(well, None, "chance")
    return [
        (well, field, f"{why} of the samples" if why.split(", ")[0] in EXTREMES else why)
        for well, field, why in chosen.values()
    ]


def scale_bar(width_um):
    """Length of a bar of at most a quarter of a picture's width: 1, 2 or 5 times a power of ten [µm].

    >>> [scale_bar(width) for width in (312.0, 40.0, 1400.0)]
    [50.0, 10.0, 200.0]
    """
    power = 10.0 ** math.floor(math.log10(width_um / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_um / 4)


def composite_image(image, colors, windows, *, width_px=(320, 640)):
    """Blend channels into one picture, each stretched to its window and added in its color.

    Parameters
    ----------
    image : array of float in [0, 1], shape (C, Y, X)
        NaN is drawn black.
    colors : sequence of str, shape (C,)
        ``#rrggbb`` of each channel.
    windows : sequence of (low, high), shape (C, 2)
        Intensities drawn as black and as the full color. Take the same ones for all wells of a plate, or wells cannot
        be compared.
    width_px : tuple of int, optional
        A narrower image is enlarged, and a wider one reduced, by the smallest whole factor that brings it there.

    Returns
    -------
    array of uint8, shape (H, W, 3)
    """
    from PIL import Image

    image = np.nan_to_num(np.asarray(image, np.float32))
    if image.ndim != 3 or len(colors) != len(image) or len(windows) != len(image):
        raise ValueError(f"{len(colors)} colors and {len(windows)} windows for an image of shape {image.shape}")
    up, down = scale_factors(image.shape[2], width_px)
    total = 0
    for plane, color, (low, high) in zip(image, colors, windows, strict=True):
        if down > 1:
            height, width = (size // down for size in plane.shape)
            plane = plane[: height * down, : width * down].reshape(height, down, width, down).mean((1, 3))
        if up > 1:
            size = (plane.shape[1] * up, plane.shape[0] * up)
            plane = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
        stretched = ((plane - low) / (high - low)).clip(0, 1) if high > low else np.zeros_like(plane)
        total = total + stretched[..., None] * rgb_of(color)
    return np.clip(np.round(total), 0, 255).astype(np.uint8)


def outline_mask(labels):
    """Find the outline of every label, one pixel thin.

    A pixel belongs to it where its label is larger than that of a neighbor above, below, left or right: against
    background that is the outermost pixel of the cell, and between two touching cells one line and not two. The edge of
    the image is no neighbor.

    Parameters
    ----------
    labels : array of int, shape (Y, X)
        0 is background.

    Returns
    -------
    array of bool, shape (Y, X)

    Examples
    --------
    >>> outline_mask([[0, 1, 2]]).tolist()
    [[False, True, True]]
    """
    labels = np.asarray(labels)
    mask = np.zeros(labels.shape, bool)
    mask[1:] |= labels[1:] > labels[:-1]
    mask[:-1] |= labels[:-1] > labels[1:]
    mask[:, 1:] |= labels[:, 1:] > labels[:, :-1]
    mask[:, :-1] |= labels[:, :-1] > labels[:, 1:]
    return mask


def outline_layer(labels, *, outline_colors=None, width_px=(320, 640)):
    """Draw the outlines alone, on transparent ground.

    Parameters
    ----------
    labels : dict of str to array of int, shape (Y, X)
        Compartment to its labels, 0 is background; later ones are drawn over earlier ones.
    outline_colors : dict of str to str, optional
        ``#rrggbb`` of compartments; without it Cells are yellow, Nuclei white, Cytoplasm orange.
    width_px : tuple of int, optional
        As for `composite_image`; lines stay one pixel thin since they are drawn after scaling.

    Returns
    -------
    array of uint8, shape (H, W, 4)
    """
    colors = named_colors(labels, outline_colors)
    layer = None
    for name, plane in labels.items():
        plane = np.asarray(plane)
        up, down = scale_factors(plane.shape[1], width_px)
        if down > 1:
            height, width = (size // down for size in plane.shape)
            plane = plane[down // 2 :: down, down // 2 :: down][:height, :width]
        mask = outline_mask(plane.repeat(up, axis=0).repeat(up, axis=1))
        layer = np.zeros((*mask.shape, 4), np.uint8) if layer is None else layer
        layer[mask] = [*rgb_of(colors[name]), 255]
    if layer is None:
        raise ValueError("no label image was given to draw the outlines of")
    return layer


def pair_image(crops, reconstructions, *, gap_px=4):
    """Set crops above their reconstructions.

    Parameters
    ----------
    crops, reconstructions : array of uint8, shape (N, H, W, 3)
    gap_px : int, optional
        White space between pictures [px].

    Returns
    -------
    array of uint8, shape (2 H + gap, N (W + gap) - gap, 3)
    """
    crops, reconstructions = np.asarray(crops, np.uint8), np.asarray(reconstructions, np.uint8)
    if crops.shape != reconstructions.shape or crops.ndim != 4 or not len(crops):
        raise ValueError(f"crops of shape {crops.shape} and reconstructions of shape {reconstructions.shape}")
    number, height, width, _ = crops.shape
    picture = np.full((2 * height + gap_px, number * (width + gap_px) - gap_px, 3), 255, np.uint8)
    for i in range(number):
        x = i * (width + gap_px)
        picture[:height, x : x + width] = crops[i]
        picture[height + gap_px :, x : x + width] = reconstructions[i]
    return picture


def named_colors(names, given=None):
    """The color of each compartment's outline, as `outline_layer` draws it: for the legend."""
    spare = iter(SPARE * (len(names) // len(SPARE) + 1))
    return {name: (given or {}).get(name) or OUTLINES.get(name) or next(spare) for name in names}


def scale_factors(width, width_px):
    """Whole factors (enlarge, reduce) that bring a width into a range as nearly as whole factors can."""
    least, most = width_px
    return max(1, math.ceil(least / max(width, 1))), max(1, math.ceil(width / most))


def rgb_of(color):
    """Red, green and blue of ``#rrggbb``."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], int)
