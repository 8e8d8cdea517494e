"""`plateloom verify`: whether results are still what was made, byte for byte; and making again what is not."""

import contextlib
import shlex
import sys
from pathlib import Path

import click

from plateloom.cli.run import run_here as _run
from plateloom.errors import ConfigError, did_you_mean

TAKES = "a screen, a folder of its results, an export, or an OME-Zarr plate"


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--plate", "plates", multiple=True, help="Only this plate of a screen or an export; may be repeated.")
@click.option("--deep", is_flag=True, help="Read and decode every chunk, every table and every model.")
@click.option("--repair", is_flag=True, help="Make again, from the source, just what is damaged.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="With --repair: as of `plateloom run`.")
@click.option("--cores", default=None, metavar="N", help="With --repair: as of `plateloom run`.")
def command(path, plates, deep, repair, profiles, cores):
    """Check PATH, a screen, a folder of its results, an export, or any OME-Zarr plate: structure, fingerprints, chunks.

    Exit code: 0 nothing is wrong, 1 something is, 2 there is nothing to check. With --repair that of the run that makes it
    again, and 3 where something is damaged still.

    \b
    plateloom verify screens/demo --deep
    plateloom verify screens/demo/results/plates/plate1 --deep --repair
    """
    screen, chosen = _locate(path.resolve())
    if screen is None:
        problems = _check_alone(path, plates, deep, repair)
        for problem in problems:
            click.echo(f"{problem.file}: {problem.reason}")
        sys.exit(_sum_up(len(problems), deep))
    chosen = _choose(screen, path, chosen, plates)
    from plateloom.cli.run import check_cost, check_profiles, check_screen, end_earlier_jobs
    from plateloom.engine import locks
    from plateloom.repair import (
        GONE,
        find_damage,
        find_lasting,
        find_left,
        has_records,
        last_made,
        remove_damaged,
        results_folder,
    )

    for name in chosen:
        if results_folder(screen, name).is_dir() and not has_records(screen, name):
            click.echo(f"{name or 'the screen'}: no job has left a record, so nothing vouches for what lies there")
    if not any(has_records(screen, name) for name in chosen):
        raise ConfigError(_not_run(screen))
    # Whoever repairs looks and removes while nobody writes.
    with locks.hold(screen / locks.RUN, wait=False) if repair else contextlib.nullcontext():
        damages = []
        for name in chosen:
            for one in find_damage(screen, name, deep=deep):
                click.echo(one)
                damages.append(one)
        code = _sum_up(len(damages), deep)
        if not repair or not damages:
            sys.exit(code)
        reasons = find_lasting(screen, damages)
        if gone := sorted({f"{one.plate}: {reason}" for one, reason in reasons.items() if reason.startswith(GONE)}):
            raise ConfigError(gone)
        for one, reason in reasons.items():
            click.echo(f"{one.plate or 'the screen'}: {one.file}: {reason}")
        again = [one for one in damages if one not in reasons]
        if not again:
            sys.exit(code)
        check_profiles(profiles)  # what would not run removes nothing
        check_screen(screen)
        until = last_made(screen)
        check_cost(screen, until)
        end_earlier_jobs(screen)
        remove_damaged(screen, again)
    shown = sorted({f"{one.plate or 'the screen'} {one.well or one.stage}" for one in again})
    click.echo(f"making again: {', '.join(shown)}")
    code = _run(screen, profiles, cores, until)
    left = find_left(screen, again)
    left += [one for one in reasons if one not in left]
    for one in left:
        click.echo(f"damaged still: {one}", err=True)
    sys.exit(code or (3 if left else 0))


def _locate(path):
    """The screen whose results a path means (None: none), and which: names of plates, '' for what all plates share."""
    for screen in (path, *path.parents):
        results = screen / "results/plates"
        if not (screen / "config.yaml").is_file() or not results.is_dir():
            continue
        inside = path.relative_to(screen).parts
        if inside[:2] == ("results", "screen"):
            return screen, [""]
        if inside[:2] == ("results", "plates") and len(inside) > 2:
            return screen, [inside[2]]
        if inside[:2] in ((), ("results",), ("results", "plates")):
            every = sorted(folder.name for folder in results.iterdir() if folder.is_dir())
            return screen, [*every, *([""] if inside[1:] == () else [])]
    return None, []


def _choose(screen, path, found, names):
    """What is checked of a screen: plates by name, of which some may not have run; '' for what all plates share."""
    listed = _list_plates(screen)
    for name in names:
        if name not in found and name not in listed:
            known = sorted({*listed, *found} - {""})
            raise ConfigError(f"--plate: no plate {name!r}.{did_you_mean(name, known)} Plates: {', '.join(known)}")
    there = {folder.name for folder in (screen / "results/plates").iterdir()}
    wanted = list(names) or ([*found, *listed] if path.resolve() == screen else found)
    for name in dict.fromkeys(wanted):
        if name and name not in there:
            click.echo(f"{name}: not run yet")
    chosen = [name for name in dict.fromkeys(wanted) if not name or name in there]
    if not any(chosen) and path.resolve() == screen:
        raise ConfigError(_not_run(path))
    return chosen


def _list_plates(folder):
    """Names of the plates of a screen, as far as its list can be read."""
    from plateloom.config import read_config
    from plateloom.planning import list_plates

    try:
        return [plate.plate for plate in list_plates(folder / read_config(folder).plates)[0]]
    except (ConfigError, OSError):
        return []


def _not_run(path):
    return f"{str(path)!r} was not run yet, so there is nothing to check: plateloom run {shlex.quote(str(path))}"


def _check_alone(path, plates, deep, repair):
    """Check what belongs to no screen that has run: an export, or a plate."""
    from plateloom.export.checks import check_export, find_export
    from plateloom.store.plate import group_version
    from plateloom.store.verification import check_group

    place = path.resolve()
    zarr = group_version(place) or any(folder.suffix == ".zarr" for folder in (place, *place.parents))
    export = None if zarr else find_export(place)
    if export is None and not zarr:
        if (place / "config.yaml").is_file() and (listed := _list_plates(place)):
            if unknown := [name for name in plates if name not in listed]:
                hint = did_you_mean(unknown[0], listed)
                raise ConfigError(f"--plate: no plate {unknown[0]!r}.{hint} Plates: {', '.join(listed)}")
            raise ConfigError(_not_run(path))
        raise ConfigError(f"{str(path)!r} holds no results: verify takes {TAKES}")
    if repair:
        raise ConfigError(f"{str(path)!r} belongs to no screen, so there is no source to repair it from")
    if zarr:
        if plates:
            raise ConfigError(f"--plate: {str(path)!r} is an OME-Zarr group, not a screen or an export")
        return check_group(path, deep=deep)
    known = sorted(folder.stem for folder in (export / "plates").glob("*.zarr"))
    known = sorted({*known, *(folder.name for folder in (export / "plates").iterdir() if folder.suffix != ".zarr")})
    for name in plates:
        if name not in known:
            raise ConfigError(f"--plate: no plate {name!r}.{did_you_mean(name, known)} Plates: {', '.join(known)}")
    within = [export / "plates" / f"{name}{kind}" for name in plates for kind in ("", ".zarr")]
    return check_export(export, within=within or [place], deep=deep)


def _sum_up(count, deep):
    looked = "every chunk and table read" if deep else "metadata, sizes and what is there; --deep reads every chunk"
    click.echo(f"{count} damaged ({looked})" if count else f"nothing is damaged ({looked})")
    return 1 if count else 0
