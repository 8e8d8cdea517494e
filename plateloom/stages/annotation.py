"""Measured cells of a screen -> rounds of cells for a person to label; labels that come back -> what they have brought.

A round is a page, ``annotation/round-03.html``, and beside it a list of its cells, ``round-03.json``: the page knows a cell by
its number in the round only, so that neither well nor treatment can sway who looks at it. Labels go to `annotations.tsv`.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import classification, profiling
from plateloom.classification.evaluation import evaluate
from plateloom.classification.fitting import fit_method
from plateloom.classification.querying import choose_cells, measure_gain
from plateloom.engine import locks
from plateloom.errors import ConfigError, PlateLayoutError, some_of
from plateloom.latent.crops import crop_cells
from plateloom.registry import load_method
from plateloom.report.annotation import AnnotationPage, render_annotation
from plateloom.stages.cell_labels import assign_labels, find_nuclei, short_row
from plateloom.stages.classification import group_of
from plateloom.stages.fields import flagged_fields, quarantined_wells
from plateloom.stages.illumination import read_corrected
from plateloom.stages.sampling import sample_rows, wells_to_learn_from
from plateloom.store import plate as store
from plateloom.store.cell_labels import TABLE, append_cell_labels, read_cell_labels
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import digest, read_json, write_bytes, write_json
from plateloom.store.tables import read_record, read_table

FOLDER = Path("annotation")
LOCK = Path(".plateloom/annotation.lock")
FORMAT = 1
CANDIDATE_WELLS, CANDIDATE_CELLS = 96, 10_000  # looked at for a round, of however many there are
PICTURE_PX = 160  # of a crop at most
MOST_CLASSES = 9  # one per number key


def hold():
    """The lock on a screen's rounds and table of labels; the current folder is the screen's."""
    return locks.hold(LOCK, wait=True)


def read_labels():
    """Rows of the screen's table of labels, those of which a later one holds included; raises `ConfigError`."""
    if not Path(TABLE).exists():
        return []
    rows, problems = read_cell_labels(TABLE)
    if problems:
        raise ConfigError(problems)
    return rows


def read_rounds():
    """The lists of cells of all rounds, by their number."""
    found = {}
    for path in sorted(FOLDER.glob("round-*.json")):
        one = read_json(path)
        if one is None or one.get("format") != FORMAT:
            raise ConfigError(f"{path}: is not whole, or not a round of this version of Plateloom; remove it")
        found[one["round"]] = one
    return dict(sorted(found.items()))


def name_classes(rounds, rows):
    """Classes that are known: those of the last round, then others that were given."""
    of_rounds = list(rounds.values())[-1]["classes"] if rounds else []
    return list(dict.fromkeys([*of_rounds, *(row["class"] for row in rows if row["class"])]))


def add_labels(rows):
    """Append labels that are not in the table already; the caller holds the lock.

    Parameters
    ----------
    rows : list of dict
        As `read_cell_labels` gives them.

    Returns
    -------
    dict of str to int
        `new` cells, `changed` ones, and those that are as `before`.
    """
    last = {_cell_of(row): row["class"] for row in read_labels()}
    counts, fresh = {"new": 0, "changed": 0, "before": 0}, []
    for row in rows:
        key = _cell_of(row)
        kind = "new" if key not in last else "before" if last[key] == row["class"] else "changed"
        counts[kind] += 1
        if kind != "before":
            fresh.append(row)
            last[key] = row["class"]
    if fresh:
        append_cell_labels(TABLE, fresh)
    return counts


def _cell_of(row):
    """What makes a label one of the same cell: its number with the segmentation that gave it."""
    return row["plate"], row["well"], row["field"], row["object"], row["segmentation"]


def describe_cells(cells):
    """Complete labels given by the numbers of cells: where the nucleus lies, and the segmentation.

    Parameters
    ----------
    cells : list of (str, str, int, int)
        Plate, well, field and object.

    Returns
    -------
    list of dict or None
        `y`, `x` [px] and `segmentation`; None where there is no such cell.
    """
    found = []
    for plate, well, field, number in cells:
        made = segmentation_of(plate, well)
        values, centers, _ = _nuclei(plate, well, field, made) if made else ([], [], [])
        place = np.flatnonzero(np.asarray(values) == number)
        if not len(place):
            found.append(None)
            continue
        y, x = centers[place[0]]
        found.append({"y": float(y), "x": float(x), "segmentation": made})
    _nuclei.cache_clear()
    return found


