"""`plateloom init`: look at image folders and write what a screen needs. Asks nothing."""

import collections
import itertools
from pathlib import Path

import click

from plateloom.errors import ConfigError

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
    required=True,
    type=click.Path(path_type=Path),
    help="A plate's folder of images; once per plate.",
)
@click.option("--pattern", default=None, help="Regular expression of file names, where the layout is not recognised.")
def command(folder, sources, pattern):
    """Look at image folders, guess reader, channels and pattern, and write a screen's files into FOLDER.

    \b
    plateloom init screens/mine --source /data/plate1 --source /data/plate2
    """
    found = look(sources, pattern)
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{str(folder / 'config.yaml')!r} is there already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "maps").mkdir(exist_ok=True)
    rows = []
    for plate in found["plates"]:
        name = f"maps/{plate['name']}.tsv"
        lines = ["well\ttreatment\tdose\tunit\tcontrol", *(f"{well}\t\t\t\t" for well in plate["wells"])]
        (folder / name).write_text("\n".join(lines) + "\n")
        rows.append((plate["name"], str(Path(plate["source"]).resolve()), found["reader"], name, "batch1"))
    write_plates(folder / "plates.tsv", rows)
    channels = {channel: channel for channel in found["channels"]}
    names = {source if not source.isdigit() else f"Channel{source}": source for source in channels}
    nuclei = next((name for name in names if name.lower() in NUCLEI), next(iter(names)))
    write_config(
        folder / "config.yaml",
        channels=names,
        pattern=found["params"].get("pattern"),
        pixel_size_um=found["pixel_size_um"],
        nuclei=nuclei,
        cells=next((name for name in names if name != nuclei), ""),
        comment=f"Written by `plateloom init`; layout: {found['layout']}.",
    )
    click.echo(
        f"{len(rows)} plate(s), layout {found['layout']}, channels {', '.join(found['channels'])}, "
        f"{sum(len(plate['wells']) for plate in found['plates'])} wells.\n"
        f"Now edit {folder}/config.yaml (channels, sizes) and {folder}/maps/*.tsv (treatments, controls), then: plateloom check {folder}"
    )


def look(sources, pattern=None):
    """Recognise the layout of plates' folders.

    Returns
    -------
    dict
        `reader`, `params`, `layout`, `channels`, `pixel_size_um` (None where the files do not say), and `plates`:
        name, source and wells of each.

    Raises
    ------
    ConfigError
        If a folder holds nothing that a reader knows; the message shows some file names.
    """
    from plateloom.readers import READERS, load_reader
    from plateloom.readers.folders import list_files

    plates, channels, layouts, first = [], collections.Counter(), [], None
    for source in sources:
        if not source.is_dir():
            raise ConfigError(f"no folder {str(source)!r}")
        names = sorted(name for name, _ in itertools.islice(list_files(source), 200_000))
        if pattern:
            best = {"reader": "pattern", "params": {"pattern": pattern}, "layout": "your pattern", "share": 1.0}
        else:
            guesses = [load_reader(name).recognise(source, names) for name in READERS]
            best = max((guess for guess in guesses if guess), key=lambda guess: guess["share"], default=None)
        if best is None:
            shown = "\n".join(f"  {name}" for name in names[:5]) or "  (no image at all)"
            raise ConfigError(
                f"{str(source)!r}: no known layout. Some of its files:\n{shown}\n"
                "Give --pattern with named groups, e.g. --pattern '(?P<well>[A-P][0-9]{2})_s(?P<field>[0-9]+)_(?P<channel>.+)[.]tif'"
            )
        module = load_reader(best["reader"])
        images = module.scan(source, module.Params(**best["params"])).images
        if not images:
            raise ConfigError(
                f"{str(source)!r}: no file name matches {best['params'].get('pattern')!r}; found e.g. {names[:3]}"
            )
        first = first or (module, source, images[0])
        layouts.append(best)
        channels.update(image.channel for image in images)
        plates.append(
            {"name": _plate_name(source, plates), "source": source, "wells": sorted({image.well for image in images})}
        )
    kinds = {(best["reader"], best["layout"]) for best in layouts}
    if len(kinds) > 1:
        raise ConfigError(
            f"the folders have different layouts ({', '.join(sorted(layout for _, layout in kinds))}); init them apart"
        )
    best = layouts[0]
    return {
        "reader": best["reader"],
        "params": best["params"],
        "layout": best["layout"],
        "channels": sorted(channels),
        "pixel_size_um": _pixel_size(*first),
        "plates": plates,
    }


def write_plates(path, rows):
    """Write plates.tsv from (plate, source, reader, plate map, batch) rows."""
    lines = ["\t".join(row) for row in [("plate", "source", "reader", "plate_map", "batch"), *rows]]
    path.write_text("\n".join(lines) + "\n")


def write_config(
    path, *, channels, pattern, pixel_size_um, nuclei, cells, readout=None, labels="", extra="", comment=""
):
    """Write a screen's config.yaml: what differs from the defaults, with the reason beside it.

    Parameters
    ----------
    path : path
    channels : dict of str to str
        Name -> what the source calls it.
    pattern : str or None
        Of the pattern reader.
    pixel_size_um : float or None
        [µm/px].
    nuclei, cells : str
        Channels that show nuclei and whole cells; `cells` may be empty.
    readout : tuple of str, optional
        Feature, and the one that it is divided by.
    labels : str
        Table of labels for the classifier, or ``controls``.
    extra : str
        More sections, as YAML.
    comment : str
    """
    size = (
        f"{pixel_size_um:g}"
        if pixel_size_um
        else "1.0   # unknown: the files do not say. Until you give it, µm means pixels"
    )
    lines = [
        f"# {comment}",
        "# What stands here overrides the defaults; `plateloom config` lists every setting.",
        "",
        "plates: plates.tsv",
        "parts: 1                  # jobs per plate and stage: 1 on a workstation, about 8 on a cluster",
        "",
    ]
    if pattern:
        lines += ["readers:", "  pattern:", f"    pattern: '{pattern}'", ""]
    lines.append("channels:                 # name: {source: what the files call it, color: RRGGBB}")
    for i, (name, source) in enumerate(channels.items()):
        lines.append(
            f"  {name}: {{source: '{source}', color: '{COLORS.get(name.lower(), PALETTE[i % len(PALETTE)])}'}}"
        )
    lines += [
        "",
        "conversion:",
        f"  pixel_size_um: {size}",
        "",
        "segmentation:",
        "  method: watershed",
        "  parameters:",
        f"    nuclei_channel: {nuclei}",
        *([f"    cells_channel: {cells}"] if cells else []),
        "    # nucleus_diameter_um: 12   # typical diameter of a nucleus [µm]",
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


def _pixel_size(module, source, image):
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
