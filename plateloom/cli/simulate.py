"""`plateloom simulate`: raw images of a screen with known truth, and the screen's folder to run it."""

import csv
import shlex
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from plateloom.cli.check import explain_untrainable
from plateloom.errors import ConfigError, counted

# A demonstration should be over in minutes on two cores.
QUICK = """illumination:
  fields: 24              # at most, of {fields} a plate

latent:
  autoencoder:
    cells: 1500           # at most, of about {cells:.0f}; the default is made for real screens
    parameters: {{epochs: 30, out_px: 48}}
  maps:
    cells: 2000
"""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--plates", type=click.IntRange(1), default=2, show_default=True, help="Number of plates.")
@click.option("--rows", type=click.IntRange(1, 32), default=6, show_default=True, help="Rows of a plate.")
@click.option("--columns", type=click.IntRange(1, 48), default=8, show_default=True, help="Columns of a plate.")
@click.option("--fields", type=click.IntRange(1), default=1, show_default=True, help="Fields per well.")
@click.option("--size", type=click.IntRange(64), default=512, show_default=True, help="Side of a field [px].")
@click.option(
    "--cells", type=click.FloatRange(0), default=50.0, show_default=True, help="Mean number of cells per field."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Everything follows from it.")
@click.option(
    "--defect", multiple=True, help="KIND=NUMBER of fields: blurred, debris, saturated, empty, truncated, missing."
)
@click.option(
    "--rare",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Add a treatment under which this share of cells is condensed.",
)
@click.option("--novel", is_flag=True, help="Add a treatment with a phenotype that no label names.")
@click.option(
    "--shift", multiple=True, help="PLATE:CHANNEL=FACTOR: so much brighter the channel (DNA, ER, GFP) is on that plate."
)
@click.option(
    "--threads", default=None, type=click.IntRange(1), help="Fields rendered at the same time; default: all cores."
)
def command(folder, plates, rows, columns, fields, size, cells, seed, defect, rare, novel, shift, threads):
    """Write plates of raw TIFF files with known truth, and the screen's config beside them.

    \b
    plateloom simulate screens/demo
    plateloom simulate screens/bad --defect blurred=2 --defect truncated=1
    plateloom simulate screens/hard --plates 7 --rare 0.01 --novel --shift plate4:GFP=2
    """
    from plateloom.cli.init import writing
    from plateloom.simulation import DEFAULT_TREATMENTS, DEFECTS, ScreenDesign, Treatment, all_defects

    defects = {}
    for text in defect:
        kind, _, number = text.partition("=")
        if kind not in DEFECTS or not number.isdigit():
            raise ConfigError(f"--defect {text!r}: expected KIND=NUMBER with a kind of {', '.join(DEFECTS)}")
        defects[kind] = int(number)
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{str(folder / 'config.yaml')!r} is there already; choose another folder")
    treatments = list(DEFAULT_TREATMENTS)
    if rare:
        treatments.append(Treatment("rarecidin", "condensed", ec50=0.01, top=rare, labeled=False))
    if novel:
        treatments.append(Treatment("novelin", "speckled", ec50=0.25, labeled=False))
    try:
        design = ScreenDesign(
            plates=tuple(f"plate{i + 1}" for i in range(plates)),
            rows=rows,
            columns=columns,
            fields=fields,
            size_px=size,
            cells_per_field=cells,
            treatments=treatments,
            shifts=_shifts(shift),
            defects=defects,
            seed=seed,
        )
    except ValueError as error:
        raise ConfigError(f"--shift: {error}") from None
    try:
        all_defects(design)
    except ValueError as error:
        raise ConfigError(f"--defect: {error}") from None
    with writing(folder):
        write_screen(folder, design, threads=threads)
    click.echo(
        f"{counted(plates, 'plate')} of {counted(rows * columns, 'well')} with {counted(fields, 'field')}, in {folder}; "
        f"next: plateloom run {shlex.quote(str(folder))}"
    )


def _shifts(texts):
    """Factors by plate and channel, of PLATE:CHANNEL=FACTOR."""
    found = {}
    for text in texts:
        place, _, factor = text.partition("=")
        plate, _, channel = place.partition(":")
        try:
            found.setdefault(plate, {})[channel] = float(factor)
        except ValueError:
            raise ConfigError(f"--shift {text!r}: expected PLATE:CHANNEL=FACTOR") from None
    return found


def write_screen(folder, design, *, threads=None):
    """Write raw images, truth, and a screen's files.

    Parameters
    ----------
    folder : path
        Becomes the screen; raw images go to ``raw/{plate}``, the truth to ``truth/{plate}``.
    design : ScreenDesign
    threads : int, optional
        Processes that render.
    """
    from plateloom.cli.init import write_config, write_plates
    from plateloom.config import Classification
    from plateloom.readers.pattern import KNOWN
    from plateloom.simulation import all_fields, plate_map

    folder = Path(folder)
    for plate in design.plates:
        (folder / "raw" / plate).mkdir(parents=True, exist_ok=True)
        (folder / "truth" / plate).mkdir(parents=True, exist_ok=True)
    fields = all_fields(design)
    with ProcessPoolExecutor(threads) as pool:
        tables = list(
            pool.map(
                _write_field, [folder] * len(fields), [design] * len(fields), *zip(*fields, strict=True), chunksize=4
            )
        )
    _write_truth(folder / "truth", design, tables)
    (folder / "maps").mkdir(exist_ok=True)
    labels = []
    for plate in design.plates:
        rows = plate_map(design, plate)
        with open(folder / "maps" / f"{plate}.tsv", "w", newline="") as file:
            names = [name for name in rows[0] if name != "plate"]
            writer = csv.DictWriter(file, names, delimiter="\t", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        labels += _labels(design, plate, rows)
    with open(folder / "labels.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([("plate", "well", "class"), *labels])
    batches = {plate: f"batch{i + 1}" for i, plate in enumerate(design.plates)}
    write_plates(
        folder / "plates.tsv",
        [(plate, f"raw/{plate}", "pattern", f"maps/{plate}.tsv", batch) for plate, batch in batches.items()],
    )
    few = explain_untrainable(Classification(labels="labels.tsv"), labels, batches)  # of a screen of few wells
    write_config(
        folder / "config.yaml",
        channels={name: str(i + 1) for i, name in enumerate(design.channel_names)},
        readers={"pattern": {"pattern": KNOWN["plateloom"]}},
        pixel_size_um=design.pixel_size_um,
        nuclei="DNA",
        cells=next((name for name in design.channel_names if name in ("Actin", "ER")), ""),
        readout=("Nuclei_Intensity_MeanIntensity_GFP", "Cytoplasm_Intensity_MeanIntensity_GFP"),
        labels="" if few else "labels.tsv",
        extra=QUICK.format(
            fields=len(design.wells) * design.fields, cells=float(f"{len(fields) * design.cells_per_field:.2g}")
        ),
        comment="A simulated screen; truth/ holds what is known of it: label images, classes of cells, treatments, light, defects.",
    )


def _write_truth(folder, design, cells):
    """Write what else is known beside the masks: cells and their classes, treatments, light, staining, defects."""
    import pandas as pd
    import tifffile

    from plateloom.simulation import all_defects, flatfields, staining

    pd.concat(cells, ignore_index=True).to_parquet(folder / "cells.parquet", index=False)
    columns = ["plate", "channel", "brightness", "background"]
    stained = [
        (plate, channel, *factors)
        for plate in design.plates
        for channel, factors in zip(design.channel_names, staining(design, plate), strict=True)
    ]
    shifts = [(plate, *one) for plate, factors in design.shifts for one in factors]
    defects = [(*where, ",".join(kinds)) for where, kinds in sorted(all_defects(design).items())]
    told = ("name", "phenotype", "ec50", "hill", "top", "doses", "labeled")
    treatments = [[getattr(treatment, name) for name in told] for treatment in design.treatments]
    for name, rows, header in (
        ("treatments", treatments, ["treatment", "phenotype", "ec50_uM", "hill", "top", "doses_uM", "labeled"]),
        ("staining", stained, columns),
        ("shifts", shifts, ["plate", "channel", "factor"]),
        ("defects", defects, ["plate", "well", "field", "defects"]),
    ):
        table = pd.DataFrame(rows, columns=header)
        if "doses_uM" in table:
            table["doses_uM"] = [",".join(map(str, doses)) for doses in table["doses_uM"]]
        table.to_csv(folder / f"{name}.tsv", sep="\t", index=False)
    for plate in design.plates:
        path, light = folder / plate / "flatfield.tif", flatfields(design, plate)
        tifffile.imwrite(path, light, photometric="minisblack", compression="zlib")


def _write_field(folder, design, plate, well, field):
    """Render one field and write its planes and its truth."""
    import tifffile

    from plateloom.simulation import render_field

    found = render_field(design, plate, well, field)
    for i, plane in enumerate(found.image):
        path = folder / "raw" / plate / f"{well}_s{field}_w{i + 1}.tif"
        if "missing" in found.defects and i == len(found.image) - 1:
            continue
        tifffile.imwrite(
            path, plane, compression="zlib", resolution=(1e4 / design.pixel_size_um,) * 2, resolutionunit=3
        )
        if "truncated" in found.defects and i == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name, labels in (("nuclei", found.nuclei), ("cells", found.cells)):
        tifffile.imwrite(folder / "truth" / plate / f"{well}_s{field}_{name}.tif", labels, compression="zlib")
    return found.table


def _labels(design, plate, rows):
    """Wells whose class is known from what stands in them: negative controls, and the highest dose of what acts."""
    phenotypes = {treatment.name: treatment for treatment in design.treatments if treatment.phenotype != "none"}
    labels = []
    for row in rows:
        treatment = phenotypes.get(row["treatment"])
        if row["control"] == "negative":
            labels.append((plate, row["well"], "normal"))
        elif treatment and treatment.labeled and row["dose"] == max(treatment.doses):
            labels.append((plate, row["well"], treatment.phenotype))
    return labels
