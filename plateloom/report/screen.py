"""The report of a whole screen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from plateloom.report.charts import (
    CONTROLS,
    OTHER,
    PALETTES,
    DoseResponse,
    Embedding,
    HeatMap,
    category_colors,
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
from plateloom.report.clusters import ClustersReport, clusters_section, enrichment_table
from plateloom.report.comparison import comparison_section
from plateloom.report.embeddings import maps_section
from plateloom.report.explanation import ExplanationReport, explanation_parts
from plateloom.report.montage import pair_image
from plateloom.report.notices import Notice, shared_banners
from plateloom.report.page import (
    count_words,
    details,
    grid,
    join,
    local_address,
    make_sections,
    paragraph,
    render_page,
    settings_table,
    table,
)
from plateloom.report.plate import (
    column_sum,
    dose_section,
    is_z_prime,
    quality_table,
    reproduce_section,
    undefined_lines,
)

if TYPE_CHECKING:
    import pandas as pd

SCREEN_SECTIONS = {
    "plates": "Plates",
    "quality": "Assay quality per plate",
    "shift": "Controls against those of other plates",
    "heat_maps": "Plate maps, one color scale",
    "well_maps": "Maps of wells",
    "hits": "Hits",
    "dose_response": "Dose-response over plates",
    "cell_maps": "Maps of cells",
    "clusters": "Clusters of cells",
    "classifier": "Classifier",
    "enrichment": "Novel cells and classes by treatment",
    "autoencoder": "Autoencoder",
    "comparison": "Features against latents, and how plates mix",
    "versions": "Versions",
    "parameters": "Parameters",
    "reproduce": "How to reproduce this screen",
}
MOST_RECTANGLES = 20_000
MORE_TRAINING = "train longer (latent.autoencoder.parameters.epochs) or on more cells (latent.autoencoder.cells)"
FEW_PLATES = 24  # so many fit into a chart of half the width, and two charts stand side by side


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
        A sentence on how cells were split, e.g. ``"Tested in 5 folds, all cells of a well in the same one"``.
    error : float, optional
        Share of cells that are wrong.
    calibration, uncalibrated : DataFrame, optional
        ``confidence``, ``accuracy`` (float in [0, 1]) per bin of predicted probability, as it is written and before.
    precision_recall : mapping of str to sequence of float, length 20, optional
        Precision of each class at recall 0.05, 0.1 … 1.
    learning : DataFrame, optional
        ``groups`` learned from, ``balanced_accuracy``, ``low``, ``high``.
    suspects : DataFrame, optional
        Cells whose labels are doubted; all columns are shown.
    subgroups : DataFrame, optional
        Figures of parts of the cells; all columns are shown.
    explanation : ExplanationReport, optional
        What it goes by.
    graded : DataFrame, optional
        Accuracy on cells farther and farther from those learned from; all columns are shown.
    interval_note, novelty_note, calibration_note, learning_note, sets_note, suspects_note : str, optional
        Sentences.
    units : str, optional
        What was held out: ``wells``, ``plates`` or ``batches``.
    """

    classes: tuple
    confusion: np.ndarray
    per_class: "pd.DataFrame | None" = None
    balanced_accuracy: float = math.nan
    low: float = math.nan
    high: float = math.nan
    scheme: str = ""
    error: float = math.nan
    calibration: "pd.DataFrame | None" = None
    uncalibrated: "pd.DataFrame | None" = None
    precision_recall: Mapping = field(default_factory=dict)
    learning: "pd.DataFrame | None" = None
    suspects: "pd.DataFrame | None" = None
    subgroups: "pd.DataFrame | None" = None
    explanation: ExplanationReport | None = None
    graded: "pd.DataFrame | None" = None
    interval_note: str = ""
    novelty_note: str = ""
    calibration_note: str = ""
    learning_note: str = ""
    sets_note: str = ""
    suspects_note: str = ""
    units: str = "groups"


