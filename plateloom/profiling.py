"""From cells to profiles: one row per well, normalized to the plate's negative controls, and what can be said from it.

Columns follow CellProfiler: ``Metadata_*`` keys, everything else that is numeric is a feature. A well without cells
keeps its row (NaN, count 0): that nothing survived is a result.
"""

import re
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from plateloom.errors import did_you_mean
from plateloom.wells import parse_well, well_name

CONTROLS = ("", "negative", "positive", "empty")
SURROUNDINGS = re.compile(r"_(?:Granularity|Neighbors)_")
POSITION = re.compile(
    r"^[^_]+_(Location|Number|Parent|Children)_|_AreaShape_(Center|BoundingBox(Minimum|Maximum))_[XYZ]$"
    r"|_Neighbors_(First|Second)ClosestObjectNumber_|_um2?$"
)
MAD_TO_SD = 1.482602218505602  # 1 / Phi^-1(3/4): the MAD of a normal distribution in standard deviations
NO_SPREAD = 1e-12  # relative to the largest value: below this a spread is rounding
CURVE = ("ec50", "ec50_low", "ec50_high", "hill", "bottom", "top")
HILL_SLOPES = (0.5, 8.0)  # a fit may choose: steeper is a step between two doses, shallower is a line without ends
MIN_SPAN = 3.0  # of a dose response [robust SD of the negative controls]
MIN_CONTROLS = 3
MIN_TO_SPHERE = 10  # negative control wells of the screen
DOSE_MARGIN = 10.0  # how far beyond the doses the interval of an EC50 may reach

Operation = Literal[
    "drop_na_columns", "variance_threshold", "frequency_threshold", "correlation_threshold", "drop_outliers"
]


