"""The page of a night: what came, what was finished, what waits, and what needs somebody."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plateloom.report.charts import element
from plateloom.report.page import commands, join, local_address, make_sections, render_page, table

if TYPE_CHECKING:
    import pandas as pd

NIGHT_SECTIONS = {
    "attention": "Plates that need somebody",
    "left": "Plates that the next night goes on with",
    "refused": "Folders that are not taken",
    "waiting": "Folders that wait",
    "finished": "Finished since the last summary",
    "warnings": "Warnings of these plates, and of those with an alarm",
    "new": "New in the list of plates",
    "reproduce": "How to go on",
}
ENDINGS = {0: "good", 3: "warn"}


@dataclass(frozen=True, eq=False, kw_only=True)
class NightReport:
    """All that the page of a night shows.

    Parameters
    ----------
    screen, date : str
    code : int
        Exit code.
    ending : str
        How the night ended, in a sentence.
    summary : str
        The screen in one line.
    began, took, budget : str
        When it began, how long it took, and the time that it had.
    total, complete : int
        Plates of the screen.
    hits : int or None
        None: they are not determined.
    problems : sequence of str
        What kept the night, or a part of it, from being run; whole lines.
    new : DataFrame
        ``plate`` first: rows that plates.tsv has got. Columns without a text are left out.
    finished : DataFrame
        ``plate`` first: plates that are complete, and were not, or were made anew.
    attention, left : DataFrame
        ``plate``, ``status``, ``stage``, ``reason``, ``log``: what is not done and stays so, or is gone on with.
    waiting, refused : DataFrame
        ``folder`` first, ``reason``.
    warnings : DataFrame
        ``plate``, ``warning``.
    alarmed : sequence of str
        Plates whose controls have shifted, or that are not normalized where others are.
    links : mapping of str to str
        Relative addresses of the plates' pages.
    report : str
        Relative address of the screen's page; empty if there is none.
    reproduce : sequence of str
        Lines for a shell.
    """

    screen: str
    date: str
    code: int
    ending: str
    summary: str
    began: str
    took: str
    budget: str = ""
    total: int = 0
    complete: int = 0
    hits: int | None = None
    problems: tuple = ()
    new: "pd.DataFrame"
    finished: "pd.DataFrame"
    attention: "pd.DataFrame"
    left: "pd.DataFrame"
    waiting: "pd.DataFrame"
    refused: "pd.DataFrame"
    warnings: "pd.DataFrame"
    alarmed: tuple = ()
    links: Mapping = field(default_factory=dict)
    report: str = ""
    reproduce: tuple = ()


def render_night(report):
    """Render the page of a night.

    Parameters
    ----------
    report : NightReport

    Returns
    -------
    str
        One HTML file that loads nothing; the same bytes for the same report.
    """
    contents = {
        "attention": _rows(report.attention, report.links),
        "left": _rows(report.left, report.links),
        "refused": _rows(report.refused),
        "waiting": _rows(report.waiting),
        "finished": _rows(report.finished, report.links),
        "warnings": _rows(report.warnings, report.links),
        "new": _rows(report.new, report.links),
        "reproduce": commands(report.reproduce),
    }
    # What is empty is a 0 at the top, and no section.
    titles = {key: title for key, title in NIGHT_SECTIONS.items() if contents[key] is not None}
    figures = {
        "plates complete": f"{report.complete:,} of {report.total:,}",
        "finished": f"{len(report.finished):,}",
        "new": f"{len(report.new):,}",
        "waiting": f"{len(report.waiting):,}",
        "not taken": f"{len(report.refused):,}",
        "need somebody": f"{report.attention['plate'].nunique():,}",
        "alarmed": f"{len(report.alarmed):,}",
        "hits": "–" if report.hits is None else f"{report.hits:,}",
    }
    return render_page(
        title=report.date,
        kind=f"Night of the screen {report.screen}",
        facts={
            "began": report.began,
            "took": report.took + (f" of {report.budget}" if report.budget else ""),
            "exit code": str(report.code),
        },
        figures=figures,
        verdict=_verdict(report),
        sections=make_sections(titles, contents, {}),
    )


def _rows(frame, links=None):
    """A table whose first column leads to the plates' pages; None where there is no row."""
    if not len(frame):
        return None
    frame = frame.loc[:, [name for name in frame if name == "reason" or (frame[name].astype(str) != "").any()]]
    addresses = [(links or {}).get(name, "") for name in frame.iloc[:, 0]]
    return table(frame, empty="", links=addresses, sortable=False)


def _verdict(report):
    """How the night ended, and where the screen's page is."""
    said = [(element("strong", report.ending), ENDINGS.get(report.code, "bad"))]
    if report.problems:
        listed = element("ul", *(element("li", problem) for problem in report.problems))
        said.append((join("What went wrong:", listed), "bad"))
    more = None
    if address := local_address(report.report):
        more = join(" ", element("a", "The screen's report", href=address))
    if report.summary or more:
        said.append((join(element("span", report.summary), more), "plain"))
    return said
