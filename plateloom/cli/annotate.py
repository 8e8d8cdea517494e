"""`plateloom annotate`: cells to label on a page, and the labels back."""

import contextlib
import getpass
import json
import os
import shlex
import time
from pathlib import Path

import click

from plateloom.errors import ConfigError, counted, did_you_mean

MOST_TOLD = 10


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--classes", metavar="A,B,…", help="Classes to choose from, at most 9; default: those of the last round.")
@click.option("--cells", default=60, show_default=True, type=click.IntRange(1, 500), help="Cells on a page.")
@click.option("--plate", "plates", multiple=True, metavar="NAME", help="Show cells of these plates only.")
@click.option("--wells", metavar="A01,B02", help="Show cells of these wells only.")
@click.option("--channels", metavar="A,B,…", help="Channels shown; default: report.composite, else all, at most 5.")
@click.option(
    "--size", type=click.FloatRange(5, 500), help="Side of a picture [µm]; default: 1.5 × latent.autoencoder.crop_um."
)
@click.option(
    "--chance", default=0.25, show_default=True, type=click.FloatRange(0, 1), help="Share of cells drawn by chance."
)
@click.option(
    "--import",
    "source",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take labels in.",
)
@click.option("--who", metavar="NAME", help="Who labeled; default: the name on the page, else your login name.")
@click.option("--at", metavar="PLATE/WELL/FIELD", help="For a table of napari that does not say: the field.")
@click.option(
    "--images",
    metavar="TABLE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For CellProfiler Analyst: ImageNumber, plate, well, field.",
)
@click.option("--same-objects", is_flag=True, help="For CellProfiler Analyst: object numbers are Plateloom's.")
@click.option("--withdraw", multiple=True, metavar="PLATE/WELL/FIELD/OBJECT", help="Take a cell's label back.")
def command(
    folder, classes, cells, plates, wells, channels, size, chance, source, who, at, images, same_objects, withdraw
):
    """Write a page with cells of SCREEN to label; with --import, take the labels in and write the next page.

    Shown are the cells that the classifier is in doubt about, unlike each other and of many wells and plates, and a share drawn
    by chance that tells how good it is. Labels are lines of SCREEN/annotations.tsv; with `classification.labels:
    annotations.tsv` in config.yaml a run trains on them. Training sets of CellProfiler Analyst and tables of napari can be
    imported as well.

    \b
    plateloom annotate screens/mine --classes normal,mitotic,dead
    plateloom annotate screens/mine --import ~/Downloads/mine-round-01-Ada.json
    plateloom annotate screens/mine --import set.txt --images images.csv
    plateloom annotate screens/mine --import labels.csv --at plate1/B02/1
    """
    from plateloom.planning import Screen
    from plateloom.stages import annotation

    # Files are named from where the person is, everything else from the screen.
    source, images = (path and path.resolve() for path in (source, images))
    name = folder.resolve().name
    with _inside(folder), annotation.hold():
        settings = _read_settings()
        screen = Screen(settings)
        chosen = _choose_plates(screen, plates)
        rows, rounds = annotation.read_labels(), annotation.read_rounds()
        known = _parse_names(classes) or annotation.name_classes(rounds, rows)
        before = len(rows)
        if source:
            fresh = _read_source(source, rounds, who, at, images, same_objects, known if classes or rounds else ())
            _refuse_strange(source, fresh, known, strict=bool(classes or rounds))
            known = list(dict.fromkeys([*known, *(row["class"] for row in fresh if row["class"])]))
            _refuse_classes(known)
            counts = annotation.add_labels(fresh)
            click.echo(_say_counts(fresh, counts))
        if withdraw:
            counts = annotation.add_labels(_withdrawn(withdraw, rows, who))
            click.echo(f"{counts['changed']} withdrawn")
            if not source:
                return
        _refuse_classes(known)
        rows = annotation.read_labels()
        learned = None
        if rows:
            batches = {p: screen.plates[p].batch for p in screen.complete_plates if annotation.is_measured(p)}
            known_before = before if source else 0
            learned = annotation.Learned(rows, batches, settings["classification"], before=known_before)
            for line in _say_learned(learned, rows, gained=bool(source)):
                click.echo(line)
        made = annotation.propose_round(
            records=_records(screen, chosen),
            plates=chosen,
            wells=_parse_wells(wells),
            learned=learned,
            classes=known,
            rows=rows,
            settings=settings,
            count=cells,
            channels=_choose_channels(channels, settings),
            size_um=size or 1.5 * settings["latent"]["autoencoder"]["crop_um"],
            screen=name,
            random_share=chance,
        )
    page = folder / annotation.FOLDER / f"round-{made['round']:02d}.html"
    spread = {(cell["plate"], cell["well"]) for cell in made["cells"]}
    click.echo(
        f"round {made['round']}: {len(made['cells'])} cells of {len(spread)} wells and "
        f"{counted(len({plate for plate, _ in spread}), 'plate')} to label: {page}"
    )
    if settings["classification"]["labels"] != annotation.TABLE and rows:
        click.echo(f"a run trains on these labels with `classification: {{labels: {annotation.TABLE}}}` in config.yaml")
    if not source:
        click.echo(f"then: plateloom annotate {shlex.quote(str(folder))} --import FILE")


