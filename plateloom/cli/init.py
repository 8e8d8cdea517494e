"""`plateloom init`: look at image folders and write what a screen needs. Asks nothing."""

import contextlib
import itertools
import json
import shlex
from pathlib import Path

import click

from plateloom.errors import ConfigError, PlateLayoutError, counted, some_of

COLORS = {
    "dna": "4080FF",
    "dapi": "4080FF",
    "hoechst": "4080FF",
    "gfp": "40FF40",
    "er": "FFA040",
    "rfp": "FF4040",
    "actin": "FF8000",
}
PALETTE = ("4080FF", "40FF40", "FF4040", "FFC000", "FF40FF", "40FFFF", "FFFFFF")
NUCLEI = ("dna", "dapi", "hoechst", "draq", "nuclei", "nucleus")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A plate's folder of images; once per plate.",
)
@click.option(
    "--plates",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder of which each folder is a plate, in place of one --source for each.",
)
@click.option("--pattern", default=None, help="Regular expression of file names, where the layout is not recognized.")
@click.option(
    "--pixel-size",
    "pixel_size_um",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="UM",
    help="Size of a pixel [µm/px], where the files do not say it, or say it wrong.",
)
def command(folder, sources, folders, pattern, pixel_size_um):
    """Look at image folders, guess reader, channels and pattern, and write a screen's files into FOLDER.

    \b
    plateloom init screens/mine --source /data/plate1 --source /data/plate2
    plateloom init screens/mine --plates /data/screen
    """
    if not sources and not folders:
        raise click.UsageError("Missing option '--source', once per plate, or '--plates'.")
    found = look(sources, pattern, folders)
    if pixel_size_um:
        found |= {"pixel_size_um": pixel_size_um, "size_from": "--pixel-size"}
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{str(folder / 'config.yaml')!r} is there already; choose another folder")
    with writing(folder):
        _write_screen(folder, found)
    channels = [name if name == code else f"{name} ({code})" for name, code in found["channels"].items()]
    wells = sum(len(plate["wells"]) for plate in found["plates"])
    click.echo(
        f"{counted(len(found['plates']), 'plate')}, layout {found['layout']}, "
        f"{'channel' if len(channels) == 1 else 'channels'} {', '.join(channels)}, {counted(wells, 'well')}."
    )
    for note in found["notes"]:
        click.echo(note)
    if len(times := found["times"]) > 1:
        click.echo(
            f"{len(times)} time points ({some_of(times)}): config.yaml takes the first one; conversion.time says which, or `keep`"
        )
    click.echo(
        f"Now edit {folder}/config.yaml (channels, sizes, readout) and {folder}/maps/*.tsv (treatments, controls: negative, "
        f"positive, empty), then: plateloom check {shlex.quote(str(folder))}"
    )


@contextlib.contextmanager
def writing(folder):
    """Refuse a folder that cannot be written in one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from None


def _write_screen(folder, found):
    """Write the files of a screen from what `look` found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "maps").mkdir(exist_ok=True)
    rows = []
    for plate in found["plates"]:
        name = f"maps/{plate['name']}.tsv"
        lines = ["well\ttreatment\tdose\tunit\tcontrol", *(f"{well}\t\t\t\t" for well in plate["wells"])]
        (folder / name).write_text("\n".join(lines) + "\n")
        rows.append((plate["name"], str(Path(plate["source"]).resolve()), found["reader"], name, "batch1"))
    write_plates(folder / "plates.tsv", rows)
    write_config(
        folder / "config.yaml",
        channels=found["channels"],
        colors=found["colors"],
        readers={found["reader"]: found["params"]} if found["params"] else {},
        pixel_size_um=found["pixel_size_um"],
        size_from=found["size_from"],
        nuclei=found["nuclei"],
        cells=next((name for name in found["channels"] if name != found["nuclei"]), ""),
        guessed=found["guessed"],
        time=found["times"][0] if len(found["times"]) > 1 else None,
        planes=found["planes"],
        comment=f"Written by `plateloom init`; layout: {found['layout']}.",
    )