class Params(BaseModel):
    """Settings of profiling.

    The readout is one number per well, named by a feature (its well aggregate), optionally divided by a second one,
    e.g. the ratio of nuclear to cytoplasmic intensity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    aggregate: Literal["median", "mean"] = Field("median", description="Of the cells of a well.")
    normalize_to: Literal["negative", "all"] = Field(
        "negative", description="The plate's negative control wells, or all of its wells."
    )
    method: Literal["mad_robustize", "standardize", "robustize"] = Field(
        "mad_robustize", description="Center and spread: median and MAD, mean and SD, or median and quartiles."
    )
    min_controls: int = Field(3, ge=2, description="With fewer reference wells a plate is not normalized [wells].")
    feature_select: tuple[Operation, ...] = Field(
        ("drop_na_columns", "variance_threshold", "correlation_threshold"),
        description="Operations that drop features, in this order.",
    )
    na_cutoff: float = Field(
        0.05, ge=0, le=1, description="Features that lack more of their values are dropped [share]."
    )
    min_variance: float = Field(1e-6, ge=0, description="Features of less variance are dropped [normalized units²].")
    correlation: float = Field(
        0.9, gt=0, le=1, description="Of two features that correlate more, one is dropped [Pearson's r]."
    )
    outlier_cutoff: float = Field(500.0, gt=0, description="Features that reach beyond are dropped [normalized units].")
    readout: str | None = Field(None, description="Feature that Z', dose responses and hits are computed from.")
    readout_denominator: str | None = Field(None, description="Feature that the readout is divided by, another one.")
    readout_log: bool = Field(False, description="Take the readout's logarithm to base 2.")
    hit_threshold: float = Field(3.0, gt=0, description="A hit lies this far from the negative controls [robust SD].")
    hit_min_replicates: int = Field(2, ge=1, description="So many wells of a hit lie beyond the threshold [wells].")

    @model_validator(mode="after")
    def _ratio_of_two(self):
        if self.readout and self.readout == self.readout_denominator:
            raise ValueError("readout_denominator is the readout itself: the ratio is 1 everywhere")
        return self


def feature_columns(table):
    """List the columns that measure the cell: numeric, no key, and not where the cell lies or what it is numbered.

    Lengths and areas in micrometers (``…_um``, ``…_um2``) are those in pixels once more, and left out.

    Parameters
    ----------
    table : DataFrame, shape (W, ...) or (N, ...)

    Returns
    -------
    list of str

    Examples
    --------
    >>> names = ["Metadata_Well", "Nuclei_AreaShape_Area", "Nuclei_Location_Center_X"]
    >>> feature_columns(pd.DataFrame(columns=names, dtype=float))
    ['Nuclei_AreaShape_Area']
    """
    return [
        name
        for name, kind in table.dtypes.items()
        if not name.startswith("Metadata_")
        and pd.api.types.is_numeric_dtype(kind)
        and not pd.api.types.is_bool_dtype(kind)
        and not POSITION.search(name)
    ]


def without_surroundings(features):
    """Leave out families in whose values the cells around show: granularity opens the whole image, neighbors are counted.

    Where whole wells are labeled, such a feature tells the well, and a rare cell among others is taken for one of them.
    Features that are nothing else stay.

    Examples
    --------
    >>> without_surroundings(["Cells_Granularity_1_DNA", "Nuclei_AreaShape_Area", "Cells_Neighbors_NumberOfNeighbors_5"])
    ['Nuclei_AreaShape_Area']
    """
    return [name for name in features if not SURROUNDINGS.search(name)] or list(features)


def aggregate_well(cells, features=None, *, statistic="median"):
    """Reduce the cells of one well to one row, as `pycytominer.aggregate` does for a whole plate in memory.

    Here a well is a task of its own, and one without cells keeps its row.

    Parameters
    ----------
    cells : DataFrame, shape (N, ...)
        The cells of one well; N may be 0.
    features : sequence of str, optional
        Columns to aggregate; default `feature_columns(cells)`.
    statistic : {"median", "mean"}
        Of the finite values; NaN and infinity are left out.

    Returns
    -------
    dict
        Feature to float (NaN where no cell has a value), and `Metadata_CellCount`, an int.

    Examples
    --------
    >>> aggregate_well(pd.DataFrame({"Nuclei_AreaShape_Area": [1.0, 2.0, np.nan]}))
    {'Nuclei_AreaShape_Area': 1.5, 'Metadata_CellCount': 3}
    """
    if statistic not in ("median", "mean"):
        raise ValueError(f"Unknown statistic {statistic!r}. Expected 'median' or 'mean'.")
    features = feature_columns(cells) if features is None else list(features)
    values = _finite(cells, features)
    measured = values.loc[:, values.notna().any()]  # numpy warns of columns without a value, in whichever thread
    row = (measured.median() if statistic == "median" else measured.mean()).astype(float).reindex(values.columns)
    return {**{name: float(row[name]) for name in features}, "Metadata_CellCount": len(cells)}


def annotate(profiles, plate_map):
    """Join what was put into each well, as `pycytominer.annotate` does, for maps as people write them.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
        With `Metadata_Well`, and `Metadata_Plate` if the map has a column `plate`.
    plate_map : DataFrame
        Columns `well`, `treatment`, optionally `plate`, `dose`, `unit`, `control` ('', 'negative', 'positive') and any
        others.

    Returns
    -------
    DataFrame, shape (W, ...)
        The same rows in the same order with `Metadata_Treatment`, `Metadata_Dose` (float), `Metadata_Unit`,
        `Metadata_Control` and one `Metadata_*` column for each further column of the map. A well that is not on the
        map has a missing treatment, dose NaN, unit '' and control ''.

    Raises
    ------
    ValueError
        If the map lists a well twice, lacks a column, or names another kind of control.

    Notes
    -----
    ``A1`` and ``A01`` are the same well.
    """
    absent = {"well", "treatment"} - set(plate_map.columns)
    if absent:
        raise ValueError(f"The plate map has no column {sorted(absent)}. Found: {list(plate_map.columns)}.")
    table = plate_map.copy()
    keys = ["plate", "well"] if "plate" in table else ["well"]
    table["well"] = [_well(name) for name in table["well"]]
    if "plate" in table:
        table["plate"] = table["plate"].astype(str)
    twice = table.loc[table.duplicated(keys), keys].astype(str).agg(" ".join, axis=1)
    if len(twice):
        raise ValueError(f"The plate map lists {sorted(set(twice))} more than once. Keep one row per well.")
    table["dose"] = pd.to_numeric(table["dose"], errors="raise").astype(float) if "dose" in table else np.nan
    for name in ("unit", "control"):
        table[name] = table[name].fillna("").astype(str).str.strip() if name in table else ""
    table["control"] = table["control"].str.lower()
    unknown = sorted(set(table["control"]) - set(CONTROLS))
    if unknown:
        raise ValueError(f"Unknown control {unknown}. Expected one of {list(CONTROLS)}.")
    table["treatment"] = table["treatment"].where(table["treatment"].notna() & (table["treatment"] != ""), None)

    others = [name for name in table.columns if name not in ("plate", "well", "treatment", "dose", "unit", "control")]
    ordered = ["treatment", "dose", "unit", "control", *others]
    wells = [_well(name) for name in profiles["Metadata_Well"]]
    if "plate" in table:
        rows = pd.MultiIndex.from_arrays([profiles["Metadata_Plate"].astype(str), wells])
        index = pd.MultiIndex.from_frame(table[keys])
    else:
        rows, index = pd.Index(wells), pd.Index(table["well"])
    joined = table.set_axis(index, axis=0)[ordered].reindex(rows).set_axis(profiles.index, axis=0)
    joined.columns = [f"Metadata_{name[:1].upper()}{name[1:]}" for name in ordered]
    joined["Metadata_Treatment"] = (
        joined["Metadata_Treatment"].astype(object).where(joined["Metadata_Treatment"].notna(), None)
    )
    for name in ("Metadata_Unit", "Metadata_Control"):
        joined[name] = joined[name].fillna("")
    kept = [name for name in profiles.columns if name not in joined.columns]
    keyed = [name for name in kept if name.startswith("Metadata_")]
    return pd.concat([profiles[keyed], joined, profiles[[name for name in kept if name not in keyed]]], axis=1)


def compute_readout(profiles, params):
    """Compute the readout of each well from its aggregates.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
        Well profiles *before* normalization.
    params : Params
        `readout`, `readout_denominator`, `readout_log` (log2).

    Returns
    -------
    Series of float, shape (W,), named "Metadata_Readout"
        NaN where the well has no value, the denominator is 0, or the logarithm does not exist. The name makes it a
        key: it passes through `normalize_profiles` untouched.

    Raises
    ------
    ValueError
        If no readout is set, or the column does not exist.
    """
    if params.readout is None:
        raise ValueError("No readout is set. Name a feature column in `readout`.")
    wanted = [params.readout, *([params.readout_denominator] if params.readout_denominator else [])]
    for name in wanted:
        if name not in profiles or not pd.api.types.is_numeric_dtype(profiles[name]):
            numeric = [column for column in profiles if pd.api.types.is_numeric_dtype(profiles[column])]
            raise ValueError(f"The readout {name!r} is no numeric column of the profiles.{did_you_mean(name, numeric)}")
    values = profiles[wanted[0]].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        if len(wanted) == 2:
            values = values / profiles[wanted[1]].to_numpy(float)
        if params.readout_log:
            values = np.log2(values)
    return pd.Series(np.where(np.isfinite(values), values, np.nan), index=profiles.index, name="Metadata_Readout")


def normalize_profiles(profiles, params, *, features=None):
    """Express each feature of one plate's wells in units of the reference wells' spread.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
        Wells of one plate with `Metadata_Control`.
    params : Params
        `normalize_to` 'negative': the reference is the wells with control 'negative'; 'all': every well. Wells without
        cells are never reference.
    features : sequence of str, optional
        Default `feature_columns(profiles)`; other feature columns are left out of the result.

    Returns
    -------
    profiles : DataFrame, shape (W, ...)
        With `Metadata_Normalized`: True, or False where the reference was too small and the values are as they came.
    report : dict
        `status` 'normalized' or 'no_controls', `reason`, `method`, `reference`, `n_reference`, `n_features`, and
        `dropped`, feature to reason.

    Notes
    -----
    A feature whose spread among the reference wells is 0 is dropped and listed: divided by a small constant, as
    pycytominer's default does, it would dominate every distance. With fewer than `min_controls` reference wells the
    plate is *not* normalized to itself, which would hide an active plate. Features with fewer than `min_controls`
    finite reference values are dropped.
    """
    from pycytominer import normalize

    plates = set(profiles["Metadata_Plate"]) if "Metadata_Plate" in profiles else set()
    if len(plates) > 1:
        raise ValueError(f"Found {len(plates)} plates; normalize one plate at a time, then use `join_plates`.")
    features = feature_columns(profiles) if features is None else list(features)
    keys = [name for name in profiles.columns if name.startswith("Metadata_") and name != "Metadata_Normalized"]
    table = pd.concat([profiles[keys], _finite(profiles, features)], axis=1)
    # A boolean column, never the user's text: pycytominer executes its `samples` string.
    reference = table[features].notna().any(axis=1)
    if "Metadata_CellCount" in table:
        reference &= table["Metadata_CellCount"] > 0
    if params.normalize_to == "negative":
        reference &= table["Metadata_Control"] == "negative"
    report = {
        "status": "normalized",
        "reason": "",
        "method": params.method,
        "reference": params.normalize_to,
        "n_reference": int(reference.sum()),
        "n_features": len(features),
        "dropped": {},
    }
    if report["n_reference"] < params.min_controls:
        which = "negative control wells" if params.normalize_to == "negative" else "wells"
        reason = f"{report['n_reference']} {which} with cells, {params.min_controls} needed; values are not normalized"
        return _mark(table, keys, features, False), report | {"status": "no_controls", "reason": reason}

    within = table.loc[reference, features]
    count = within.notna().sum()
    spread = _spread(within, params.method) > NO_SPREAD * within.abs().max()
    for name in features:
        if count[name] < params.min_controls:
            report["dropped"][name] = f"{count[name]} finite values among the reference wells"
        elif not spread[name]:
            report["dropped"][name] = "no spread among the reference wells"
    kept = [name for name in features if name not in report["dropped"]]
    report["n_features"] = len(kept)
    if kept:
        table = normalize(
            pd.concat([table, reference.rename("Metadata_IsReference")], axis=1),
            features=kept,
            meta_features=keys,
            samples="Metadata_IsReference",
            method=params.method,
            mad_robustize_epsilon=0,
        )
    return _mark(table, keys, kept, True), report


def join_plates(plates):
    """Stack the normalized profiles of several plates on the features that all of them kept.

    Parameters
    ----------
    plates : sequence of DataFrame
        One table per plate, from `normalize_profiles`.

    Returns
    -------
    profiles : DataFrame, shape (sum of W, ...)
    dropped : list of str
        Features that at least one plate lacks.
    """
    plates = list(plates)
    if not plates:
        return pd.DataFrame(), []
    shared = set.intersection(*(set(feature_columns(table)) for table in plates))
    dropped = sorted({name for table in plates for name in feature_columns(table)} - shared)
    keys = list(dict.fromkeys(name for table in plates for name in table.columns if name.startswith("Metadata_")))
    features = [name for name in feature_columns(plates[0]) if name in shared]
    joined = {name: np.concatenate([_key(table, name) for table in plates]) for name in keys}
    values = np.concatenate([table[features].to_numpy(float) for table in plates])
    return pd.concat([pd.DataFrame(joined), pd.DataFrame(values, columns=features)], axis=1), dropped


def select_features(profiles, params, *, features=None):
    """Drop features that are empty, constant or redundant.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
        Normalized profiles; pass the plates that the selection shall be fitted on, and take the same columns from
        others.
    params : Params
        `feature_select`, applied in this order, and its cut-offs.
    features : sequence of str, optional
        Default `feature_columns(profiles)`.

    Returns
    -------
    profiles : DataFrame, shape (W, ...)
        All rows, fewer columns.
    dropped : dict of str to list of str
        Operation to the features that it dropped, sorted.

    Notes
    -----
    Wells without any value take no part in the decision, else a few empty wells would make every feature fail
    `drop_na_columns`. `correlation_threshold` looks at positive correlations only, as pycytominer's does.
    """
    from pycytominer import feature_select

    remaining = feature_columns(profiles) if features is None else list(features)
    table = _finite(profiles, remaining)
    table = table[table.notna().any(axis=1)]
    dropped = {}
    for operation in params.feature_select:
        if operation == "correlation_threshold" and len(remaining) < 2 or not remaining or len(table) < 2:
            dropped[operation] = []
            continue
        if operation == "variance_threshold" and not (table[remaining].var(ddof=0) > params.min_variance).any():
            kept = []  # scikit-learn raises where nothing is left
        elif operation == "correlation_threshold":
            redundant = find_redundant(table[remaining], params.correlation)
            kept = [name for name in remaining if name not in redundant]
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                selected = feature_select(
                    table[remaining],
                    features=remaining,
                    operation=operation,
                    na_cutoff=params.na_cutoff,
                    outlier_cutoff=params.outlier_cutoff,
                    min_variance=params.min_variance,
                )
            kept = [name for name in remaining if name in selected]
        dropped[operation] = sorted(set(remaining) - set(kept))
        remaining = kept
    gone = {name for names in dropped.values() for name in names}
    return profiles[[name for name in profiles.columns if name not in gone]], dropped


def find_redundant(table, threshold):
    """Find the features that correlate with one of which the sum of absolute correlations with all features is less.

    Parameters
    ----------
    table : DataFrame of float, shape (W, F)
        Of finite values and gaps.
    threshold : float
        Of Pearson's correlation; a feature goes whose correlation with another is above it.

    Returns
    -------
    set of str

    Notes
    -----
    What `pycytominer.operations.correlation_threshold` drops, without its Python call for each pair of features, of which a
    plate with few wells has millions.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # of a constant feature there is no correlation
        if table.notna().to_numpy().all():
            correlations = pd.DataFrame(np.corrcoef(table.to_numpy(float).T), table.columns, table.columns)
        else:
            correlations = table.corr()
    order = correlations.abs().sum().sort_values().index.get_indexer(table.columns)
    alike = np.tril(correlations.to_numpy() > threshold, -1)
    later = order[:, None] > order
    return set(table.columns[((alike | alike.T) & later).any(axis=1)])


