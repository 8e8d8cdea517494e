"""The page of a plate that is quarantined: that it is, why, and what failed where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plateloom.report.charts import HeatMap, element, plate_chart, well_position
from plateloom.report.exclusions import count_exclusions
from plateloom.report.page import grid, join, make_sections, paragraph, render_page, settings_table, table
from plateloom.report.plate import excluded, reproduce_section

if TYPE_CHECKING:
    import pandas as pd

QUARANTINE_SECTIONS = {
    "states": "What was done",
    "exclusions": "Wells and fields that failed",
    "heat_maps": "Where on the plate",
    "versions": "Versions",
    "parameters": "Parameters",
    "reproduce": "How to run this plate again",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class QuarantineReport:
    """All that the page of a quarantined plate shows.

    Parameters
    ----------
    screen, plate : str
    reason : str
        Why the plate is quarantined.
    deferred : bool, optional
        Nothing is wrong with it: its files are still on their way.
    by_hand : bool, optional
        A person has taken it out.
    batch, source : str, optional
    states : DataFrame, optional
        One row per stage: ``stage``, ``status`` (``done``, ``failed``, ``skipped``, ``missing``), ``reason``, ``log``.
    exclusions : DataFrame, optional
        From `list_exclusions`; None: no table of fields is there.
    note : str, optional
        What the table of fields rests on.
    shape : tuple of int, optional
        Rows and columns of the plate; None: unknown, so no map is drawn.
    failed : mapping of str to float, optional
        Well to the share of its fields that failed, of every well that was converted.
    versions, parameters, origin : mapping, optional
    stages : DataFrame, optional
    reproduce : sequence of str, optional
        See `PlateReport`.
    notes : mapping of str to str, optional
        Key of a section (see `QUARANTINE_SECTIONS`) to one sentence that says why it is absent.
    """

    screen: str
    plate: str
    reason: str
    deferred: bool = False
    by_hand: bool = False
    batch: str = ""
    source: str = ""
    states: "pd.DataFrame | None" = None
    exclusions: "pd.DataFrame | None" = None
    note: str = ""
    shape: tuple | None = None
    failed: Mapping = field(default_factory=dict)
    versions: Mapping = field(default_factory=dict)
    parameters: Mapping = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    origin: Mapping = field(default_factory=dict)
    stages: "pd.DataFrame | None" = None
    notes: Mapping = field(default_factory=dict)


def render_quarantined(report):
    """Render the page of a quarantined plate.

    Parameters
    ----------
    report : QuarantineReport

    Returns
    -------
    str
        One HTML file that loads nothing; the same bytes for the same report.

    Raises
    ------
    ValueError
        If a well lies outside the plate, or a note names no section.
    """
    for well in report.failed if report.shape else ():
        well_position(well, report.shape)
    contents = {
        "states": None if report.states is None else table(report.states, empty="Nothing was done.", sortable=False),
        "exclusions": excluded(report.exclusions, "No field failed.", note=report.note),
        "heat_maps": failure_map(report),
        "versions": settings_table(report.versions),
        "parameters": settings_table(report.parameters, fold="All settings, defaults included"),
        "reproduce": reproduce_section(report),
    }
    figures = {}
    if report.exclusions is not None:
        lost = report.exclusions[report.exclusions["what"].isin(["failed", "hole", "unlike the plate"])]
        figures = {
            "wells converted": f"{len(report.failed):,}",
            "wells without a field": f"{sum(share == 1 for share in report.failed.values()):,}",
            "fields failed": f"{count_exclusions(lost)[0]:,}",
        }
    return render_page(
        title=report.plate,
        kind=f"Plate report: {'put off' if report.deferred else 'quarantined'}",
        facts={"screen": report.screen, "batch": report.batch, "source": report.source},
        figures=figures,
        verdict=quarantine_verdict(report),
        sections=make_sections(QUARANTINE_SECTIONS, contents, report.notes),
    )


def quarantine_verdict(report):
    """That the plate takes no part, why, and what to do."""
    if report.deferred:
        words = join(element("strong", "This plate is put off. "), report.reason)
        return [(words, "warn"), ("Nothing of it enters the screen yet. The next run tries it again.", "plain")]
    if report.by_hand:
        words = join(element("strong", "This plate is quarantined "), report.reason)
        more = "Nothing of it enters the screen, and it is not processed further until a person puts it back."
        return [(words, "bad"), (more, "plain")]
    words = join(element("strong", "This plate is quarantined. "), report.reason)
    more = "Nothing of it enters the screen. Once its files or settings are mended, the next run takes it up by itself."
    return [(words, "bad"), (more, "plain")]


def failure_map(report):
    """The plate with the share of failed fields in each well."""
    if report.shape is None or not any(report.failed.values()):
        return None
    one = HeatMap(title="Share of fields that failed", values=report.failed, unit="share of fields", limits=(0, 1))
    lost = {well: "every field failed" for well, share in report.failed.items() if share == 1}
    drawing = plate_chart(one, report.shape, hover=lost)
    words = "Wells that are not drawn as imaged had no file, or were not read."
    return join(grid([element("figure", element("figcaption", one.title), drawing)]), paragraph(words, "note"))
