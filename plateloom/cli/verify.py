"""`plateloom verify`: whether results are still what was made, byte for byte; and making again what is not."""

import contextlib
import subprocess
import sys
from pathlib import Path

import click

from plateloom.errors import ConfigError, did_you_mean


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--plate", "plates", multiple=True, help="Only this plate of a screen; may be repeated.")
@click.option("--deep", is_flag=True, help="Read and decode every chunk and every table.")
@click.option("--repair", is_flag=True, help="Make again, from the source, just the wells that are damaged.")
def command(path, plates, deep, repair):
    """Check PATH, a screen, a plate's folder of results, or any OME-Zarr plate: structure, fingerprints, manifests, chunks.

    Exit code: 0 nothing is wrong, 1 something is; with --repair that of the run that makes it again.

    \b
    plateloom verify screens/demo --deep
    plateloom verify screens/demo/results/plates/plate1 --deep --repair
    """
    screen, found_plates = _locate(path)
    if screen is None:
        from plateloom.store.verification import check_group

        if repair:
            raise ConfigError(f"{str(path)!r} belongs to no screen, so there is no source to repair it from")
        problems = check_group(path, deep=deep)
        for problem in problems:
            click.echo(f"{problem.file}: {problem.reason}")
        sys.exit(_sum_up(len(problems), deep))
    for name in plates:
        if name not in found_plates:
            raise ConfigError(f"no results of a plate {name!r}.{did_you_mean(name, found_plates)}")
    from plateloom.engine import locks
    from plateloom.repair import find_damage, remove_damaged

    # Whoever repairs looks and removes while nobody writes.
    with locks.hold(screen / ".plateloom.lock", wait=False) if repair else contextlib.nullcontext():
        damages = []
        for name in plates or found_plates:
            for one in find_damage(screen, name, deep=deep):
                click.echo(f"{name}{f' {one.well}' if one.well else ''} {one.stage}: {one.file}: {one.reason}")
                damages.append(one)
        code = _sum_up(len(damages), deep)
        if not repair or not damages:
            sys.exit(code)
        for one in damages:
            if not one.repairable:
                click.echo(f"{one.plate}: {one.file}: no run makes it or reads it; remove it yourself")
        damages = [one for one in damages if one.repairable]
        if not damages:
            sys.exit(code)
        remove_damaged(screen, damages)
    wells = sorted({f"{one.plate} {one.well or one.stage}" for one in damages})
    click.echo(f"making again: {', '.join(wells)}")
    call = "from plateloom.cli import main; main()"
    sys.exit(subprocess.run([sys.executable, "-c", call, "run", str(screen)], check=False).returncode)


def _locate(path):
    """The screen that a path belongs to (None: none), and the plates that it means."""
    path = path.resolve()
    for screen in (path, *path.parents):
        results = screen / "results/plates"
        if not results.is_dir() or not (screen / "config.yaml").is_file():
            continue
        inside = path.relative_to(screen).parts
        every = sorted(folder.name for folder in results.iterdir() if folder.is_dir())
        return screen, [inside[2]] if len(inside) > 2 and inside[:2] == ("results", "plates") else every
    return None, []


def _sum_up(count, deep):
    looked = "every chunk and table read" if deep else "metadata, sizes and what is there; --deep reads every chunk"
    click.echo(f"{count} damaged ({looked})" if count else f"nothing is damaged ({looked})")
    return 1 if count else 0