@dataclass(frozen=True, eq=False, kw_only=True)
class RegressionReport:
    """How well numbers were predicted for cells of groups that the model had not seen.

    Parameters
    ----------
    points : DataFrame
        ``truth``, ``predicted`` (float): means of held-out groups.
    words, scheme : str
        Figures, and how cells were split.
    units : str
        What was held out: ``wells``, ``plates`` or ``batches``.
    explanation : ExplanationReport, optional
        What the predictions go by.
    subgroups : DataFrame, optional
        Errors of parts of the cells; all columns are shown.
    """

    points: "pd.DataFrame"
    words: str
    scheme: str
    units: str
    explanation: ExplanationReport | None = None
    subgroups: "pd.DataFrame | None" = None


@dataclass(frozen=True, eq=False, kw_only=True)
class AutoencoderReport:
    """How well the encoder of crops has learned, and how well cells are reconstructed, if it does that.

    Parameters
    ----------
    learning : DataFrame, optional
        ``epoch`` (int), and one column per curve, e.g. ``training`` and ``validation`` (float, the loss).
    loss : str, optional
        Name of the loss: the vertical axis.
    held_out_error, mean_crop_error, pca_error : float, optional
        Error on crops not trained on, the error of predicting the mean crop for each of them, and that of a PCA with as
        many numbers, in the same unit.
    error : str, optional
        What these errors are, e.g. ``"mean squared error"``.
    crops, reconstructions : array of uint8, shape (N, H, W, 3), optional
        Pairs to show, both made with the same contrast.
    worst, worst_reconstructions : array of uint8, shape (N, H, W, 3), optional
        Pairs with the largest errors.
    scheme : str, optional
        A sentence on what it was trained and tested on.
    untrained : str, optional
        Of an encoder that was not trained here: sentences that stand in place of the errors.
    baseline : str, optional
        What `mean_crop_error` is the error of.
    limit : float, optional
        Error from which on a cell counts as badly reconstructed.
    beyond : float in [0, 1], optional
        Share of the held-out cells of which this is true.
    """

    learning: "pd.DataFrame | None" = None
    loss: str = "loss"
    held_out_error: float = math.nan
    mean_crop_error: float = math.nan
    pca_error: float = math.nan
    error: str = "error"
    crops: np.ndarray | None = None
    reconstructions: np.ndarray | None = None
    worst: np.ndarray | None = None
    worst_reconstructions: np.ndarray | None = None
    scheme: str = ""
    untrained: str = ""
    baseline: str = "predicting the mean crop"
    limit: float = math.nan
    beyond: float = math.nan