@contextlib.contextmanager
def _inside(folder):
    """The screen's folder as the current one: plates and tables are named from there."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _read_settings():
    """The screen's config; the classifier's method has its own defaults even where no run trains one."""
    from plateloom.config import load_config, read_config

    config = read_config(".")
    if config.classification.target == "number":
        raise ConfigError(
            "classification.target: number: pages are for classes; labels that are numbers go into a table by hand"
        )
    chosen = config.classification
    if chosen.inputs == "crops":  # no network is trained for each round: features choose what it shall learn from
        chosen.inputs, chosen.method, chosen.parameters = "features", "logistic", {}
    chosen.labels = chosen.labels or "controls"  # so that the method's parameters are checked and completed
    config = load_config(config.model_dump(mode="json"))
    return config.model_dump(mode="json")


def _choose_plates(screen, plates):
    """Plates to show cells of; those that have been measured."""
    from plateloom.stages.annotation import is_measured

    if strangers := [plate for plate in plates if plate not in screen.plates]:
        there = ", ".join(list(screen.plates)[:MOST_TOLD])
        raise ConfigError([f"--plate: no {p!r}.{did_you_mean(p, screen.plates)} Plates: {there}" for p in strangers])
    chosen = [plate for plate in screen.complete_plates if plate in (plates or screen.plates)]
    if lacking := [plate for plate in plates if plate not in chosen or not is_measured(plate)]:
        raise ConfigError([f"--plate: {plate} has not been measured, or is quarantined" for plate in lacking])
    return [plate for plate in chosen if is_measured(plate)]


def _records(screen, plates):
    """Records of the features of these plates, as far as there are any."""
    from plateloom.store.provenance import read_json

    found = [read_json(path) for plate in plates for path in screen.records("features", plate)]
    return [record for record in found if record is not None]


def _parse_names(text):
    return [name for name in (" ".join(part.split()) for part in (text or "").split(",")) if name]


def _parse_wells(text):
    """Wells of a list; None: all."""
    from plateloom.wells import read_wells

    found, problems = read_wells(text or "")
    if problems:
        raise ConfigError([f"--wells: {problem}" for problem in problems])
    return set(found) or None


def _choose_channels(text, settings):
    there = list(settings["channels"])
    chosen = _parse_names(text) or settings["report"]["composite"] or there[:5]
    if strangers := [name for name in chosen if name not in there]:
        raise ConfigError(
            [f"--channels: no {n!r}.{did_you_mean(n, there)} Channels: {', '.join(there)}" for n in strangers]
        )
    return chosen


def _refuse_classes(known):
    from plateloom.stages.annotation import MOST_CLASSES

    if len(known) < 2:
        raise ConfigError("--classes: at least two classes to choose from, e.g. --classes normal,mitotic,dead")
    if len(known) > MOST_CLASSES:
        raise ConfigError(
            f"--classes: {len(known)} classes, there are number keys for {MOST_CLASSES}: {', '.join(known)}"
        )
    if repeated := sorted({name for name in known if known.count(name) > 1}):
        raise ConfigError(f"--classes: {', '.join(repeated)} stands there twice")


def _read_source(source, rounds, who, at, images, same_objects, classes):
    """Rows of what is imported: an export of a page, or another program's labels."""
    from plateloom.stages.annotation import check_export, place_labels
    from plateloom.store.foreign_labels import read_foreign_labels

    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    if source.read_bytes().lstrip()[:1] == b"{":
        try:
            rows = check_export(json.loads(source.read_bytes()), rounds)
        except ConfigError as error:
            raise ConfigError([f"{source}: {problem}" for problem in error.problems]) from None
        except ValueError as error:  # no JSON, or no UTF-8
            raise ConfigError(f"{source}: is not whole: {error}") from None
        said = {row["who"] for row in rows}
        return (
            [row | {"who": who or row["who"] or _login(), "when": row["when"] or now} for row in rows] if said else rows
        )
    found = read_foreign_labels(source, place=_parse_at(at), images=images, same_objects=same_objects, classes=classes)
    return place_labels(found, who=who or _login(), when=now)