def find_objects(places):
    """The cells at given places.

    Parameters
    ----------
    places : list of (str, str, int, float, float)
        Plate, well, field, and row and column of a point [px].

    Returns
    -------
    list of int or None
        Number of the nucleus whose center is nearest, if it is no farther than its radius.
    """
    found = []
    for plate, well, field, y, x in places:
        made = segmentation_of(plate, well)
        values, centers, radii = _nuclei(plate, well, field, made) if made else ([], [], [])
        if not len(values):
            found.append(None)
            continue
        distance = np.hypot(centers[:, 0] - y, centers[:, 1] - x)
        nearest = distance.argmin()
        found.append(int(values[nearest]) if distance[nearest] <= radii[nearest] else None)
    _nuclei.cache_clear()
    return found


@functools.lru_cache(maxsize=64)
def _nuclei(plate, well, field, made):
    return find_nuclei(plate, well, field, made)


def is_measured(plate):
    """Whether cells of a plate have been measured, and its fields judged."""
    return (plate_folder(plate) / "qc.parquet").exists() and any((plate_folder(plate) / "features").glob("*.parquet"))


def segmentation_of(plate, well):
    """Fingerprint of the labels that a well's cells were measured with; None where they were not."""
    made = read_record(well_table(plate, "features", well))
    return made and made["inputs"]["labels"]


def read_labeled(rows, plates, *, scheme="well"):
    """Features and classes of the labeled cells that there are now.

    Parameters
    ----------
    rows : list of dict
        The table's.
    plates : dict of str to str
        Plates to read, with their batches.
    scheme : {'well', 'plate', 'batch'}
        What `Group` names.

    Returns
    -------
    table : DataFrame
        The cells' features, with `Label`, `Group`, and `Row`, the position in `rows` of the label that holds. Cells on fields
        that QC has flagged and of wells that a person has taken out are not there.
    lost : list of int
        Positions of labels whose cell is gone.
    """
    by_well = {}
    for i, row in enumerate(rows):
        by_well.setdefault((row["plate"], row["well"]), []).append(i)
    tables, lost = [], []
    for (plate, well), positions in sorted(by_well.items()):
        path = well_table(plate, "features", well)
        if plate not in plates or well in quarantined_wells(plate):
            continue
        if not path.exists():
            lost += positions
            continue
        table = read_table(path)
        held, gone = assign_labels(plate, well, table, [short_row(rows[i]) for i in positions])
        lost += [positions[i] for i in gone]
        bad = [field for other, field in flagged_fields(plate) if other == well]
        kept = (held >= 0) & ~table["Metadata_SourceField"].isin(bad).to_numpy()
        table, held = table[kept], np.array(positions)[held[kept]]
        label = [rows[i]["class"] for i in held]
        group = group_of(scheme, plate, well, plates)
        table = table.assign(Label=pd.Series(label, index=table.index, dtype=object), Group=group, Row=held)
        tables.append(table)
    filled = [table for table in tables if len(table)]
    return (pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()), sorted(lost)


