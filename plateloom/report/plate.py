"""The report of one plate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from plateloom.errors import some_of
from plateloom.report.charts import (
    CONTROLS,
    PALETTES,
    DoseResponse,
    Embedding,
    HeatMap,
    category_colors,
    data_uri,
    dose_chart,
    dose_limits,
    element,
    finite,
    format_number,
    interval_chart,
    number_of,
    plate_chart,
    significant,
    svg,
    text_of,
    well_position,
)
from plateloom.report.embeddings import maps_section
from plateloom.report.exclusions import WHAT, count_exclusions
from plateloom.report.montage import Tile, scale_bar
from plateloom.report.notices import Notice, notice_banners
from plateloom.report.page import (
    color_legend,
    commands,
    count_words,
    details,
    grid,
    join,
    make_sections,
    paragraph,
    render_page,
    settings_table,
    table,
)

if TYPE_CHECKING:
    import pandas as pd

PLATE_SECTIONS = {
    "exclusions": "What was excluded and why",
    "flagged": "Fields flagged by quality control",
    "quality": "Assay quality",
    "heat_maps": "Plate maps",
    "position": "Effects of the position on the plate",
    "montage": "Segmentation, seen",
    "dose_response": "Dose-response",
    "cell_maps": "Maps of cells",
    "versions": "Versions",
    "parameters": "Parameters",
    "reproduce": "How to reproduce this plate",
}
ZONES = ((-1.0, 0.0, "not usable", "#fbeee6"), (0.0, 0.5, "marginal", "#f4f5f7"), (0.5, 1.0, "good", "#e8f5ef"))


@dataclass(frozen=True, eq=False, kw_only=True)
class PlateReport:
    """All that the page of one plate shows. Whatever is left out is explained on the page by its note.

    Parameters
    ----------
    screen, plate : str
    shape : tuple of int
        Rows and columns of the physical plate, e.g. (16, 24); maps are drawn on all of it, however sparse `wells` is.
    wells : DataFrame, one row per well that was imaged
        ``Metadata_Well`` (str, ``B03``), and as far as known ``Metadata_Treatment`` (str), ``Metadata_Dose`` (float
        [``Metadata_Unit``, or `dose_unit` where there is no such column]), ``Metadata_Control`` (``negative``,
        ``positive``, ``empty`` or nothing), ``status`` (``done`` or ``failed``),
        ``reason`` (str, why it failed or has no value), ``fields`` and ``failed_fields`` (int), ``cells`` (number, NaN if not
        counted). May be empty.
    batch, source, created, dose_unit : str, optional
        Shown as they are. Without `created` the page names no date and depends on the data only.
    summary : mapping of str to str or number, optional
        More numbers for the top of the page, e.g. ``{"minutes": 12.5}``.
    notices : sequence of Notice, optional
        Banners above everything else.
    exclusions : DataFrame, optional
        What was left out, from `list_exclusions`; all columns are shown. Empty: nothing was excluded. None: not known
        (see `notes`).
    flagged : DataFrame, optional
        Fields and channels that quality control flagged; columns as for `exclusions`, ``value`` and others may follow.
    flagged_note : str, optional
        What becomes of them.
    flagged_pictures : sequence of Tile, optional
        Some of these fields, or all.
    heat_maps : sequence of HeatMap, optional
        In the order of the page, e.g. focus and background per channel, readouts, fractions of classes. The number of
        cells is drawn from `wells` and need not be given.
    class_shares : DataFrame, optional
        ``Metadata_Well``, ``class``, ``cells``, ``counted``, ``share``, ``low``, ``high``: what the maps of the group Classes show,
        with intervals; a table.
    shares_note : str, optional
        What the shares are.
    quality : DataFrame, optional
        ``readout`` (str), ``statistic`` (``Z'``, ``robust Z'``, ``SSMD`` …), ``value``, ``low``, ``high`` (float, the
        interval; NaN where undefined), ``controls`` (which positive controls were compared), ``negatives``,
        ``positives`` (int, control wells used), ``reason`` (str, why a value is not defined); others are shown too.
    quality_note : str, optional
        What the intervals are.
    position : DataFrame, optional
        What `plateloom.plate_effects.find_effects` gives.
    montage : sequence of Tile, optional
    montage_colors, montage_outlines : mapping of str to str, optional
        Name of each channel, and of each outline, to its ``#rrggbb``: the legend (see `montage.named_colors`).
    montage_note : str, optional
        What the outlines are, if not cells.
    dose_response : sequence of DoseResponse, optional
        One chart each, grouped by readout.
    dose_note : str, optional
        By which rule a curve is reported.
    cell_maps : sequence of Embedding, optional
    versions : mapping of str to str, optional
    parameters : mapping, optional
        Nested settings.
    reproduce : sequence of str, optional
        Lines for a shell.
    origin : mapping of str to str, optional
        Digests and versions of what the page was made from.
    stages : DataFrame, optional
        One row per stage: what its records say of code, settings and result.
    notes : mapping of str to str, optional
        Key of a section (see `PLATE_SECTIONS`) to one sentence that says why it is absent.
    """

    screen: str
    plate: str
    shape: tuple
    wells: "pd.DataFrame"
    batch: str = ""
    source: str = ""
    created: str = ""
    dose_unit: str = ""
    summary: Mapping = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    exclusions: "pd.DataFrame | None" = None
    flagged: "pd.DataFrame | None" = None
    flagged_note: str = ""
    flagged_pictures: tuple[Tile, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()
    class_shares: "pd.DataFrame | None" = None
    shares_note: str = ""
    quality: "pd.DataFrame | None" = None
    quality_note: str = ""
    position: "pd.DataFrame | None" = None
    montage: tuple[Tile, ...] = ()
    montage_colors: Mapping = field(default_factory=dict)
    montage_outlines: Mapping = field(default_factory=dict)
    montage_note: str = ""
    dose_response: tuple[DoseResponse, ...] = ()
    dose_note: str = ""
    cell_maps: tuple[Embedding, ...] = ()
    versions: Mapping = field(default_factory=dict)
    parameters: Mapping = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    origin: Mapping = field(default_factory=dict)
    stages: "pd.DataFrame | None" = None
    notes: Mapping = field(default_factory=dict)


def render_plate(report):
    """Render the page of one plate.

    Parameters
    ----------
    report : PlateReport

    Returns
    -------
    str
        One HTML file that loads nothing; the same bytes for the same report.

    Raises
    ------
    ValueError
        If a well lies outside the plate, or a note names no section.
    """
    for well in report.wells.get("Metadata_Well", ()):
        well_position(well, report.shape)
    contents = {
        "exclusions": excluded(report.exclusions, "Nothing was excluded."),
        "flagged": flagged_section(report),
        "heat_maps": heat_maps_section(report),
        "quality": quality_section(report.quality, report.quality_note),
        "position": position_section(report.position),
        "montage": montage_section(report),
        "dose_response": dose_section(report.dose_response, report.dose_note),
        "cell_maps": maps_section(report.cell_maps),
        "versions": settings_table(report.versions),
        "parameters": settings_table(report.parameters, fold="All settings, defaults included"),
        "reproduce": reproduce_section(report),
    }
    return render_page(
        title=report.plate,
        kind="Plate report",
        facts={"screen": report.screen, "batch": report.batch, "source": report.source, "created": report.created},
        figures=plate_figures(report),
        verdict=[*plate_verdict(report), *notice_banners(report.notices, PLATE_SECTIONS)],
        sections=make_sections(PLATE_SECTIONS, contents, report.notes),
    )


def column_sum(frame, name):
    """Sum of a column without its NaN; NaN if there is no such column or no value."""
    values = finite(frame[name]) if name in frame else ()
    return float(values.sum()) if len(values) else math.nan


def plate_figures(report):
    """The numbers at the top of the page."""
    wells = report.wells
    status = list(wells["status"]) if "status" in wells else []
    numbers = {
        "wells imaged": len(wells),
        "wells failed": status.count("failed"),
        "fields": column_sum(wells, "fields"),
        "fields failed": column_sum(wells, "failed_fields"),
        "cells": column_sum(wells, "cells") if len(wells) else 0,
    }
    counts = finite(wells["cells"]) if "cells" in wells else ()
    if len(counts):
        ordered = sorted(counts)
        numbers["cells per well, median"] = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {name: format_number(value) for name, value in {**numbers, **report.summary}.items()}


def plate_verdict(report):
    """What a reader must know before any chart."""
    wells = report.wells
    if not len(wells):
        return [("No well of this plate was imaged.", "bad")]
    status = list(wells["status"]) if "status" in wells else []
    failed = status.count("failed")
    said = []
    if failed:
        names = [str(name) for name, state in zip(wells["Metadata_Well"], status, strict=True) if state == "failed"]
        rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
        said.append((f"{failed} of {len(wells)} wells failed: {', '.join(names[:12])}{rest}.", "bad"))
    elif status:
        tone = "plain" if report.notices else "good"
        said.append(
            (f"All {len(wells)} wells were processed." if len(wells) > 1 else "The one well was processed.", tone)
        )
    if words := empty_words(wells):
        said.append((words, "plain"))
    if "cells" in wells and column_sum(wells, "cells") == 0:
        found = "Not a single cell was found on this plate."
        if report.exclusions is not None and len(report.exclusions):
            found = "Not a single cell of this plate counts: none was found, or what held them was excluded."
        said.append((found, "bad"))
    return said


def empty_words(wells):
    """What was found in the wells that shall hold no cell; nothing where there is none."""
    if not {"Metadata_Control", "cells"} <= set(wells):
        return ""
    blank = wells[[text_of(kind) == "empty" for kind in wells["Metadata_Control"]]]
    if not len(blank):
        return ""
    words = f"{len(blank)} empty control {'well' if len(blank) == 1 else 'wells'}: {some_of(blank['Metadata_Well'])}."
    inhabited = blank[[number_of(count) > 0 for count in blank["cells"]]]
    if not len(inhabited):
        return f"{words} No cell was counted there, as it should be."
    listed = [f"{well} ({number_of(count):,.0f})" for well, count in inhabited[["Metadata_Well", "cells"]].to_numpy()]
    return f"{words} Cells were found in {len(inhabited)} of them: {some_of(listed)}."


def excluded(frame, nothing, *, note=""):
    """A table of what was left out or flagged, with its fields counted above."""
    if frame is None:
        return None
    if not len(frame):
        return paragraph(nothing)
    words = f"{count_exclusions(frame)[1]}."
    if "what" in frame:
        meaning = [f"{what}: {told}" for what, told in WHAT.items() if what in set(frame["what"])]
        note = " ".join(filter(None, [note, f"{'; '.join(meaning)}."]))
    elif "reason" in frame:
        words = f"{words[:-1]}: {count_words(name_flags(frame['reason']))}."
    frame = frame.drop(columns=[name for name in ("channel", "file") if name in frame and not any(frame[name])])
    return join(paragraph(words), paragraph(note, "quiet") if note else None, table(frame, empty=nothing))


def flagged_section(report):
    """Which fields were flagged and why, and what they look like."""
    listed = excluded(report.flagged, "No field was flagged.", note=report.flagged_note)
    if not report.flagged_pictures:
        return listed
    number, shown = count_exclusions(report.flagged)[0], len(report.flagged_pictures)
    words = (
        f"{'All' if shown >= number else f'{shown} of the {number:,}'} flagged fields as they were imaged, in the first channel that was "
        "flagged: all of a field, of what is only blurred the middle. All pictures of a channel have the contrast of fields that were not flagged."
    )
    if shown < number:
        words += " Each kind of flag has its share of them (report.flagged_pictures)."
    return join(
        listed, paragraph(words, "quiet"), grid([tile_figure(tile) for tile in report.flagged_pictures], "montage")
    )


def name_flags(reasons):
    """What quality control found, without its numbers: ``blurred: focus 0.2 …`` is ``blurred``."""
    return [", ".join(part.split(":")[0] for part in text_of(reason).split("; ")) for reason in reasons]


def well_words(report):
    """Per well: its state, its kind of control, and what to say when the pointer rests on it."""
    wells = report.wells
    states, controls, hover = {}, {}, {}
    for row in wells.to_dict("records"):
        name = str(row["Metadata_Well"])
        states[name] = text_of(row.get("status")) or "done"
        controls[name] = text_of(row.get("Metadata_Control"))
        unit = text_of(row.get("Metadata_Unit", report.dose_unit))
        said = [text_of(row.get("Metadata_Treatment")), dose_text(row.get("Metadata_Dose"), unit)]
        said.append(text_of(row.get("reason")))
        hover[name] = " · ".join(filter(None, said))
    return states, controls, hover


def dose_text(dose, unit):
    """A dose with its unit; nothing where there is none, nor for the bare 0 of a control."""
    if number_of(dose) == 0 and not unit:
        return ""
    return f"{format_number(number_of(dose))} {unit}".strip() if math.isfinite(number_of(dose)) else ""


def heat_maps_section(report):
    """All maps of the plate, grouped as their `group` says, the number of cells first."""
    maps = list(report.heat_maps)
    if "cells" in report.wells:
        counts = dict(zip(report.wells["Metadata_Well"], report.wells["cells"], strict=True))
        maps.insert(0, HeatMap(title="Number of cells", values=counts, unit="cells", group="Cells"))
    if not maps:
        return None
    states, controls, hover = well_words(report)
    parts = []
    for group in dict.fromkeys(heat_map.group for heat_map in maps):
        figures = []
        for heat_map in maps:
            if heat_map.group != group:
                continue
            drawing = plate_chart(heat_map, report.shape, states=states, controls=controls, hover=hover)
            note = element("p", heat_map.note, class_="note") if heat_map.note else None
            figures.append(element("figure", element("figcaption", heat_map.title), drawing, note))
        parts += [element("h3", group) if group else None, grid(figures, "grid maps")]
        if group == "Classes" and report.class_shares is not None:
            note = paragraph(report.shares_note, "quiet")
            parts += [
                note,
                details("Shares of classes by well", table(report.class_shares, empty="No well has cells.")),
            ]
    return join(*parts)


def quality_section(quality, note=""):
    """Statistics of the controls as intervals and as a table."""
    if quality is None or not len(quality):
        return None
    readouts = list(dict.fromkeys(text_of(name) for name in quality["readout"]))
    figures = []
    for statistic in dict.fromkeys(str(name) for name in quality["statistic"]):
        rows = quality[(quality["statistic"] == statistic) & quality["value"].notna()]
        if not len(rows):
            continue
        primed = is_z_prime(statistic)
        drawing = interval_chart(
            [quality_label(row, readouts) for row in rows.to_dict("records")],
            *(rows[name] if name in rows else [math.nan] * len(rows) for name in ("value", "low", "high")),
            label=statistic,
            limits=(-1.0, 1.0) if primed else None,
            zones=ZONES if primed else (),
        )
        figures.append(element("figure", element("figcaption", statistic), drawing))
    words = f"Readout: {readouts[0]}." if len(readouts) == 1 else ""
    said = " ".join(filter(None, [words, note]))
    return join(
        paragraph(said, "quiet") if said else None,
        *(paragraph(line) for line in undefined_lines(quality)),
        grid(figures) if figures else None,
        quality_table(quality[quality["value"].notna()]),
    )


def position_section(effects):
    """What was found of edge, rows, columns and drift, in words and as a table."""
    if effects is None or not len(effects):
        return None
    said = list(effects.loc[effects["found"], "text"])
    words = "; ".join(said) or "no effect of edge, rows, columns or order was found"
    order = ", ".join(dict.fromkeys(effects.loc[effects["effect"] == "drift", "where"]))
    note = (
        "Wells are compared with those that hold the same. Change: the median of edge wells against inner ones, the row or "
        "column that differs most, or from the first well to the last"
        f"{f' ({order})' if order else ''}. p by 2 sides of a permutation test within wells that "
        "hold the same, q with all tests of this plate corrected for (Benjamini-Hochberg)."
    )
    names = {"where": "row, column or order", "size": "change [%]"}
    shown = effects.assign(size=(100 * effects["size"]).round(1)).drop(columns=["found", "text"]).rename(columns=names)
    shown["verdict"] = [text if found else "" for text, found in zip(effects["text"], effects["found"], strict=True)]
    return join(
        paragraph(f"{words[0].upper()}{words[1:]}."),
        paragraph(note, "quiet"),
        details("All tests", table(shown, empty="")),
    )


def undefined_lines(quality):
    """One line for the statistics that have no value, and why: ``Z', SSMD of ref: not defined (…).``"""
    found = {}
    for row in quality[quality["value"].isna()].to_dict("records"):
        found.setdefault((text_of(row.get("controls")), text_of(row.get("reason"))), []).append(str(row["statistic"]))
    return [
        f"{', '.join(dict.fromkeys(statistics))}{f' of {controls}' if controls else ''}: "
        f"not defined{f' ({reason})' if reason else ''}."
        for (controls, reason), statistics in found.items()
    ]