def complete_profiles(profiles, *, features=None):
    """Fill the gaps of profiles for methods that take none: by the feature's median over all wells.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
    features : sequence of str, optional
        Default `feature_columns(profiles)`.

    Returns
    -------
    DataFrame
        Without wells that have no value, and without features that have none; infinity is a gap.
    """
    features = feature_columns(profiles) if features is None else list(features)
    values = _finite(profiles, features)
    kept = values.notna().any(axis=1)
    values = values.loc[kept, values.notna().any()]
    filled = pd.DataFrame(
        values.where(values.notna(), values.median(), axis=1).to_numpy(), values.index, values.columns
    )
    others = [name for name in profiles.columns if name not in set(features)]
    return pd.concat([profiles.loc[kept, others], filled], axis=1).reset_index(drop=True)


def sphere_profiles(profiles, *, regularization=0.1):
    """Sphere normalized profiles: what negative controls vary in counts less, wherever it comes from.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
        Of all plates, normalized, without gaps (see `complete_profiles`), with `Metadata_Control`.
    regularization : float
        Added to the standard deviation of the controls in each direction [SD of a feature]: directions in which controls hardly
        vary, which few wells cannot measure, are not blown up beyond its inverse.

    Returns
    -------
    profiles : DataFrame, shape (W, ...)
        The same columns; sphered, or as they came.
    reason : str
        Why they are as they came; else empty.

    Notes
    -----
    ZCA of the correlations (Kessy et al. 2018, doi:10.1080/00031305.2016.1277159) of the negative controls of all plates, by
    pycytominer: each feature stays the one that it is most like. It removes what is technical in the controls, effects of plates
    included, and raises noise where there are few of them.
    """
    from pycytominer import normalize

    features = feature_columns(profiles)
    reference = profiles["Metadata_Control"] == "negative"
    count = int(reference.sum())
    if count < MIN_TO_SPHERE:
        return profiles, f"{count} negative control wells, {MIN_TO_SPHERE} needed"
    within = profiles.loc[reference, features]
    varied = within.std() > NO_SPREAD * within.abs().max()
    features = [name for name in features if varied[name]]
    standard = ((within - within.mean()) / within.std())[features].to_numpy()
    if not features or np.linalg.matrix_rank(standard) < min(count - 1, len(features)):
        return profiles, "the negative controls' features depend on each other"
    keys = [name for name in profiles.columns if name not in features]
    sphered = normalize(
        pd.concat([profiles, reference.rename("Metadata_IsReference")], axis=1),
        features=features,
        meta_features=keys,
        samples="Metadata_IsReference",
        method="spherize",
        spherize_epsilon=regularization * np.sqrt(count - 1),
    )
    return sphered[list(profiles.columns)], ""


