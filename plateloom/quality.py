"""Quality of raw fields: what is measured on one plane, and which fields stand out from the rest of their plate."""

from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

METRICS = (
    "focus_slope",
    "focus_laplacian",
    "focus_detail",
    "saturated_fraction",
    "background",
    "noise",
    "contrast",
    "p01",
    "p50",
    "p99",
    "p999",
    "mean",
    "std",
    "artefact_fraction",
)
FLAGS = ("Flag_Blurred", "Flag_Saturated", "Flag_Empty", "Flag_Debris", "Flag_Unlit", "Flag_Background")

_BAND = (0.02, 0.15)  # [cycles/px]: below are cells, above is noise
_SIGMA = 1.5  # [px] of the Laplacian of Gaussian: a bare Laplacian measures noise
_GAIN = 0.119  # what that Laplacian leaves of white noise's standard deviation
_MIN_SIZE = 32  # [px]: a smaller plane has too few frequencies
_BLOCKS = 8  # along each side: where an artefact is in less than a tenth of them, the others tell how bright cells are
_ARTEFACT = 2.0  # times as bright as cells are, above background
_SPECK = 20  # [px]: a smaller region is no artefact
_SELDOM = 0.1  # share of a plate's fields: a marker that is dark on more is no lamp that failed
_SPIKE = 10  # times as many pixels at the brightest level as at any of the next
_LEVELS = 8  # of these next levels; a plane that has fewer is no photograph
_DULL = 2 / 3  # of the plate's typical focus, where no detail is left; a plane of noise alone has more of it
_STRUCTURE = 5.0, 8.0, 10.0  # [noise]: finest details of noise, of noise where light is, and what is surely structure
_SOFT = 0.25  # of the contrast: details of edges that are 2.5 px wide, in the standard deviation; of sharp ones 0.9
_LIGHT = 0.3  # share of the plate's typical light: a field of less may have no cells that could be blurred
_LIFT = 0.25  # share of the plate's typical brightness: cells that cover a field lift its background by less
_DEBRIS = 0.001  # share of the area: less is bright spots of cells, unless other fields of the well have none


class Params(BaseModel):
    """Thresholds. A plate's typical value is the median over its fields of the same channel; deviations are in MADs."""

    model_config = ConfigDict(extra="forbid")

    max_deviation: float = Field(
        4.0, gt=0, description="A metric is an outlier beyond this many scaled MADs from the plate's median [MAD]."
    )
    min_focus: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="Blurred only if the focus is below this fraction of the plate's median [1].",
    )
    min_slope_drop: float = Field(
        0.5, ge=0, description="Blurred only if the spectrum's slope is steeper than the plate's median by this [1]."
    )
    min_detail: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Blurred too, where nothing but noise is left that could have a slope, if the finest details of all "
        "channels are below this fraction of the plate's median [1].",
    )
    min_focus_slope: float | None = Field(
        -6.5,
        lt=0,
        description="Blurred, whatever the plate is like, if the slope is below this [1]; null: no such limit.",
    )
    saturation_level: float | None = Field(
        None,
        gt=0,
        description="From here on a pixel is saturated [counts]; null: found, as the camera's full scale or the brightest "
        "level if pixels pile up at it.",
    )
    max_saturated: float = Field(0.01, ge=0, le=1, description="Saturated if more than this fraction of pixels is [1].")
    min_contrast: float = Field(
        12.0,
        ge=0,
        description="Dark is a channel whose brightest thousandth, and brightest 5 x 5 px, exceed the median by less than "
        "this [noise]; empty is a field all of whose channels are dark.",
    )
    max_brightness: float = Field(
        1.7,
        gt=1,
        description="Debris only if the brightest thousandth, over background, exceeds the plate's median by this "
        "factor [1], in at least half of the channels, and in two where there are two.",
    )
    max_background: float = Field(
        1.5,
        gt=1,
        description="A background is flagged only if it exceeds the medians of the plate and of the field's well by this "
        "factor, and by a quarter of the brightness of cells [1].",
    )