def quality_table(quality):
    """Statistics as a table, without the columns that are empty or said elsewhere; None where there is none."""
    if not len(quality):
        return None
    silent = [name for name in ("low", "high") if name in quality and quality[name].isna().all()]
    silent += ["readout"] if quality["readout"].nunique() == 1 else []
    silent += ["reason"] if "reason" in quality else []
    return table(quality.drop(columns=silent), empty="No statistic was computed.")


def quality_label(row, readouts):
    """What one row of the assay's quality is about: the readout where there are several, and the controls."""
    controls = text_of(row.get("controls"))
    return " · ".join(filter(None, [text_of(row["readout"]) if len(readouts) > 1 or not controls else "", controls]))


def is_z_prime(statistic):
    """Whether a statistic is Z' or robust Z', which have an upper end at 1 and customary thresholds."""
    return str(statistic).lower().removeprefix("robust ") in ("z'", "z′", "z’", "z-prime", "z prime")


def montage_section(report):
    """Pictures of fields with a scale bar and switchable outlines."""
    if not report.montage:
        return None
    switch = None
    tiles = sorted(report.montage, key=lambda tile: tile.picture is None)  # a gap among pictures looks like a fault
    if any(tile.outlines is not None for tile in tiles):
        switch = element("label", Markup('<input type="checkbox" checked>'), "Show outlines", class_="toggle")
    words = (
        "Single fields of chosen wells, or the central parts of them that the captions name. All pictures of a channel have "
        "the same contrast."
    )
    words = f"{words} {report.montage_note}" if report.montage_note else words
    return join(
        paragraph(words, "quiet"),
        color_legend(report.montage_colors, title="Channels:"),
        color_legend(report.montage_outlines, title="Outlines:", outlines=True),
        switch,
        grid([tile_figure(tile) for tile in tiles], "montage"),
    )