def summarize_treatments(profiles, *, features=None):
    """Reduce wells to one row per treatment and dose: the median of each feature.

    Parameters
    ----------
    profiles : DataFrame, shape (W, ...)
        `Metadata_Treatment`, `Metadata_Dose`, `Metadata_Unit`, `Metadata_Control`, `Metadata_Plate`.
    features : sequence of str, optional
        Default `feature_columns(profiles)`.

    Returns
    -------
    DataFrame
        These keys but the plate, `Metadata_Wells` and `Metadata_Plates` (int), and the features; wells without a treatment are left out.
    """
    features = feature_columns(profiles) if features is None else list(features)
    keys = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control"]
    known = profiles[profiles["Metadata_Treatment"].notna() & (profiles["Metadata_Control"] != "empty")]
    groups = known.groupby(keys, sort=True, dropna=False)
    counts = pd.DataFrame({"Metadata_Wells": groups.size(), "Metadata_Plates": groups["Metadata_Plate"].nunique()})
    return pd.concat([counts, groups[features].median()], axis=1).copy().reset_index()


def assay_quality(positive, negative, *, n_bootstrap=1000, confidence=0.95, seed=0):
    """Measure how well the controls of an assay are separated.

    Parameters
    ----------
    positive, negative : array of float
        Readouts of the control wells; NaN is left out.
    n_bootstrap : int
        Resamples of the wells for the confidence interval; 0 for none.
    confidence : float in (0, 1)
    seed : int

    Returns
    -------
    dict
        `z_prime` = 1 - 3 (sd_p + sd_n) / |mean_p - mean_n|, `robust_z_prime` (medians and scaled MADs), `ssmd` =
        (mean_p - mean_n) / sqrt(var_p + var_n), each with `_low` and `_high`; `n_positive`, `n_negative`, `reason`.
        NaN where there are fewer than 3 wells of a kind, or no separation (for SSMD: no variance).

    Notes
    -----
    Zhang et al. 1999, doi:10.1177/108705719900400206; SSMD: Zhang 2007, doi:10.1016/j.ygeno.2006.12.014. Sample
    standard deviations (n - 1). Percentile bootstrap: with few wells the interval is too narrow.
    """
    positive, negative = (np.asarray(values, float).ravel() for values in (positive, negative))
    positive, negative = positive[np.isfinite(positive)], negative[np.isfinite(negative)]
    names = ("z_prime", "robust_z_prime", "ssmd")
    quality = {name + end: np.nan for name in names for end in ("", "_low", "_high")}
    quality |= {"n_positive": len(positive), "n_negative": len(negative), "reason": ""}
    if min(len(positive), len(negative)) < 3:
        return quality | {"reason": "fewer than 3 control wells of a kind"}
    values = _separation(positive[None], negative[None])
    quality |= {name: float(values[name][0]) for name in names}
    if np.isnan(values["z_prime"][0]):
        quality["reason"] = "no separation: the controls have the same mean"
    if n_bootstrap:
        random = np.random.default_rng(seed)
        p = positive[random.integers(0, len(positive), (n_bootstrap, len(positive)))]
        n = negative[random.integers(0, len(negative), (n_bootstrap, len(negative)))]
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        for name, resampled in _separation(p, n).items():
            resampled = resampled[np.isfinite(resampled)]
            if len(resampled) and np.isfinite(quality[name]):
                quality[name + "_low"], quality[name + "_high"] = np.quantile(resampled, tails).tolist()
    return quality


