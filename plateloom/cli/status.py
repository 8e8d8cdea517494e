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


SYMBOLS = {"done": "✓", "running": "▶", "failed": "✗", "quarantined": "⊘", "stale": "~", "missing": "·"}
SHORT = {
    "conversion": "conv",
    "assembly": "asm",
    "illumination": "ill",
    "quality": "qual",
    "flagging": "flag",
    "segmentation": "segm",
    "features": "feat",
    "profiling": "prof",
    "latent": "lat",
    "classes": "cls",
    "report": "rep",
    "screen_report": "report",
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
    for title, rows in (("plate", states["plates"]), ("screen", {folder.name: states["screen"]})):
        stages = list(dict.fromkeys(stage for found in rows.values() for stage in found))
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title, no_wrap=True)
        for stage in stages:
            table.add_column(SHORT.get(stage, stage), no_wrap=True)
        for name, found in rows.items():
            table.add_row(name, *(_cell(found[stage]) for stage in stages))
        console.print(table, soft_wrap=True)
    console.print("  ".join(f"{SYMBOLS[state]} {state}" for state in SYMBOLS), style="dim", soft_wrap=True)
    for name, found in [*states["plates"].items(), ("screen", states["screen"])]:
        for stage, state in found.items():
            if state.state in ("done", "missing") and not state.failures:
                continue
            text = state.reason or (f"{state.failures} failures recorded" if state.failures else "")
            line = f"{name} {stage}: {state.state}{f' {state.done}/{state.of}' if state.of else ''}{': ' if text else ''}{text}"
            console.print(line, style=COLORS[state.state], markup=False, highlight=False, soft_wrap=True)
            if state.state == "failed" and state.log:
                console.print(f"    {folder / state.log}", soft_wrap=True)
    if summed["seconds_left"]:
        console.print(f"about {age(summed['seconds_left'])} of work left, as far as the plates that are done tell")
    console.print(summed["summary"], highlight=False)
    report = folder / "results/screen/report.html"
    if report.exists():
        console.print(f"report: {report}", soft_wrap=True, highlight=False)


def _cell(state):
    """One stage of one plate: a symbol, and how far it is."""
    how = f" {state.done}/{state.of}" if state.state == "running" and state.of else ""
    return f"[{COLORS[state.state]}]{SYMBOLS[state.state]}{how}[/]"