def tile_figure(tile):
    """One picture of the montage with what is known of its well; without a picture, the reason stands in its place."""
    if tile.picture is None:
        shown = element("div", f"No picture: {tile.why}", class_="nothing")
    else:
        height, width = (int(size) for size in tile.picture.shape[:2])
        address = data_uri(tile.picture, lossy=True)
        picture = Markup('<img src="{}" alt="{}" width="{}" height="{}">')
        layers = [picture.format(address, f"{tile.well} {tile.treatment}".strip(), width, height)]
        if tile.outlines is not None:
            outlines = Markup('<img class="outlines" src="{}" alt="" width="{}" height="{}">')
            layers.append(outlines.format(data_uri(tile.outlines), width, height))
        if math.isfinite(tile.width_um):
            layers.append(scale_drawing(width, height, tile.width_um, tile.length_unit))
        shown = element("div", *layers, class_="layers")
    control = f"{tile.control} control" if tile.control in CONTROLS else ""
    name = " · ".join(filter(None, [tile.well, tile.treatment, dose_text(tile.dose, tile.unit)]))
    count = "" if tile.cells is None else f"{tile.cells:,} {'cell' if tile.cells == 1 else 'cells'} in the well"
    why = tile.why if tile.picture is not None and tile.why not in ("control", "chance") else ""
    return element(
        "figure",
        shown,
        element("p", element("strong", name)),
        element("p", why, class_="why") if why else None,
        element("p", " · ".join(filter(None, [control, count, tile.caption]))),
        class_="tile",
    )


