"""Labels of cells that other programs have written: training sets of CellProfiler Analyst, and tables of napari."""

import math
from pathlib import Path

from plateloom.errors import ConfigError
from plateloom.store.sheets import read_sheet
from plateloom.wells import parse_well, well_name

LABEL_COLUMNS = ("label", "index", "object", "")  # "": the index that pandas writes without a name
CLASS_COLUMNS = ("annotation_names", "class", "annotations")
NO_CLASS = ("", "noclass", "nan", "none")
PLACE_COLUMNS = {  # ours to those of CellProfiler's table of images
    "plate": ("plate", "metadata_plate", "image_metadata_plate"),
    "well": ("well", "metadata_well", "image_metadata_well"),
    "field": (
        *("field", "metadata_field", "metadata_site"),
        *("image_metadata_field", "image_metadata_site"),
    ),
}


def read_foreign_labels(path, *, place=None, images=None, same_objects=False, classes=()):
    """Read a training set of CellProfiler Analyst, as text or CSV, or a table of napari.

    Parameters
    ----------
    path : path
        Text of CellProfiler Analyst: lines of class, ImageNumber, ObjectNumber, x, y. Its CSV: columns ImageNumber,
        ObjectNumber, Class and features. Of napari: a column of labels (`label`, `index` or the one without a name) and one of
        classes (`annotation_names` or `class`, or `annotations`, numbers from 1 on).
    place : (str, str, int), optional
        Plate, well and field of all cells of a table of napari that does not say.
    images : path, optional
        Which plate, well and field an ImageNumber is: columns ImageNumber, plate, well, field, or CellProfiler's own
        table of images with Metadata_Plate, Metadata_Well and Metadata_Field or Metadata_Site.
    same_objects : bool
        An ObjectNumber is a cell's number in Plateloom; without it, cells are found by where they lie.
    classes : sequence of str
        What the numbers of `annotations` mean.

    Returns
    -------
    list of dict
        `where` (file and line), `plate`, `well`, `field`, `class`, and `object` or `y` and `x` [px].

    Raises
    ------
    ConfigError
        Naming every wrong line.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if first.split(" ")[0] == "label" and "," not in first and "\t" not in first:
        return _resolve(path, _read_analyst_text(path, lines), images, same_objects)
    rows, problems = read_sheet(path, set(), None, usual=("imagenumber", "objectnumber", "tablenumber"))
    if problems:
        raise ConfigError(problems)
    if not rows:
        raise ConfigError(f"{path}: holds no label")
    names = {name.lower(): name for name in rows[0][1]}
    if "imagenumber" in names:
        return _resolve(path, _read_analyst_table(path, rows, names), images, same_objects)
    return _read_napari(path, rows, names, place, classes)


def _read_analyst_text(path, lines):
    """Labels of a training set: class, then [table,] image and object, then if they are there x and y."""
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#") or words[0] == "label":  # what follows # may be a pickle: it is never read
            continue
        try:
            keys = [int(float(word)) for word in words[1:]]
            if len(keys) not in (2, 3, 4, 5):
                raise ValueError
        except ValueError:
            problems.append(
                f"{path}:{number}: expected a class, then ImageNumber, ObjectNumber and x, y; class without blanks"
            )
            continue
        point = keys[-2:] if len(keys) > 3 else (None, None)
        ids = keys[:-2] if len(keys) > 3 else keys
        found.append({"where": f"{path}:{number}", "image": tuple(ids[:-1]), "object": ids[-1], "class": words[0]})
        found[-1] |= {"x": point[0], "y": point[1]}
    if problems:
        raise ConfigError(problems)
    return found


def _read_analyst_table(path, rows, names):
    """Labels of a training set that was saved as CSV."""
    if lacking := [name for name in ("objectnumber", "class") if name not in names]:
        raise ConfigError(
            f"{path}: no column {', '.join(lacking)}; a training set has ImageNumber, ObjectNumber and Class"
        )
    centers = sorted(
        (name[:-1] for name in rows[0][1] if name.endswith(("Location_Center_X", "AreaShape_Center_X"))),
        key=lambda name: ("Nuclei" not in name, name),
    )
    found, problems = [], []
    for line, row in rows:
        try:
            ids = [int(float(row[names[name]])) for name in ("tablenumber", "imagenumber") if name in names]
            found.append(
                {
                    "where": f"{path}:{line}",
                    "image": tuple(ids),
                    "object": int(float(row[names["objectnumber"]])),
                    "class": row[names["class"]],
                    "x": float(row[centers[0] + "X"]) if centers else None,
                    "y": float(row[centers[0] + "Y"]) if centers else None,
                }
            )
        except (ValueError, KeyError) as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise ConfigError(problems)
    return found


def _resolve(path, labels, images, same_objects):
    """Plate, well and field of labels that know the number of an image."""
    if images is None:
        raise ConfigError(f"{path}: knows images by their number; --images: a table ImageNumber, plate, well, field")
    rows, problems = read_sheet(images, set(), None, usual=("imagenumber", "tablenumber"))
    if problems:
        raise ConfigError(problems)
    names = {name.lower(): name for name in rows[0][1]} if rows else {}
    columns = {
        ours: next((names[one] for one in theirs if one in names), None) for ours, theirs in PLACE_COLUMNS.items()
    }
    columns |= {"imagenumber": names.get("imagenumber")}
    if lacking := [name for name, column in columns.items() if column is None]:
        raise ConfigError(f"{images}: no column for {', '.join(lacking)}. Columns there: {', '.join(names.values())}")
    places = {}
    for line, row in rows:
        try:
            ids = tuple(int(float(row[names[name]])) for name in ("tablenumber", "imagenumber") if name in names)
            places[ids] = _place(row[columns["plate"]], row[columns["well"]], row[columns["field"]])
        except ValueError as error:
            problems.append(f"{images}:{line}: {error}")
    found = []
    for label in labels:
        image = label.pop("image")
        place = places.get(image) or places.get(image[-1:])
        if place is None:
            problems.append(f"{label['where']}: image {image[-1]} is not in {images}")
        elif label["x"] is None and not same_objects:
            problems.append(
                f"{label['where']}: says not where the cell lies; if its ObjectNumber is the cell's in Plateloom: --same-objects"
            )
        else:
            point = {"object": label["object"]} if same_objects else {"y": label["y"], "x": label["x"]}
            found.append({"where": label["where"], "class": label["class"], **place, **point})
    if problems:
        raise ConfigError(problems)
    return found


def _read_napari(path, rows, names, place, classes):
    """Labels of a label layer's table of features, or of napari-feature-classifier."""
    label = next((names[name] for name in LABEL_COLUMNS if name in names), None)
    kind = next((names[name] for name in CLASS_COLUMNS if name in names), None)
    if label is None or kind is None:
        raise ConfigError(
            f"{path}: neither a training set (ImageNumber, ObjectNumber, Class) nor a table of napari (label, and class or "
            f"annotation_names). Columns there: {', '.join(filter(None, names.values()))}"
        )
    within = {name: names.get(name) for name in ("plate", "well", "field")}
    if place is None and None in within.values():
        raise ConfigError(f"{path}: does not say which field the labels are of; --at PLATE/WELL/FIELD")
    found, problems = [], []
    for line, row in rows:
        name = row[kind]
        if name.lower() in NO_CLASS:
            continue
        try:
            if kind.lower() == "annotations":
                number = float(name)
                if math.isnan(number) or number < 1:
                    continue
                if number > len(classes):
                    raise ValueError(f"class {name}: say what the numbers mean by --classes")
                name = classes[int(number) - 1]
            where = (
                _place(*(row[within[key]] for key in ("plate", "well", "field"))) if place is None else _place(*place)
            )
            found.append({"where": f"{path}:{line}", "class": name, "object": int(float(row[label])), **where})
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise ConfigError(problems)
    return found


def _place(plate, well, field):
    return {"plate": plate, "well": well_name(*parse_well(well)), "field": int(float(field))}
