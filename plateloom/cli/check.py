"""`plateloom check`: every mistake in config, plates, maps and raw files at once, before anything runs."""

import contextlib
import difflib
import math
import os
from pathlib import Path

import click

from plateloom.errors import ConfigError, DataFault, LabelError, counted, did_you_mean, some_of

SAMPLED = 9  # files of a plate that are decoded before it is called unreadable
FEWEST_PX = 3  # that a nucleus or a crop is wide


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
    click.echo(f"no mistake, but {counted(warnings, 'warning')} to read" if warnings else "nothing wrong")


def find_problems(folder, *, files, decode=True):
    """Find what is wrong with a screen.

    Parameters
    ----------
    folder : path
    files : bool
        Also list the raw files, and ask whether labels suffice and the plates that the config names are there. Without, only
        what stays wrong whatever plates are still to come.
    decode : bool
        And decode some of each plate.

    Returns
    -------
    problems : list of str
        One line each, with what to type instead.
    notes : list of str
        What was found, one line per plate; those that a person should look at say ``warning: ``.
    """
    from plateloom.config import read_config
    from plateloom.planning import number_plates
    from plateloom.quarantines import list_quarantined
    from plateloom.readers import READERS

    folder, problems, notes, config = Path(folder), [], [], None
    try:
        config = read_config(folder)
    except ConfigError as error:
        problems += [
            problem if problem.startswith(str(folder)) else f"config.yaml: {problem}" for problem in error.problems
        ]
    if config:
        _check_network(folder, config, problems, notes)
    table = folder / (config.plates if config else "plates.tsv")
    numbered, found = number_plates(table)
    problems += found
    plates = {plate.plate: (line, plate) for line, plate in reversed(numbered)}  # the first of those named alike
    problems += list_quarantined(folder, plates)[1]
    problems += find_strange_plates(config, plates) if files and config and plates else []
    imaged, maps = {}, {}
    for line, plate in reversed(plates.values()):
        wells = maps[plate.plate] = _read_map(folder, plate, f"{table}:{line}", problems, notes)
        if not files or not plate.source:
            continue
        if not os.path.exists(folder / plate.source):
            problems.append(f"{plate.plate}: no folder {str(folder / plate.source)!r} ({table}:{line})")
        elif config and plate.reader in READERS:
            imaged[plate.plate] = check_files(folder, config, plate, wells, problems, notes, decode)
    if config and plates and config.classification.labels:
        batches = {name: plate.batch for name, (_, plate) in plates.items()}
        if config.classification.labels != "controls":
            labeled = _check_labels(folder, config.classification.labels, list(plates), imaged, problems, notes)
            asked = files and labeled is not None
            if asked and (reason := explain_untrainable(config.classification, labeled, batches)):
                problems.append(f"config.yaml: classification: {reason}")
        elif files and all(maps[name] is not None or not plate.plate_map for name, (_, plate) in plates.items()):
            _check_controls(config.classification, maps, batches, problems, notes)
    return problems, notes


def _check_network(folder, config, problems, notes):
    """Look for the models and the package of a method of other people."""
    from plateloom.config import method_modules
    from plateloom.planning import list_encoder_weights, list_weights

    modules = method_modules(config)
    absent = list_weights(config, folder)[1] + list_encoder_weights(config, folder)[1]
    problems += [f"config.yaml: {problem}" for problem in absent]
    segmenter, given = modules.get("segmentation"), config.segmentation.parameters
    if not absent and hasattr(segmenter, "check_model"):
        faults = segmenter.check_model(segmenter.Params(**given), list(config.channels), folder)
        problems += [f"config.yaml: segmentation.parameters.model: {fault}" for fault in faults]
    for section, chosen in (
        ("segmentation", config.segmentation),
        ("latent.autoencoder", config.latent.autoencoder),
        ("latent.maps", config.latent.maps),
        ("latent.maps.clusters", config.latent.maps.clusters),
    ):
        module = modules.get(section)
        package = getattr(module, "PACKAGE", None)
        params = module.Params(**chosen.parameters) if package or hasattr(module, "notices") else None
        if package and getattr(module, "needs_package", lambda _: True)(params) and not _installed(package):
            problems.append(
                f"config.yaml: {section}.method {chosen.method}: the package {package!r} is not installed: {module.INSTALL}"
            )
        if hasattr(module, "notices"):
            notes += [f"config.yaml: warning: {notice}" for notice in module.notices(params)]