def dose_response(readout, *, value="Metadata_Readout", alpha=0.05, min_span=MIN_SPAN):
    """Fit a Hill curve to each treatment that was given in several doses, and report it where the data carry it.

    Parameters
    ----------
    readout : DataFrame, shape (W, ...)
        `Metadata_Treatment`, `Metadata_Dose`, `value`, optionally `Metadata_Unit`, `Metadata_Control` and
        `Metadata_Plate`. Wells without dose or value are left out; control wells are not fitted, but the negative ones
        say how large a response must be.
    value : str
        The column to fit.
    alpha : float in (0, 1)
        Level of the F test of the curve against a constant.
    min_span : float
        How far a curve's ends must lie apart [robust SD of the negative controls about their plates' medians]; without
        `MIN_CONTROLS` negative controls nothing is asked.

    Returns
    -------
    DataFrame
        One row per treatment with a dose: `Metadata_Treatment`, `Metadata_Unit`, `ec50` with its 95 % interval
        `ec50_low`, `ec50_high` [unit of the dose], `hill` (> 0), `bottom` (the response at dose 0), `top` (at
        saturation; below `bottom` for a falling curve), `r2`, `p`, `n` wells, `n_doses`, `reason`. Where `reason` is
        not empty no curve is reported: `ec50` … `top` are NaN.

    Notes
    -----
    ``y = bottom + (top - bottom) x / (1 + x)``, ``x = (dose / ec50) ** hill``, Hill slopes in [0.5, 8]. For a given EC50
    and Hill slope the other two are linear, so a grid over the first two starts the bounded fit from its three best
    places. A curve is reported if all of this holds: the F test of its four parameters against a constant has
    p <= `alpha`; the EC50 lies within the doses given; the EC50's 95 % interval stays within the doses given, widened by
    `DOSE_MARGIN` at either end; the curve spans at least `min_span`. The interval is a likelihood profile, which stays
    true where a quadratic approximation does not: of a step between two doses it is the gap between them, and of a
    curve without a plateau it is open, so that there is no EC50.
    """
    columns = ["Metadata_Treatment", "Metadata_Unit", *CURVE, "r2", "p", "n", "n_doses", "reason"]
    control = readout["Metadata_Control"] if "Metadata_Control" in readout else pd.Series("", index=readout.index)
    spread = _controls_spread(readout[control == "negative"], value)
    table = readout[readout["Metadata_Treatment"].notna() & ~control.isin(["negative", "positive"])]
    table = table[np.isfinite(table["Metadata_Dose"].astype(float)) & (table["Metadata_Dose"].astype(float) >= 0)]
    rows = []
    for treatment, wells in table.groupby("Metadata_Treatment", sort=True):
        units = sorted(set(wells["Metadata_Unit"])) if "Metadata_Unit" in wells else [""]
        wells = wells[np.isfinite(wells[value].astype(float))]
        row = {"Metadata_Treatment": treatment, "Metadata_Unit": units[0] if len(units) == 1 else ""}
        if len(units) > 1:
            fit = {"n": len(wells), "reason": f"doses in different units: {', '.join(units)}"}
        else:
            doses, values = wells["Metadata_Dose"].to_numpy(float), wells[value].to_numpy(float)
            fit = fit_hill(doses, values, alpha=alpha, least_span=min_span * spread if spread > 0 else 0.0)
        rows.append(row | fit)
    table = pd.DataFrame(rows, columns=columns)
    counts = {"n": "int64", "n_doses": "int64"}
    texts = {name: object for name in ("Metadata_Treatment", "Metadata_Unit", "reason")}
    table = table.fillna({"n": 0, "n_doses": 0, "reason": ""})
    return table.astype({name: "float64" for name in columns} | counts | texts)


