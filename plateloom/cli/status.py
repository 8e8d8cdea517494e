"""`plateloom status`: plates × stages, with causes, failures, progress and time left."""

import dataclasses
import json
import textwrap
import time
from pathlib import Path

import click

from plateloom.errors import ConfigError, some_of

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
EVERY = 5.0  # [s] between two looks with --watch
FEW = 3  # failures of a plate that are shown unasked


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show every failure, not only the first ones of each plate.")
@click.option("--watch", is_flag=True, help="Look again every few seconds, until nothing runs any more or Ctrl-C.")
@click.option("--sources", is_flag=True, help="Look at every source file: also at one that was rewritten in its place.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(folder, everything, watch, sources, as_json):
    """Show what is done, running, failed, quarantined, stale or missing in FOLDER, and why.

    Source folders in which no file has come or gone since the last run are not listed again, unless --sources asks for it.

    \b
    plateloom status screens/demo
    plateloom status screens/demo --all
    plateloom status screens/demo --watch
    """
    from rich.console import Console

    from plateloom.quarantines import read_quarantined
    from plateloom.status import read_screen, screen_state

    if as_json and watch:
        raise ConfigError("--watch is for people and --json for programs; take one of them")
    states = read_screen(folder, quick=not sources)
    if as_json:
        held = {"quarantined_by_hand": read_quarantined(folder, states["plates"])}
        click.echo(json.dumps(_plain(states) | screen_state(states) | held, indent=1))
        return
    console = Console(highlight=False)
    if watch:
        _watch(console, folder, states, everything, quick=not sources)
    else:
        _show_screen(console, folder, states, everything)


def _watch(console, folder, states, everything, quick):
    """Show a screen again and again while something runs: in place on a terminal, else one after the other if it has changed."""
    from plateloom.engine import locks
    from plateloom.status import RUNNING, read_screen

    before = ""
    try:
        while True:
            with console.capture() as captured:
                _show_screen(console, folder, states, everything)
            text = captured.get()
            if console.is_terminal:
                # What is new stands at the end: of more than a page, the end is shown.
                lines = text.rstrip("\n").splitlines()[-max(1, console.height - 1) :]
                click.echo("\x1b[H\x1b[2J" + "\n".join(lines), color=True)
            elif text != before:
                click.echo(("\n" if before else "") + time.strftime("%Y-%m-%d %H:%M:%S\n") + text, nl=False)
            before = text
            found = [state for stages in [*states["plates"].values(), states["screen"]] for state in stages.values()]
            busy = (folder / locks.RUN).exists() and locks.is_held(folder / locks.RUN)
            if not busy and not any(state.state == RUNNING for state in found):
                return
            time.sleep(EVERY)
            states = read_screen(folder, quick=quick)
    except KeyboardInterrupt:
        click.echo()


def _show_screen(console, folder, states, everything):
    """The table, every cause, what failed within plates, and the summary."""
    from plateloom.ledgers import describe
    from plateloom.quarantines import read_quarantined
    from plateloom.status import age, find_causes, find_failures, screen_state, warning_lines

    summed, held = screen_state(states), read_quarantined(folder, states["plates"])

    def show(text, style=None):
        console.print(text, style=style, markup=False, soft_wrap=True)

    _show_table(console, states)
    causes = find_causes(states)
    if causes:
        show("")
    for cause in causes:
        show(describe_cause(cause, everything), COLORS[cause.state])
        for log in cause.logs[:1] if cause.state in ("failed", "interrupted") else []:
            show(f"    {folder / log}{f' and {len(cause.logs) - 1} more' if len(cause.logs) > 1 else ''}")
    for plate, wells in held.items():
        if "" not in wells:
            show(f"\n{plate}: quarantined by hand, in no result: {len(wells)} well{'s' * (len(wells) > 1)}", "magenta")
            for well, entry in wells.items():
                show(f"    {well}: {describe(entry)}")
    for plate, stages in states["plates"].items():
        failures = find_failures(stages)
        if failures:
            fields = len({(row["well"], row["field"]) for row in failures})
            rest = "" if plate in summed["quarantined"] else "; the rest went on"
            show(f"\n{plate}: {fields} field{'s' * (fields > 1)} failed, wholly or in part{rest}")
        shown = failures if everything else failures[:FEW]
        for row in shown:
            where = " ".join(str(part) for part in (row["well"], f"field {row['field']}", row["channel"]) if part)
            show(f"    {where}: {row['reason']} ({row['stage']})")
        if len(shown) < len(failures):
            show(f"    and {len(failures) - len(shown)} more; --all shows them")
    show("")
    if summed["seconds_left"]:
        untold = f"; without {some_of(summed['untold'])}, of which nothing tells yet" if summed["untold"] else ""
        less = "; less where only some wells are made anew" if summed["some_wells"] else ""
        show(f"about {age(summed['seconds_left'])} of job time left, by what the same stages took before{untold}{less}")
    for line in warning_lines(summed):
        show(line, "yellow")
    show(summed["summary"])
    report = folder / "results/screen/report.html"
    if report.exists():
        show(f"report: {report}")


def _plain(states):
    """States as JSON values."""
    from plateloom.status import time_left

    left = time_left(states)

    def as_rows(plate, stages):
        return {name: dataclasses.asdict(state) | {"seconds_left": left[plate][name]} for name, state in stages.items()}

    plates = {plate: as_rows(plate, stages) for plate, stages in states["plates"].items()}
    return {"plates": plates, "screen": as_rows(None, states["screen"])}


def _show_table(console, states):
    """One line per plate with a symbol per stage and the job time that is left, one for the screen, and what the signs mean.

    On a terminal, a name that leaves no room for the symbols stands on a line of its own.
    """
    from rich.text import Text

    from plateloom.status import MISSING, age, time_left

    left = {plate: sum(filter(None, times.values())) for plate, times in time_left(states).items()}
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
        told = f"about {age(left[name])} left" if left[name] else ""
        if told and not (console.is_terminal and len(line) + len(told) > console.width):
            line.append(told, "dim")
        console.print(line, soft_wrap=True)
    line = Text("the screen: ")
    for stage, found in states["screen"].items():
        told = f"{SYMBOLS[found.state]} {stage}"
        if console.is_terminal and len(line) + len(told) > console.width:
            console.print(line, soft_wrap=True)
            line = Text(" " * len("the screen: "))
        line.append(f"{told}  ", COLORS[found.state])
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


def describe_cause(cause, everything=False):
    """One line: which stage of which plates, what is wrong, and how much waits for it."""
    where = f"of {some_of(cause.plates, len(cause.plates) if everything else 5)}" if cause.plates else "of the screen"
    word = "not made" if cause.state == "quarantined" and not cause.plates else cause.state
    begun = cause.state in ("running", "failed", "interrupted")
    how = f" {cause.done}/{cause.of} wells" if cause.of and begun else ""
    how += f", attempt {cause.attempts}" if cause.attempts > 1 and begun else ""
    later = f"{len(cause.later)} later stage{'s' * (len(cause.later) > 1)}"
    return (
        f"{cause.stage} {where}: {word}{how}"
        + (f": {cause.reason}" if cause.reason else "")
        + (f"; {later} {LATER.get(cause.state, 'waiting')}" if cause.later else "")
    )