def _check_sizes(folder, config, plate, pixel_size_um, width, problems, notes):
    """Compare settings in µm with the size of a pixel and the width of a field [px], where known; what holds of several plates is told once."""
    from plateloom.config import method_modules
    from plateloom.report.plausibility import doubt_pixel_size

    chosen, module = config.segmentation, method_modules(config)["segmentation"]
    params = module.Params(**chosen.parameters)
    if hasattr(module, "find_misfits") and not (
        hasattr(module, "check_model") and module.check_model(params, list(config.channels), folder)  # told already
    ):
        with contextlib.chdir(folder):  # models are named from there
            misfits = module.find_misfits(params, pixel_size_um)
        said = [f"segmentation.method {chosen.method} cannot work here: {misfit}" for misfit in misfits]
        problems += [f"{plate}: {line}" for line in said if not any(line in one for one in problems)]
    typical, seen = chosen.parameters.get("nucleus_diameter_um"), chosen.parameters.get("nuclei_channel")
    for step in config.restoration:
        radius = step.parameters.get("radius_um")
        if step.method == "background" and typical and radius < typical / 2 and seen in (step.channels or [seen]):
            line = f"restoration: background with radius_um {radius:g} takes nuclei away, too, which are {typical:g} µm wide: half of that at least"
            notes += [] if any(line in one for one in notes) else [f"config.yaml: warning: {line}"]
    if line := doubt_pixel_size(pixel_size_um, config.conversion.pixel_size_um):
        notes += [] if any(line in one for one in notes) else [f"config.yaml: warning: {line}"]
    lengths = {"segmentation.parameters.nucleus_diameter_um": chosen.parameters.get("nucleus_diameter_um")}
    if config.latent.autoencoder.enabled:
        lengths["latent.autoencoder.crop_um"] = config.latent.autoencoder.crop_um
    if config.classification.labels:
        lengths["classification.parameters.crop_um"] = config.classification.parameters.get("crop_um")
    for name, length in lengths.items():
        length_px = (length or math.nan) / pixel_size_um
        shown = f"{length_px:.{0 if length_px >= 10 else 1}f}" if length_px >= 0.1 else f"{length_px:.1g}"
        line = f"{name} is {length:g} µm, which is {shown} px" if length else ""
        if length_px < FEWEST_PX:
            least = FEWEST_PX * pixel_size_um
            line += f"; expected {least:.{0 if least >= 10 else 1}f} µm or more, or the pixel size of {pixel_size_um:g} µm is wrong"
        elif width and length_px > width:
            line += f", {length_px / width:.2g} times the width of a field ({width} px)"
        else:
            continue
        found, kind = (problems, "") if length_px < 1 else (notes, "warning: ")  # nothing is that small
        found += [] if any(line in one for one in found) else [f"{plate}: {kind}{line}"]


def _check_axes(config, plate, images, problems, notes):
    """Ask whether what follows conversion can use the time points and planes that are kept."""
    from plateloom.segmentation import explain_planes

    if config.conversion.time == "keep" and len({image.t for image in images}) > 1:
        notes.append(
            f"{plate}: warning: all its time points are kept (conversion.time), and what follows conversion works on one: "
            "choose it, or run with --until conversion"
        )
    if config.conversion.z != "keep":
        if config.conversion.z_step_um is not None:
            line = "config.yaml: warning: conversion.z_step_um is of no use without conversion.z: keep"
            notes += [] if line in notes else [line]
        return
    if misfit := explain_planes(config.segmentation.method, True):
        line = f"segmentation.method: {misfit}, or run with --until quality"
        notes += [] if any(line in one for one in notes) else [f"config.yaml: warning: {line}"]
    elif len({image.z for image in images}) < 2:
        problems.append(
            f"{plate}: one z plane is there, which is no volume; leave out conversion.z, and choose a method for planes"
        )
    elif config.conversion.z_step_um is None and not any(image.z_um is not None for image in images):
        problems.append(
            f"{plate}: the files do not say how far the z planes lie apart; set conversion.z_step_um [µm] in config.yaml"
        )


def _installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _read_map(folder, plate, where, problems, notes):
    """Rows of a plate's map by well; None where there is no map, or a wrong one."""
    from plateloom.store.sheets import read_plate_map

    if not plate.plate_map:
        notes.append(f"{plate.plate}: warning: no plate map, so nothing is normalized to controls")
    elif not os.path.exists(folder / plate.plate_map):
        problems.append(
            f"{where}: plate_map of {plate.plate!r}: no file {str(folder / plate.plate_map)!r}; without a map, leave the "
            "cell empty"
        )
    else:
        try:
            return {row["well"]: row for row in read_plate_map(folder / plate.plate_map)}
        except ConfigError as error:
            problems += error.problems
    return None