def measure_plane(plane, *, saturation_level=None):
    """Measure the quality of one raw plane.

    Parameters
    ----------
    plane : ndarray of integer or float, shape (Y, X)
        Raw [counts], neither corrected nor scaled.
    saturation_level : float, optional
        Counts from which a pixel is saturated. Default: for integers the full scale of 8, 10, 12, 14 or 16 bits that
        the brightest pixel stands at; else the brightest level if pixels pile up at it, ten times as many as at any of the
        eight next; else the full scale of an integer type.

    Returns
    -------
    dict of str to float
        The keys are METRICS. ``focus_slope``: slope of the log power over the log frequency [1], from -2 (sharp) to -7
        (blurred), 0 for noise. ``focus_laplacian``: variance of the Laplacian of Gaussian over variance [1], larger is
        sharper. ``focus_detail``: the largest absolute Laplacian of Gaussian, without specks of less than 3 px, over the
        standard deviation that noise gives it [noise], 5 where there is only noise. ``saturated_fraction`` [1].
        ``background``: 5th percentile [counts]. ``noise``: standard deviation from pixel to pixel [counts]. ``contrast``:
        ``p999``, or the mean of the brightest 5 x 5 px without specks if it is larger, less ``p50`` [noise]. ``p01``,
        ``p50``, ``p99``, ``p999`` (99.9 %), ``mean``, ``std`` [counts]. ``artefact_fraction``: share of the pixels in connected
        regions of at least 20 px that are saturated, or more than twice as far above background as the brightest percent is
        in nine of ten parts of the plane [1]. NaN where undefined: focus of a constant plane, or focus and artefacts of one
        below 32 px.

    Raises
    ------
    ValueError
        If the plane is not two-dimensional or has no pixel.
    """
    plane = np.asarray(plane)
    if plane.ndim != 2 or plane.size == 0:
        raise ValueError(f"Expected a plane with pixels, shape (Y, X), found shape {plane.shape}.")
    if saturation_level is None:
        saturation_level = _saturation_level(plane)
    saturated = float(np.mean(plane >= saturation_level))
    from scipy import ndimage  # not with the settings, which every start of every command reads

    values = plane.astype(np.float32)
    p01, p05, p50, p99, p999 = (float(one) for one in np.percentile(values, (1, 5, 50, 99, 99.9)))
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    noise = _noise(values)
    calm = ndimage.grey_opening(values, (3, 3))  # hot pixels are neither cells nor details
    rise = max(p999, float(ndimage.uniform_filter(calm, 5).max())) - p50
    slope = sharpness = detail = artefacts = np.nan
    if min(plane.shape) >= _MIN_SIZE:
        artefacts = _artefact_fraction(values, p05, saturation_level)
    if std > 0 and min(plane.shape) >= _MIN_SIZE:
        slope = _spectral_slope(values - np.float32(mean))
        sharpness = float(ndimage.gaussian_laplace(values, _SIGMA).var(dtype=np.float64)) / std**2
        if noise > 0:
            detail = float(np.abs(ndimage.gaussian_laplace(calm, _SIGMA)).max()) / (_GAIN * noise)
    contrast = (rise / noise if noise > 0 else np.inf) if rise > 0 else 0.0
    values = (slope, sharpness, detail, saturated, p05, noise, contrast, p01, p50, p99, p999, mean, std, artefacts)
    return dict(zip(METRICS, values, strict=True))


