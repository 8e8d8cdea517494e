"""`plateloom scan`: the table of planes that a reader makes of a folder, without reading a pixel."""

import csv
import sys
from pathlib import Path

import click

from plateloom.errors import ConfigError


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--reader", default=None, help="Name of the reader; default: the one that recognizes the folder.")
@click.option("--pattern", default=None, help="Regular expression of file names, where the layout is not recognized.")
@click.option("--set", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter of the reader, as YAML.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write here, not to the screen."
)
def command(source, reader, pattern, parameters, out):
    """List the planes of the image folder SOURCE: well, field, channel, z, t, file, page, position, pixel size, time.

    What a person should know goes to standard error: files that are declared and absent, or left out and why.

    \b
    plateloom scan /data/plate1 --out plate1.tsv
    plateloom scan /data/plate2 --reader yokogawa --set absent=keep
    """
    import yaml
    from pydantic import ValidationError

    from plateloom.cli.init import recognize_folder
    from plateloom.config import explain
    from plateloom.readers import SourceImage, load_reader

    if reader and pattern:
        raise ConfigError("--pattern is for the reader `pattern`; give it or --reader")
    found = {"reader": reader, "params": {}} if reader else recognize_folder(source, pattern)
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: expected NAME=VALUE")
        found["params"][name] = yaml.safe_load(value)
    module = load_reader(found["reader"])
    try:
        params = module.Params(**found["params"])
    except ValidationError as error:
        raise ConfigError(explain(error, module.Params, prefix="--set ")) from None
    try:
        scanned = module.scan(source, params)
    except OSError as error:
        raise ConfigError(f"{str(source)!r} cannot be read: {error.strerror}") from None
    for note in scanned.notes:
        click.echo(note, err=True)
    with open(out, "w", newline="", encoding="utf-8") if out else _Standard() as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(SourceImage._fields)
        writer.writerows([neutral(value) for value in image] for image in scanned.images)
    wells = {image.well for image in scanned.images}
    click.echo(
        f"{found['reader']}: {len(scanned.images)} planes, {len(wells)} wells, "
        f"channels {', '.join(sorted({image.channel for image in scanned.images}))}",
        err=True,
    )


def neutral(value):
    """A cell that no spreadsheet takes for a formula; text that begins like one gets an apostrophe.

    >>> neutral("=1+1"), neutral(-1.5), neutral("A01")
    ("'=1+1", -1.5, 'A01')
    """
    text = isinstance(value, str)
    value = value.encode(errors="surrogateescape").decode(errors="replace") if text else value
    return f"'{value}" if text and value[:1] in tuple("=+-@\t\r") and value else value


class _Standard:
    """Standard output as a file that is not closed."""

    def __enter__(self):
        return sys.stdout

    def __exit__(self, *error):
        return False
