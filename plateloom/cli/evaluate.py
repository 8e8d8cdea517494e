"""`plateloom evaluate`: how well label images agree with the truth, object by object."""

import re
from pathlib import Path

import click

from plateloom.errors import ConfigError, PlateLayoutError, did_you_mean
from plateloom.store.annotations import SUFFIXES, explain_mask, read_labels

NAMES = r"(?P<well>[A-Za-z]{1,2}\d{1,2})_s?(?P<field>\d+)(_(?P<compartment>nuclei|cells|cytoplasm))?"
KINDS = ("splits", "merges", "missed", "spurious")  # of errors, as `Comparison` names them
NAMED = 20  # as many images are named in one line


@click.command()
@click.argument("labels", type=click.Path(exists=True, path_type=Path))
@click.argument("truth", type=click.Path(exists=True, path_type=Path))
@click.option("--compartment", default=None, metavar="NAME", help="Labels of a plate to compare.  [default: Nuclei]")
@click.option(
    "--names",
    default=None,
    metavar="REGEX",
    help="Names of files, without suffix, with groups well and field.  [default: A01_1, A01_s1_nuclei]",
)
@click.option("--allow-missing", is_flag=True, help="Leave out images that only one side has.")
@click.option("--per-image", is_flag=True, help="Print a table of the images instead, with tabs.")
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write all scores here too."
)
def command(labels, truth, compartment, names, allow_missing, per_image, out):
    """Compare the objects in LABELS with those in TRUTH: F1, average precision, splits, merges, missed and spurious.

    Each is a label image (TIFF, PNG, NPY; 0 is background), a folder of them, which are matched by name, or the
    plate.zarr of a screen, whose fields are matched by well and field.

    \b
    plateloom evaluate found.tif truth.tif
    plateloom evaluate found/ truth/ --per-image > images.tsv
    plateloom evaluate screens/demo/results/plates/plate1/plate.zarr screens/demo/truth/plate1 --compartment Cells
    """
    pairs = _pair_images(labels, truth, compartment, names, allow_missing)
    if out is not None and not out.resolve().parent.is_dir():
        raise ConfigError(f"--json {str(out)!r}: there is no folder {str(out.parent)!r}; make it first")
    from plateloom.segmentation.evaluation import compare_labels, pool

    compared, problems, masks = {}, [], {}
    for name, (found, true) in pairs.items():
        try:
            images = found(), true()
            compared[name] = compare_labels(*images)
            for path, image in zip((labels, truth), images, strict=True):
                if told := explain_mask(image):
                    masks.setdefault(path, {})[name] = told
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ConfigError(problems)
    for path, told in masks.items():
        click.echo(f"{str(path)!r}, {_enumerate(told)}: {next(iter(told.values()))}", err=True)
    summary = pool(compared.values())
    if out is not None:
        _write_scores(out, labels, truth, summary, compared)
    if per_image:
        _print_images(compared)
    else:
        _print_summary(summary)


def _pair_images(labels, truth, compartment, names, allow_missing):
    """Name of every image to its two readers, of labels and of truth."""
    if labels.is_file() and truth.is_file():
        if compartment or names:
            raise ConfigError("--compartment and --names are of plates and folders; leave them out for two files")
        return {labels.name: (_reader(labels), _reader(truth))}
    for one, other in ((labels, truth), (truth, labels)):
        if one.is_file():
            raise ConfigError(f"{str(one)!r} is a file and {str(other)!r} is none; give two files or two folders")
    placed = _is_store(labels) or _is_store(truth) or names is not None
    if compartment and not placed:
        raise ConfigError("--compartment is of a plate; give its plate.zarr, or --names with a group compartment")
    pattern, compartment = _compile(names), compartment or "Nuclei"
    sides = []
    for path in (labels, truth):
        if _is_store(path):
            sides.append(_list_store(path, compartment))
        elif placed:
            sides.append(_list_places(path, pattern, compartment))
        else:
            sides.append(_list_stems(path))
    both = sorted(sides[0].keys() & sides[1].keys())
    only = [
        f"only in {str(path)!r}: {_enumerate(name for key, (name, _) in sorted(one.items()) if key not in other)}"
        for path, one, other in ((labels, *sides), (truth, *sides[::-1]))
        if one.keys() - other.keys()
    ]
    if not both:
        raise ConfigError([*only, "no image is in both; files are matched by name, those of a plate by well and field"])
    if only and not allow_missing:
        raise ConfigError([*only[:-1], f"{only[-1]}; --allow-missing compares the others"])
    for line in only:
        click.echo(f"left out, {line}", err=True)
    return {sides[0][key][0]: (sides[0][key][1], sides[1][key][1]) for key in both}


def _compile(names):
    """The regular expression of file names."""
    try:
        pattern = re.compile(names or NAMES, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"--names '{names}' is no regular expression: {error}") from None
    if lacking := [name for name in ("well", "field") if name not in pattern.groupindex]:
        raise ConfigError(f"--names {names!r} has no group {lacking[0]!r}; write one as (?P<{lacking[0]}>…)")
    return pattern