def find_strange_plates(config, plates):
    """Plates that the config names and the list of plates lacks: list of str."""
    latent = config.latent
    named = {"latent.maps.plates": latent.maps.plates}
    if latent.autoencoder.enabled:
        named = {"latent.autoencoder.plates": latent.autoencoder.plates} | named
    return [
        f"config.yaml: {where}: no plate {name!r} in {config.plates}.{did_you_mean(name, plates)}"
        for where, names in named.items()
        for name in names or ()
        if name not in plates
    ]


def _check_labels(folder, labels, plates, imaged, problems, notes):
    """Compare the table of labels with the plates, and with the wells that have images.

    Returns
    -------
    list of (str, str, str), or None
        Plate, well and class of each label that holds; None where the table has mistakes.
    """
    from plateloom.store.sheets import read_sheet
    from plateloom.wells import parse_well, well_name

    path, before = folder / labels, len(problems)
    if not os.path.exists(path):
        problems.append(
            f"config.yaml: classification.labels: no file {str(path)!r}; for positive against negative wells write "
            "controls, without classification leave it empty"
        )
        return None
    rows, found = read_sheet(path, {"plate", "well", "class"}, None, usual=("field", "object"))
    problems += found
    strangers, unseen, held = set(), {}, {}
    for line, row in rows:
        name = row["plate"]
        if name not in plates and name not in strangers:
            strangers.add(name)
            problems.append(f"{path}:{line}: no plate {name!r} in plates.tsv.{did_you_mean(name, plates)}")
        if not row["class"] and not row.get("segmentation"):  # `annotate` takes labels back by a line without a class
            problems.append(f"{path}:{line}: no class")
        problems += [
            f"{path}:{line}: {key} {row[key]!r}; expected a number"
            for key in ("field", "object")
            if row.get(key) and not row[key].isdecimal()
        ]
        try:
            well = well_name(*parse_well(row["well"]))
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
            continue
        if imaged.get(name) and well not in imaged[name]:
            unseen.setdefault(name, {})[well] = line
        place = (name, well, *(row.get(key, "") for key in ("field", "object", "segmentation")))
        first, other = held.get(place, (line, row["class"]))
        if other != row["class"] and not row.get("segmentation"):
            what = "".join(f", {key} {row[key]}" for key in ("field", "object") if row.get(key))
            notes.append(
                f"{path}:{line}: warning: {name}/{well}{what} is {row['class']!r} here and {other!r} on line {first}; the last "
                "holds: remove the wrong line"
            )
        held[place] = line, row["class"]
    notes += [
        f"{name}: warning: {counted(len(wells), 'labeled well')} without an image: "
        + some_of([f"{well} ({path.name}:{line})" for well, line in wells.items()])
        for name, wells in unseen.items()
    ]
    return [(*place[:2], name) for place, (_, name) in held.items() if name] if len(problems) == before else None


def _check_controls(settings, maps, batches, problems, notes):
    """Ask whether there are controls to learn from; more of them may come with more plates."""
    kinds = ("negative", "positive")
    labeled = [
        (plate, well, row["control"])
        for plate, wells in maps.items()
        for well, row in (wells or {}).items()
        if row["control"] in kinds
    ]
    if lacking := [kind for kind in kinds if kind not in {control for _, _, control in labeled}]:
        problems.append(
            f"config.yaml: classification.labels: controls: no well of the plate maps is a {' or a '.join(lacking)} control "
            "(column control); name a table of labels, or leave it empty"
        )
    elif reason := explain_untrainable(settings, labeled, batches):
        notes.append(f"config.yaml: warning: classification: {reason}")


def explain_untrainable(settings, labeled, batches):
    """Why labels can in no case be learned from, however many cells they have; empty where nothing speaks against it.

    Parameters
    ----------
    settings : Classification
    labeled : list of (str, str, str)
        Plate, well and class.
    batches : dict of str to str
        By plate.
    """
    from plateloom.classification.evaluation import check_labels
    from plateloom.classification.regression import check_numbers
    from plateloom.classification.splits import check_groups
    from plateloom.stages.classification import group_of

    if not labeled:
        return f"no well is labeled ({settings.labels})"
    without = sorted({plate for plate, _, _ in labeled if not batches[plate]})
    if settings.scheme == "batch" and without:
        return (
            f"scheme: batch needs the batch of every labeled plate in plates.tsv; it is not there of {some_of(without)}"
        )
    classes = [name for _, _, name in labeled]
    groups = [group_of(settings.scheme, plate, well, batches) for plate, well, _ in labeled]
    options = {"folds": settings.folds, "scheme": settings.scheme}
    cells = [[0.0]] * len(classes)
    try:
        if settings.target == "number":
            check_numbers(cells, classes, groups)
            check_groups(groups, **options)
        else:
            check_labels(cells, classes, groups)
            check_groups(groups, classes=classes, **options)
    except LabelError as error:
        return f"the labels do not allow an honest test: {error}"
    return ""