def flag_fields(table, params=None):
    """Flag the fields that are blurred, saturated, empty, littered, unlit or veiled, against the others of their plate.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per field and channel: Metadata_Plate, Metadata_Well, Metadata_Field (the image), SourceField (one of the
        fields that a stitched image was put together from; else the same), Channel and METRICS. A metric that is NaN,
        as of a plane that is missing, flags nothing.
    params : Params, optional

    Returns
    -------
    pandas.DataFrame
        The same rows and index, with Dark and FLAGS (bool) and Reason (str, empty for a good field) added.

    Notes
    -----
    Only fields of the same plate and channel are compared. A field is an outlier if it is beyond ``max_deviation`` MADs
    *and* beyond a factor, for on an even plate the MADs alone would flag what no eye sees. Debris is looked for against the
    fields that are neither blurred, saturated nor dark. A dark channel is no defect, for a marker that is absent is a result;
    a field is empty where every channel that it has is dark, and unlit where one is that most of its well (of three fields or
    more) and nine of ten of the plate's fields show. Brightness in one channel is
    what a phenotype looks like; debris shines in most, and is a region far brighter than the cells, or in some fields of
    its well only: a well that is bright throughout is a phenotype of its own. So is a background that a whole well has, of a
    compound that shines; it is compared in wells of three fields or more. Far out of focus only noise is left: a field is
    blurred if none of its channels has any detail, while at least half of them, two where there are two, are duller than
    the plate's and have the light that cells give. One that has not that light has no cells.
    """
    import pandas as pd

    params = params or Params()
    table = table.copy()
    plate = [table["Metadata_Plate"], table["Channel"]]
    focus, slope = _log(table["focus_laplacian"]), table["focus_slope"].astype(np.float64)
    bright = _log(table["p999"] - table["background"])
    contrast = table["contrast"].astype(np.float64)

    saturated = table["saturated_fraction"].astype(np.float64) > params.max_saturated
    dark = contrast < params.min_contrast
    lost = _outliers(-focus, plate, params.max_deviation, -np.log(params.min_focus))
    blurred = lost & _outliers(-slope, plate, params.max_deviation, params.min_slope_drop)
    if params.min_focus_slope is not None:
        blurred |= slope < params.min_focus_slope
    blurred &= ~dark
    field = [table[name] for name in ("Metadata_Plate", "Metadata_Well", "SourceField")]
    veil = table["background"].astype(np.float64)
    dull = focus < focus.groupby(plate).transform("median") + np.log(_DULL)
    formless = dull & _cells_shine(table["mean"], veil, plate, params.max_deviation)
    formless = _without_detail(
        table["focus_detail"].astype(np.float64), contrast, formless, plate, field, params.min_detail
    )
    blurred |= formless
    usual = ~(saturated | dark | blurred)  # else the defects of some widen what is usual of all
    excess = bright - bright.where(usual).groupby(plate).transform("median")
    empty = ~formless.groupby(field).transform("any") & dark & (dark | contrast.isna()).groupby(field).transform("all")
    shown = dark.astype(float).where(~empty & contrast.notna())
    here = shown.groupby([*plate, table["Metadata_Well"]])
    unlit = dark & ~empty & ~formless & (shown.groupby(plate).transform("mean") <= _SELDOM)
    unlit &= (here.transform("mean") < 0.5) & (here.transform("count") >= 3)
    shared = _shared(excess, field)
    limit = np.log(params.max_brightness)
    debris = _outliers(shared, plate[:1], params.max_deviation, limit, usual) & (excess > limit) & ~saturated
    well = excess.groupby([*plate, table["Metadata_Well"]]).transform("quantile", 0.5, interpolation="lower")
    area = table["artefact_fraction"].groupby(field).transform("max")
    region = area >= _DEBRIS
    debris &= region | (excess - well > limit)
    wells = veil.groupby([*plate, table["Metadata_Well"]])
    of_plate, of_well = veil.groupby(plate).transform("median"), wells.transform("quantile", 0.5, interpolation="lower")
    lift = veil - np.maximum(of_plate, of_well)
    lifted = _outliers(veil, plate, params.max_deviation, 0) & _outliers(lift, plate, params.max_deviation, 0)
    lifted &= (wells.transform("count") >= 3) & (veil > params.max_background * np.maximum(of_plate, of_well))
    lifted &= lift > _LIFT * (table["p999"] - veil).groupby(plate).transform("median")

    for name, flag in zip(("Dark", *FLAGS), (dark, blurred, saturated, empty, debris, unlit, lifted), strict=True):
        table[name] = flag.to_numpy(dtype=bool)
    typical = {name: one.groupby(plate).transform("median") for name, one in (("focus", focus), ("bright", bright))}
    parts = {
        "Flag_Blurred": (
            "blurred: focus {:.2g} of the plate's median, {}",
            np.exp(focus - typical["focus"]),
            np.where(formless, "no detail but noise", [f"slope {one:.2f}" for one in slope]),
        ),
        "Flag_Saturated": ("saturated: {:.2%} of pixels", table["saturated_fraction"]),
        "Flag_Empty": ("empty: contrast {:.1f} of the noise", contrast),
        "Flag_Unlit": ("unlit: contrast {:.1f} of the noise, where other fields show this channel", contrast),
        "Flag_Debris": (
            "debris: {:.1f} times the plate's median brightness, and {} (a bright phenotype can look like this)",
            np.exp(bright - typical["bright"]),
            np.where(
                region,
                [f"{share:.1%} of the field in regions far brighter than cells" for share in area],
                [f"{times:.1f} times the median of its well" for times in np.exp(excess - well)],
            ),
        ),
        "Flag_Background": (
            "background: {:.1f} times the plate's median and {:.1f} times that of its well",
            veil / of_plate,
            veil / of_well,
        ),
    }
    reasons = [[] for _ in range(len(table))]
    for flag, (text, *numbers) in parts.items():
        for row in np.flatnonzero(table[flag].to_numpy()):
            reasons[row].append(text.format(*(np.asarray(one)[row] for one in numbers)))
    table["Reason"] = pd.Series(["; ".join(one) for one in reasons], index=table.index, dtype=object)
    return table


