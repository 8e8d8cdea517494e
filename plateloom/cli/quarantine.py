"""`plateloom quarantine`: take plates and wells out of a screen, put them back, and list them."""

import contextlib
import getpass
import os
import shlex
from pathlib import Path

import click

from plateloom.errors import ConfigError, DataFault, did_you_mean, some_of


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("targets", metavar="[PLATE | PLATE/WELL]...", nargs=-1)
@click.option("--reason", default="", metavar="TEXT", help="Why; it stands on the pages and in the export.")
@click.option("--by", "who", default="", metavar="NAME", help="Who says so; default: your login name.")
@click.option("--lift", is_flag=True, help="Put plates and wells back.")
def command(folder, targets, reason, who, lift):
    """Take plates or wells of SCREEN out of all results by hand, and say why; without any, list those that are out.

    The cells of a well that is out go into no profile, no reference, no hit and no model. A plate that is out is not
    processed further, and no step of the screen reads it. Nothing is deleted. What depends on it is made again by the next
    `plateloom run`: images and labels stay as they are. Every change is a line of SCREEN/quarantine.tsv, which may also be
    written by hand.

    \b
    plateloom quarantine screens/mine plate1/A01 plate1/A02 --reason "pipetting error"
    plateloom quarantine screens/mine plate2 --reason "wrong staining" --by Ada
    plateloom quarantine screens/mine plate1/A02 --lift --reason "checked, it is fine"
    plateloom quarantine screens/mine
    """
    from plateloom.config import read_config
    from plateloom.engine import locks
    from plateloom.ledgers import describe
    from plateloom.planning import read_plates
    from plateloom.quarantines import LIFT, QUARANTINE, append_rows, read_quarantined

    config = read_config(folder)
    plates = {plate.plate: plate for plate in read_plates(folder / config.plates)}
    found = read_quarantined(folder, plates)
    if not targets:
        if lift or reason:
            raise ConfigError("which plate or well? E.g. plate1, or plate1/A01")
        for plate, wells in found.items():
            for well, entry in wells.items():
                click.echo(f"{_name(plate, well)}: quarantined {describe(entry)}")
        if not found:
            click.echo("nothing is quarantined by hand")
        return
    chosen = _parse(folder, config, targets, plates, found, lift)
    if not lift and not reason.strip():
        raise ConfigError("--reason: say why, for those who read the results")
    who = who or login_name()
    append_rows(folder, chosen, action=LIFT if lift else QUARANTINE, reason=reason, who=who)
    for target in chosen:
        click.echo(f"{_name(*target)}: {'back in' if lift else 'out'}")
    again = f"`plateloom run {shlex.quote(str(folder))}`"
    if (folder / locks.RUN).exists() and locks.is_held(folder / locks.RUN):
        click.echo(f"a run is under way, and goes on as it began; the next one takes this up: {again}")
    else:
        click.echo(f"{again} makes again what depends on it")


def _name(plate, well):
    return f"{plate}/{well}" if well else plate


def login_name():
    """The name that the person is logged in by; empty where the machine knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _parse(folder, config, targets, plates, found, lift):
    """Plates and wells by what was typed; every mistake is told at once."""
    from plateloom.wells import parse_well, well_name

    chosen, problems, wells = [], [], {}
    for text in dict.fromkeys(targets):
        plate, slash, well = text.partition("/")
        if plate not in plates:
            problems.append(f"{text}: no plate {plate!r}.{did_you_mean(plate, plates)} Plates: {some_of(plates, 20)}")
            continue
        try:
            well = well_name(*parse_well(well)) if slash else ""
        except ValueError as error:
            problems.append(f"{text}: {error}")
            continue
        if plate not in wells and well and not lift:
            wells[plate] = _known_wells(folder, config, plates[plate])
        if lift and well not in found.get(plate, {}):
            out = ", ".join(_name(plate, other) for other in found.get(plate, {}))
            problems.append(f"{text}: is not quarantined by hand" + (f"; of this plate is: {out}" if out else ""))
        elif (known := wells.get(plate)) and well and well not in known and not lift:
            problems.append(f"{text}: the plate has no such well; it has {len(known)}: {some_of(known, 20)}")
        chosen.append((plate, well))
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(chosen))


def _known_wells(folder, config, plate):
    """Wells of a plate that was converted, else those of its files and its map; empty where neither tells."""
    from plateloom.readers import load_reader
    from plateloom.store.layout import plate_folder
    from plateloom.store.sheets import read_plate_map

    if made := sorted(path.stem for path in (folder / plate_folder(plate.plate) / "fields").glob("*.parquet")):
        return made
    module, known = load_reader(plate.reader), set()
    with contextlib.suppress(DataFault, OSError):  # `plateloom check` says what is wrong with them
        params = module.Params(**config.readers.get(plate.reader, {}))
        known = {well for well, _ in module.listing(folder / plate.source, params) if well}
    with contextlib.suppress(ConfigError, OSError):
        known |= {row["well"] for row in read_plate_map(folder / plate.plate_map)} if plate.plate_map else set()
    return sorted(known)
