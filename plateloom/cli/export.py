"""`plateloom export`: a finished screen as one folder to hand on, with an RO-Crate and tables for ngio and Fractal."""

import errno
import shlex
from pathlib import Path

import click

from plateloom.errors import ConfigError, CorruptStoreError, counted

FULL = (errno.ENOSPC, errno.EDQUOT)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--plate", "plates", multiple=True, help="Only this plate; may be repeated.")
@click.option(
    "--tables/--no-tables",
    default=True,
    show_default=True,
    help="Tables of ngio and Fractal in the plates (needs ngio).",
)
@click.option(
    "--link/--copy",
    default=None,
    help="Pixels as hard links, or as copies; default: the first that works of clones, hard links, copies.",
)
@click.option("--license", default="", help="URL of the license, e.g. https://creativecommons.org/licenses/by/4.0/")
@click.option("--incomplete", is_flag=True, help="Export what is there of a screen that is not finished.")
def command(folder, out, plates, tables, link, license, incomplete):
    """Put the finished screen in FOLDER together in the new folder OUT: plates, tables, reports, models, records.

    OUT is an RO-Crate: ro-crate-metadata.json says what every file is and how it was made. FOLDER stays as it is.

    \b
    plateloom export screens/demo demo-2024
    plateloom export screens/demo plate1 --plate plate1 --copy
    """
    from plateloom.cli.check import find_problems
    from plateloom.export import export_screen

    if license and not license.startswith(("https://", "http://")):
        raise ConfigError(f"--license {license!r}: expected a URL, e.g. https://creativecommons.org/licenses/by/4.0/")
    problems, _ = find_problems(folder, files=False)
    if problems:
        raise ConfigError(problems)
    try:
        taken = export_screen(
            folder, out, plates=plates, tables=tables, link=link, license=license, incomplete=incomplete, say=click.echo
        )
    except CorruptStoreError as error:
        again = f"plateloom verify {shlex.quote(str(folder))} --deep --repair"
        told = f"{error.file!r} {error.reason}; nothing was exported. What is damaged is made again by: {again}"
        raise click.ClickException(told) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise click.ClickException(str(error)) from None
    click.echo(f"{counted(len(taken.plates), 'plate')}, {taken.size / 1e6:.1f} MB in {out}")