def find_unlike_counts(counts, *, max_deviation=5.0, factor=4.0, least=10):
    """Find the fields whose number of cells is unlike that of the other fields of their well.

    Parameters
    ----------
    counts : DataFrame
        One row per field of a plate: ``Metadata_Well``, ``Metadata_Field`` and ``Count`` (int).
    max_deviation : float
        So many standard deviations of the square root of the count, that of Poisson's distribution or the plate's own
        (scaled MAD), whichever is larger.
    factor : float
        And so many times fewer or more.
    least : int
        And in wells whose other fields have so many cells at least, in the median.

    Returns
    -------
    DataFrame
        Those rows, with ``Usual``, the median of the other fields. Wells of fewer than four fields say nothing.

    Examples
    --------
    >>> import pandas as pd
    >>> counts = pd.DataFrame({"Metadata_Well": "A01", "Metadata_Field": range(1, 6), "Count": [40, 45, 1, 38, 42]})
    >>> find_unlike_counts(counts)
      Metadata_Well  Metadata_Field  Count  Usual
    2           A01               3      1   41.0
    """
    usual, above = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    values = counts["Count"].to_numpy(float)
    for members in counts.groupby("Metadata_Well", sort=False).indices.values():
        if len(members) < 4:
            continue
        for i, member in enumerate(members):
            usual[member] = np.median(values[np.delete(members, i)])
            above[member] = 2 * (np.sqrt(values[member]) - np.sqrt(usual[member]))
    known = above[np.isfinite(above)]
    spread = max(1.0, 1.4826 * float(np.median(np.abs(known)))) if len(known) else 1.0
    unlike = (np.abs(above) > max_deviation * spread) & (usual >= least)
    unlike &= (values * factor < usual) | (values > factor * usual)
    return counts.assign(Usual=usual)[unlike]


def _saturation_level(plane):
    """Counts of a saturated pixel; infinite for floats that pile up nowhere."""
    largest, integer = plane.max(), plane.dtype.kind in "ui"
    scales = [2**bits - 1 for bits in (8, 10, 12, 14, 16) if integer and 8 * plane.dtype.itemsize >= bits]
    if plane.dtype.itemsize > 1:
        scales = scales[1:]  # 8 bits in a wider type is a dark image
    found = largest in scales
    if not found and np.count_nonzero(plane == largest) >= _SPECK:
        counts = np.unique(plane, return_counts=True)[1]
        found = len(counts) > _LEVELS and counts[-1] > _SPIKE * counts[-1 - _LEVELS : -1].max()
    return float(largest) if found else float(np.iinfo(plane.dtype).max) if integer else np.inf