def _controls_spread(negative, value):
    """Robust SD of negative controls about their plates' medians; NaN where there are too few."""
    values = negative[value].astype(float)
    values = values[np.isfinite(values)]
    if len(values) < MIN_CONTROLS:
        return np.nan
    if "Metadata_Plate" in negative:
        values = values - values.groupby(negative.loc[values.index, "Metadata_Plate"]).transform("median")
    return float(MAD_TO_SD * np.median(np.abs(values - np.median(values))))


def fit_hill(dose, response, *, alpha=0.05, least_span=0.0):
    """Fit one Hill curve; see `dose_response`.

    Parameters
    ----------
    dose : array of float, shape (W,)
        At least 0, finite.
    response : array of float, shape (W,)
        Finite.
    alpha : float in (0, 1)
    least_span : float
        How far the curve's ends must lie apart [unit of the response].

    Returns
    -------
    dict
        `ec50`, `ec50_low`, `ec50_high`, `hill`, `bottom`, `top`, `r2`, `p`, `n`, `n_doses`, `reason`.
    """
    from scipy.optimize import least_squares
    from scipy.stats import f as f_distribution

    dose, response = np.asarray(dose, float), np.asarray(response, float)
    fit = dict.fromkeys((*CURVE, "r2", "p"), np.nan)
    fit |= {"n": len(dose), "n_doses": len(np.unique(dose)), "reason": ""}
    given = dose[dose > 0]
    if fit["n_doses"] < 4 or len(np.unique(given)) < 3 or fit["n"] < 5:
        return fit | {"reason": f"{fit['n_doses']} doses in {fit['n']} wells; at least 4 doses and 5 wells are needed"}
    total = np.sum((response - response.mean()) ** 2)
    if not total > (NO_SPREAD * np.abs(response).max()) ** 2:
        return fit | {"reason": "the readout is constant"}

    # Fitted in units of the response's range and of decades, so that one tolerance serves every readout.
    scale, offset = np.ptp(response), response.min()
    y = (response - offset) / scale
    lowest, highest = np.log10(given.min()), np.log10(given.max())
    with np.errstate(divide="ignore"):
        log_dose = np.log10(dose)  # dose 0 is -inf: response = bottom

    starts = []
    for log_ec50 in np.linspace(lowest - 0.5, highest + 0.5, 25):
        for hill in (0.5, 1.0, 2.0, 4.0):
            part = _occupied(log_dose, log_ec50, hill)
            design = np.stack([1 - part, part], axis=1)
            ends = np.linalg.lstsq(design, y, rcond=None)[0]
            starts.append((float(np.sum((design @ ends - y) ** 2)), log_ec50, hill, *np.clip(ends, -2, 3)))
    lower, upper = [lowest - 1, HILL_SLOPES[0], -2.0, -2.0], [highest + 1, HILL_SLOPES[1], 3.0, 3.0]

    def residuals(p):
        return p[2] + (p[3] - p[2]) * _occupied(log_dose, p[0], p[1]) - y

    fits = [least_squares(residuals, start[1:], bounds=(lower, upper), max_nfev=100) for start in sorted(starts)[:3]]
    fits = [each for each in fits if each.success]
    if not fits:
        return fit | {"reason": "the fit did not converge"}
    best = min(fits, key=lambda each: each.cost)
    remaining = 2 * best.cost * scale**2
    fit["r2"] = float(1 - remaining / total)
    free = len(dose) - 4
    if remaining <= total * 1e-20:
        fit["p"] = 0.0
    else:
        fit["p"] = float(f_distribution.sf(max(total - remaining, 0) / 3 / (remaining / free), 3, free))
    if fit["p"] > alpha:
        return fit | {"reason": f"no dose response (F test, p = {fit['p']:.2g})"}
    log_ec50, hill, bottom, top = (float(one) for one in best.x)
    span = scale * abs(top - bottom)
    if span < least_span:
        return fit | {
            "reason": f"no dose response beyond the spread of the negative controls (it spans {span:.2g}, {least_span:.2g} "
            "needed)"
        }
    if not lowest <= log_ec50 <= highest:
        return fit | {"reason": "no EC50: it lies beyond the doses given"}
    margin = np.log10(DOSE_MARGIN)
    low, high = _ec50_interval(log_dose, y, log_ec50, best=2 * best.cost, ends=(lowest - margin, highest + margin))
    if not np.isfinite([low, high]).all():
        return fit | {
            "reason": f"no EC50: its 95 % interval reaches more than {DOSE_MARGIN:g} times beyond the doses given"
        }
    fit |= {"ec50": 10**log_ec50, "ec50_low": 10**low, "ec50_high": 10**high}
    return fit | {"hill": hill, "bottom": float(offset + scale * bottom), "top": float(offset + scale * top)}