def _refuse_strange(source, rows, known, *, strict):
    """Classes that nobody has named are spelling mistakes, unless there are none yet."""
    strange = list(dict.fromkeys(row["class"] for row in rows if row["class"] and row["class"] not in known))
    if strict and strange:
        raise ConfigError(
            [
                f"{source}: unknown class {n!r}.{did_you_mean(n, known)} Classes: {', '.join(known)}; or --classes"
                for n in strange
            ]
        )


def _parse_at(text):
    """Plate, well and field from ``plate1/B02/1``."""
    from plateloom.wells import parse_well

    if text is None:
        return None
    plate, well, field = (text.split("/") + ["", "", ""])[:3]
    try:
        parse_well(well)
        return plate, well, int(field)
    except ValueError:
        raise ConfigError(f"--at {text!r}: expected PLATE/WELL/FIELD, such as plate1/B02/1") from None


def _withdrawn(cells, rows, who):
    """Rows that take labels back."""
    last = {}
    for row in rows:
        last[f"{row['plate']}/{row['well']}/{row['field']}/{row['object']}"] = row
    problems, found = [], []
    for cell in cells:
        if cell not in last or not last[cell]["class"]:
            problems.append(f"--withdraw: {cell} has no label.{did_you_mean(cell, last)}")
            continue
        said = {"class": "", "who": who or _login(), "when": time.strftime("%Y-%m-%dT%H:%M:%S"), "why": "withdrawn"}
        found.append(last[cell] | said)
    if problems:
        raise ConfigError(problems)
    return found


def _login():
    """The name that the person is logged in by."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _say_counts(rows, counts):
    """What came in, in one line."""
    classes = {}
    for row in rows:
        classes[row["class"] or "unsure"] = classes.get(row["class"] or "unsure", 0) + 1
    told = ", ".join(f"{count} {name}" for name, count in classes.items())
    return f"{len(rows)} labels ({told or 'none'}): {counts['new']} new, {counts['changed']} changed, {counts['before']} as before"


def _say_learned(learned, rows, *, gained):
    """What the labels have brought, line by line."""
    facts = learned.facts
    for i in learned.lost[:MOST_TOLD]:
        row = rows[i]
        yield f"left out: {row['plate']}/{row['well']}, field {row['field']}, cell {row['object']}: not in the present segmentation"
    if facts["lost"] > MOST_TOLD:
        yield f"left out: {facts['lost'] - MOST_TOLD} more labels of cells that are not in the present segmentation"
    yield f"{facts['labels']} cells are labeled: " + ", ".join(
        f"{count} {name}" for name, count in facts["counts"].items()
    )
    if facts["accuracy"] is None:
        yield f"how good the classifier is cannot be told yet: {facts['why_not']}"
        return
    yield f"balanced accuracy on all of them, the doubtful ones included, in wells not learned from: {_interval(facts['accuracy'])}"
    gain = facts["gain"]
    if gain is None:
        yield "no labeled cell was drawn by chance, so there is no fair figure of the gain"
        return
    on = f"on {gain['n_cells']} cells drawn by chance ({gain['n_groups']} wells or plates)"
    if gain["before"] is None:
        yield f"{on}: {_interval(gain['after'])}" + ("; there was no classifier before" if gained else "")
    else:
        yield f"{on}: {_interval(gain['before'])} before, {_interval(gain['after'])} now; gain {_interval(gain['gain'], '+')}"


def _interval(found, sign=""):
    if found["low"] is None:
        return f"{found['value']:{sign}.3f} (no interval: too few wells or plates)"
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"