def _artefact_fraction(values, background, saturation_level):
    """Share of the pixels in regions that are saturated, or far brighter than most of the plane's brightest ones."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(values, 1.0)
    parts = [part for rows in np.array_split(smooth, _BLOCKS) for part in np.array_split(rows, _BLOCKS, axis=1)]
    bright = np.quantile([np.percentile(part, 99) for part in parts], 0.9)
    region, _ = ndimage.label((smooth > background + _ARTEFACT * (bright - background)) | (values >= saturation_level))
    sizes = np.bincount(region.ravel())[1:]
    return float(sizes[sizes >= _SPECK].sum() / values.size)


def _noise(values):
    """Standard deviation from pixel to pixel; Immerkær 1996, doi:10.1006/cviu.1996.0060."""
    if min(values.shape) < 3:
        return np.nan
    rows = values[:-2] - 2 * values[1:-1] + values[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.abs(both).mean(dtype=np.float64) * np.sqrt(np.pi / 2) / 6)


def _spectral_slope(values):
    """Slope of the log power, averaged over rings, over the log frequency; NaN without power."""
    from scipy import fft

    window = [np.hanning(size).astype(np.float32) for size in values.shape]
    power = np.abs(fft.rfft2(values * window[0][:, None] * window[1])) ** 2
    ring, frequency, count = _rings(values.shape)
    total = np.bincount(ring, power.ravel(), len(frequency) + 2)[1:-1]
    used = (count > 0) & (total > 0)
    if used.sum() < 3:
        return np.nan
    x, y = np.log(frequency[used]), np.log(total[used] / count[used])
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


@lru_cache(maxsize=8)
def _rings(shape):
    """Ring of every frequency of a real spectrum, and the rings' frequencies [cycles/px] and counts."""
    edges = np.geomspace(*_BAND, 13)
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    ring = np.digitize(radius.ravel(), edges)
    return ring, np.sqrt(edges[1:] * edges[:-1]), np.bincount(ring, minlength=len(edges) + 1)[1:-1]


def _log(values):
    """Log of a column; NaN where it is not positive."""
    values = values.astype(np.float64)
    return np.log(values.where(values > 0))


def _cells_shine(mean, background, plate, deviation):
    """Which fields have the light that cells give a typical one, wherever it went: mean above the plate's background."""
    typical = (mean - background).groupby(plate).transform("median")
    usual = background.groupby(plate).transform("median")
    light, spread = mean - usual, 1.4826 * (background - usual).abs().groupby(plate).transform("median")
    return (light > _LIGHT * typical) & (light > deviation * spread)


def _without_detail(detail, contrast, dull, plate, field, share):
    """Which dull channels have no detail, of the fields where no channel has and half are dull, two where there are two."""
    typical = detail.groupby(plate).transform("median")
    nothing, bright, surely = _STRUCTURE
    least = np.minimum(np.maximum(share * typical, nothing), typical / 2)
    least = np.minimum(least, np.maximum(_SOFT * contrast, bright))  # what is dim and sharp has little, too
    formless = dull & (detail < least)
    channels, count = detail.groupby(field).transform("count"), formless.groupby(field).transform("sum")
    sharp = (detail >= np.maximum(least, surely)).groupby(field).transform("any")
    return formless & ~sharp & (count >= np.maximum(np.ceil(channels / 2), np.minimum(channels, 2)))


def _shared(excess, field):
    """What half of a field's channels exceed, two of them where there are two; NaN counts as no channel."""
    fields = excess.groupby(field)
    channels = fields.transform("count")
    enough = np.maximum(np.ceil(channels / 2), np.minimum(channels, 2))
    return excess.where(fields.rank(ascending=False, method="first") == enough).groupby(field).transform("max")


def _outliers(values, groups, deviation, least, usual=None):
    """Which values exceed the median of their group's usual ones by so many scaled MADs and by so much; NaN does not."""
    usual = values.notna() if usual is None else usual
    above = values - values.where(usual).groupby(groups).transform("median")
    spread = 1.4826 * above.where(usual).abs().groupby(groups).transform("median")
    return (above > deviation * spread) & (above > least)