def _occupied(log_dose, log_ec50, hill):
    """The rise of a Hill curve from 0 to 1."""
    with np.errstate(over="ignore"):
        return 1 / (1 + 10.0 ** (hill * (log_ec50 - log_dose)))


def _ec50_interval(log_dose, y, log_ec50, *, best, ends):
    """Ends of the 95 % likelihood profile of the EC50 [decades]; infinite where it reaches an end of the range.

    Parameters
    ----------
    log_dose, y : array of float, shape (W,)
    log_ec50 : float
        The fitted one [decades].
    best : float
        Its sum of squares.
    ends : tuple of float
        Range that is searched [decades].
    """
    from scipy.stats import f as f_distribution

    # A curve sees the wells of a dose only through their mean.
    levels, which, count = np.unique(log_dose, return_inverse=True, return_counts=True)
    means = np.bincount(which, y) / count
    within = float(np.sum((y - means[which]) ** 2))
    slopes = np.geomspace(*HILL_SLOPES, 25)
    step = slopes[1] / slopes[0]

    def squares(at, slopes):
        part = _occupied(levels, at[:, None, None], slopes[..., None])
        part = part - (part @ count / count.sum())[..., None]
        rest = means - means @ count / count.sum()
        spread = (part**2) @ count
        shared = np.where(spread > 1e-12, (part @ (rest * count)) ** 2 / np.maximum(spread, 1e-12), 0)
        return within + max(float(rest**2 @ count), 0) - shared

    def profile(at):
        coarse = np.broadcast_to(slopes, (len(at), len(slopes)))
        around = slopes[squares(at, coarse).argmin(axis=1)]
        fine = np.clip(around[:, None] * step ** np.linspace(-1, 1, 15), *HILL_SLOPES)
        return squares(at, fine).min(axis=1)

    free = len(y) - 4
    factor = 1 + f_distribution.ppf(0.95, 1, free) / free
    low, high = ends
    for _ in range(3):  # each time on a finer grid, around what the last one has found
        grid = np.unique(np.append(np.linspace(low, high, 101), log_ec50))
        found = profile(grid)
        inside = np.flatnonzero((found <= max(best, found.min()) * factor) | (grid == log_ec50))
        low, high = grid[max(inside[0] - 1, 0)], grid[min(inside[-1] + 1, len(grid) - 1)]
    if low <= ends[0] or high >= ends[1]:
        return -np.inf, np.inf
    return float(low), float(high)


def robust_z(values, reference):
    """Express values in robust standard deviations from the median of the reference.

    Parameters
    ----------
    values : array of float, shape (W,)
    reference : array of float
        NaN is left out.

    Returns
    -------
    array of float64, shape (W,)
        (value - median) / (1.4826 MAD); all NaN where the reference is empty or has no spread.

    Examples
    --------
    >>> robust_z([3.0], [-1.0, 0.0, 1.0]).round(3)
    array([2.023])
    """
    values, reference = np.asarray(values, float), np.asarray(reference, float)
    reference = reference[np.isfinite(reference)]
    if not len(reference):
        return np.full(values.shape, np.nan)
    center = np.median(reference)
    spread = MAD_TO_SD * np.median(np.abs(reference - center))
    if not spread > NO_SPREAD * np.abs(reference).max():
        return np.full(values.shape, np.nan)
    return (values - center) / spread