@dataclass(frozen=True, eq=False, kw_only=True)
class ScreenReport:
    """All that the page of a screen shows. Whatever is left out is explained on the page by its note.

    Parameters
    ----------
    screen : str
    plates : DataFrame, one row per plate that the screen should have
        ``Metadata_Plate`` (str), ``status`` (``done``, ``failed``, ``quarantined``, ``missing``), and as far as known ``reason`` (str),
        ``Metadata_Batch`` (str), ``wells``, ``failed_wells``, ``fields``, ``failed_fields``, ``cells`` (number, NaN if
        unknown) and ``link`` (relative path of the plate's page). Other columns are shown too. May be empty.
    source, created : str, optional
        Shown as they are. Without `created` the page names no date and depends on the data only.
    summary : mapping of str to str or number, optional
        More numbers for the top of the page.
    notices : sequence of Notice, optional
        What the plates' pages warn of; summed up above everything else.
    quality : DataFrame, optional
        ``Metadata_Plate``, ``readout``, ``statistic`` (``Z'``, ``robust Z'``, ``SSMD`` …), ``value``, ``low``, ``high``
        (float), ``controls`` (str), ``negatives``, ``positives`` (int); one chart per statistic, readout and controls.
    quality_note : str, optional
        What the intervals are.
    shapes : mapping of str to tuple of int, optional
        Rows and columns of each plate in `heat_maps`.
    heat_maps : sequence of ScreenHeatMap, optional
    well_maps, cell_maps : sequence of Embedding, optional
        One drawing per coloring; up to some 20,000 sampled cells.
    hits : DataFrame, optional
        All columns are shown, in their order, the first 500 rows; rows with a ``Metadata_Control`` are marked, and neither
        they nor rows with a ``reason`` are counted; where no row is left, hits are not determined. Empty: no hit.
    hits_note : str, optional
        What a hit is and what the columns mean (see `explain_hits`).
    dose_response : sequence of DoseResponse, optional
        With the plate of each well as `groups`.
    dose_note : str, optional
        By which rule a curve is reported.
    classifier : ClassifierReport or RegressionReport, optional
    autoencoder : AutoencoderReport, optional
    clusters : ClustersReport, optional
    shift : DataFrame, optional
        How the controls of each plate compare with those of the others; all columns are shown.
    enrichment : DataFrame, optional
        From `plateloom.classification.enrichment.find_enrichment`.
    comparison : dict, optional
        What comparison.json of the screen says (see `plateloom.stages.comparison.compare_profiles`).
    versions, parameters, reproduce, origin, stages, notes
        As for `PlateReport`; notes by the keys of `SCREEN_SECTIONS`.
    """

    screen: str
    plates: "pd.DataFrame"
    source: str = ""
    created: str = ""
    summary: Mapping = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    quality: "pd.DataFrame | None" = None
    quality_note: str = ""
    shapes: Mapping = field(default_factory=dict)
    heat_maps: tuple[ScreenHeatMap, ...] = ()
    well_maps: tuple[Embedding, ...] = ()
    cell_maps: tuple[Embedding, ...] = ()
    hits: "pd.DataFrame | None" = None
    hits_note: str = ""
    dose_response: tuple[DoseResponse, ...] = ()
    dose_note: str = ""
    classifier: ClassifierReport | RegressionReport | None = None
    autoencoder: AutoencoderReport | None = None
    clusters: ClustersReport | None = None
    shift: "pd.DataFrame | None" = None
    enrichment: "pd.DataFrame | None" = None
    comparison: Mapping | None = None
    versions: Mapping = field(default_factory=dict)
    parameters: Mapping = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    origin: Mapping = field(default_factory=dict)
    stages: "pd.DataFrame | None" = None
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
        "well_maps": maps_section(report.well_maps),
        "cell_maps": maps_section(report.cell_maps),
        "clusters": clusters_section(report.clusters),
        "hits": hits_section(report.hits, report.hits_note),
        "dose_response": dose_section(report.dose_response, report.dose_note),
        "classifier": classifier_section(report.classifier),
        "autoencoder": autoencoder_section(report.autoencoder),
        "shift": shift_section(report.shift),
        "enrichment": enrichment_section(report.enrichment),
        "comparison": comparison_section(report.comparison),
        "versions": settings_table(report.versions),
        "parameters": settings_table(report.parameters, fold="All settings, defaults included"),
        "reproduce": reproduce_section(report),
    }
    return render_page(
        title=report.screen,
        kind="Screen report",
        facts={"source": report.source, "created": report.created},
        figures=screen_figures(report),
        verdict=[*screen_verdict(report.plates, warned=bool(report.notices)), *shared_banners(report.notices)],
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
        numbers["hits"] = count_hits(report.hits) if can_have_hits(report.hits) else "not determined"
    return {name: format_number(value) for name, value in {**numbers, **report.summary}.items()}


def screen_verdict(plates, *, warned=False):
    """Which plates lack, and why, before any chart; a plate that has a page is linked to it."""
    if not len(plates):
        return [("This screen has no plate.", "bad")]
    said = []
    bad = [row for row in plates.to_dict("records") if text_of(row["status"]) != "done"]
    for state in dict.fromkeys(text_of(row["status"]) for row in bad):
        rows = [row for row in bad if text_of(row["status"]) == state]
        names = [plate_link(row) for row in rows]
        rest = f" and {len(names) - 15} more" if len(names) > 15 else ""
        if len(rows) <= 3:
            reasons = [text_of(row.get("reason")) for row in rows]
            names = [
                Markup("{} ({})").format(name, why) if why else name for name, why in zip(names, reasons, strict=True)
            ]
        noun = "plate" if len(rows) == 1 else "plates"
        verb = "" if state == "failed" else " is" if len(rows) == 1 else " are"
        verb += f" {state or 'without a status'}"
        listed = Markup(", ").join(names[:15])
        said.append((Markup("{} {}{}: {}{}.").format(len(rows), noun, verb, listed, rest), "bad"))
    if said:
        rest = len(plates) - len(bad)
        words = f"Everything below rests on the {rest} complete {'plate' if rest == 1 else 'plates'}."
        return [*said, (words if rest else "No plate is complete.", "plain")]
    words = "The one plate is complete" if len(plates) == 1 else f"All {len(plates)} plates are complete"
    return [(f"{words}, but read what follows." if warned else f"{words}.", "plain" if warned else "good")]


def plate_link(row):
    """A plate's name, as a link where it has a page."""
    address = local_address(row.get("link"))
    name = text_of(row["Metadata_Plate"])
    return element("a", name, href=address) if address else escape(name)


def plates_section(plates):
    """The table of plates, those that are not done first."""
    if not len(plates):
        return None
    order = sorted(range(len(plates)), key=lambda i: text_of(plates["status"].iloc[i]) == "done")
    shown = plates.iloc[order]
    links = list(shown["link"]) if "link" in shown else None
    shown = shown.drop(columns="link", errors="ignore")
    if "reason" in shown and not any(text_of(reason) for reason in shown["reason"]):
        shown = shown.drop(columns="reason")
    first = [name for name in ("Metadata_Plate", "status", "reason", "Metadata_Batch") if name in shown]
    shown = shown[[*first, *(name for name in shown if name not in first)]]
    return table(shown, empty="This screen has no plate.", most=max(len(shown), 1), links=links)


def quality_section(report):
    """Statistics of the controls and numbers of cells, one point per plate."""
    plates, quality = report.plates, report.quality
    names = [text_of(name) for name in plates["Metadata_Plate"]] if len(plates) else []
    width = 470 if len(names) <= FEW_PLATES else 980
    parts, lines, whole, words = [], [], None, ""
    if quality is not None and len(quality):
        controls = [text_of(name) for name in quality["controls"]] if "controls" in quality else [""] * len(quality)
        keys = list(zip(quality["statistic"], quality["readout"], controls, strict=True))
        readouts = list(dict.fromkeys(key[1] for key in keys))
        bare = []
        for key in dict.fromkeys(keys):
            rows = quality[[other == key for other in keys]]
            if rows["value"].isna().all():
                bare += list(rows.index)
                continue
            found = {text_of(row["Metadata_Plate"]): row for row in rows.to_dict("records")}
            listed = names or list(found)
            columns = ([found.get(name, {}).get(end, math.nan) for name in listed] for end in ("value", "low", "high"))
            references = (0.0, 0.5) if is_z_prime(key[0]) else (0.0,)
            drawing = plates_chart(listed, *columns, label=str(key[0]), lines=references, width=width)
            title = " · ".join(filter(None, [key[0], key[1] if len(readouts) > 1 else "", key[2]]))
            parts.append(figure(title, drawing))
        readout = f"Readout: {readouts[0]}." if len(readouts) == 1 else ""
        marks = "Dashed lines stand at 0 and, for Z', at 0.5; a cross is a plate without a value." if parts else ""
        words = " ".join(filter(None, [readout, report.quality_note, marks]))
        lines = undefined_lines(quality.loc[bare])
        whole = quality_table(quality.drop(index=bare))
    if names and "cells" in plates:
        drawing = plates_chart(names, plates["cells"], label="cells", from_zero=True, width=width)
        parts.append(figure("Number of cells", drawing))
    if not parts and not lines and whole is None:
        return None
    return join(
        paragraph(words, "quiet") if words else None,
        *(paragraph(line) for line in lines),
        grid(parts, "grid maps" if width < 900 else "grid") if parts else None,
        whole,
    )


def maps_of_plates(heat_map, shapes, plates):
    """All plates side by side with one color scale."""
    lacking = sorted(set(heat_map.plates) - set(shapes))
    if lacking:
        raise ValueError(f"no shape was given for plates {lacking}; shapes are known for {sorted(shapes)}")
    values = [value for wells in heat_map.plates.values() for value in dict(wells).values()]
    limits = scale_limits(values, heat_map.limits, heat_map.diverging)
    number = sum(shapes[plate][0] * shapes[plate][1] for plate in heat_map.plates)
    width = 168
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
        paragraph("A well in gray has no value.", "quiet") if any(map(math.isnan, map(float, values))) else None,
        paragraph(f"Without a map: {', '.join(absent)}.", "quiet") if absent else None,
    )


