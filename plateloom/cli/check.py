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
    warnings = sum("warning: " in note for note in notes)
    click.echo(f"no mistake, but {warnings} warnings: read them" if warnings else "nothing wrong")


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
        What was found, one line per plate; those that a person should look at say ``warning: ``.
    """
    from plateloom.config import read_config
    from plateloom.planning import list_plates
    from plateloom.readers import READERS
    from plateloom.store.sheets import read_plate_map, read_sheet

    folder, problems, notes, config = Path(folder), [], [], None
    try:
        config = read_config(folder)
    except ConfigError as error:
        problems += [
            problem if problem.startswith(str(folder)) else f"config.yaml: {problem}" for problem in error.problems
        ]
    plates, found = list_plates(folder / (config.plates if config else "plates.tsv"))
    problems += found
    wells = {}
    for plate in plates:
        if not plate.plate_map:
            notes.append(f"{plate.plate}: warning: no plate map, so nothing is normalized to controls")
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
    """List a plate's raw files, compare them with channels and map, and decode one of each channel."""
    from plateloom.readers import load_reader
    from plateloom.stages.conversion import describe_source

    module = load_reader(plate.reader)
    params = module.Params(**config.readers.get(plate.reader, {}))
    settings = config.model_dump(mode="json")
    try:
        found = module.scan(folder / plate.source, params)
    except (DataFault, OSError) as fault:
        problems.append(f"{plate.plate}: {fault}")
        return
    notes += [f"{plate.plate}: {note}" for note in found.notes]
    if not found.images:
        seen = sorted(path.name for path in (folder / plate.source).iterdir())[:3]
        shown = f"found e.g. {', '.join(seen)}" if seen else "the folder is empty"
        problems.append(
            f"{plate.plate}: no file in {plate.source!r} matches {getattr(params, 'pattern', plate.reader)!r}; {shown}"
        )
        return
    sources = {image.channel for image in found.images}
    lacking = [name for name, channel in config.channels.items() if channel.source not in sources]
    problems += [
        f"{plate.plate}: channel {name} (source {config.channels[name].source!r}) is in no file; "
        f"found: {', '.join(sorted(sources))}"
        for name in lacking
    ]
    try:
        images = describe_source(found.images, settings)["images"]
    except DataFault as fault:
        problems.append(f"{plate.plate}: {fault}")
        images = [image for image in found.images if image.channel in {c.source for c in config.channels.values()}]
    if len(lacking) < len(config.channels):
        notes += [f"{plate.plate}: warning: {line}" for line in _doubtful(folder / plate.source, module, images)]
    imaged = {image.well for image in found.images}
    if wells is not None:
        notes += [f"{plate.plate}: warning: {line}" for line in _doubtful_map(wells, imaged)]
        if not imaged & set(wells):
            problems.append(f"{plate.plate}: none of the plate map's wells has an image ({plate.plate_map})")
    controls = {
        kind: sum(row["control"] == kind for row in (wells or {}).values()) for kind in ("negative", "positive")
    }
    notes.append(
        f"{plate.plate}: {len(imaged)} wells, {len({(i.well, i.field) for i in images})} fields, "
        f"{len({i.file for i in images})} files, "
        f"{controls['negative']} negative and {controls['positive']} positive controls"
    )


def _doubtful(source, module, images):
    """What is odd about a plate's files, as far as names and sizes tell, and one file of each channel."""
    if empty := [image.file for image in images if image.size == 0]:
        yield f"{len(empty)} files have no content: {_some(empty)}"
    channels = {image.channel for image in images}
    per_field = {}
    for image in images:
        per_field.setdefault((image.well, image.field), []).append(image)
    holes = [
        f"{well} field {field} lacks {', '.join(sorted(channels - {image.channel for image in found}))}"
        for (well, field), found in per_field.items()
        if {image.channel for image in found} != channels
    ]
    if holes:
        yield f"{len(holes)} fields lack a channel: {_some(holes)}"
    counts = {}
    for well, _ in per_field:
        counts[well] = counts.get(well, 0) + 1
    if few := [well for well, count in counts.items() if count < max(counts.values())]:
        yield f"{len(few)} wells have fewer fields than the others: {_some(few)}"
    shapes = {}
    for channel in sorted(channels):
        image = next((image for image in images if image.channel == channel and image.size), None)
        if image is None:
            continue
        try:
            plane = module.load(source, image)[0]
            shapes.setdefault((plane.shape, str(plane.dtype)), []).append(image.file)
        except (DataFault, OSError) as fault:
            yield str(fault)
    if len(shapes) > 1:
        kinds = [f"{files[0]} is {kind} {shape[0]} × {shape[1]}" for (shape, kind), files in shapes.items()]
        yield f"channels differ in size or type: {_some(kinds)}"


def _doubtful_map(wells, imaged):
    """What is odd about a plate map."""
    if unmapped := sorted(imaged - set(wells)):
        yield f"{len(unmapped)} wells with images are not on the map: {_some(unmapped)}"
    if unseen := sorted(set(wells) - imaged):
        yield f"{len(unseen)} wells of the map have no image: {_some(unseen)}"
    rows = [row for well, row in wells.items() if well in imaged]
    if rows and not any(row["control"] == "negative" for row in rows):
        yield "no well is a negative control (column control), so values are not normalized and there are no hits"
    if rows and not any(row["treatment"] for row in rows):
        yield "no well has a treatment (column treatment)"
    units = {}
    for row in rows:
        if row["treatment"] and row["dose"] == row["dose"]:
            units.setdefault(row["treatment"], set()).add(row["unit"])
    if mixed := sorted(name for name, found in units.items() if len(found) > 1):
        yield f"doses of one treatment have several units: {_some(mixed)}"


def _some(names):
    """The first of many."""
    return ", ".join(map(str, names[:5])) + (" …" if len(names) > 5 else "")