def call_hits(readout, params, *, value="Metadata_Readout", flagged=None):
    """Compare each treatment and dose with the negative controls of its own plates.

    Parameters
    ----------
    readout : DataFrame, shape (W, ...)
        Wells of any number of plates: `Metadata_Plate`, `Metadata_Treatment`, `Metadata_Dose`, `Metadata_Control` and
        `value`.
    params : Params
        `hit_threshold` [robust standard deviations], `hit_min_replicates`, `min_controls`.
    value : str
        The column to judge.
    flagged : array of bool, shape (W,), optional
        Wells that were left out, since quality control has flagged all of their fields.

    Returns
    -------
    hits : DataFrame
        One row per treatment and dose but the negative controls: `Metadata_Treatment`, `Metadata_Dose`,
        `Metadata_Unit`, `Metadata_Control`, `n` wells with a value, `n_plates`, `median` of the value, `robust_z`
        (median over the wells), `n_beyond` (wells at or beyond the threshold on the side of the median), `hit`,
        `reason` (why it can be no hit). Strongest first. Positive controls are listed and are no hits.
    report : dict
        `threshold`, `min_replicates`, `n_wells`, `skipped_plates` (plate to reason), and `false_rate`, the share of
        negative control wells at or beyond the threshold (NaN without any): what the threshold means on these plates.

    Notes
    -----
    A hit has a median beyond the threshold and at least `hit_min_replicates` wells beyond it on that side. No p value
    is given: with the usual handful of wells it would rest on an assumed distribution.
    """
    table = readout.reset_index(drop=True)
    values = table[value].astype(float).where(np.isfinite(table[value].astype(float)))
    negative = table["Metadata_Control"] == "negative"
    scores = pd.Series(np.nan, index=table.index)
    skipped = {}
    for plate, wells in table.groupby("Metadata_Plate", sort=True):
        controls = values[wells.index][negative[wells.index]].dropna()
        if len(controls) < params.min_controls:
            skipped[str(plate)] = f"{len(controls)} negative control wells with a value, {params.min_controls} needed"
            continue
        scores[wells.index] = robust_z(values[wells.index], controls)
        if np.isnan(robust_z([0.0], controls)[0]):
            skipped[str(plate)] = "no spread among the negative controls"
    keys = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control"]
    table = table.assign(score=scores, value=values, Metadata_Unit=table.get("Metadata_Unit", ""))
    table["flagged"] = False if flagged is None else np.asarray(flagged)
    rows = []
    for key, wells in table[~negative & table["Metadata_Treatment"].notna()].groupby(keys, sort=True, dropna=False):
        judged = wells[wells["score"].notna()]
        median = judged["score"].median() if len(judged) else np.nan
        beyond = int((judged["score"] * np.sign(median) >= params.hit_threshold).sum()) if len(judged) else 0
        reason = ""
        if key[3] == "positive":
            reason = "positive control"
        elif not len(judged):
            reason = _why_not_judged(wells)
        elif len(judged) < params.hit_min_replicates:
            reason = f"{_wells(len(judged))}, {params.hit_min_replicates} needed"
        hit = not reason and abs(median) >= params.hit_threshold and beyond >= params.hit_min_replicates
        plates = judged["Metadata_Plate"].nunique()
        center = judged["value"].median() if len(judged) else np.nan
        rows.append((*key, len(judged), plates, center, median, beyond, bool(hit), reason))
    columns = [*keys, "n", "n_plates", "median", "robust_z", "n_beyond", "hit", "reason"]
    hits = pd.DataFrame(rows, columns=columns)
    types = {
        "Metadata_Dose": float,
        "n": int,
        "n_plates": int,
        "median": float,
        "robust_z": float,
        "n_beyond": int,
        "hit": bool,
    }
    hits = hits.astype(types)
    strongest = hits["robust_z"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    control_scores = scores[negative].dropna()
    report = {
        "threshold": params.hit_threshold,
        "min_replicates": params.hit_min_replicates,
        "n_wells": int(scores.notna().sum()),
        "skipped_plates": skipped,
        "false_rate": float((control_scores.abs() >= params.hit_threshold).mean()) if len(control_scores) else np.nan,
    }
    return hits.loc[strongest].reset_index(drop=True), report


def _why_not_judged(wells):
    """Why no well of a treatment has a score."""
    if wells["flagged"].all():
        return "all wells left out: flagged fields"
    if wells["value"].notna().any():
        return "its plates cannot be compared with negative controls"
    left_out = int(wells["flagged"].sum())
    if left_out:
        return f"no well with a value, {left_out} of {len(wells)} left out: flagged fields"
    if "Metadata_CellCount" in wells and not wells["Metadata_CellCount"].any():
        return "no cell in any of its wells"
    return "no well with a value"


def _wells(number):
    """A number of wells in words."""
    return f"{number} {'well' if number == 1 else 'wells'}"


def _finite(table, features):
    """The feature columns as float, infinity as NaN."""
    values = table[list(features)].astype(float)
    return values.where(np.isfinite(values))


def _well(name):
    """`a1` and `A01` as `A01`; a name that is no well stays as it is."""
    try:
        return well_name(*parse_well(name))
    except ValueError:
        return str(name)


def _key(table, name):
    """A key column as an array, None where the table has no such column."""
    return table[name].to_numpy() if name in table else np.full(len(table), None, dtype=object)


def _mark(table, keys, features, normalized):
    """Keys, the flag, features."""
    return pd.concat(
        [
            table[keys],
            pd.Series(normalized, index=table.index, name="Metadata_Normalized", dtype=bool),
            table[list(features)],
        ],
        axis=1,
    )


def _spread(values, method):
    """Per column the quantity that `method` divides by."""
    if method == "mad_robustize":
        return (values - values.median()).abs().median()
    if method == "standardize":
        return values.std(ddof=0)
    return values.quantile(0.75) - values.quantile(0.25)


def _separation(positive, negative):
    """Z', robust Z' and SSMD per row of the two arrays of shape (resamples, wells)."""
    mean = positive.mean(axis=1) - negative.mean(axis=1)
    sd = [values.std(axis=1, ddof=1) for values in (positive, negative)]
    medians = [np.median(values, axis=1) for values in (positive, negative)]
    mad = [
        MAD_TO_SD * np.median(np.abs(v - m[:, None]), axis=1)
        for v, m in zip((positive, negative), medians, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        measures = {
            "z_prime": 1 - 3 * (sd[0] + sd[1]) / np.abs(mean),
            "robust_z_prime": 1 - 3 * (mad[0] + mad[1]) / np.abs(medians[0] - medians[1]),
            "ssmd": mean / np.sqrt(sd[0] ** 2 + sd[1] ** 2),
        }
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in measures.items()}