def explain_hits(readout, *, threshold, min_replicates, false_rate=math.nan, skipped=None, unit=""):
    """Say what a hit is, and what the columns of the table mean.

    Parameters
    ----------
    readout : str
    threshold : float
        [robust SD]
    min_replicates : int
        [wells]
    false_rate : float, optional
        Share of the negative control wells beyond the threshold.
    skipped : mapping of str to str, optional
        Plate to the reason why its wells were not judged.
    unit : str, optional
        Of the readout.

    Returns
    -------
    str
    """
    said = [
        f"Readout: {readout}{f' [{unit}]' if unit else ''}.",
        f"A hit is a treatment at one dose whose robust z is {format_number(threshold)} or more, or "
        f"{format_number(-threshold)} or less (either direction counts), with at least {min_replicates} "
        f"{'well' if min_replicates == 1 else 'wells'} that far on the same side.",
        "Median: of the readout over the wells. Robust z: how far a well lies from the median of the negative controls of its "
        "own plate, in units of 1.4826 × their median absolute deviation; the table has the median over the wells. "
        f"Wells beyond: how many of them lie {format_number(threshold)} or more away on the side of that median.",
        "Positive controls are shown, marked, and never counted.",
    ]
    if math.isfinite(false_rate):
        said.append(f"Of the negative control wells themselves {false_rate:.1%} lie that far away.")
    if skipped:
        reasons = "; ".join(f"{plate} ({reason})" for plate, reason in list(skipped.items())[:6])
        rest = f"; and {len(skipped) - 6} more" if len(skipped) > 6 else ""
        said.append(f"Without negative controls to compare with: {reasons}{rest}.")
    return " ".join(said)