def _is_store(path):
    return any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def _list_files(folder):
    """Label images of a folder, by name."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if files:
        return files
    stores = [*folder.glob("plate.zarr"), *folder.glob("*.zarr"), *folder.glob("results/plates/*/plate.zarr")]
    hint = f" Give a plate's store: {str(stores[0])!r}" if stores else ""
    raise ConfigError(f"{str(folder)!r} holds no label images ({', '.join(SUFFIXES)}).{hint}")


def _stem(path):
    return path.stem.removesuffix(".ome")


def _list_stems(folder):
    """Stem to name and reader of every label image of a folder."""
    return _unique((_stem(path), path) for path in _list_files(folder))


def _list_places(folder, pattern, compartment):
    """Well and field to name and reader of those label images of a folder whose names tell them."""
    from plateloom.wells import parse_well

    placed, others = [], []
    files = _list_files(folder)
    for path in files:
        found = pattern.fullmatch(_stem(path))
        told = found.groupdict() if found else {}
        try:
            place = parse_well(told["well"])
            field = told["field"]
            placed_at = (place, (0, int(field)) if field.isdecimal() else (1, field))
        except (KeyError, TypeError, ValueError, AttributeError):
            others.append(path.name)
            continue
        if (told.get("compartment") or compartment).lower() == compartment.lower():
            placed.append((placed_at, path))
    if not placed:
        told = "of other compartments" if len(others) < len(files) else f"not such as '{pattern.pattern}'"
        raise ConfigError(
            f"{str(folder)!r} holds no label image of {compartment} by name: {_enumerate(path.name for path in files)} "
            f"are {told}; give --names with groups well and field"
        )
    if others:
        click.echo(f"left out, not named by well and field: {_enumerate(others)}", err=True)
    return _unique(placed)


def _unique(listed):
    """Key to name and reader of files, none of which may stand for the same image as another."""
    found, problems = {}, []
    for key, path in listed:
        if key in found:
            problems.append(f"{found[key].name!r} and {path.name!r} in {str(path.parent)!r} are one image; remove one")
        found.setdefault(key, path)
    if problems:
        raise ConfigError(problems)
    return {key: (path.name, _reader(path)) for key, path in found.items()}


def _list_store(store, compartment):
    """Well and field to name and reader of a plate's labels of one compartment."""
    from plateloom.store.plate import field_path, list_fields, list_labels, read_labels
    from plateloom.wells import parse_well

    try:
        listed = list_fields(store)
    except PlateLayoutError:
        raise ConfigError(f"{str(store)!r} is no plate; give the plate.zarr of one") from None
    found, others = {}, set()
    for well, fields in listed.items():
        for field in fields:
            path = field_path(store, well, field)
            there = list_labels(path)
            if compartment in there:
                place = (parse_well(well), (0, field) if isinstance(field, int) else (1, field))
                found[place] = (f"{well}_{field}", lambda path=path: read_labels(path, compartment))
            others.update(there)
    if not found:
        known = (
            f"there are {', '.join(sorted(others))}" if others else "it has none; run the plate's segmentation first"
        )
        raise ConfigError(
            f"{str(store)!r} has no labels {compartment!r}.{did_you_mean(compartment, others)} Labels: {known}"
        )
    return found


def _reader(path):
    return lambda: read_labels(path)


def _enumerate(names):
    """Names in one line, not endless."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _print_summary(summary):
    """The table that a person reads."""
    images = "1 image" if summary.images == 1 else f"{summary.images:,} images"
    click.echo(f"{images}, {summary.true:,} true objects, {summary.found:,} found")
    click.echo(f"{'IoU':>5}{'F1':>8}{'AP':>8}{'precision':>11}{'recall':>8}{'tp':>9}{'fp':>9}{'fn':>9}")
    for i, least in enumerate(summary.thresholds):
        shares = (summary.f1[i], summary.ap[i], summary.precision[i], summary.recall[i])
        f1, ap, precision, recall = map(_share, shares)
        counts = "".join(f"{count:>9,}" for count in (summary.tp[i], summary.fp[i], summary.fn[i]))
        click.echo(f"{least:>5.2f}{f1:>8}{ap:>8}{precision:>11}{recall:>8}{counts}")
    first, last = summary.thresholds[0], summary.thresholds[-1]
    click.echo(f"mean AP {_share(summary.mean_ap)} (IoU {first:.2f} to {last:.2f})")
    click.echo(f"mean of the images' AP {_share(summary.image_ap)} (IoU {first:.2f})")
    click.echo(", ".join(f"{kind} {getattr(summary, kind):,}" for kind in KINDS))


def _share(value):
    """A share with three digits; a dash where it is 0 / 0. Only what is whole is written as 1.000."""
    if value != value:
        return "-"
    return f"{min(value, 0.999) if value < 1 else value:.3f}"


def _print_images(compared):
    """A table with tabs: one row per image, shares empty where they are 0 / 0."""
    from plateloom.cli.scan import neutral
    from plateloom.segmentation.evaluation import pool

    first = next(iter(compared.values())).thresholds[0]
    at = f"_{first:.2f}"
    click.echo(
        "\t".join(["image", "true", "found", *(f"{n}{at}" for n in ("tp", "fp", "fn", "F1", "AP")), "mean_AP", *KINDS])
    )
    for name, one in compared.items():
        scores = pool([one])
        shares = ["" if value != value else f"{value:.6g}" for value in (scores.f1[0], scores.ap[0], scores.mean_ap)]
        counts = (one.true, one.found, one.tp[0], one.fp[0], one.fn[0])
        row = [neutral(name), *counts, *shares, *(getattr(one, kind) for kind in KINDS)]
        click.echo("\t".join(map(str, row)))


def _write_scores(out, labels, truth, summary, compared):
    """All scores and counts as JSON; null where a share is 0 / 0."""
    from dataclasses import asdict

    from plateloom.store.provenance import write_json

    def strict(value):
        if isinstance(value, tuple):
            return [strict(one) for one in value]
        return None if value != value else value

    def plain(scores):
        return {name: strict(value) for name, value in asdict(scores).items()}

    listed = [{"image": name, **plain(one)} for name, one in compared.items()]
    write_json(out, {"labels": str(labels), "truth": str(truth), **plain(summary), "per_image": listed})
