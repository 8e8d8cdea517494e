"""`plateloom status`: plates × stages, with causes, failures, progress and time left."""

import dataclasses
import json
import textwrap
from pathlib import Path

import click

COLORS = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "interrupted": "red",
    "quarantined": "magenta",
    "deferred": "blue",
    "skipped": "dim magenta",
    "stale": "yellow",
    "missing": "dim",
}
SYMBOLS = {
    "done": "✓",
    "running": "▶",
    "failed": "✗",
    "interrupted": "!",
    "quarantined": "⊘",
    "deferred": "…",
    "skipped": "-",
    "stale": "~",
    "missing": "·",
}
LATER = {"quarantined": "skipped", "deferred": "skipped", "stale": "to follow"}
FEW = 3  # failures of a plate that are shown unasked


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show every failure, not only the first ones of each plate.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(folder, everything, as_json):
    """Show what is done, running, failed, quarantined, stale or missing in FOLDER, and why.

    \b
    plateloom status screens/demo
    plateloom status screens/demo --all
    """
    from rich.console import Console

    from plateloom.status import age, find_causes, find_failures, read_screen, screen_state, warning_lines

    states = read_screen(folder)
    summed = screen_state(states)
    if as_json:
        click.echo(json.dumps(_plain(states) | summed, indent=1))
        return
    console = Console(highlight=False)

    def show(text, style=None):
        console.print(text, style=style, markup=False, soft_wrap=True)

    _show_table(console, states)
    causes = find_causes(states)
    if causes:
        show("")
    for cause in causes:
        show(_describe(cause, everything), COLORS[cause.state])
        for log in cause.logs[:1] if cause.state in ("failed", "interrupted") else []:
            show(f"    {folder / log}{f' and {len(cause.logs) - 1} more' if len(cause.logs) > 1 else ''}")
    for plate, stages in states["plates"].items():
        failures = find_failures(stages)
        if failures:
            fields = len({(row["well"], row["field"]) for row in failures})
            show(f"\n{plate}: {fields} field{'s' * (fields > 1)} failed, wholly or in part; the rest went on")
        shown = failures if everything else failures[:FEW]
        for row in shown:
            where = " ".join(str(part) for part in (row["well"], f"field {row['field']}", row["channel"]) if part)
            show(f"    {where}: {row['reason']} ({row['stage']})")
        if len(shown) < len(failures):
            show(f"    and {len(failures) - len(shown)} more; --all shows them")
    show("")
    if summed["seconds_left"]:
        show(f"at least {age(summed['seconds_left'])} of work left, by what the same stages took elsewhere")
    for line in warning_lines(summed):
        show(line, "yellow")
    show(summed["summary"])
    report = folder / "results/screen/report.html"
    if report.exists():
        show(f"report: {report}")


def _plain(states):
    """States as JSON values."""
    as_rows = lambda stages: {stage: dataclasses.asdict(state) for stage, state in stages.items()}  # noqa: E731
    plates = {plate: as_rows(stages) for plate, stages in states["plates"].items()}
    return {"plates": plates, "screen": as_rows(states["screen"])}


def _show_table(console, states):
    """One line per plate with a symbol per stage, one for the screen, and what the signs mean.

    On a terminal, a name that leaves no room for the symbols stands on a line of its own.
    """
    from rich.text import Text

    from plateloom.status import MISSING

    stages = list(dict.fromkeys(stage for found in states["plates"].values() for stage in found))
    short = _abbreviate(stages)
    names = list(states["plates"])
    width = max(map(len, ["plate", *names]))
    if console.is_terminal:
        width = min(width, max(12, console.width - 3 * len(stages) - 1))
    console.print(
        f"{'plate':{width}} " + " ".join(f"{short[stage]:2}" for stage in stages), style="bold", soft_wrap=True
    )
    for name, found in states["plates"].items():
        if len(name) > width:
            console.print(name, markup=False, soft_wrap=True)
        line = Text(f"{name if len(name) <= width else '':{width}} ")
        for stage in stages:
            state = found[stage].state if stage in found else MISSING
            line.append(f"{SYMBOLS[state]}  ", COLORS[state])
        console.print(line, soft_wrap=True)
    line = Text("the screen: ")
    for stage, found in states["screen"].items():
        line.append(f"{SYMBOLS[found.state]} {stage}  ", COLORS[found.state])
    console.print(line, soft_wrap=True)
    seen = {state.state for found in [*states["plates"].values(), states["screen"]] for state in found.values()}
    for legend in (
        "  ".join(f"{SYMBOLS[state]} {state}" for state in SYMBOLS if state in seen),
        "  ".join(f"{short[stage]}\N{NO-BREAK SPACE}{stage}" for stage in stages),
    ):
        for text in textwrap.wrap(legend, max(console.width, 40), break_long_words=False):
            console.print(text.replace("\N{NO-BREAK SPACE}", " "), style="dim", markup=False, soft_wrap=True)


def _abbreviate(names):
    """Two letters for every name: its first and the next one that makes it unique.

    Examples
    --------
    >>> _abbreviate(["profiling", "profiles"])
    {'profiling': 'pr', 'profiles': 'po'}
    """
    found = {}
    for name in names:
        wanted = (name[0] + letter for letter in name[1:] if name[0] + letter not in found.values())
        found[name] = next(wanted, name[:2])
    return found


def _describe(cause, everything):
    """One line: which stage of which plates, what is wrong, and how much waits for it."""
    from plateloom.status import shorten

    where = f"of {shorten(cause.plates, len(cause.plates) if everything else 5)}" if cause.plates else "of the screen"
    word = "not made" if cause.state == "quarantined" and not cause.plates else cause.state
    how = f" {cause.done}/{cause.of} wells" if cause.of and cause.state in ("running", "failed", "interrupted") else ""
    later = f"{len(cause.later)} later stage{'s' * (len(cause.later) > 1)}"
    return (
        f"{cause.stage} {where}: {word}{how}"
        + (f": {cause.reason}" if cause.reason else "")
        + (f"; {later} {LATER.get(cause.state, 'waiting')}" if cause.later else "")
    )
