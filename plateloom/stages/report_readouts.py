"""Readouts of wells, as both pages show them: their name and unit, the quality of the assay, dose responses."""

import re

import numpy as np
import pandas as pd

from plateloom import profiling, report
from plateloom.stages.profiling import READOUT

INTERVAL_WELLS = 6  # with 4, every third resample has two different wells or one, and hardly any spread to divide by
STATISTICS = {"z_prime": "Z'", "robust_z_prime": "robust Z'", "ssmd": "SSMD"}


def readout_name(params):
    """The readout in words, its divisor and logarithm included."""
    name = params.readout or ""
    if params.readout_denominator:
        name += f" / {params.readout_denominator}"
    return f"log2({name})" if params.readout_log and name else name


def unit_of(params):
    """Unit of the readout, as far as the names of its features tell."""
    if params.readout_log:
        return "log2"
    if params.readout_denominator:
        return "ratio"
    for pattern, unit in (
        ("Metadata_CellsPerField", "cells per field"),
        (r"_AreaShape_(Area|ConvexArea|BoundingBoxArea|FilledArea)$", "px²"),
        (r"_AreaShape_(Volume|BoundingBoxVolume)$", "voxels"),
        (r"_AreaShape_.*(Diameter|Length|Radius|Perimeter|Feret)", "px"),
        (r"_Intensity_(Mean|Median|Min|Max|Std|LowerQ|UpperQ)", "share of full scale"),
    ):
        if re.search(pattern, params.readout or ""):
            return unit
    return ""


def by_well(table, column):
    """Values of a column by well."""
    return dict(zip(table["Metadata_Well"], table[column].astype(float), strict=True))


def with_micro(table):
    """A table of wells with the unit of the dose as it is written by hand: ``uM`` is ``µM``."""
    units = [
        re.sub(r"^u(?=(M|mol|g|l|L|m)\b)", "µ", unit if isinstance(unit, str) else "")
        for unit in table["Metadata_Unit"]
    ]
    return table.assign(Metadata_Unit=units)


def to_number(value):
    """A number of a record as float; NaN where it says null."""
    return float("nan") if value is None else float(value)


def quality_rows(wells, readout, **keys):
    """Rows of the table of assay quality: all positive controls together, and where they are of several kinds, each.

    Parameters
    ----------
    wells : DataFrame
        Of one plate, with the column `READOUT`.
    readout : str
        Its name.
    **keys
        Columns that stand before all others.

    Returns
    -------
    DataFrame or None
        None without control wells.
    """
    control = wells["Metadata_Control"]
    negative = wells.loc[control == "negative", READOUT]
    positive = wells[control == "positive"]
    if not len(negative) and not len(positive):
        return None
    kinds = {}
    least = profiling.MIN_CONTROLS
    names = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Unit"]
    for (treatment, dose, unit), members in positive.groupby(names, dropna=False, sort=True):
        given = f"{dose:g} {unit}".strip() if np.isfinite(dose) else ""
        kinds[f"{treatment or 'positive'} {given}".strip()] = members[READOUT]
    groups = {f"{len(kinds)} kinds, pooled": positive[READOUT]} if len(kinds) != 1 else {}
    rows = []
    for name, values in (groups | kinds).items():
        found = profiling.assay_quality(values, negative)
        counts = {"negatives": found["n_negative"], "positives": found["n_positive"]}
        few = [
            f"{number} {kind[:-1]} control {'well' if number == 1 else 'wells'}"
            for kind, number in counts.items()
            if number < least
        ]
        reason = f"{' and '.join(few)}, {least} needed" if few else found["reason"]
        for statistic, title in STATISTICS.items():
            ends = {"value": "", "low": "_low", "high": "_high"}
            numbers = {end: to_number(found[statistic + suffix]) for end, suffix in ends.items()}
            if min(counts.values()) < INTERVAL_WELLS:
                numbers |= {"low": np.nan, "high": np.nan}
            row = {**keys, "readout": readout, "statistic": title, "controls": name, **numbers, **counts}
            rows.append(row | {"reason": "" if np.isfinite(numbers["value"]) else reason})
    order = list(STATISTICS.values())
    return pd.DataFrame(sorted(rows, key=lambda row: order.index(row["statistic"])))


def quality_note(assay):
    """What the bars of the assay's quality are, and what is pooled in it."""
    if assay is None:
        return ""
    text = ""
    if assay["low"].notna().any():
        text = "Bars are 95 % intervals from 1,000 bootstrap resamples of the control wells; with few wells they are too narrow."
    if (assay["value"].notna() & assay["low"].isna()).any():
        text += f" No interval is determined below {INTERVAL_WELLS} control wells of either kind."
    if assay["controls"].nunique() > 1:
        text += (
            " The positive controls are of several kinds: 'pooled' takes them for one, so that their differences count as "
            "noise; each kind is shown by itself as well."
        )
    return text.strip()


def dose_curves(wells, readout, *, unit="", groups=None):
    """Dose-response charts of the treatments that have three doses or more.

    Parameters
    ----------
    wells : DataFrame
        With the column `READOUT`.
    readout, unit : str
        Its name and unit.
    groups : str, optional
        Column that tells wells apart in the charts.

    Returns
    -------
    list of DoseResponse
    """
    controls = {}
    for kind in ("negative", "positive"):
        values = wells.loc[wells["Metadata_Control"] == kind, READOUT].dropna()
        if len(values):
            controls[kind] = tuple(np.percentile(values, [5, 50, 95]))
    fits = profiling.dose_response(wells).set_index("Metadata_Treatment")
    treated = wells[wells["Metadata_Dose"].notna() & (wells["Metadata_Control"] == "")]
    curves = []
    for treatment, found in treated.groupby("Metadata_Treatment", sort=True):
        if found["Metadata_Dose"].nunique() < 3 or treatment not in fits.index:
            continue
        fit = fits.loc[treatment]
        hill = None
        if not fit["reason"]:
            hill = report.HillCurve(
                bottom=fit["bottom"],
                top=fit["top"],
                ec50=fit["ec50"],
                slope=fit["hill"],
                ec50_low=fit["ec50_low"],
                ec50_high=fit["ec50_high"],
            )
        units = found["Metadata_Unit"].unique()
        curves.append(
            report.DoseResponse(
                treatment=treatment,
                readout=readout,
                doses=found["Metadata_Dose"].to_numpy(float),
                values=found[READOUT].to_numpy(float),
                dose_unit=units[0] if len(units) == 1 else "",
                unit=unit,
                wells=list(found["Metadata_Well"]),
                groups=None if groups is None else list(found[groups]),
                hill=hill,
                reason=fit["reason"],
                controls=controls,
            )
        )
    return curves


def dose_note():
    """By which rule a dose response is reported."""
    low, high = profiling.HILL_SLOPES
    return (
        "A curve is reported where all of this holds: the F test of its four parameters against a constant has p ≤ 0.05; its "
        f"EC50 lies within the doses given, and the EC50's 95 % interval (likelihood profile) reaches no more than "
        f"{profiling.DOSE_MARGIN:g} times beyond them; its ends lie at least {profiling.MIN_SPAN:g} robust standard deviations of "
        f"the negative controls apart. Slopes are fitted within {low:g} and {high:g}. Control wells are not fitted."
    )
