"""The command `plateloom`: one file per subcommand, imported when it is called."""

import importlib
import sys

import click

from plateloom import __version__
from plateloom.errors import ConfigError, PlateloomError, did_you_mean

COMMANDS = {
    "simulate": "Make a screen with known truth.",
    "init": "Look at image folders and write config, plate list and plate-map templates.",
    "scan": "List the planes that a reader finds in a folder, without reading pixels.",
    "check": "Check config, plates, maps and raw files before anything runs.",
    "preview": "Segment a few fields with the present settings, and write a page with outlines.",
    "estimate": "Estimate jobs, core-hours, memory, bytes and files before anything is submitted.",
    "run": "Run a screen through Snakemake.",
    "nightly": "Take whole plates from an inbox, run what is left, and write the night's summary.",
    "accept": "Keep results though the code that made them has changed, as after an upgrade.",
    "rerun": "Make chosen results again: what has failed, a plate, a well, from a stage on.",
    "quarantine": "Take plates or wells out of all results by hand, and put them back.",
    "status": "Show what is done, failed, stale or missing, plate by plate.",
    "trace": "Tell what a result was made from, down to the microscope's files.",
    "features": "List what would be measured of every cell, with counts, units and cost.",
    "evaluate": "Compare label images with the truth, object by object.",
    "labels": "Correct labels by hand: export them as TIFF, import them, withdraw them.",
    "annotate": "Label cells on a page, where a label teaches most; the labels train the classifier.",
    "train-segmenter": "Train the network of the segmentation method unet on your own annotated fields.",
    "train-pixels": "Train the pixel classifier of the segmentation method pixels with strokes that you paint.",
    "compare": "Compare the latents of several runs of a screen, each with another encoder, and its features.",
    "verify": "Check that results are what was made, chunk by chunk, and make damaged wells again.",
    "table": "Write a table of results as CSV: hits, profiles, cells.",
    "export": "Put a finished screen together as one folder to hand on.",
    "tune": "Propose memory, time limits and parts by what the screen's own jobs have taken.",
    "clean": "List what serves nobody in a screen's folder, and remove it when told to.",
    "config": "Show every setting with default, unit and meaning.",
}
LOOKING = {"scan", "check", "status", "trace", "features", "table", "config"}  # which start nothing anyway


class Commands(click.Group):
    """Subcommands by name, with the nearest name proposed for an unknown one."""

    def list_commands(self, context):
        return list(COMMANDS)

    def get_command(self, context, name):
        if name not in COMMANDS:
            context.fail(f"No such command {name!r}.{did_you_mean(name, COMMANDS)} See `plateloom --help`.")
        return importlib.import_module(f"plateloom.cli.{name.replace('-', '_')}").command

    def format_commands(self, context, formatter):
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli():
    """High-content screens from the microscope's folder to the list of hits.

    \b
    plateloom init screens/mine --source /data/plate1 --source /data/plate2
    plateloom check screens/mine
    plateloom run screens/mine
    plateloom status screens/mine
    """


def main():
    """Run the command; an error that Plateloom knows is one line per problem and its own exit code."""
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        number = len(error.problems)
        started = "" if LOOKING & set(sys.argv[1:2]) else "; nothing was started"
        click.echo(f"{number} {'problem' if number == 1 else 'problems'}{started}", err=True)
        sys.exit(error.exit_code)
    except PlateloomError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except PermissionError as error:
        if error.filename is None:
            raise
        click.echo(f"{str(error.filename)!r} cannot be read or written: {error.strerror}", err=True)
        sys.exit(ConfigError.exit_code)
