"""`plateloom check`: every mistake in config, plates, maps and raw files at once, before anything runs."""

from pathlib import Path

import click

from plateloom.errors import ConfigError, DataFault


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def command(folder):
    """Check the screen in FOLDER: settings, plate list, plate maps, labels, and the names of all raw files.

    \b
    plateloom check screens/demo
    """
    problems, notes = find_problems(folder, files=True)
    for note in notes:
        click.echo(note)
    if problems:
        raise ConfigError(problems)
    click.echo("nothing wrong")


def find_problems(folder, *, files):
    """Find what is wrong with a screen.

    Parameters
    ----------
    folder : path
    files : bool
        Also list the raw files, and read one of each plate.

    Returns
    -------
    problems : list of str
        One line each, with what to type instead.
    notes : list of str
        What was found, one line per plate.
    """
    from plateloom.config import read_config
    from plateloom.planning import list_plates
    from plateloom.readers import READERS
    from plateloom.store.sheets import read_plate_map, read_sheet

    folder, problems, notes, config = Path(folder), [], [], None
    try:
        config = read_config(folder)
    except ConfigError as error:
        problems += [f"config.yaml: {problem}" for problem in error.problems]
    plates, found = list_plates(folder / (config.plates if config else "plates.tsv"))
    problems += found
    wells = {}
    for plate in plates:
        if not plate.plate_map:
            notes.append(f"{plate.plate}: no plate map, so nothing is normalized to controls")
            continue
        try:
            wells[plate.plate] = {row["well"]: row for row in read_plate_map(folder / plate.plate_map)}
        except ConfigError as error:
            problems += error.problems
    if config and config.classification.labels not in ("", "controls"):
        rows, found = read_sheet(folder / config.classification.labels, {"plate", "well", "class"}, None)
        problems += found
        known = {plate.plate for plate in plates}
        strangers = sorted({row["plate"] for _, row in rows} - known)
        problems += [f"{config.classification.labels}: no plate {name!r} in plates.tsv" for name in strangers]
    if config and files:
        for plate in [plate for plate in plates if plate.reader in READERS]:
            _check_files(folder, config, plate, wells.get(plate.plate), problems, notes)
    return problems, notes


def _check_files(folder, config, plate, wells, problems, notes):
    """List a plate's raw files, compare them with channels and map, and decode the first."""
    from plateloom.readers import load_reader

    module = load_reader(plate.reader)
    params = module.Params(**config.readers.get(plate.reader, {}))
    try:
        found = module.scan(folder / plate.source, params)
    except DataFault as fault:
        problems.append(f"{plate.plate}: {fault}")
        return
    images = found.images
    notes += [f"{plate.plate}: {note}" for note in found.notes]
    if not images:
        seen = sorted(path.name for path in (folder / plate.source).iterdir())[:3]
        problems.append(
            f"{plate.plate}: no file in {plate.source!r} matches {getattr(params, 'pattern', plate.reader)!r}; found e.g. {seen}"
        )
        return
    sources = {image.channel for image in images}
    for name, channel in config.channels.items():
        if channel.source not in sources:
            problems.append(
                f"{plate.plate}: channel {name} (source {channel.source!r}) is in no file name; found: {', '.join(sorted(sources))}"
            )
    imaged = {image.well for image in images}
    if wells is not None and not imaged & set(wells):
        problems.append(f"{plate.plate}: none of the plate map's wells has an image ({plate.plate_map})")
    if wells and (unmapped := sorted(imaged - set(wells))):
        notes.append(f"{plate.plate}: {len(unmapped)} wells are not on the map: {', '.join(unmapped[:5])} …")
    try:
        module.load(folder / plate.source, images[0])
    except DataFault as fault:
        notes.append(f"{plate.plate}: {fault}")
    controls = {
        kind: sum(row["control"] == kind for row in (wells or {}).values()) for kind in ("negative", "positive")
    }
    notes.append(
        f"{plate.plate}: {len(imaged)} wells, {len({(i.well, i.field) for i in images})} fields, {len(images)} files, "
        f"{controls['negative']} negative and {controls['positive']} positive controls"
    )