def scale_drawing(width, height, width_um, unit):
    """A scale bar in the lower right corner of a picture, as a layer of its own."""
    length = scale_bar(width_um)
    bar = length / width_um * width
    x, y = width - bar - width * 0.03, height - width * 0.03
    size = width * 0.034
    text = {"x": x + bar / 2, "y": y - size * 0.45, "text_anchor": "middle", "font_size": size, "fill": "#ffffff"}
    halo = {"stroke": "#000000", "stroke_width": size * 0.2, "paint_order": "stroke"}
    return svg(
        width,
        height,
        element("rect", x=x, y=y, width=bar, height=max(width * 0.008, 2), fill="#ffffff", stroke="#000000"),
        element("text", f"{format_number(length)} {unit}", **text, **halo),
        label=f"scale bar of {format_number(length)} {unit}",
    )


def dose_section(curves, note=""):
    """One chart per treatment; all of one readout share the vertical axis, and groups keep their color."""
    if not curves:
        return None
    names = [group for curve in curves if curve.groups is not None for group in curve.groups]
    groups = category_colors(names, PALETTES["plate"])
    if len(groups) == 1:
        groups = {}
    bands = {name for curve in curves for name in curve.controls}
    words = "Points are wells, thick bars medians."
    if any(curve.hill is not None for curve in curves):
        words += " The line is the fitted Hill curve, its EC50 (with its 95 % interval in brackets) dashed."
    if any(0 in finite(curve.doses) for curve in curves):
        words += " Dose 0 stands left of the broken axis."
    if bands:
        letters = ", ".join(f"{name[:1].upper()}: {name}" for name in sorted(bands))
        words += (
            f" Shaded bands with a letter are the 5 to 95 % range of the controls, dashed their median ({letters})."
        )
    parts = [paragraph(words, "quiet"), paragraph(note, "quiet") if note else None, color_legend(groups)]
    for readout in dict.fromkeys(curve.readout for curve in curves):
        chosen = [curve for curve in curves if curve.readout == readout]
        limits = dose_limits(chosen)
        figures = []
        for curve in chosen:
            title = element("figcaption", curve.treatment, element("span", ec50_text(curve), class_="sub"))
            drawing = dose_chart(curve, limits=limits, groups=groups)
            figures.append(element("figure", title, drawing, class_="w300"))
        parts += [element("h3", readout), grid(figures, "grid level")]
    return join(*parts)


def ec50_text(curve):
    """The fitted numbers in words, or why there are none."""
    if curve.hill is None:
        return curve.reason or "no curve fitted"
    hill, unit = curve.hill, curve.dose_unit
    text = f"EC50 {significant(hill.ec50)} {unit}".strip()
    if math.isfinite(hill.ec50_low) and math.isfinite(hill.ec50_high):
        text += f" ({significant(hill.ec50_low)} to {significant(hill.ec50_high)})"
    return f"{text}, slope {significant(hill.slope)}"


def reproduce_section(report):
    """Lines for a shell, and what the records say of code, settings and results."""
    parts = [commands(report.reproduce), settings_table(report.origin)]
    if report.stages is not None and len(report.stages):
        words = (
            "What the records say. Equal digests of code and settings on equal images give equal results; "
            "the command plateloom status calls a stage stale where its code or settings are no longer these."
        )
        listed = table(report.stages, empty="", sortable=False)
        parts += [paragraph(words, "quiet"), details("Code, settings and results by stage", listed)]
    return join(*parts) if any(part is not None for part in parts) else None