class Learned:
    """What the labels teach: a classifier for choosing cells, and how good it is.

    Attributes
    ----------
    pipeline : sklearn.pipeline.Pipeline or None
        None with fewer than two classes.
    features : list of str
    facts : dict
        JSON: `labels` (cells with a class), `counts` by class, `unsure`, `lost`, `accuracy` of all labeled cells (as of
        `evaluate`, or None), `why_not`, `gain` (of `measure_gain`, or None).
    """

    def __init__(self, rows, plates, settings, *, before=0):
        """Learn from `rows` of `plates` (plate to batch); with the first `before` of them the gain is told."""
        table, lost = read_labeled(rows, plates, scheme=settings["scheme"])
        labeled = table[table["Label"] != ""] if len(table) else table
        counts = labeled["Label"].value_counts() if len(labeled) else {}
        self.pipeline, self.features = None, []
        self.facts = {
            "labels": len(labeled),
            "counts": {str(name): int(count) for name, count in sorted(counts.items())},
            "unsure": len(table) - len(labeled),
            "lost": len(lost),
            "accuracy": None,
            "why_not": "",
            "gain": None,
        }
        self.lost = lost
        if len(counts) < 2:
            self.facts["why_not"] = f"labels of at least two classes are needed, there are {len(counts)}"
            return
        module = load_method(classification.METHODS, settings["method"], "classification method")
        options = {"method": settings["method"], "params": module.Params(**settings["parameters"])}
        options |= {"balance": settings["balance"]}
        fit = lambda *cells: fit_method(*cells, **options)[0]  # noqa: E731
        self.features = profiling.feature_columns(labeled.drop(columns="Row"))
        if not settings["surroundings"]:
            self.features = profiling.without_surroundings(self.features)
        X, y = labeled[self.features].to_numpy(float), labeled["Label"].to_numpy(str)
        X = np.where(np.isfinite(X), X, np.nan)
        groups = labeled["Group"].to_numpy(str)
        self.pipeline = fit(X, np.unique(y, return_inverse=True)[1], groups)
        kept, folds = [], min(settings["folds"], len(np.unique(groups)))
        why = np.array([rows[i]["why"] for i in labeled["Row"]])
        tested = {"folds": folds, "scheme": settings["scheme"], "asked": why == "uncertain"}
        try:
            found = evaluate(X, y, groups, kept=kept, **tested, **options)
        except ValueError as error:
            self.facts["why_not"] = str(error)
            return
        self.facts["accuracy"] = {
            name: found[key]
            for name, key in (
                ("value", "balanced_accuracy"),
                ("low", "balanced_accuracy_low"),
                ("high", "balanced_accuracy_high"),
            )
        }
        held = [(fold["groups"], pipeline) for fold, pipeline in zip(found["folds"], kept, strict=True)]
        earlier = {_cell_of(row) for row in rows[:before] if row["class"]}
        old = np.array([_cell_of(rows[i]) in earlier for i in labeled["Row"]], bool)
        gain = measure_gain(X, y, groups, old=old, test=why == "random", folds=held, fit=fit)
        self.facts["gain"] = gain if gain["n_cells"] else None


def propose_round(
    *, records, plates, wells, learned, classes, rows, settings, count, channels, size_um, screen, random_share
):
    """Choose cells, and write the page and the list of a round; the caller holds the lock.

    Parameters
    ----------
    records : list of dict
        Records of the features of all plates.
    plates : list of str
        Plates to choose from.
    wells : set of str or None
        Wells to choose from; None: all.
    learned : Learned or None
        Without it, or without its classifier, cells are chosen to be diverse.
    classes : list of str
    rows : list of dict
        The table's: cells that have a label are not shown again.
    settings : dict
        The screen's config.
    count : int
    channels : list of str
        Shown, in this order.
    size_um : float
        Side of what is shown of a cell's surroundings [µm].
    screen : str
        Name of the screen.
    random_share : float

    Returns
    -------
    dict
        The round, as its list of cells says it.
    """
    rounds = read_rounds()
    number = max(rounds, default=0) + 1
    places = [
        place
        for place in wells_to_learn_from(records, plates=plates, count=10**9)
        if wells is None or place["well"] in wells
    ]
    if not places and wells and (there := wells_to_learn_from(records, plates=plates, count=10**9)):
        known = sorted({place["well"] for place in there})
        raise ConfigError(
            f"--wells: no cells of {some_of(sorted(wells))} have been measured; there are {some_of(known, 20)}"
        )
    if not places:
        raise PlateLayoutError("no well to choose cells from has been measured; run the screen first")
    chosen_wells = spread_wells(places, CANDIDATE_WELLS, start=(number - 1) * CANDIDATE_WELLS)
    open_cells = [
        {**cell, "class": ""}
        for one in rounds.values()
        for cell in one["cells"]
        if not any(row["round"] == str(one["round"]) for row in rows)
    ]
    features = learned.features if learned is not None and learned.pipeline is not None else None
    table = _candidates(chosen_wells, [*rows, *open_cells], features, number)
    if not len(table):
        if rows or open_cells:
            raise PlateLayoutError("every cell of the wells to choose from has been shown already")
        raise PlateLayoutError(
            "the wells to choose from have no cell but on fields that QC has flagged, or none at all"
        )
    columns = features or profiling.feature_columns(table)
    X = table[columns].to_numpy(float)
    X = np.where(np.isfinite(X), X, np.nan)
    probability = learned.pipeline.predict_proba(X) if features else None
    picked, why = choose_cells(
        X,
        plates=table["Metadata_Plate"],
        wells=table["Metadata_Well"],
        count=count,
        probability=probability,
        random_share=random_share,
        seed=number,
    )
    cells = []
    for place, reason in zip(picked, why, strict=True):
        row = table.iloc[place]
        plate, well = row["Metadata_Plate"], row["Metadata_Well"]
        cells.append((plate, well, int(row["Metadata_Field"]), int(row["Metadata_ObjectNumber"]), reason))
    said = describe_cells([cell[:4] for cell in cells])
    cells = [
        {"plate": cell[0], "well": cell[1], "field": cell[2], "object": cell[3], "why": cell[4], **found}
        for cell, found in zip(cells, said, strict=True)
        if found is not None
    ]
    made = {
        "format": FORMAT,
        "round": number,
        "screen": screen,
        "classes": classes,
        "cells": cells,
        "learned": learned.facts if learned is not None else None,
    }
    made["token"] = digest(made)[:12]
    page = _describe_page(made, rounds, settings, channels, size_um)
    stem = FOLDER / f"round-{number:02d}"
    write_bytes(stem.with_suffix(".html"), render_annotation(page).encode())
    write_json(stem.with_suffix(".json"), made)
    return made