def look(sources, pattern=None, folders=()):
    """Recognize the layout of plates' folders.

    Parameters
    ----------
    sources : sequence of path
        A folder per plate.
    pattern : str, optional
        Of file names, where no layout is to be recognized.
    folders : sequence of path
        Each folder in these is a plate, too; those without images are left out, with a note.

    Returns
    -------
    dict
        `reader`, `params`, `layout`; `channels` (name -> what the source calls it), `colors`, `nuclei` (the name of the
        channel that shows them) and whether that is `guessed`; `pixel_size_um` (None where neither metadata nor files
        say) and where it is `size_from`; `times`; `notes`; `plates`: name, source and wells of each.

    Raises
    ------
    ConfigError
        If a folder holds nothing that a reader knows; the message shows some file names. If it holds several plates.
    """
    from plateloom.readers import load_reader
    from plateloom.readers.pattern import LIKE_A_WELL

    plates, layouts, scans, notes, noted = [], [], [], [], {}
    inside = [plate for folder in folders for plate in _folders_in(folder)]
    for source in [*sources, *inside]:
        try:
            best = recognize_folder(source, pattern)
        except ConfigError as error:
            if source not in inside:
                raise
            if _holds_images(source):
                raise ConfigError(f"{error}\nIf this is no plate, name the others one by one: --source") from None
            notes.append(f"{str(source)!r} is left out: no images")
            continue
        module = load_reader(best["reader"])
        try:
            found = module.scan(source, module.Params(**best["params"]))
        except PlateLayoutError as error:
            inner = [folder for folder in _folders_in(source) if _holds_images(folder)]
            if len(inner) > 1 and not any(LIKE_A_WELL(folder.name) for folder in inner):
                raise ConfigError(
                    f"{error}. If each folder in it is a plate: --plates {shlex.quote(str(source))}"
                ) from None
            raise
        if not found.images:
            raise ConfigError(
                f"{str(source)!r}: no file is as '{best['params'].get('pattern') or best['layout']}' says"
            )
        if not pattern:
            _refuse_several_plates(source, {image.file.partition("/")[0] for image in found.images})
        layouts.append(best)
        scans.append((module, source, found))
        name = _plate_name(source, plates)
        for note in [*found.notes, *_doubts(best, source, found.images[0])]:
            noted.setdefault(note, []).append(name)
        plates.append({"name": name, "source": source, "wells": sorted({image.well for image in found.images})})
    if not plates:
        raise ConfigError(f"no plate in {', '.join(repr(str(folder)) for folder in folders)}")
    if len(resolved := {Path(plate["source"]).resolve() for plate in plates}) < len(plates):
        raise ConfigError(f"a source is given twice; {len(resolved)} different folders")
    kinds = {(best["reader"], best["layout"]) for best in layouts}
    if len(kinds) > 1:
        raise ConfigError(
            f"the folders have different layouts ({', '.join(sorted(layout for _, layout in kinds))}); init them apart"
        )
    module, source, found = scans[0]
    images = [image for _, _, scan in scans for image in scan.images]
    said = {name: facts for _, _, scan in scans for name, facts in scan.channels.items()}
    channels = _name_channels(sorted({image.channel for image in images}), said)
    nuclei = next((name for name in channels if any(word in name.lower() for word in NUCLEI)), None)
    sizes = {image.pixel_size_um for image in images if image.pixel_size_um}
    size = None if sizes else _pixel_size(source, found.images[0])
    return layouts[0] | {
        "channels": channels,
        "colors": {name: said[code]["color"] for name, code in channels.items() if said.get(code, {}).get("color")},
        "nuclei": nuclei or _guess_nuclei(module, source, found.images, channels),
        "guessed": nuclei is None and len(channels) > 1,
        "pixel_size_um": size or (sorted(sizes)[0] if sizes else None),
        "size_from": "metadata" if sizes else "the files' resolution" if size else "",
        "times": sorted({image.t for image in images}),
        "planes": max(len({image.z for image in images if image.channel == code}) for code in channels.values()),
        "notes": notes + [f"{some_of(names)}: {note}" for note, names in noted.items()],
        "plates": plates,
    }