def check_files(folder, config, plate, wells, problems, notes, decode):
    """List a plate's raw files, compare them with channels and map, and decode a few; returns the wells with images."""
    from plateloom import profiling
    from plateloom.readers import load_reader
    from plateloom.stages.conversion import describe_source

    module = load_reader(plate.reader)
    params = module.Params(**config.readers.get(plate.reader, {}))
    settings = config.model_dump(mode="json")
    try:
        found = module.scan(folder / plate.source, params)
    except DataFault as fault:
        problems.append(f"{plate.plate}: {fault}")
        return None
    except OSError as error:
        problems.append(f"{plate.plate}: {error.filename or plate.source!r} cannot be read: {error.strerror}")
        return None
    notes += [f"{plate.plate}: {note}" for note in found.notes]
    if not found.images:
        seen = sorted(path.name for path in (folder / plate.source).iterdir())[:3]
        shown = f"found e.g. {', '.join(seen)}" if seen else "the folder is empty"
        problems.append(
            f"{plate.plate}: no file in {plate.source!r} matches {getattr(params, 'pattern', plate.reader)!r}; {shown}"
        )
        return None
    sources = {image.channel for image in found.images}
    lacking = [name for name, channel in config.channels.items() if channel.source not in sources]
    problems += [
        f"{plate.plate}: channel {name} (source {config.channels[name].source!r}) is in no file; "
        f"found: {', '.join(sorted(sources))}"
        for name in lacking
    ]
    try:
        described = describe_source(found.images, settings)
        images, pixel_size_um = described["images"], described["pixel_size_um"]
    except DataFault as fault:
        problems.append(f"{plate.plate}: {fault}")
        pixel_size_um = config.conversion.pixel_size_um
        images = [image for image in found.images if image.channel in {c.source for c in config.channels.values()}]
    _check_axes(config, plate.plate, images, problems, notes)
    if len(lacking) < len(config.channels):
        notes += [f"{plate.plate}: warning: {line}" for line in _doubtful(images)]
        faults, doubts, width = (
            _decode_some(folder / plate.source, module, images, config) if decode else ([], [], None)
        )
        problems += [f"{plate.plate}: {line}" for line in faults]
        notes += [f"{plate.plate}: warning: {line}" for line in doubts]
        if pixel_size_um:
            width = None if config.conversion.layout == "stitched" else width
            _check_sizes(folder, config, plate.plate, pixel_size_um, width, problems, notes)
    imaged = {image.well for image in found.images}
    if wells is not None:
        wanted = profiling.Params(**config.profiling.parameters)
        notes += [f"{plate.plate}: warning: {line}" for line in _doubtful_map(wells, imaged, wanted)]
        if not imaged & set(wells):
            problems.append(f"{plate.plate}: none of the plate map's wells has an image ({plate.plate_map})")
    controls = ""
    if wells is not None:
        kinds = [row["control"] for well, row in wells.items() if well in imaged]
        controls = f", {kinds.count('negative')} negative and {counted(kinds.count('positive'), 'positive control')}"
    notes.append(
        f"{plate.plate}: {counted(len(imaged), 'well')}, {counted(len({(i.well, i.field) for i in images}), 'field')}, "
        f"{counted(len({i.file for i in images}), 'file')}{controls}"
    )
    return imaged


def _doubtful(images):
    """What is odd about a plate's files, as far as names and sizes tell."""
    if empty := [image.file for image in images if image.size == 0]:
        yield f"{counted(len(empty), 'file')} without content: {some_of(empty)}"
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
        yield f"{counted(len(holes), 'field')} without one of the channels: {some_of(holes)}"
    counts = {}
    for well, _ in per_field:
        counts[well] = counts.get(well, 0) + 1
    if few := [well for well, count in counts.items() if count < max(counts.values())]:
        yield f"{counted(len(few), 'well')} with fewer fields than the others: {some_of(few)}"


