"""`plateloom clean`: list, and remove when told to, what lies in a screen's folder and serves nobody."""

from pathlib import Path

import click

from plateloom.errors import ConfigError, LockedError, counted, did_you_mean

FEW = 3  # paths of a kind that are shown unasked


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Remove it; default: only list it.")
@click.option(
    "--plate", "plates", multiple=True, help="Also the results of this plate, which is no longer in the list."
)
@click.option("--stage", "stages", multiple=True, help="Also the results of this stage, which the config switches off.")
@click.option("--all", "everything", is_flag=True, help="List every path.")
@click.option("--dry-run", "-n", is_flag=True, help="Only list it: the default.")
def command(folder, yes, plates, stages, everything, dry_run):
    """List what lies in SCREEN and serves nobody, with sizes; with --yes remove it.

    That is: half-written files and wells of killed jobs, records of an earlier number of parts, lock files of jobs that are
    done, crops of trainings that are over, scripts and old logs of Snakemake. Nothing current is touched, and no source
    file. Results of plates that are no longer in the list, and of stages that are switched off, are listed, and go only by
    name. Nothing is done while a run works on the screen.

    \b
    plateloom clean screens/mine
    plateloom clean screens/mine --yes
    plateloom clean screens/mine --yes --plate old-plate
    """
    import contextlib

    from plateloom.config import read_config
    from plateloom.engine import locks
    from plateloom.leftovers import ASKED, KINDS, find_leftovers, find_worker, remove_leftovers
    from plateloom.planning import Screen
    from plateloom.status import STALE, read_screen

    if yes and dry_run:
        raise ConfigError("--yes removes, --dry-run only lists: give one of them")
    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    lock = folder / locks.RUN
    if not yes and lock.exists() and locks.is_held(lock):
        raise LockedError(f"a run works on this screen: {locks.describe(locks.read(lock))}")
    with locks.hold(lock, wait=False) if yes else contextlib.nullcontext():
        if worker := find_worker(folder):
            raise LockedError(f"a job of an earlier run still works on this screen: {worker}")
        found = find_leftovers(screen)
        known = {kind: {one.name for one in found if one.kind == kind} for kind in ASKED}
        if problems := [
            f"--{kind}: nothing is left of {name!r} that could go by name.{did_you_mean(name, known[kind])}"
            for kind, names in (("plate", plates), ("stage", stages))
            for name in names
            if name not in known[kind]
        ]:
            raise ConfigError(problems)
        chosen = [
            one for one in found if one.kind not in ASKED or one.name in (plates if one.kind == "plate" else stages)
        ]
        for kind, told in KINDS.items():
            for name in sorted({one.name for one in found if one.kind == kind}):
                members = [one for one in found if (one.kind, one.name) == (kind, name)]
                ask = "" if members[0] in chosen else f"; goes only with --{kind} {name}"
                click.echo(f"{told}{f' ({name})' if name else ''}: {_sum(members)}{ask}")
                for one in members if everything else members[:FEW]:
                    click.echo(f"    {one.path}")
                if not everything and len(members) > FEW:
                    click.echo(f"    and {len(members) - FEW} more; --all shows them")
        if yes:
            remove_leftovers(folder, chosen)
    states = read_screen(folder, quick=True)  # a count, for which no source need be listed
    stale = [one for stages in (*states["plates"].values(), states["screen"]) for one in stages.values()]
    if stale := sum(one.state == STALE for one in stale):
        click.echo(
            f"{counted(stale, 'stale stage')} of plates or screen: nothing to remove, the next run makes them anew"
        )
    if not found:
        click.echo("nothing to remove")
    else:
        click.echo(f"removed: {_sum(chosen)}" if yes else f"--yes removes {_sum(chosen)}")


def _sum(leftovers):
    """Number of files and size of several leftovers.

    >>> _sum([])
    '0 files, 0.0 MB'
    """
    files = sum(one.files for one in leftovers)
    return f"{files} file{'s' * (files != 1)}, {sum(one.size for one in leftovers) / 1e6:.1f} MB"
