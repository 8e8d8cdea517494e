"""`plateloom status`: plates × stages, with reasons, progress and time left."""

import dataclasses
import json
from pathlib import Path

import click

COLORS = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "quarantined": "magenta",
    "stale": "yellow",
    "missing": "dim",
}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(folder, as_json):
    """Show what is done, running, failed, quarantined, stale or missing in FOLDER.

    \b
    plateloom status screens/demo
    """
    from plateloom.status import age, read_screen, screen_state

    states = read_screen(folder)
    summed = screen_state(states)
    if as_json:
        plain = {
            kind: {
                name: {k: dataclasses.asdict(v) for k, v in value.items()}
                if kind == "plates"
                else dataclasses.asdict(value)
                for name, value in states[kind].items()
            }
            for kind in states
        }
        click.echo(json.dumps(plain | summed, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = [*states["plates"].items(), ("the screen", states["screen"])]
    reasons = []
    for title, scope in (("plates", rows[:-1]), ("screen", rows[-1:])):
        stages = list(dict.fromkeys(stage for _, found in scope for stage in found))
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title)
        for stage in stages:
            table.add_column(stage, no_wrap=True, overflow="fold")
        for name, found in scope:
            table.add_row(name, *(_cell(found[stage]) for stage in stages))
            reasons += [
                (name, stage, state)
                for stage, state in found.items()
                if state.state not in ("done", "missing") or state.failures
            ]
        console.print(table, soft_wrap=True)
        console.print()
    for name, stage, state in reasons:
        text = state.reason or (f"{state.failures} planes failed" if state.failures else "")
        console.print(
            f"{name} {stage}: {state.state}{': ' if text else ''}{text}",
            style=COLORS[state.state],
            markup=False,
            soft_wrap=True,
        )
        if state.state == "failed" and state.log:
            console.print(f"    {folder / state.log}", soft_wrap=True)
    if summed["seconds_left"]:
        console.print(f"about {age(summed['seconds_left'])} of work left, as far as the plates that are done tell")
    console.print(summed["summary"])
    report = folder / "results/screen/report.html"
    if report.exists():
        console.print(f"report: {report}", soft_wrap=True)


def _cell(state):
    """One stage of one plate: a word, and how far it is."""
    how = f" {state.done}/{state.of}" if state.state in ("running", "failed") and state.of else ""
    return f"[{COLORS[state.state]}]{state.state}{how}[/]"