def _decode_some(source, module, images, config):
    """Decode a file of each channel and, while none can be, some more of all the plate.

    Returns
    -------
    problems, doubts : list of str
    width : int or None
        Of an image [px]; None where none can be decoded.
    """
    full = [image for image in images if image.size]
    firsts = {image.channel: image for image in reversed(full)}
    chosen = [firsts[channel] for channel in sorted(firsts)]
    spread = [image for image in full[:: max(1, len(full) // SAMPLED)] if image not in chosen]
    shapes, faults, refused, beyond = {}, {}, False, []
    offset = config.illumination.parameters.get("camera_offset") or 0
    for i, image in enumerate([*chosen, *spread]):
        if i >= len(chosen) and (shapes or i >= SAMPLED):
            break
        try:
            plane = module.load(source, image)[0]
            shapes.setdefault((plane.shape, str(plane.dtype)), []).append(image.file)
            if offset and (plane < offset).mean() > 0.5:
                beyond.append(image.file)
        except DataFault as fault:
            faults[image.file] = str(fault)
        except OSError as error:
            faults[image.file] = f"{image.file}: cannot be read: {error.strerror}"
            refused = True
    if not shapes:
        if not faults:
            return ["all files are empty; the plate would be quarantined"], [], None
        what = "cannot be read" if refused else "cannot be decoded; the plate would be quarantined"
        return [f"{len(faults)} of {len(faults)} sampled files {what}, e.g. {next(iter(faults.values()))}"], [], None
    doubts = list(faults.values())
    if beyond:
        problem = (
            f"illumination.parameters.camera_offset is {offset:g}, which most pixels of {some_of(beyond)} do not reach"
        )
        return (
            [f"{problem}: what is taken off would leave nothing; set what the camera reads in the dark"],
            doubts,
            None,
        )
    if len(shapes) > 1:
        kinds = [f"{files[0]} is {kind} {shape[0]} × {shape[1]}" for (shape, kind), files in shapes.items()]
        doubts.append(f"channels differ in size or type: {some_of(kinds)}")
    return [], doubts, next(iter(shapes))[0][1]


def _doubtful_map(wells, imaged, wanted):
    """What is odd about a plate map, profiles being made with the parameters `wanted`."""
    from plateloom.store.sheets import MAP_COLUMNS

    if unmapped := sorted(imaged - set(wells)):
        yield f"{counted(len(unmapped), 'well')} with images but not on the map: {some_of(unmapped)}"
    if unseen := sorted(set(wells) - imaged):
        yield f"{counted(len(unseen), 'well')} of the map without an image: {some_of(unseen)}"
    rows = [row for well, row in wells.items() if well in imaged]
    negative = sum(row["control"] == "negative" for row in rows)
    if rows and negative < wanted.min_controls:
        few = "no well is a negative control (column control)"
        if negative:
            wells_are = "well is a negative control" if negative == 1 else "wells are negative controls"
            few = f"only {negative} {wells_are}, {wanted.min_controls} needed (profiling.parameters.min_controls)"
        what = "values are not normalized and " if wanted.normalize_to == "negative" else ""
        yield f"{few}, so {what}there are no hits"
    if rows and not any(row["treatment"] for row in rows):
        others = [
            name
            for name in rows[0]
            if name.lower() in ("compound", "drug", "perturbation", "molecule", "sirna", "gene")
        ]
        yield "no well has a treatment (column treatment)" + (f"; did you mean {others[0]!r}?" if others else "")
    kinds = {}
    for well, row in wells.items():
        if row["treatment"]:
            kinds.setdefault(row["treatment"], {}).setdefault(row["control"], []).append(well)
    for name, found in sorted(kinds.items()):
        if "negative" in found and "" in found:
            yield (
                f"treatment {name!r} is a negative control in {some_of(found['negative'])} and a sample in "
                f"{counted(len(found['']), 'other well')}"
            )
    for name in ("treatment", "dose", "unit", "control"):
        if rows and not any(row[name] and row[name] == row[name] for row in rows):
            yield from (
                f"column {near!r} is kept as it stands; did you mean {name!r}?"
                for near in difflib.get_close_matches(name, set(rows[0]) - set(MAP_COLUMNS), cutoff=0.8)
            )
    alike = {}
    for name in sorted({row["treatment"] for row in rows if row["treatment"]}):
        alike.setdefault(" ".join(name.split()).lower(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"treatments that differ in case or spaces only, and count as different: {some_of(list(map(repr, names)))}"
    units = {}
    for row in rows:
        if row["treatment"] and row["dose"] == row["dose"]:
            units.setdefault(row["treatment"], set()).add(row["unit"])
    if mixed := sorted(name for name, found in units.items() if len(found) > 1):
        yield f"doses of one treatment have several units: {some_of(mixed)}"