def _folders_in(folder):
    """The folders in a folder, hidden ones apart, by name."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be read: {error.strerror}") from None


def _holds_images(folder):
    from plateloom.readers.folders import list_files

    return any(True for _ in list_files(folder))


def _refuse_several_plates(source, read):
    """Refuse a folder if only one of the folders in it is `read`, and a reader would know another one, too."""
    if len(read) > 1 or not (source / min(read)).is_dir():
        return
    for other in _folders_in(source):
        if other.name in read or not _holds_images(other):
            continue
        try:
            recognize_folder(other, None)
        except ConfigError:
            continue
        raise ConfigError(
            f"{str(source)!r}: {min(read)!r} would be read, {other.name!r} beside it would not; give the folder that is the "
            f"plate, or if each folder in it is one: --plates {shlex.quote(str(source))}"
        )


def recognize_folder(source, pattern):
    """Find the reader of a folder.

    Returns
    -------
    dict
        `reader`, `params`, `layout` and `share` (see `plateloom.readers`).

    Raises
    ------
    ConfigError
        If no reader knows the folder, and the message shows some file names; if it cannot be read; if the pattern is none.
    """
    from pydantic import ValidationError

    from plateloom.config import explain
    from plateloom.readers import READERS, load_reader
    from plateloom.readers.folders import list_files

    if not source.is_dir():
        told = (
            f"{str(source)!r} is a file; give the folder that it lies in"
            if source.exists()
            else f"no folder {str(source)!r}"
        )
        raise ConfigError(told)
    try:
        names = sorted(name for name, _ in itertools.islice(list_files(source, ("",)), 200_000))
    except OSError as error:
        raise ConfigError(f"{str(source)!r} cannot be read: {error.strerror}") from None
    if pattern:
        model = load_reader("pattern").Params
        try:
            model(pattern=pattern)
        except ValidationError as error:
            raise ConfigError(explain(error, model, prefix="--")) from None
        params = {"pattern": pattern} | ({"folders": True} if "/" in pattern else {})  # of paths below the source
        return {"reader": "pattern", "params": params, "layout": "your pattern", "share": 1.0}
    guesses = [load_reader(name).recognize(source, names) for name in READERS]
    best = max((guess for guess in guesses if guess), key=lambda guess: guess["share"], default=None)
    if best is None:
        if not names:
            raise ConfigError(f"{str(source)!r} holds no file")
        shown = "\n".join(f"  {name}" for name in names[:5])
        raise ConfigError(
            f"{str(source)!r}: no known layout. Some of its files:\n{shown}\n"
            "Give --pattern with named groups, e.g. --pattern '(?P<well>[A-P][0-9]{2})_s(?P<field>[0-9]+)_(?P<channel>.+)[.]tif'"
        )
    return best


def _name_channels(codes, said):
    """Names for channels, safe in columns of tables: the metadata's, else the source's own; -> what the source says."""
    import re

    names = {}
    for code in codes:
        text = said.get(code, {}).get("name") or (code if not code.isdigit() else f"Channel{code}")
        name = re.sub(r"[^A-Za-z0-9]+", "", text) or f"Channel{code}"
        name = name if name[0].isalpha() else f"Channel{name}"
        names[name if name not in names else f"{name}w{code}"] = code
    return names


def _guess_nuclei(module, source, images, channels):
    """The channel whose pixels part best into bright objects and background, as nuclei do, by Otsu's measure."""
    import numpy as np
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    from plateloom.errors import DataFault

    if len(channels) == 1:
        return next(iter(channels))
    scores = {}
    for name, code in channels.items():
        found = [image for image in images if image.channel == code]
        parted = []
        for image in found[:: max(1, len(found) // 6)][:6]:
            try:
                plane = module.load(source, image)[0].astype(np.float32)
            except (DataFault, OSError):
                continue
            # At the size of a nucleus, wherever that lies: cytoplasm fades into the background, nuclei do not.
            values = np.log1p(gaussian_filter(plane, 2)).ravel()
            above = values > threshold_otsu(values)
            if values.std() and above.any() and not above.all():
                share = above.mean()
                between = share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2
                parted.append(between / values.var())
        scores[name] = float(np.median(parted)) if parted else 0.0
    return max(scores, key=scores.get)


def write_plates(path, rows):
    """Write plates.tsv from (plate, source, reader, plate map, batch) rows."""
    lines = ["\t".join(row) for row in [("plate", "source", "reader", "plate_map", "batch"), *rows]]
    path.write_text("\n".join(lines) + "\n")


def write_config(
    path,
    *,
    channels,
    readers,
    pixel_size_um,
    nuclei,
    cells,
    colors=None,
    size_from="",
    guessed=False,
    time=None,
    planes=1,
    readout=None,
    labels="",
    extra="",
    comment="",
):
    """Write a screen's config.yaml: what differs from the defaults, with the reason beside it.

    Parameters
    ----------
    path : path
    channels : dict of str to str
        Name -> what the source calls it.
    readers : dict of str to dict
        Parameters of readers.
    pixel_size_um : float or None
        [µm/px].
    nuclei, cells : str
        Channels that show nuclei and whole cells; `cells` may be empty.
    colors : dict of str to str, optional
        RRGGBB of channels.
    size_from : str
        Where the size of a pixel was found; ``metadata``: it is taken from there, and not written.
    guessed : bool
        Whether the channel of the nuclei is only a guess.
    time : int, optional
        The time point to take, where there are several.
    planes : int
        How many z planes there are.
    readout : tuple of str, optional
        Feature, and the one that it is divided by.
    labels : str
        Table of labels for the classifier, or ``controls``.
    extra : str
        More sections, as YAML.
    comment : str
    """
    import yaml

    colors = colors or {}
    if size_from == "metadata":
        size = f"# pixel_size_um: {pixel_size_um:g}   # the source's metadata say so"
    elif pixel_size_um:
        size = f"pixel_size_um: {pixel_size_um:g}" + (f"   # from {size_from}" if size_from else "")
    else:
        size = "pixel_size_um:         # FILL IN [µm/px]: the files do not say; lengths in µm mean nothing without it"
    lines = [
        f"# {comment}",
        "# What stands here overrides the defaults; `plateloom config` lists every setting.",
        "",
        "plates: plates.tsv",
        "parts: 1                  # jobs per plate and stage: 1 on a workstation, about 8 on a cluster",
        "",
    ]
    if readers:
        lines += [yaml.safe_dump({"readers": readers}, sort_keys=False, width=1000)]
    lines.append("channels:                 # name: {source: what the files call it, color: RRGGBB}")
    rank = {name: i for i, name in enumerate(sorted(channels, key=lambda name: name != nuclei))}  # nuclei are blue
    for name, source in channels.items():
        color = colors.get(name) or COLORS.get(name.lower(), PALETTE[rank[name] % len(PALETTE)])
        lines.append(f"  {name}: {{source: {json.dumps(source)}, color: '{color}'}}")
    lines += [
        "",
        "conversion:",
        "  layout: fields          # one image per field; stitched: one per well, where the source tells positions",
        f"  {size}",
        *([f"  time: {time}               # of several time points; or keep"] if time is not None else []),
        *(
            [f"  z: max                  # of {planes} planes; keep, with segmentation.method: volume, for volumes"]
            if planes > 1
            else []
        ),
        "",
        "segmentation:",
        "  method: watershed",
        "  parameters:",
        f"    nuclei_channel: {nuclei}"
        + ("   # guessed from the pixels: look at one image of each channel" if guessed else ""),
        *([f"    cells_channel: {cells}"] if cells else []),
        "    nucleus_diameter_um: 12   # typical diameter of a nucleus [µm]: measure one",
        "",
    ]
    if readout:
        lines += [
            "profiling:",
            "  parameters:",
            f"    readout: {readout[0]}",
            f"    readout_denominator: {readout[1]}",
            "",
        ]
    else:
        lines += [
            "# profiling:",
            "#   parameters:",
            "#     readout: Nuclei_Intensity_MeanIntensity_…   # what Z' and dose response are computed from",
            "",
        ]
    lines += (
        ["classification:", f"  labels: {labels}", ""]
        if labels
        else ["# classification:", "#   labels: controls   # positive against negative wells", ""]
    )
    path.write_text("\n".join(lines) + (f"\n{extra}" if extra else ""))


def _plate_name(source, plates):
    """A name for a plate from its folder: safe in paths, and not taken yet."""
    import re

    source = Path(source).resolve()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", source.name).lstrip("._-") or "plate"
    taken = {plate["name"] for plate in plates}
    return next(name for i in itertools.count(1) if (name := stem if i == 1 else f"{stem}-{i}") not in taken)


def _doubts(best, source, image):
    """What a person should look at before trusting a layout."""
    from tifffile import TiffFile, TiffFileError

    from plateloom.readers.planes import count_planes

    if best["layout"] in ("generic", "single"):
        yield "the layout is guessed from the names: compare wells, fields and channels with `plateloom scan`"
    if best["reader"] != "pattern" or not image.file.lower().endswith((".tif", ".tiff")):
        return
    try:
        with TiffFile(Path(source, image.file)) as tiff:
            planes = count_planes(tiff)
    except (TiffFileError, OSError):
        return
    if planes > 1:
        yield (
            f"{image.file!r} holds {planes} planes, and the reader `pattern` takes files of one only: split them, or "
            "install bioio and bioio-tifffile, write `bioio` as reader into plates.tsv and "
            "`readers: {bioio: {suffixes: [.tif, .tiff]}}` into config.yaml"
        )


def _pixel_size(source, image):
    """Pixel size from a TIFF's resolution [µm/px]; None where it does not say."""
    if not image.file.lower().endswith((".tif", ".tiff")):
        return None
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(Path(source, image.file)) as tiff:
            tags = tiff.pages[0].tags
            if "XResolution" not in tags or "ResolutionUnit" not in tags:
                return None
            top, bottom = tags["XResolution"].value
            per_unit = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value), 0.0)
            size = per_unit * bottom / top if top else 0.0
    except (TiffFileError, OSError):
        return None
    return size if 0.01 < size < 20 else None  # screen resolutions (72 dpi) say nothing of the sample