def judged(hits):
    """Rows of the table of hits that could have become hits: no controls, and none with a reason why not."""
    control = hits["Metadata_Control"].isin(list(CONTROLS)) if "Metadata_Control" in hits else False
    refused = [bool(text_of(reason)) for reason in hits["reason"]] if "reason" in hits else False
    return hits[~(control | np.broadcast_to(refused, len(hits)))]


def can_have_hits(hits):
    """Whether any treatment was compared with controls: where none was, there are not 0 hits but none is known."""
    return not len(hits) or len(judged(hits)) > 0


def count_hits(hits):
    """Number of hits: rows that are hits and no controls."""
    return int(judged(hits)["hit"].astype(bool).sum()) if "hit" in hits else len(hits)


def hits_words(hits):
    """How many hits there are, of how many compounds, and what was not judged; or why no number of hits is known."""
    able = judged(hits)
    rest = hits.drop(able.index)
    kinds = [f"{text_of(kind)} control" for kind in rest["Metadata_Control"]] if "Metadata_Control" in rest else []
    reasons = [text_of(reason) for reason in rest["reason"]] if "reason" in rest else [""] * len(rest)
    why = count_words(reason or kind for reason, kind in zip(reasons, kinds or reasons, strict=True))
    if not len(able):
        return f"Hits are not determined, since nothing could be judged: {why}."
    number = count_hits(hits)
    words = f"{number:,} {'hit' if number == 1 else 'hits'} among {len(able):,} treatments and doses"
    if "Metadata_Treatment" in able:
        few, many = (rows["Metadata_Treatment"].nunique() for rows in (able[able["hit"].astype(bool)], able))
        words += f": {few:,} of {many:,} compounds"
    return f"{words}. Not judged: {why}." if len(rest) else f"{words}."


