"""`plateloom estimate`: what a screen costs, before anything is submitted."""

from pathlib import Path

import click

from plateloom.errors import ConfigError, DataFault, counted


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--plate", "plates", multiple=True, help="Only this plate; may be repeated. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(folder, plates, as_json):
    """Estimate what SCREEN costs before anything is submitted: jobs, core-hours, memory, bytes and files.

    The number of images comes from the plates' listings, their shape from one image of each plate. What a gigapixel costs
    or a well comes from this screen's own jobs where there are some, marked with a star, else from the demo screen, or
    drawn profiles of wells, on two shared cores: an order of magnitude. Hours on a GPU are those that the CPU would take,
    and so an upper bound.

    \b
    plateloom estimate screens/mine
    plateloom estimate screens/mine --plate plate1
    """
    import dataclasses
    import json

    from plateloom.config import read_config
    from plateloom.errors import did_you_mean
    from plateloom.estimate import estimate_results, estimate_screen, measure_plate
    from plateloom.planning import Screen

    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    if problems := [
        f"--plate: no plate {name!r}.{did_you_mean(name, screen.plates)}"
        for name in plates
        if name not in screen.plates
    ]:
        raise ConfigError(problems)
    sizes, faults = {}, []
    for plate in plates or screen.complete_plates:
        try:
            sizes[plate] = measure_plate(screen, plate)
        except (DataFault, OSError) as fault:
            faults.append(f"{plate}: left out: {fault}")
    if not sizes:
        raise ConfigError(faults or ["no plate to estimate"])
    costs = estimate_screen(screen, sizes)
    results, files = estimate_results(screen, sizes)
    pixels = sum(size.gigapixels for size in sizes.values())
    if as_json:
        told = {"stages": [dataclasses.asdict(one) for one in costs], "bytes": results, "files": files}
        told |= {"gigapixels": pixels, "plates": {plate: dataclasses.asdict(size) for plate, size in sizes.items()}}
        click.echo(json.dumps(told | {"left_out": faults}, indent=1))
        return
    for fault in faults:
        click.echo(fault)
    fields = sum(size.fields for size in sizes.values())
    click.echo(f"{counted(len(sizes), 'plate')}, {fields:,} fields, {pixels:.3g} gigapixels in all channels")
    click.echo(f"{'stage':14} {'jobs':>7} {'core-hours':>11} {'GPU-hours':>10} {'MB a job':>9} {'longest job':>12}")
    for one in costs:
        mark = "*" if one.learned else ""
        gpu = f"{one.gpu_hours:.2g}" if one.gpu_hours else ""
        click.echo(
            f"{one.stage:14} {one.jobs:7,} {f'{one.core_hours:.2g}{mark}':>11} {gpu:>10} {one.memory_mb:9,} "
            f"{f'{one.longest_s / 60:.1f} min':>12}"
        )
    total, gpu = sum(one.core_hours for one in costs), sum(one.gpu_hours for one in costs)
    click.echo(
        f"{'in all':14} {sum(one.jobs for one in costs):7,} {f'{total:.2g}':>11} {f'{gpu:.2g}' if gpu else '':>10}"
    )
    shown = ", ".join(f"{name} {size / 1e9:.2g} GB" for name, size in results.items())
    click.echo(f"results: about {sum(results.values()) / 1e9:.2g} GB ({shown}), {files:,} files")
    learned = sum(bool(one.learned) for one in costs)
    if gpu:
        click.echo("GPU-hours: what the CPU would take, so at most")
    click.echo(
        f"* by this screen's own jobs ({learned} of {len(costs)} stages); the others by the demo screen on two shared cores: "
        "an order of magnitude"
    )
