"""`plateloom rerun`: make chosen results again, and what follows from them: what has failed, a plate, a well, a stage."""

import shlex
import sys
from pathlib import Path

import click

from plateloom.cli.run import check_handed_on, check_profiles
from plateloom.cli.run import run_here as _run
from plateloom.errors import ConfigError, did_you_mean, some_of


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--failed", is_flag=True, help="What has failed or is quarantined. Default, where nothing else is chosen."
)
@click.option("--plate", "plates", multiple=True, help="Only this plate; may be repeated.")
@click.option("--well", "wells", multiple=True, help="Only this well of the plates chosen; may be repeated.")
@click.option(
    "--from", "first", metavar="STAGE", help="From this stage on; default: all from the microscope's files on."
)
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would be made again.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="As of `plateloom run`.")
@click.option("--cores", default=None, metavar="N", help="As of `plateloom run`.")
@click.argument("snakemake_options", metavar="[-- OPTION...]", nargs=-1, type=click.UNPROCESSED)
def command(folder, failed, plates, wells, first, dry_run, profiles, cores, snakemake_options):
    """Make results of SCREEN again, and run it: what follows from them, and whatever else a run has to do there.

    Only what was chosen is removed. Changed settings, new files and failed jobs, of other plates too, are the work of the
    same run; what that is stands below what was chosen, also with --dry-run. What a plain `plateloom run` does by itself needs no rerun: it goes on with what was interrupted, and notices mended
    files and changed settings. What stands behind `--` goes to snakemake. Exit code: that of the run; with --dry-run 0; 2 if nothing was chosen that there is.

    \b
    plateloom rerun screens/mine                                    what has failed
    plateloom rerun screens/mine --plate plate1 --well B03          one well, from its images on
    plateloom rerun screens/mine --from segmentation                all plates, images kept
    """
    import contextlib

    from plateloom.cli.run import check_cost, check_screen, end_earlier_jobs
    from plateloom.engine import locks
    from plateloom.repair import find_lasting, list_failed, list_made, remove_damaged
    from plateloom.status import read_screen
    from plateloom.wells import parse_well, well_name

    check_handed_on(snakemake_options)
    check_screen(folder)
    if not dry_run:
        check_cost(folder)
    states = read_screen(folder)
    _check_names("--plate", plates, states["plates"])
    stages = states["screen"] | {name: state for found in states["plates"].values() for name, state in found.items()}
    _check_names("--from", [first] if first else [], stages)
    try:
        wells = [well_name(*parse_well(well)) for well in wells]
    except ValueError as error:
        raise ConfigError([f"--well: {error}"]) from None
    held = _quarantined(folder)
    if out := [f"--plate: {plate!r} is quarantined {held[plate]}" for plate in plates if plate in held]:
        raise ConfigError([*out, "lift it first: `plateloom quarantine --lift`"])
    chosen = list(plates) or [plate for plate in states["plates"] if plate not in held]
    if empty := [well for well in wells if not list_made(folder, chosen, wells=[well], shared=False)]:
        raise ConfigError([f"--well: there is no result of {well} on {', '.join(chosen)}" for well in empty])
    with locks.hold(folder / locks.RUN, wait=False) if not dry_run else contextlib.nullcontext():
        if failed or not (plates or wells or first):
            again = list_failed(folder, chosen, wells=wells, first=first)
        else:
            again = list_made(folder, chosen, wells=wells, first=first, shared=not plates and not wells)
        lasting = find_lasting(folder, again)
        again = _without(again, lasting)
        for plate, reason in sorted({(one.plate, reason) for one, reason in lasting.items()}):
            wells = {one.well for one, why in lasting.items() if (one.plate, why) == (plate, reason)}
            click.echo(f"{plate or 'the screen'}: left as it is{_which(wells)}: {reason}")
        if lasting and not again:
            raise ConfigError("nothing can be made again from the images on; --from segmentation keeps them")
        if not again:
            click.echo("nothing is to be made again; the run does what is left")
        for line in [*_lines(again), *_lines_beside(again, states)]:
            click.echo(line)
        if dry_run:
            sys.exit(0)
        check_profiles(profiles)
        end_earlier_jobs(folder)
        remove_damaged(folder, again)
    click.echo(f"plateloom run {shlex.quote(str(folder))}")
    sys.exit(_run(folder, profiles, cores, (), snakemake_options))  # which takes the lock for itself


def _without(again, lasting):
    """What can be made again: where images must stay, what was made of them stays, too."""
    images = {(one.plate, one.well) for one in lasting if one.stage == "conversion"}
    made = {one.plate for one in again if one.stage == "conversion" and one not in lasting}
    images |= {(plate, "") for plate, _ in images if plate not in made}
    return [one for one in again if one not in lasting and (one.plate, one.well) not in images]


def _quarantined(folder):
    """Plates that a person has taken out, which no run works on."""
    from plateloom.config import read_config
    from plateloom.planning import Screen

    return Screen(read_config(folder).model_dump(mode="json"), folder).quarantined_plates


def _check_names(option, names, known):
    """Refuse names that are not there."""
    if problems := [
        f"{option}: there is no {name!r}.{did_you_mean(name, known)} There are {some_of(known, 20)}"
        for name in names
        if name not in known
    ]:
        raise ConfigError(problems)


def _lines(again):
    """What is made again and why, a line per plate, stage and reason."""
    from plateloom.planning import STAGES

    grouped = {}
    for one in again:
        grouped.setdefault((one.plate, one.stage, one.reason), set()).add(one.well)
    order = list(STAGES)
    for plate, stage, reason in sorted(grouped, key=lambda key: (key[0] == "", key[0], order.index(key[1]))):
        yield f"{plate or 'the screen'}: {stage}{_which(grouped[plate, stage, reason])}: {reason}"


def _lines_beside(again, states):
    """What the run does beside, of the whole screen, and the stages that follow from all of it."""
    from plateloom.cli.status import describe_cause
    from plateloom.planning import STAGES
    from plateloom.status import DEFERRED, LEFT, find_causes, later

    causes = [cause for cause in find_causes(states, unbegun=True) if cause.state in (*LEFT, DEFERRED)]
    if causes:
        yield "this run also does:"
        yield from (f"  {describe_cause(cause)}" for cause in causes)
    found = {stage for stages in [*states["plates"].values(), states["screen"]] for stage in stages}
    first = {one.stage for one in again} | {cause.stage for cause in causes}
    following = {name for stage in first for name in later(stage, states["after"])}
    if then := [stage for stage in STAGES if stage in following & found]:
        yield f"then: {', '.join(then)}"


def _which(wells):
    """The wells behind the name of what belongs to them; nothing where it belongs to no single well."""
    wells = sorted(filter(None, wells))
    return f" ({len(wells)} wells: {some_of(wells)})" if len(wells) > 1 else f" ({wells[0]})" if wells else ""