def hits_section(hits, note=""):
    """The table of hits and of what was no hit, controls marked."""
    if hits is None:
        return None
    shown, marked = hits, None
    if "robust_z" in hits:
        direction = ["higher" if z > 0 else "lower" if z < 0 else "" for z in floats(hits["robust_z"])]
        shown = hits.assign(direction=direction)
        order = [name for name in shown if name != "direction"]
        order.insert(order.index("robust_z") + 1, "direction")
        shown = shown[order]
    if "Metadata_Control" in hits:
        marked = [kind if kind in CONTROLS else "" for kind in (text_of(kind) for kind in hits["Metadata_Control"])]
        if "hit" in hits:
            shown = shown.assign(hit=[bool(hit) and not kind for hit, kind in zip(hits["hit"], marked, strict=True)])
    for name in ("Metadata_Control", "reason"):
        if name in shown and not any(text_of(value) for value in shown[name]):
            shown = shown.drop(columns=name)
    words = hits_words(hits.reset_index(drop=True)) if len(hits) and "hit" in hits else ""
    whole = table(shown, empty="No treatment passed the threshold.", marked=marked)
    return join(paragraph(words) if words else None, paragraph(note, "quiet") if note else None, whole)


def classifier_section(classifier):
    """Confusion matrix, curves, per-class scores, subgroups, doubted labels, and how cells were split."""
    if classifier is None:
        return None
    if isinstance(classifier, RegressionReport):
        return regression_section(classifier)
    score = format_number(classifier.balanced_accuracy)
    if math.isfinite(classifier.low) and math.isfinite(classifier.high):
        score += f" (95 % interval {format_number(classifier.low)} to {format_number(classifier.high)})"
    words = f"Balanced accuracy {score}."
    if math.isfinite(classifier.error):
        words += f" {100 * classifier.error:.1f} % of the cells are wrong."
    if classifier.scheme:
        words += f" {classifier.scheme.rstrip('.')}."
    words += "".join(f" {note}" for note in (classifier.interval_note, classifier.novelty_note) if note)
    note = "Numbers are cells; color is the fraction of the true class."
    figures = [figure("Confusion matrix", confusion_chart(classifier.classes, classifier.confusion), note)]
    calibration, before = classifier.calibration, classifier.uncalibrated
    if calibration is not None and len(calibration):
        places, lines = list(calibration["confidence"]), {"cells not trained on": list(calibration["accuracy"])}
        if before is not None and len(before):
            empty = [math.nan] * len(places)
            lines = {"calibrated": [*lines["cells not trained on"], *([math.nan] * len(before))]}
            lines["before"] = [*empty, *before["accuracy"]]
            places += list(before["confidence"])
        drawing = line_chart(
            places,
            lines,
            x_label="predicted probability",
            y_label="fraction correct",
            points=True,
            diagonal=True,
            width=320,
        )
        shares = ", ".join(f"{100 * share:.0f}" for share in calibration["share"])
        note = f"On the dashed line the probabilities can be believed. From left to right the points of the first line are {shares} % of the cells."
        figures.append(figure("Calibration", drawing, note))
    if classifier.precision_recall:
        recalls = [0.05 * step for step in range(1, 21)]
        named = category_colors(classifier.classes, PALETTES["class"])
        colors = [named.get(name, OTHER) for name in classifier.precision_recall]
        axes = {"x_label": "recall", "y_label": "precision"}
        drawing = line_chart(recalls, classifier.precision_recall, **axes, colors=colors, width=320)
        figures.append(figure("Precision and recall", drawing, "Of each class against the others."))
    learning = classifier.learning
    if learning is not None and len(learning) > 1:
        drawing = line_chart(
            learning["groups"],
            {"balanced accuracy": learning["balanced_accuracy"]},
            x_label=f"{classifier.units} learned from",
            y_label="balanced accuracy",
            points=True,
            band=(learning["low"], learning["high"]),
            width=320,
        )
        figures.append(
            figure(
                "Would more labels help?", drawing, f"Tested on {classifier.units} held out; gray: the 95 % interval."
            )
        )
    scores = table(classifier.per_class, empty="No class was scored.") if classifier.per_class is not None else None
    parts = [paragraph(words), grid(figures), scores]
    notes = (classifier.calibration_note, classifier.learning_note, classifier.sets_note)
    parts += [paragraph(note, "quiet") for note in notes if note]
    if classifier.subgroups is not None and len(classifier.subgroups):
        note = paragraph("Balanced accuracies of parts that have other numbers of classes are of other tasks.", "quiet")
        listed = join(note, table(classifier.subgroups, empty=""))
        parts.append(details("Accuracy by plate, batch, position and crowding", listed))
    if classifier.explanation is not None:
        parts.append(explanation_parts(classifier.explanation))
    if classifier.graded is not None and len(classifier.graded):
        parts.append(
            details("How far it carries: same well, other well, plate, batch", graded_table(classifier.graded))
        )
    if classifier.suspects is not None and len(classifier.suspects):
        listed = join(paragraph(classifier.suspects_note, "quiet"), table(classifier.suspects, empty=""))
        parts.append(details("Labels to look at again", listed))
    return join(*parts)


