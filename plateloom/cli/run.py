"""`plateloom run`: the snakemake command that runs a screen, printed and executed; its exit code says how it ended."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

from plateloom.errors import ConfigError

SNAKEFILE = Path(__file__).resolve().parents[2] / "Snakefile"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--profile", default=None, help="A profile of Plateloom (slurm …) or the path of one; default: this machine."
)
@click.option("--cores", default=None, help="Cores to use on this machine; default: all.")
@click.option("--until", default=None, help="Stop after this stage, e.g. conversion, segmentation, features.")
@click.option("--dry-run", "-n", is_flag=True, help="Show what would run.")
@click.argument("snakemake_options", nargs=-1, type=click.UNPROCESSED)
def command(folder, profile, cores, until, dry_run, snakemake_options):
    """Run the screen in FOLDER; more options go to snakemake as they are.

    Exit code: 0 complete, 1 an infrastructure failure is left, 2 the configuration is wrong (nothing started), 3 finished,
    but plates or fields are quarantined.

    \b
    plateloom run screens/demo
    plateloom run screens/demo --until segmentation
    plateloom run screens/mine --profile slurm
    """
    from plateloom.cli.check import find_problems
    from plateloom.driver import FROZEN
    from plateloom.planning import STAGES
    from plateloom.status import read_screen, screen_state
    from plateloom.store.provenance import read_json

    problems, _ = find_problems(folder, files=False)
    if problems:
        raise ConfigError(problems)
    folder = folder.resolve()
    arguments = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(folder)]
    if profile:
        inside = SNAKEFILE.parent / "profiles" / profile
        arguments += ["--workflow-profile", str(inside if inside.is_dir() else profile)]
    if cores:
        arguments += ["--cores", cores]
    if until:
        rules = [stage.script for name, stage in STAGES.items() if until in (name, stage.script)]
        if not rules:
            raise ConfigError(f"--until {until!r}: no such stage; stages: {', '.join(STAGES)}")
        arguments += ["--until", rules[0]]
    if dry_run:
        arguments += ["--dry-run"]
    arguments += snakemake_options
    click.echo(shlex.join(arguments))
    code = subprocess.run(arguments, env=os.environ | {"PYTHONUNBUFFERED": "1"}, check=False).returncode
    if dry_run or code:
        sys.exit(1 if code else 0)
    state = screen_state(read_screen(folder, frozen=read_json(folder / FROZEN)))
    if until is None:
        click.echo(state["summary"])
    sys.exit(3 if state["quarantined"] else 0)
