"""`plateloom labels`: labels out as TIFF, corrected by a person, and in again; the wells concerned are computed anew."""

from pathlib import Path

import click

from plateloom.errors import ConfigError, counted, did_you_mean, some_of
from plateloom.store.layout import plate_store

IMAGE = "image.ome.tif"
EXPORTED = "exported.json"  # digests of what was exported: napari and Fiji write the TIFFs anew
NO_LABELS = (IMAGE, "pixels.tif")  # the latter are strokes for `plateloom train-pixels`
SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
NAMED = 12  # as many wells are named in one line

plates_option = click.option("--plate", "plates", multiple=True, help="Only this plate; may be repeated.")
wells_option = click.option("--wells", default=None, metavar="A01,B02", help="Only these wells.")
folder_type = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def command():
    """Correct labels by hand: export them, edit them in napari or Fiji, import them.

    Labels that were imported hold instead of the segmentation method's, whatever else changes, until they are withdrawn.
    Both make `plateloom run` compute just the wells concerned and what follows from them.

    \b
    plateloom labels export screens/demo --wells A01,B02 --to fixes
    plateloom labels import screens/demo fixes
    plateloom labels withdraw screens/demo --wells B02
    """


@command.command("export")
@click.argument("path", metavar="PLATE_OR_SCREEN", type=folder_type)
@click.option("--to", "out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@plates_option
@wells_option
def export_labels(path, out, plates, wells):
    """Write the labels of Nuclei and Cells, and the images, as TIFF: PLATE/WELL/FIELD/Nuclei.tif and so on below --to.

    The cytoplasm is left out: it is what of a cell is no nucleus.

    \b
    plateloom labels export screens/demo --plate P1 --wells A01 --to fixes
    """
    from plateloom.store.plate import describe_image, field_path

    stores = _find_plates(path)
    chosen = _choose(stores, plates, wells)
    targets = {
        (plate, well, field): out / plate / well / str(field)
        for plate, fields in chosen.items()
        for well, numbers in fields.items()
        for field in numbers
    }
    if there := [target for target in targets.values() if target.exists()]:
        raise ConfigError(f"{str(there[0])!r} is there already; give another folder, so that no work on it is lost")
    bare, deep = [], False
    for (plate, well, field), target in targets.items():
        deep |= "z" in describe_image(field_path(stores[plate], well, field))["axes"]
        if not _export_field(field_path(stores[plate], well, field), target):
            bare.append(f"{plate} {well} field {field}")
    click.echo(f"{counted(len(targets), 'field')} in {str(out)!r}")
    if bare:
        click.echo(f"without labels, since they were not segmented: {some_of(bare, NAMED)}")
    if deep:
        click.echo("to look at only: planes are kept here, and corrected labels of volumes are not taken back")


@command.command("import")
@click.argument("screen", type=folder_type)
@click.argument("folder", metavar="DIR", type=folder_type)
def import_labels(screen, folder):
    """Take corrected labels from DIR, laid out as `labels export` lays them out, into the screen's folder.

    Checked are names, size, integer type, that every object has a value of its own, and that the images are those that were
    exported. A nucleus keeps its value; its cell follows: one of a new value shares the cell that it lies in, and a cell
    without a nucleus goes. Fields that are as they were exported are left alone. Nothing is imported while anything is wrong.

    \b
    plateloom labels import screens/demo fixes
    """
    from plateloom.store.corrections import correction_path, write_correction

    with _hold(screen):
        found, problems = _read_folder(folder, _find_plates(screen))
        corrected = {}
        for (plate, well, field), painted in found.items():
            place = screen / correction_path(plate, well, field)
            labels, faults = _judge(screen, (plate, well, field), painted, place)
            problems += faults
            if labels is not None:
                corrected[plate, well, field] = (place, *labels)
        if problems:
            raise ConfigError(problems)
        for (plate, well, field), (place, labels, image, before, older) in corrected.items():
            write_correction(place, labels, image)
            counts = f"{before} nuclei before, {_objects(labels['Nuclei'])} now"
            click.echo(f"{plate} {well} field {field}: {counts}{'; painted on an older segmentation' if older else ''}")
    same = len(found) - len(corrected)
    click.echo(f"{counted(len(corrected), 'field')} corrected" + (f", {same} as before" if same else ""))


@command.command("withdraw")
@click.argument("screen", type=folder_type)
@plates_option
@wells_option
@click.option("--all", "every", is_flag=True, help="All corrections of these plates.")
def withdraw_labels(screen, plates, wells, every):
    """Forget corrections, so that the segmentation method's labels come back.

    \b
    plateloom labels withdraw screens/demo --wells A01
    """
    from plateloom.store.corrections import correction_path, remove_correction

    if not wells and not every:
        raise ConfigError("say which corrections: --wells A01,B02, or --all")
    with _hold(screen):
        chosen = _choose_corrections(screen, plates, wells)
        for plate, well, field in chosen:
            remove_correction(screen / correction_path(plate, well, field))
    click.echo(f"{counted(len(chosen), 'correction')} withdrawn")


@command.command("list")
@click.argument("screen", type=folder_type)
@plates_option
@wells_option
def list_labels(screen, plates, wells):
    """List the fields whose labels were corrected.

    \b
    plateloom labels list screens/demo
    """
    from plateloom.store.corrections import correction_path, read_correction

    for plate, well, field in _choose_corrections(screen, plates, wells):
        labels, _ = read_correction(screen / correction_path(plate, well, field))
        click.echo(f"{plate} {well} field {field}: {counted(_objects(labels['Nuclei']), 'cell')}")


def _hold(screen):
    """The screen's lock: no run reads corrections while they change."""
    from plateloom.engine import locks

    return locks.hold(screen / locks.RUN, wait=False)


def _find_plates(path):
    """Name to plate.zarr of a screen's plates, or of one plate."""
    path = path.resolve()
    if path.name == "plate.zarr":
        return {path.parent.name: path}
    if (path / "plate.zarr").is_dir():
        return {path.name: path / "plate.zarr"}
    found = {store.parent.name: store for store in sorted(path.glob(str(plate_store("*"))))}
    if not found:
        raise ConfigError(
            f"{str(path)!r} holds no plate.zarr; give a screen that has run, or results/plates/NAME of it"
        )
    return found


def _choose(stores, plates, wells):
    """Plate to well to fields of what is asked for; every wrong name at once."""
    from plateloom.store.plate import list_fields

    problems = _strangers("--plate", plates, stores)
    listed = {name: list_fields(store) for name, store in stores.items() if name in (plates or stores)}
    asked, wrong = _parse_wells(wells)
    known = sorted({well for fields in listed.values() for well in fields})
    problems += wrong
    problems += [] if not listed else _strangers("--wells", asked or (), known)
    if problems:
        raise ConfigError(problems)
    return {
        plate: {well: numbers for well, numbers in fields.items() if asked is None or well in asked}
        for plate, fields in listed.items()
    }


def _choose_corrections(screen, plates, wells):
    """Plate, well and field of the corrections that are asked for."""
    from plateloom.store.corrections import FOLDER, list_corrections

    folders = sorted(path.name for path in (screen / FOLDER).glob("*") if path.is_dir())
    listed = {plate: list_corrections(screen, plate) for plate in folders}
    asked, problems = _parse_wells(wells)
    problems += _strangers("--plate", plates, listed)
    problems += _strangers("--wells", asked or (), sorted({well for found in listed.values() for well in found}))
    if problems:
        raise ConfigError([f"{problem} (of those with corrected labels)" for problem in problems])
    return [
        (plate, well, field)
        for plate, found in listed.items()
        for well, fields in found.items()
        for field in sorted(fields, key=int)
        if plate in (plates or listed) and (asked is None or well in asked)
    ]


def _strangers(option, names, known):
    """A line for each name that is not known."""
    listed = f"there are {some_of(known, NAMED)}" if known else "there are none"
    return [f"{option}: no {name!r}.{did_you_mean(name, known)} {listed}" for name in names if name not in known]


def _parse_wells(text):
    """Wells of a list (None: all), and what is wrong with it."""
    from plateloom.wells import read_wells

    found, problems = read_wells(text or "")
    return None if text is None else found, [f"--wells: {problem}" for problem in problems]


def _export_field(path, target):
    """Write a field's image and labels; False where it has no labels."""
    import numpy as np
    import tifffile

    from plateloom.store.corrections import CORRECTED, digest_image, digest_labels
    from plateloom.store.plate import describe_image, list_labels, read_image, read_labels
    from plateloom.store.provenance import write_json

    described = describe_image(path)
    size = described["pixel_size_um"]
    target.mkdir(parents=True)
    metadata = {
        "axes": described["axes"].upper(),
        "Channel": {"Name": described["channels"]},
        "PhysicalSizeX": size,
        "PhysicalSizeY": size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(target / IMAGE, read_image(path), ome=True, metadata=metadata, compression="zlib")
    there = set(list_labels(path)) & set(CORRECTED)
    exported = {"image": digest_image(path), "labels": {}}
    for name in sorted(there):
        labels = read_labels(path, name)
        # Fiji has no integers of 32 bits: it would turn them into floats.
        kind = np.uint16 if labels.max(initial=0) < 2**15 else np.uint32
        tifffile.imwrite(target / f"{name}.tif", labels.astype(kind), compression="zlib", metadata=None)
        exported["labels"][name] = digest_labels(labels)
    write_json(target / EXPORTED, exported)
    return bool(there)


def _read_folder(folder, stores):
    """Label images of a folder that `labels export` wrote.

    Returns
    -------
    found : dict of (str, str, int) to dict of str to (Path, ndarray)
        Plate, well and field to compartment to file and labels.
    problems : list of str
    """
    from plateloom.store.corrections import CORRECTED
    from plateloom.store.plate import field_path, image_shape, list_fields

    listed = {name: list_fields(store) for name, store in stores.items()}
    found, problems, files = {}, [], 0
    for path in sorted(folder.rglob("*")):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
        inside = path.relative_to(folder).parts
        if (
            not path.is_file()
            or suffix is None
            or path.name in NO_LABELS
            or any(part.startswith(".") for part in inside)
        ):
            continue
        files += 1
        name = path.name[: -len(suffix)]
        if len(inside) != 4:
            problems.append(f"{path}: expected PLATE/WELL/FIELD/Nuclei.tif, as `plateloom labels export` writes it")
            continue
        plate, well, field, _ = inside
        try:
            if name not in CORRECTED:
                hint = did_you_mean(name, CORRECTED)
                raise ValueError(f"{name!r} is no compartment.{hint} Corrected are {' and '.join(CORRECTED)}")
            if plate not in listed:
                raise ValueError(f"no plate {plate!r}.{did_you_mean(plate, listed)} Plates: {', '.join(listed)}")
            if well not in listed[plate] or field not in map(str, listed[plate][well]):
                raise ValueError(f"plate {plate!r} has no field {field!r} of well {well!r}")
            painted = found.setdefault((plate, well, int(field)), {})
            if name in painted:
                raise ValueError(f"{painted[name][0].name!r} is there as well; remove one")
            _, *shape = image_shape(field_path(stores[plate], well, field))
            if len(shape) > 2:
                raise ValueError("this plate keeps its z planes, and labels of volumes are not taken back")
            painted[name] = (path, _read_labels(path, tuple(shape)))
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if not files:
        problems.append(f"{str(folder)!r} holds no label image; expected PLATE/WELL/FIELD/Nuclei.tif and Cells.tif")
    return found, problems


def _read_labels(path, shape):
    """Pixels of a label image; `ValueError` where they are none."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.series) != 1 or tiff.pages.first.samplesperpixel > 1:
                raise ValueError("expected one image with one number per pixel")
            labels = tiff.series[0].asarray().squeeze()
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder finds wrong
        raise ValueError(f"cannot be read as a label image: {error or type(error).__name__}") from None
    if labels.dtype.kind not in "ui":
        raise ValueError(f"its pixels are {labels.dtype}; expected integers, e.g. 16 bits without sign")
    if labels.shape != tuple(shape):
        found, expected = (" × ".join(map(str, size)) for size in (labels.shape, shape))
        raise ValueError(f"is {found} px; the field is {expected} px")
    return labels


def _judge(screen, key, painted, place):
    """Compare painted labels with those that hold, and make nuclei and cells agree.

    Returns
    -------
    labels : (dict of str to ndarray of uint32, list of str, int, bool) or None
        Labels to import, digests of the image that they were painted on, the number of nuclei before, and whether the field
        was segmented anew since they were exported; None where nothing has changed, or something is wrong.
    problems : list of str
    """
    import numpy as np

    from plateloom.segmentation.reconciling import find_faults, reconcile
    from plateloom.store.corrections import CORRECTED, digest_image, digest_labels, read_correction, same_image
    from plateloom.store.plate import field_path, list_labels, read_labels

    exported, was = _read_exported(painted)
    touched = {name: found for name, found in painted.items() if was.get(name) != digest_labels(found[1])}
    if not touched:
        return None, []
    plate, well, field = key
    path = field_path(screen / plate_store(plate), well, field)
    before, origin = {}, []
    if place.exists():
        before, origin = read_correction(place)
    elif set(list_labels(path)) >= set(CORRECTED):
        before = {name: read_labels(path, name) for name in CORRECTED}
    older = not place.exists() and any(
        name in was and was[name] != digest_labels(labels) for name, labels in before.items()
    )
    file = next(iter(touched.values()))[0]
    if (older or not before) and set(painted) != set(CORRECTED):
        lacking = next(name for name in CORRECTED if name not in painted)
        why = "was segmented anew since the export" if older else "has no labels yet"
        return None, [f"{file}: the field {why}, so {lacking}.tif is needed beside it"]
    problems = [
        f"{file}: {fault}"
        for name, (file, labels) in touched.items()
        for fault in find_faults(labels, None if older else before.get(name))
    ]
    image = digest_image(path)
    if not same_image(exported, image):
        problems.append(f"{file}: painted on other images than the field has now; export it again and correct these")
    if problems:
        return None, problems
    labels = {name: painted[name][1] if name in painted else before[name] for name in CORRECTED}
    labels["Cells"], faults = reconcile(labels["Nuclei"], labels["Cells"])
    if faults:
        file, _ = painted.get("Nuclei") or painted["Cells"]
        return None, [f"{file}: {fault}" for fault in faults]
    same = before and all(np.array_equal(labels[name], before[name]) for name in CORRECTED)
    if same and same_image(origin, image):
        return None, []
    labels = {name: labels[name].astype(np.uint32) for name in CORRECTED}
    return (labels, exported or image, _objects(before["Nuclei"]) if before else 0, older), []


def _read_exported(painted):
    """Digests that `labels export` left beside label images: of the image and by compartment; empty where it left none."""
    from plateloom.store.provenance import read_json

    found = next((read_json(file.parent / EXPORTED) for file, _ in painted.values()), None)
    return (found["image"], found["labels"]) if found else ([], {})


def _objects(labels):
    """Number of objects of a label image."""
    import numpy as np

    return int((np.unique(labels) > 0).sum())