def graded_table(graded):
    """Accuracy the farther the tested cells are from those learned from."""
    note = (
        "The same cells, each time classified by models that have not seen them, with the 95 % interval over wells, for other plates "
        "and batches over these, which takes 5 of each class. Cells of the same well are no test of a classifier; where they are classified much better than those of other wells, it is wells "
        "that are told apart. What is lost from there to other plates and batches is lost to their staining."
    )
    return join(paragraph(note, "quiet"), table(graded, empty=""))


def shift_section(shift):
    """How the controls of each plate compare with those of the plates that were learned from, or of the others."""
    if shift is None:
        return None
    note = (
        "Negative control wells hold the same on every plate; their features are compared before they are normalized, with "
        "those of the plates that the classifier or the encoder learned from where these are named, else with those of all other "
        "plates. AUC: how well a classifier tells the plate's wells from theirs, in wells that it has not seen (0.5: not at all), "
        "with its 95 % interval; plates are seldom quite alike. Shifted are kinds of features that differ by more than the plates "
        "(or batches) compared with differ among each other. An alarm takes both."
    )
    if len(shift) and shift["AUC"].isna().all():  # there is nothing to show but why
        shift = shift[["Metadata_Plate", "wells", "alarm", "reason"]]
    elif not (shift["reason"] != "").any():
        shift = shift.drop(columns="reason")
    return join(paragraph(note, "quiet"), table(shift, empty="There is no control well."))


def enrichment_section(enrichment):
    """Which treatments hold more or fewer novel cells, and cells of each class, than the negative controls."""
    if enrichment is None:
        return None
    changed = enrichment[enrichment["change"] != ""]
    pieces = [
        f"{(changed['kind'] == kind).sum():,} in the share of {'novel cells' if kind == 'novel' else kind}"
        for kind in enrichment["kind"].unique()
    ]
    words = f"Treatments and doses that differ from the negative controls: {', '.join(pieces)}." if pieces else ""
    note = (
        "Novel cells are farther from the labeled ones than 99 % of these are from each other; they are in no class here. A well counts "
        "as one observation; q is corrected for all rows (Benjamini, Hochberg). Shares are of cells as the classifier calls them; on "
        "the pages of plates they are what the probabilities of all cells say. The whole table is enrichment.parquet."
    )
    whole = enrichment_table(enrichment, empty="No treatment was classified.")
    return join(paragraph(words) if words else None, paragraph(note, "quiet"), whole)