def spread_wells(places, count, *, start=0):
    """Choose wells of all plates in turn, others in every round.

    Parameters
    ----------
    places : list of dict
        With `plate` and `well`, in an order of chance.
    count : int
    start : int
        So many were looked at in earlier rounds.

    Returns
    -------
    list of dict
    """
    by_plate = {}
    for place in places:
        by_plate.setdefault(place["plate"], []).append(place)
    turns = max(map(len, by_plate.values()))
    order = [of[i] for i in range(turns) for of in by_plate.values() if i < len(of)]
    return [order[(start + i) % len(order)] for i in range(min(count, len(order)))]


def _candidates(places, seen, features, number):
    """Cells to choose from: as many of each well, none that has been shown."""
    quota, tables = -(-CANDIDATE_CELLS // len(places)), []
    by_well = {}
    for row in seen:
        by_well.setdefault((row["plate"], row["well"]), []).append(short_row(row))
    for place in places:
        plate, well = place["plate"], place["well"]
        table = read_table(well_table(plate, "features", well))
        held, _ = assign_labels(plate, well, table, by_well.get((plate, well), []))
        table = table[(held < 0) & ~table["Metadata_SourceField"].isin(place["excluded"]).to_numpy()]
        table = table.iloc[sample_rows(f"{number}/{plate}/{well}", len(table), quota)]
        if features is not None:
            keys = [name for name in table if name.startswith("Metadata_")]
            table = table.reindex(columns=[*keys, *features])
        tables.append(table)
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _describe_page(made, rounds, settings, channels, size_um):
    """Pictures of a round's cells, and all else that its page shows."""
    pictures, outlines, width_um = [], [], []
    for cell in made["cells"]:
        crop, nuclei, bodies, side_um = _cut_out(cell, channels, size_um)
        pictures.append(crop)
        outlines.append((nuclei, bodies, cell["object"]))
        width_um.append(side_um)
    history = [
        {"round": one["round"] - 1, **one["learned"]} for one in [*rounds.values(), made] if one["learned"] is not None
    ]
    return AnnotationPage(
        screen=made["screen"],
        number=made["round"],
        token=made["token"],
        classes=tuple(made["classes"]),
        channels={name: f"#{settings['channels'][name]['color'].lstrip('#')}" for name in channels},
        pictures=np.stack(pictures),
        labels=tuple(outlines),
        width_um=float(np.median(width_um)),
        history=tuple(history),
    )


def _cut_out(cell, channels, size_um):
    """A cell's surroundings: pixels float32 (C, H, W), nuclei and cells (H, W) of the same grid, and the side [µm]."""
    plate, well, field = cell["plate"], cell["well"], cell["field"]
    path = store.field_path(plate_store(plate), well, field)
    pixel_size = store.describe_image(path)["pixel_size_um"]
    size = max(8, round(size_um / pixel_size))
    out = min(size, PICTURE_PX)
    shape = store.image_shape(path)[-2:]
    corner = [int(np.floor(cell[axis] - (size - 1) / 2 + 0.5)) for axis in ("y", "x")]
    window = tuple(
        slice(min(max(first, 0), side - 1), max(min(first + size, side), 1))
        for first, side in zip(corner, shape, strict=True)
    )
    made = read_record(well_table(plate, "features", well))["inputs"]
    pixels = read_corrected(plate, well, field, made["illumination"], channels=channels, window=window)
    center = [cell[axis] - part.start for axis, part in zip(("y", "x"), window, strict=True)]
    crop = crop_cells(pixels, [center], size_px=size, out_px=out)[0]
    place = (np.arange(out) * size / out + size / out / 2).astype(int)  # the pixel in the middle of each new one
    drawn = []
    for name in ("Nuclei", "Cells"):
        inside = store.project_labels(path, name, window=window, made=made["labels"])
        whole = np.zeros((size, size), inside.dtype)
        top, left = (part.start - first for part, first in zip(window, corner, strict=True))
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        drawn.append(whole[np.ix_(place, place)])
    return crop, *drawn, size * pixel_size


def place_labels(found, *, who, when):
    """Turn labels of other programs into rows of the table.

    Parameters
    ----------
    found : list of dict
        From `read_foreign_labels`: `where`, `plate`, `well`, `field`, `class`, and `object` or `y` and `x` [px].
    who, when : str

    Returns
    -------
    list of dict
        One row per cell.

    Raises
    ------
    ConfigError
        Naming every label that is of no cell, and cells that have two classes.
    """
    problems, rows, seen = [], [], {}
    at = [label for label in found if "object" not in label]
    numbers = find_objects([tuple(label[name] for name in ("plate", "well", "field", "y", "x")) for label in at])
    for label, number in zip(at, numbers, strict=True):
        label["object"] = number
    cells = [tuple(label[name] for name in ("plate", "well", "field", "object")) for label in found]
    for label, cell, said in zip(found, cells, describe_cells(cells), strict=True):
        if said is None:
            point = f"at row {label['y']:g}, column {label['x']:g}" if "y" in label else f"with the number {cell[3]}"
            problems.append(f"{label['where']}: {cell[0]}/{cell[1]}, field {cell[2]}, has no cell {point}")
        elif cell in seen and seen[cell]["class"] != label["class"]:
            first = seen[cell]
            problems.append(
                f"{label['where']}: is {label['class']!r}, and {first['class']!r} by {first['where']}: one cell of two classes"
            )
        elif cell not in seen:
            names = ("plate", "well", "field", "object", "class")
            rows.append({name: label[name] for name in names} | said)
            rows[-1] |= {"who": who, "when": when, "round": "", "why": "imported"}
        seen.setdefault(cell, label)
    if problems:
        raise ConfigError(problems)
    return rows


def check_export(data, rounds):
    """Check what a round's page has exported.

    Parameters
    ----------
    data : JSON value
    rounds : dict of int to dict
        From `read_rounds`.

    Returns
    -------
    list of dict
        Rows of the table, in the order in which the labels were given.

    Raises
    ------
    ConfigError
        Naming every wrong label.
    """
    if not isinstance(data, dict) or data.get("format") != "plateloom-annotation-1":
        raise ConfigError("is no export of an annotation page: it has no format 'plateloom-annotation-1'")
    made = rounds.get(data["round"]) if isinstance(data.get("round"), int) else None
    if made is None or data.get("token") != made["token"]:
        raise ConfigError(
            f"round {data.get('round')!r} of the screen {data.get('screen')!r}: no round of this screen; "
            f"rounds there: {', '.join(map(str, rounds)) or 'none'}"
        )
    if not isinstance(data.get("labels"), list):
        raise ConfigError("holds no list `labels`")
    problems, rows, seen = [], [], {}
    for i, label in enumerate(data["labels"], 1):
        label = label if isinstance(label, dict) else {}
        number, name = label.get("cell"), label.get("class")
        if type(number) is not int or not 1 <= number <= len(made["cells"]):
            problems.append(f"label {i}: cell {number!r} is not of this round, which has {len(made['cells'])} cells")
            continue
        if name != "" and name not in made["classes"]:
            problems.append(f"label {i}: cell {number} has the class {name!r}; classes: {', '.join(made['classes'])}")
        if number in seen:
            problems.append(f"label {i}: cell {number} stands there twice, first as label {seen[number]}")
        seen.setdefault(number, i)
        cell = {key: made["cells"][number - 1][key] for key in ("plate", "well", "field", "object", "why")}
        place = {key: made["cells"][number - 1][key] for key in ("y", "x", "segmentation")}
        said = {"who": str(data.get("who") or ""), "when": str(label.get("when") or ""), "round": str(made["round"])}
        rows.append(cell | place | said | {"class": name})
    if problems:
        raise ConfigError(problems)
    return rows
