"""`plateloom preview`: a few fields segmented with the present settings, on a page: how a person tunes."""

import copy
import dataclasses
import os
import shlex
from pathlib import Path

import click
import yaml

from plateloom.errors import ConfigError, did_you_mean, some_of

SECTION = "segmentation.parameters"
CARRIED = ("nuclei_channel", "cells_channel", "nucleus_diameter_um")  # to another method, if they were set


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--plate", help="Default: the first plate.")
@click.option("--wells", help="Wells, or fields of wells: B02,C03/4. Default: controls first, then wells by chance.")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1, 48), help="Fields to choose.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Try another value; the config stays.")
@click.option("--vary", metavar="NAME=VALUE,VALUE…", help="Several values of one setting, side by side.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: preview.html in the screen.")
def command(folder, plate, wells, count, changes, vary, out):
    """Segment a few fields of SCREEN with its present settings, and write a page with outlines and quality.

    Reads the microscope's files; nothing needs to have run, and nothing but the page is written. NAME is a parameter of
    the segmentation, or any setting by its whole name, such as illumination.method.

    \b
    plateloom preview screens/mine
    plateloom preview screens/mine --wells B02,C03/4 --set nucleus_diameter_um=15
    plateloom preview screens/mine --vary threshold_correction=0.8,1,1.25
    """
    from plateloom.config import load_config, read_config
    from plateloom.planning import Screen
    from plateloom.report import render_preview
    from plateloom.stages.preview import preview_plate
    from plateloom.store.provenance import write_bytes
    from plateloom.store.sheets import read_plate_map

    places = _parse_places(wells)
    base = read_config(folder).model_dump(mode="json")
    for change in changes:
        _change(base, *_split(change))
    variants = {"present settings" if not changes else ", ".join(changes): base}
    if vary:
        name, values = _split(vary)
        variants = {}
        for value in values.split(","):
            variants[f"{name.removeprefix(SECTION + '.')} = {value.strip()}"] = changed = copy.deepcopy(base)
            _change(changed, name, value)
    loaded = {name: load_config(settings).model_dump(mode="json") for name, settings in variants.items()}
    target = (out or folder / "preview.html").resolve()
    before = os.getcwd()
    os.chdir(folder)  # sources and maps are named from there
    try:
        settings = next(iter(loaded.values()))
        screen = Screen(settings)
        if plate is not None and plate not in screen.plates:
            raise ConfigError([f"there is no plate {plate!r}; there are {some_of(screen.plates, 20)}"])
        row = screen.plates[plate or next(iter(screen.plates))]
        if not Path(row.source).is_dir():
            raise ConfigError([f"{row.plate}: no folder {row.source!r}"])
        known = read_plate_map(row.plate_map) if row.plate_map else []
        _refuse_other_sections(loaded, settings)
        page = preview_plate(
            plate=row.plate,
            source=row.source,
            reader=row.reader,
            settings=settings | {"reader_params": screen.settings("conversion", row.plate)["reader_params"]},
            places=places,
            count=count,
            order=_controls(known),
            contents={one["well"]: one for one in known},
            variants={name: _looked_at(one["segmentation"]) for name, one in loaded.items()},
        )
    finally:
        os.chdir(before)
    lines = ["# what is better goes into config.yaml, then:", f"plateloom run {shlex.quote(str(folder))}"]
    page = dataclasses.replace(page, screen=folder.resolve().name, reproduce=tuple(lines))
    write_bytes(target, render_preview(page).encode())
    for text in page.losses:
        click.echo(text, err=True)
    for text in page.notes:
        click.echo(text)
    if page.sizes:
        click.echo(f"{page.sizes}, by an estimate from the image alone")
    for name, doubts in page.doubts.items():
        for text in doubts:
            click.echo(f"{name}: {text}")
    shown = len(next(iter(page.rows.values())))
    click.echo(f"{shown} {'field' if shown == 1 else 'fields'} of {row.plate}: {target}")


def _looked_at(settings):
    """Settings of the segmentation without its training, which is no matter of a look."""
    return {name: value for name, value in settings.items() if name != "training"}


def _split(text):
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError([f"{text!r}: expected NAME=VALUE, such as nucleus_diameter_um=15"])
    return name.strip(), value


def _change(settings, name, value):
    """Set a value by its name; a name without a dot is a parameter of the segmentation."""
    others = [f"{section}.{name}" for section, found in settings.items() if isinstance(found, dict) and name in found]
    if others and name not in _known_parameters(settings["segmentation"]["method"]):
        raise ConfigError([f"{name}: no parameter of the segmentation; write {' or '.join(others)}"])
    *sections, last = (name if "." in name else f"{SECTION}.{name}").split(".")
    level = settings
    for section in sections:
        if not isinstance(level.get(section), dict):
            raise ConfigError([f"{name}: there is no section {section!r}.{did_you_mean(section, level)}"])
        level = level[section]
    try:
        value = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError([f"{name}: {value!r} is no value as in YAML"]) from None
    if last == "method":  # another method has other parameters
        level["parameters"] = _carried(level, value) if sections == [SECTION.partition(".")[0]] else {}
    level[last] = value


def _carried(chosen, method):
    """Parameters that a user has set, and that mean the same in another method of segmentation."""
    before, known = _known_parameters(chosen["method"]), _known_parameters(method)
    return {
        name: value
        for name, value in chosen["parameters"].items()
        if name in CARRIED and name in known and name in before and value != before[name].default
    }


def _known_parameters(method):
    """Parameters of a method of segmentation by name; none where there is no such method."""
    from plateloom.registry import load_method
    from plateloom.segmentation import METHODS

    return load_method(METHODS, method, "segmentation method").Params.model_fields if method in list(METHODS) else {}


def _refuse_other_sections(loaded, settings):
    """Settings side by side may differ in the segmentation only: fields are read and corrected once."""
    for one in loaded.values():
        if different := sorted(key for key in one if key != "segmentation" and one[key] != settings[key]):
            raise ConfigError([f"--vary works on segmentation, not on {', '.join(different)}; use --set"])


def _parse_places(text):
    """Wells with a field's number or None, from ``B02,C03/4``."""
    from plateloom.wells import parse_well, well_name

    places, problems = [], []
    for word in filter(None, (part.strip() for part in (text or "").split(","))):
        well, _, field = word.partition("/")
        try:
            places.append((well_name(*parse_well(well)), int(field) if field else None))
        except ValueError:
            problems.append(f"--wells: {word!r} is neither a well (B02) nor a field of one (B02/3)")
    if problems:
        raise ConfigError(problems)
    return places


def _controls(rows):
    """A negative and a positive control, and the well of the highest dose: what should look different."""
    first = [
        next((row["well"] for row in rows if row.get("control") == kind), None) for kind in ("negative", "positive")
    ]
    doses = [row for row in rows if not row.get("control") and row.get("dose", 0) > 0]
    highest = max(doses, key=lambda row: row["dose"], default={"well": None})
    return [well for well in [*first, highest["well"]] if well]
