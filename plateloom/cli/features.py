"""`plateloom features`: what would be measured, how much of it, and what it costs."""

from pathlib import Path

import click

COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")
UNASKED = {"channels", "row_group_rows"}  # settings that are no option of `describe_columns`


@click.command()
@click.argument("screen", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@click.option("--columns", is_flag=True, help="List every column with family, channel, unit and source instead.")
@click.option("--markdown", is_flag=True, help="Print the table that stands in docs/features.md instead.")
@click.option("--time", "timed", is_flag=True, help="Measure a simulated field, and say how long each family takes.")
def command(screen, columns, markdown, timed):
    """List the feature families that SCREEN measures (without one: all, of five channels), with their columns and bytes.

    \b
    plateloom features screens/demo
    plateloom features screens/demo --columns > columns.tsv
    plateloom features --time
    """
    from plateloom.features.meaning import describe_columns, list_measurements

    if markdown:
        click.echo(
            "| family | column, without its compartment | columns | unit | as CellProfiler's |\n|---|---|---|---|---|"
        )
        for row in list_measurements():
            click.echo("| {} | `{}` | {} | {} | {} |".format(*row))
        return
    channels, compartments, settings = _settings(screen)
    if timed and settings["volumes"]:
        raise click.UsageError("--time measures a simulated plane, and this screen measures volumes")
    width = {"float64": 8, "float32": 4}[settings.pop("precision")]
    described = describe_columns(compartments, channels, **settings)
    if columns:
        click.echo("column\tcompartment\tfamily\tchannel\tunit\tsource")
        for name, column in described.items():
            click.echo("\t".join([name, *column.values()]))
        return
    counts, sources = {}, {}
    for column in described.values():
        counts[column["family"]] = counts.get(column["family"], 0) + 1
        sources.setdefault(column["family"], {})[column["source"]] = None
    times = _time_families(channels, compartments, settings, list(counts)) if timed else {}
    click.echo(f"channels: {', '.join(channels)}; compartments: {', '.join(compartments)}")
    click.echo(f"{'family':20}{'columns':>8}{'bytes a cell':>14}{'ms' if timed else '':>8}  as CellProfiler's")
    for family, count in counts.items():
        spent = f"{times[family]:.1f}" if timed else ""
        click.echo(f"{family:20}{count:>8,}{count * width:>14,}{spent:>8}  {'; '.join(sources[family])}")
    spent = f"{times['all']:.1f}" if timed else ""
    click.echo(f"{'all':20}{len(described):>8,}{len(described) * width:>14,}{spent:>8}")
    if timed:
        click.echo(
            'ms: one thread, one simulated field of 1080 × 1080 pixels and about 150 cells; what families share is "all"'
        )


def _settings(screen):
    """Channels, compartments and options of `describe_columns`, and `precision`, of a screen or by default."""
    from plateloom.config import Features, read_config
    from plateloom.segmentation import measured_compartments, works_on_volumes

    if screen is None:
        return (
            ["DNA", "ER", "RNA", "AGP", "Mito"],
            COMPARTMENTS,
            Features().model_dump(exclude=UNASKED) | {"volumes": False},
        )
    config = read_config(screen)
    volumes = {"volumes": works_on_volumes(config.segmentation.method)}
    channels = config.features.channels or list(config.channels)
    compartments = measured_compartments(config.segmentation.method)
    return channels, compartments, config.features.model_dump(exclude=UNASKED) | volumes


def _time_families(channels, compartments, settings, families):
    """Milliseconds that each family and `all` of them take at best, compiling aside."""
    import time

    import numpy as np

    from plateloom.features import measure_image
    from plateloom.simulation import ScreenDesign, plate_map, render_field

    design = ScreenDesign(plates=("P1",), size_px=1080, cells_per_field=150.0, clumped=0.3)
    well = next(row["well"] for row in plate_map(design, "P1") if row["control"] == "negative")
    field = render_field(design, "P1", well, 1)
    image = np.stack([field.image[i % len(field.image)] for i in range(len(channels))])
    labels = {"Nuclei": field.nuclei, "Cells": field.cells, "Cytoplasm": np.where(field.nuclei > 0, 0, field.cells)}
    labels = {name: labels[name] for name in compartments}
    options = {name: value for name, value in settings.items() if name not in ("families", "physical_units", "volumes")}

    def took(chosen):
        started = time.perf_counter()
        measure_image(image, labels, channels, families=chosen, **options)
        return 1000 * (time.perf_counter() - started)

    spent = {family: min(took([family]) for _ in range(4)) for family in families}
    return spent | {"all": min(took(families) for _ in range(3))}
