"""The report of one plate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from plateloom.report.charts import (
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
    shorten,
    text_of,
    well_position,
)
from plateloom.report.embeddings import maps_section
from plateloom.report.montage import Tile
from plateloom.report.page import (
    color_legend,
    commands,
    count_words,
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
        [`dose_unit`]), ``Metadata_Control`` (``negative``, ``positive`` or empty), ``status`` (``done`` or ``failed``),
        ``reason`` (str), ``fields`` and ``failed_fields`` (int), ``cells`` (number, NaN if not counted). May be empty.
    batch, source, created, dose_unit : str, optional
        Shown as they are. Without `created` the page names no date and depends on the data only.
    summary : mapping of str to str or number, optional
        More numbers for the top of the page, e.g. ``{"minutes": 12.5}``.
    exclusions : DataFrame, optional
        One row per image or well left out; all columns are shown: ``Metadata_Well``, ``Metadata_Field``, ``channel``,
        ``reason`` (str). Empty: nothing was excluded. None: not known (see `notes`).
    flagged : DataFrame, optional
        Fields that quality control flagged but kept; columns as for `exclusions`, ``value`` and others may follow.
    heat_maps : sequence of HeatMap, optional
        In the order of the page, e.g. focus and background per channel, readouts, fractions of classes. The number of
        cells is drawn from `wells` and need not be given.
    quality : DataFrame, optional
        ``readout`` (str), ``statistic`` (``Z'``, ``robust Z'``, ``SSMD`` …), ``value``, ``low``, ``high`` (float, the
        interval; NaN where undefined), ``negatives``, ``positives`` (int, control wells used); others are shown too.
    montage : sequence of Tile, optional
    montage_colors : mapping of str to str, optional
        Name of each channel and outline to its ``#rrggbb``: the legend (see `montage.named_colors`).
    dose_response : sequence of DoseResponse, optional
        One chart each, grouped by readout.
    cell_maps : sequence of Embedding, optional
    versions : mapping of str to str, optional
    parameters : mapping, optional
        Nested settings.
    reproduce : sequence of str, optional
        Lines for a shell.
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
    exclusions: "pd.DataFrame | None" = None
    flagged: "pd.DataFrame | None" = None
    heat_maps: tuple[HeatMap, ...] = ()
    quality: "pd.DataFrame | None" = None
    montage: tuple[Tile, ...] = ()
    montage_colors: Mapping = field(default_factory=dict)
    dose_response: tuple[DoseResponse, ...] = ()
    cell_maps: tuple[Embedding, ...] = ()
    versions: Mapping = field(default_factory=dict)
    parameters: Mapping = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
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
        "flagged": excluded(report.flagged, "No field was flagged."),
        "heat_maps": heat_maps_section(report),
        "quality": quality_section(report.quality),
        "montage": montage_section(report.montage, report.montage_colors, report.dose_unit),
        "dose_response": dose_section(report.dose_response),
        "cell_maps": maps_section(report.cell_maps),
        "versions": settings_table(report.versions),
        "parameters": settings_table(report.parameters),
        "reproduce": commands(report.reproduce),
    }
    return render_page(
        title=report.plate,
        kind="Plate report",
        facts={"screen": report.screen, "batch": report.batch, "source": report.source, "created": report.created},
        figures=plate_figures(report),
        verdict=plate_verdict(report),
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
        said.append((f"All {len(wells)} wells were processed.", "good"))
    if "cells" in wells and column_sum(wells, "cells") == 0:
        said.append(("Not a single cell was found on this plate.", "bad"))
    return said


def excluded(frame, nothing):
    """A table of what was left out or flagged, with its reasons counted above."""
    if frame is None:
        return None
    if not len(frame):
        return paragraph(nothing)
    counts = f"{len(frame):,} in total: {count_words(frame['reason'])}." if "reason" in frame else None
    return join(paragraph(counts) if counts else None, table(frame, empty=nothing))


def well_words(report):
    """Per well: its state, its kind of control, and what to say when the pointer rests on it."""
    wells = report.wells
    states, controls, hover = {}, {}, {}
    for row in wells.to_dict("records"):
        name = str(row["Metadata_Well"])
        states[name] = text_of(row.get("status")) or "done"
        controls[name] = text_of(row.get("Metadata_Control"))
        said = [text_of(row.get("Metadata_Treatment")), dose_text(row.get("Metadata_Dose"), report.dose_unit)]
        if states[name] == "failed":
            said.append(text_of(row.get("reason")))
        hover[name] = " · ".join(filter(None, said))
    return states, controls, hover


def dose_text(dose, unit):
    """A dose with its unit; nothing where there is none."""
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
        parts += [element("h3", group) if group else None, grid(figures)]
    return join(*parts)


def quality_section(quality):
    """Statistics of the controls as intervals and as a table."""
    if quality is None or not len(quality):
        return None
    figures = []
    for statistic in dict.fromkeys(str(name) for name in quality["statistic"]):
        rows = quality[quality["statistic"] == statistic]
        primed = is_z_prime(statistic)
        drawing = interval_chart(
            [str(name) for name in rows["readout"]],
            *(rows[name] if name in rows else [math.nan] * len(rows) for name in ("value", "low", "high")),
            label=statistic,
            limits=(-1.0, 1.0) if primed else None,
            zones=ZONES if primed else (),
        )
        figures.append(element("figure", element("figcaption", statistic), drawing))
    return join(grid(figures), table(quality, empty="No statistic was computed."))


def is_z_prime(statistic):
    """Whether a statistic is Z' or robust Z', which have an upper end at 1 and customary thresholds."""
    return str(statistic).lower().removeprefix("robust ") in ("z'", "z′", "z’", "z-prime", "z prime")


def montage_section(tiles, colors, dose_unit):
    """Pictures of wells with switchable outlines."""
    if not tiles:
        return None
    layered = any(tile.outlines is not None for tile in tiles)
    switch = None
    if layered:
        box = Markup('<input type="checkbox" checked>')
        switch = element("label", box, "Show outlines", class_="toggle")
    figures = []
    for tile in tiles:
        height, width = (int(size) for size in tile.picture.shape[:2])
        # An outline drawn into the picture would be blurred by lossy compression.
        address = data_uri(tile.picture, lossy=tile.outlines is not None)
        picture = Markup('<img src="{}" alt="{}" width="{}" height="{}">')
        layers = [picture.format(address, f"{tile.well} {tile.treatment}".strip(), width, height)]
        if tile.outlines is not None:
            outlines = Markup('<img class="outlines" src="{}" alt="" width="{}" height="{}">')
            layers.append(outlines.format(data_uri(tile.outlines), width, height))
        control = {"negative": "negative control", "positive": "positive control"}.get(tile.control, "")
        name = " · ".join(filter(None, [tile.well, tile.treatment, dose_text(tile.dose, dose_unit)]))
        count = "" if tile.cells is None else f"{tile.cells:,} {'cell' if tile.cells == 1 else 'cells'}"
        figures.append(
            element(
                "figure",
                element("div", *layers, class_="layers"),
                element("p", element("strong", name)),
                element("p", " · ".join(filter(None, [count, control, tile.caption]))),
                class_="tile" if width <= 960 else "tile wide",
            )
        )
    return join(color_legend(colors), switch, grid(figures, "grid montage"))


def dose_section(curves):
    """One chart per treatment; all of one readout share the vertical axis, and groups keep their color."""
    if not curves:
        return None
    groups = category_colors([group for curve in curves if curve.groups is not None for group in curve.groups])
    if len(groups) == 1:
        groups = {}
    bands = {name for curve in curves for name in curve.controls}
    words = "Points are wells, thick bars medians, the line is the fitted Hill curve with its EC50 dashed."
    if any(0 in finite(curve.doses) for curve in curves):
        words += " Dose 0 stands left of the broken axis."
    if bands:
        letters = ", ".join(f"{name[:1].upper()}: {name}" for name in sorted(bands))
        words += f" Shaded bands with a letter are the controls ({letters})."
    parts = [paragraph(words, "quiet"), color_legend(groups)]
    for readout in dict.fromkeys(curve.readout for curve in curves):
        chosen = [curve for curve in curves if curve.readout == readout]
        limits = dose_limits(chosen)
        figures = []
        for curve in chosen:
            title = element("figcaption", shorten(curve.treatment, 80), element("span", ec50_text(curve), class_="sub"))
            drawing = dose_chart(curve, limits=limits, groups=groups)
            figures.append(element("figure", title, drawing, class_="w300"))
        parts += [element("h3", readout), grid(figures, "grid level")]
    return join(*parts)


def ec50_text(curve):
    """The fitted numbers in words."""
    if curve.hill is None:
        return "no curve fitted"
    hill, unit = curve.hill, curve.dose_unit
    text = f"EC50 {format_number(hill.ec50)} {unit}".strip()
    if math.isfinite(hill.ec50_low) and math.isfinite(hill.ec50_high):
        text += f" ({format_number(hill.ec50_low)} to {format_number(hill.ec50_high)})"
    return f"{text}, slope {format_number(hill.slope)}"