def regression_section(regression):
    """Predicted against true means of held-out groups."""
    points = regression.points.sort_values("truth", kind="stable")
    drawing = line_chart(
        points["truth"],
        {regression.units: points["predicted"], "truth": points["truth"]},
        x_label="labeled",
        y_label="predicted",
        points=True,
        connect=False,
    )
    words = f"{regression.words} {regression.scheme.rstrip('.')}."
    note = f"Each point is the mean of one of the {regression.units}, by a model that has not seen it."
    explained = explanation_parts(regression.explanation) if regression.explanation is not None else None
    parts = None
    if regression.subgroups is not None and len(regression.subgroups):
        told = (
            "Bias is the mean of predicted less labeled over wells, with its 95 % interval. Where that does not hold 0, the part is "
            "predicted too high or too low."
        )
        listed = join(paragraph(told, "quiet"), table(regression.subgroups, empty=""))
        parts = details("Errors by plate, batch, position and crowding", listed)
    return join(paragraph(words), grid([figure("Predicted numbers", drawing, note)]), parts, explained)


def autoencoder_section(autoencoder):
    """Learning curve, held-out error against the mean crop, and pairs of crops and reconstructions."""
    if autoencoder is None:
        return None
    held, mean = autoencoder.held_out_error, autoencoder.mean_crop_error
    words = f"Held-out {autoencoder.error} {format_number(held)}; {autoencoder.baseline} gives {format_number(mean)}."
    if math.isfinite(held) and math.isfinite(mean) and mean > 0:
        gain = 1 - held / mean
        words += f" That is {gain:.0%} less." if gain > 0 else f" It is no better than {autoencoder.baseline}."
    if math.isfinite(autoencoder.pca_error):
        better = "better." if held < autoencoder.pca_error else f"worse; {MORE_TRAINING}."
        words += f" PCA with as many numbers, fitted on the same crops, gives {format_number(autoencoder.pca_error)}: the network is {better}"
    words = autoencoder.untrained or words
    if autoencoder.scheme:
        words += f" {autoencoder.scheme.rstrip('.')}."
    if math.isfinite(autoencoder.limit):
        words += (
            f" A cell with an error above {format_number(autoencoder.limit)} counts as badly reconstructed: debris, or like "
            f"nothing in the training. Of the held-out cells these are {autoencoder.beyond:.1%}."
        )
    parts = [paragraph(words)]
    learning = autoencoder.learning
    if learning is not None and len(learning):
        lines = {str(name): learning[name] for name in learning if name != "epoch"}
        drawing = line_chart(learning["epoch"], lines, x_label="epoch", y_label=autoencoder.loss)
        parts.append(grid([figure("Learning curve", drawing)]))
    for crops, restored, title in (
        (
            autoencoder.crops,
            autoencoder.reconstructions,
            "Crops not trained on (above) and their reconstructions (below)",
        ),
        (autoencoder.worst, autoencoder.worst_reconstructions, "Of these, the crops that are reconstructed worst"),
    ):
        if crops is None or restored is None or not len(crops):
            continue
        picture = pair_image(crops, restored)
        factor = min(max(1, 960 // picture.shape[1]), 3)
        image = Markup('<img class="pairs" src="{}" alt="{}" width="{}" height="{}">').format(
            data_uri(picture),
            "crops above, reconstructions below",
            picture.shape[1] * factor,
            picture.shape[0] * factor,
        )
        parts.append(figure(title, image))
    return join(*parts)
