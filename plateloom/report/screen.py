"""The report of a whole screen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from plateloom.report.charts import (
    CATEGORIES,
    OTHER,
    DoseResponse,
    Embedding,
    HeatMap,
    confusion_chart,
    data_uri,
    element,
    figure,
    floats,
    format_number,
    line_chart,
    plate_chart,
    plate_picture,
    plates_chart,
    scale_chart,
    scale_limits,
    text_of,
)
from plateloom.report.embeddings import maps_section
from plateloom.report.montage import pair_image
from plateloom.report.page import (
    commands,
    grid,
    join,
    make_sections,
    paragraph,
    render_page,
    settings_table,
    table,
)
from plateloom.report.plate import column_sum, dose_section, is_z_prime

if TYPE_CHECKING:
    import pandas as pd

SCREEN_SECTIONS = {
    "plates": "Plates",
    "quality": "Assay quality per plate",
    "heat_maps": "Plate maps, one color scale",
    "replicability": "Replicability",
    "well_maps": "Maps of wells",
    "hits": "Hits",
    "dose_response": "Dose-response over plates",
    "cell_maps": "Maps of cells",
    "classifier": "Classifier",
    "autoencoder": "Autoencoder",
    "versions": "Versions",
    "parameters": "Parameters",
    "reproduce": "How to reproduce this screen",
}
MOST_RECTANGLES = 20_000


@dataclass(frozen=True, eq=False, kw_only=True)
class ScreenHeatMap:
    """One number per well of every plate, drawn with the same color scale.

    Parameters
    ----------
    title : str
    plates : mapping of str to mapping of str to float
        Plate to well to value [`unit`]; NaN is drawn as 'no value'.
    unit, note : str, optional
    diverging : bool, optional
        Blue, white, red around 0: for z-scores.
    limits : tuple of float, optional
        Ends of the color scale; without it the 1st and the 99th percentile over all plates.
    """

    title: str
    plates: Mapping
    unit: str = ""
    note: str = ""
    diverging: bool = False
    limits: tuple | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierReport:
    """How well cells were classified, measured on cells the classifier had not seen.

    Parameters
    ----------
    classes : sequence of str, shape (K,)
    confusion : array of int, shape (K, K)
        Rows are true classes, columns predicted ones [cells].
    per_class : DataFrame, optional
        ``class`` (str), ``precision``, ``recall``, ``f1`` (float in [0, 1]), ``support`` (int [cells]).
    balanced_accuracy, low, high : float, optional
        In [0, 1], with its interval; NaN if unknown.
    scheme : str, optional
        How cells were split, e.g. ``"5 folds, all cells of a plate in one fold"``.
    calibration : DataFrame, optional
        ``confidence``, ``accuracy`` (float in [0, 1]) per bin of predicted probability.
    """

    classes: tuple
    confusion: np.ndarray
    per_class: "pd.DataFrame | None" = None
    balanced_accuracy: float = math.nan
    low: float = math.nan
    high: float = math.nan
    scheme: str = ""
    calibration: "pd.DataFrame | None" = None


@dataclass(frozen=True, eq=False, kw_only=True)
class AutoencoderReport:
    """How well cells are reconstructed.

    Parameters
    ----------
    learning : DataFrame, optional
        ``epoch`` (int), and one column per curve, e.g. ``training`` and ``validation`` (float, the loss).
    loss : str, optional
        Name of the loss: the vertical axis.
    held_out_error, mean_crop_error : float, optional
        Error on crops not trained on, and the error of predicting the mean crop for each of them, in the same unit.
    error : str, optional
        What these errors are, e.g. ``"mean squared error"``.
    crops, reconstructions : array of uint8, shape (N, H, W, 3), optional
        Pairs to show, both made with the same contrast.
    scheme : str, optional
        What was held out, e.g. ``"plates P07 and P08"``.
    """

    learning: "pd.DataFrame | None" = None
    loss: str = "loss"
    held_out_error: float = math.nan
    mean_crop_error: float = math.nan
    error: str = "error"
    crops: np.ndarray | None = None
    reconstructions: np.ndarray | None = None
    scheme: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class ScreenReport:
    """All that the page of a screen shows. Whatever is left out is explained on the page by its note.

    Parameters
    ----------
    screen : str
    plates : DataFrame, one row per plate that the screen should have
        ``Metadata_Plate`` (str), ``status`` (``done``, ``failed``, ``missing``), and as far as known ``reason`` (str),
        ``Metadata_Batch`` (str), ``wells``, ``failed_wells``, ``fields``, ``failed_fields``, ``cells`` (number, NaN if
        unknown) and ``link`` (relative path of the plate's page). Other columns are shown too. May be empty.
    source, created : str, optional
        Shown as they are. Without `created` the page names no date and depends on the data only.
    summary : mapping of str to str or number, optional
        More numbers for the top of the page.
    quality : DataFrame, optional
        ``Metadata_Plate``, ``readout``, ``statistic`` (``Z'``, ``robust Z'``, ``SSMD`` …), ``value``, ``low``, ``high``
        (float), ``negatives``, ``positives`` (int); one chart per statistic and readout.
    shapes : mapping of str to tuple of int, optional
        Rows and columns of each plate in `heat_maps`.
    heat_maps : sequence of ScreenHeatMap, optional
    replicability : DataFrame, optional
        One row per treatment, all columns are shown; ``mean_average_precision`` and ``corrected_p_value`` (copairs) are
        drawn as well.
    well_maps, cell_maps : sequence of Embedding, optional
        One drawing per coloring; up to some 20,000 sampled cells.
    hits : DataFrame, optional
        All columns are shown, in their order, the first 500 rows. Empty: no hit.
    dose_response : sequence of DoseResponse, optional
        With the plate of each well as `groups`.
    classifier : ClassifierReport, optional
    autoencoder : AutoencoderReport, optional
    versions, parameters, reproduce, notes
        As for `PlateReport`; notes by the keys of `SCREEN_SECTIONS`.
    """

    screen: str
    plates: "pd.DataFrame"
    source: str = ""
    created: str = ""
    summary: Mapping = field(default_factory=dict)
    quality: "pd.DataFrame | None" = None
    shapes: Mapping = field(default_factory=dict)
    heat_maps: tuple[ScreenHeatMap, ...] = ()
    replicability: "pd.DataFrame | None" = None
    well_maps: tuple[Embedding, ...] = ()
    cell_maps: tuple[Embedding, ...] = ()
    hits: "pd.DataFrame | None" = None
    dose_response: tuple[DoseResponse, ...] = ()
    classifier: ClassifierReport | None = None
    autoencoder: AutoencoderReport | None = None
    versions: Mapping = field(default_factory=dict)
    parameters: Mapping = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    notes: Mapping = field(default_factory=dict)


def render_screen(report):
    """Render the page of a whole screen.

    Parameters
    ----------
    report : ScreenReport

    Returns
    -------
    str
        One HTML file that loads nothing; the same bytes for the same report.

    Raises
    ------
    ValueError
        If a well lies outside its plate, a map has a plate without a shape, or a note names no section.
    """
    contents = {
        "plates": plates_section(report.plates),
        "quality": quality_section(report),
        "heat_maps": join(*(maps_of_plates(heat_map, report.shapes, report.plates) for heat_map in report.heat_maps))
        if report.heat_maps
        else None,
        "replicability": replicability_section(report.replicability),
        "well_maps": maps_section(report.well_maps),
        "cell_maps": maps_section(report.cell_maps),
        "hits": hits_section(report.hits),
        "dose_response": dose_section(report.dose_response),
        "classifier": classifier_section(report.classifier),
        "autoencoder": autoencoder_section(report.autoencoder),
        "versions": settings_table(report.versions),
        "parameters": settings_table(report.parameters),
        "reproduce": commands(report.reproduce),
    }
    return render_page(
        title=report.screen,
        kind="Screen report",
        facts={"source": report.source, "created": report.created},
        figures=screen_figures(report),
        verdict=screen_verdict(report.plates),
        sections=make_sections(SCREEN_SECTIONS, contents, report.notes),
    )


def screen_figures(report):
    """The numbers at the top of the page."""
    plates = report.plates
    status = [text_of(state) for state in plates["status"]] if len(plates) else []
    numbers = {"plates": len(plates), "complete": status.count("done")}
    for name in ("wells", "fields", "cells"):
        if name in plates:
            numbers[name] = column_sum(plates, name)
    if report.hits is not None:
        numbers["hits"] = len(report.hits)
    return {name: format_number(value) for name, value in {**numbers, **report.summary}.items()}


def screen_verdict(plates):
    """Which plates lack, and why, before any chart."""
    if not len(plates):
        return [("This screen has no plate.", "bad")]
    said = []
    bad = [row for row in plates.to_dict("records") if text_of(row["status"]) != "done"]
    for state in dict.fromkeys(text_of(row["status"]) for row in bad):
        rows = [row for row in bad if text_of(row["status"]) == state]
        names = [text_of(row["Metadata_Plate"]) for row in rows]
        rest = f" and {len(names) - 15} more" if len(names) > 15 else ""
        if len(rows) <= 3:
            reasons = [text_of(row.get("reason")) for row in rows]
            names = [f"{name} ({why})" if why else name for name, why in zip(names, reasons, strict=True)]
        noun = "plate" if len(rows) == 1 else "plates"
        verb = "" if state == "failed" else " is" if len(rows) == 1 else " are"
        verb += f" {state or 'without a status'}"
        said.append((f"{len(rows)} {noun}{verb}: {', '.join(names[:15])}{rest}.", "bad"))
    if said:
        rest = len(plates) - len(bad)
        words = f"Everything below rests on the {rest} complete {'plate' if rest == 1 else 'plates'}."
        return [*said, (words if rest else "No plate is complete.", "plain")]
    return [(f"All {len(plates)} plates are complete.", "good")]


def plates_section(plates):
    """The table of plates, those that are not done first."""
    if not len(plates):
        return None
    order = sorted(range(len(plates)), key=lambda i: text_of(plates["status"].iloc[i]) == "done")
    shown = plates.iloc[order]
    links = list(shown["link"]) if "link" in shown else None
    shown = shown.drop(columns="link", errors="ignore")
    first = [name for name in ("Metadata_Plate", "status", "reason", "Metadata_Batch") if name in shown]
    shown = shown[[*first, *(name for name in shown if name not in first)]]
    return table(shown, empty="This screen has no plate.", most=max(len(shown), 1), links=links)


def quality_section(report):
    """Statistics of the controls and numbers of cells, one point per plate."""
    plates, quality = report.plates, report.quality
    names = [text_of(name) for name in plates["Metadata_Plate"]] if len(plates) else []
    parts = []
    if quality is not None and len(quality):
        for statistic, readout in dict.fromkeys(zip(quality["statistic"], quality["readout"], strict=True)):
            rows = quality[(quality["statistic"] == statistic) & (quality["readout"] == readout)]
            found = {text_of(row["Metadata_Plate"]): row for row in rows.to_dict("records")}
            listed = names or list(found)
            columns = ([found.get(name, {}).get(key, math.nan) for name in listed] for key in ("value", "low", "high"))
            lines = (0.0, 0.5) if is_z_prime(statistic) else (0.0,)
            drawing = plates_chart(listed, *columns, label=str(statistic), lines=lines)
            parts.append(figure(f"{statistic}, {readout}", drawing))
    if names and "cells" in plates:
        drawing = plates_chart(names, plates["cells"], label="cells", from_zero=True)
        parts.append(figure("Number of cells", drawing))
    if not parts:
        return None
    words = "Bars are intervals; dashed lines stand at 0 and, for Z', at 0.5; a cross is a plate without a value."
    whole = table(quality, empty="") if quality is not None and len(quality) else None
    return join(paragraph(words, "quiet"), grid(parts), whole)


def maps_of_plates(heat_map, shapes, plates):
    """All plates side by side with one color scale."""
    lacking = sorted(set(heat_map.plates) - set(shapes))
    if lacking:
        raise ValueError(f"no shape was given for plates {lacking}; shapes are known for {sorted(shapes)}")
    values = [value for wells in heat_map.plates.values() for value in dict(wells).values()]
    limits = scale_limits(values, heat_map.limits, heat_map.diverging)
    number = sum(shapes[plate][0] * shapes[plate][1] for plate in heat_map.plates)
    width = 184
    figures = []
    for plate, wells in heat_map.plates.items():
        one = HeatMap(title=str(plate), values=wells, unit=heat_map.unit, diverging=heat_map.diverging)
        if number <= MOST_RECTANGLES:
            drawing = plate_chart(one, shapes[plate], width=width, legend=False, limits=limits)
        else:
            drawing = plate_picture(one, shapes[plate], width=width, limits=limits)
        figures.append(element("figure", element("figcaption", plate), drawing, class_="small"))
    absent = [
        f"{text_of(row['Metadata_Plate'])} ({text_of(row['status']) or 'no status'})"
        for row in plates.to_dict("records")
        if row["Metadata_Plate"] not in heat_map.plates
    ]
    return join(
        element("h3", heat_map.title),
        paragraph(heat_map.note, "quiet") if heat_map.note else None,
        scale_chart(values, limits, heat_map.unit, heat_map.diverging),
        grid(figures, "grid tight"),
        paragraph(f"Without a map: {', '.join(absent)}.", "quiet") if absent else None,
    )


def replicability_section(replicability):
    """Precision of retrieving replicates, per treatment."""
    if replicability is None or not len(replicability):
        return None
    drawing = None
    if {"mean_average_precision", "corrected_p_value"} <= set(replicability):
        precision = floats(replicability["mean_average_precision"])
        order = np.argsort(-precision, kind="stable")
        chance = floats(replicability["corrected_p_value"])[order]
        clear = np.where(chance < 0.05, precision[order], np.nan)
        unclear = np.where(chance < 0.05, np.nan, precision[order])
        found = int(np.isfinite(clear).sum())
        words = f"{found:,} of {len(precision):,} treatments are told from the controls (corrected p < 0.05)."
        lines = {"corrected p < 0.05": clear, "not told from controls": unclear}
        chart = line_chart(
            np.arange(1, len(precision) + 1),
            lines,
            x_label="treatments, by rank",
            y_label="mean average precision",
            points=len(precision) <= 400,
            connect=False,
            colors=(CATEGORIES[0], OTHER),
        )
        drawing = join(paragraph(words), grid([element("figure", chart)]))
    return join(drawing, table(replicability, empty="No treatment has replicates."))


def hits_section(hits):
    """The table of hits."""
    if hits is None:
        return None
    return table(hits, empty="No treatment passed the threshold.")


def classifier_section(classifier):
    """Confusion matrix, per-class scores, calibration and how cells were split."""
    if classifier is None:
        return None
    score = format_number(classifier.balanced_accuracy)
    if math.isfinite(classifier.low) and math.isfinite(classifier.high):
        score += f" ({format_number(classifier.low)} to {format_number(classifier.high)})"
    words = f"Balanced accuracy {score}."
    if classifier.scheme:
        words += f" Split: {classifier.scheme}."
    note = "Numbers are cells; color is the fraction of the true class."
    figures = [figure("Confusion matrix", confusion_chart(classifier.classes, classifier.confusion), note)]
    if classifier.calibration is not None and len(classifier.calibration):
        drawing = line_chart(
            classifier.calibration["confidence"],
            {"cells not trained on": classifier.calibration["accuracy"]},
            x_label="predicted probability",
            y_label="fraction correct",
            points=True,
            diagonal=True,
            width=320,
        )
        figures.append(figure("Calibration", drawing, "On the dashed line the probabilities can be believed."))
    scores = table(classifier.per_class, empty="No class was scored.") if classifier.per_class is not None else None
    return join(paragraph(words), grid(figures), scores)


def autoencoder_section(autoencoder):
    """Learning curve, held-out error against the mean crop, and pairs of crops and reconstructions."""
    if autoencoder is None:
        return None
    held, mean = autoencoder.held_out_error, autoencoder.mean_crop_error
    words = f"Held-out {autoencoder.error} {format_number(held)}; predicting the mean crop gives {format_number(mean)}."
    if math.isfinite(held) and math.isfinite(mean) and mean > 0:
        gain = 1 - held / mean
        words += f" That is {gain:.0%} less." if gain > 0 else " It is no better than the mean crop."
    if autoencoder.scheme:
        words += f" Held out: {autoencoder.scheme}."
    parts = [paragraph(words)]
    learning = autoencoder.learning
    if learning is not None and len(learning):
        lines = {str(name): learning[name] for name in learning if name != "epoch"}
        drawing = line_chart(learning["epoch"], lines, x_label="epoch", y_label=autoencoder.loss)
        parts.append(grid([figure("Learning curve", drawing)]))
    if autoencoder.crops is not None and autoencoder.reconstructions is not None and len(autoencoder.crops):
        picture = pair_image(autoencoder.crops, autoencoder.reconstructions)
        factor = max(1, 960 // picture.shape[1]) if picture.shape[1] < 960 else 1
        factor = min(factor, 3)
        image = Markup('<img class="pairs" src="{}" alt="{}" width="{}" height="{}">').format(
            data_uri(picture),
            "crops above, reconstructions below",
            picture.shape[1] * factor,
            picture.shape[0] * factor,
        )
        parts.append(figure("Crops not trained on (above) and their reconstructions (below)", image))
    return join(*parts)
