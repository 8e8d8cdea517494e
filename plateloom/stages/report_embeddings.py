"""Maps of wells and cells, as both pages show them."""

import pandas as pd

from plateloom import report
from plateloom.stages.clusters import read_clusters
from plateloom.stages.report_classes import done_classifier, learned_note
from plateloom.stages.sampling import choose_wells, sample_rows
from plateloom.store.layout import model_folder, well_table
from plateloom.store.provenance import read_json
from plateloom.store.tables import KEYS, read_table

MAP_CELLS = 20_000
MAP_WELLS = 1_000


def list_cell_maps(wells, inputs):
    """The map of the cells of some plates, and why it is not there.

    Parameters
    ----------
    wells : dict of str to DataFrame
        Each plate's.
    inputs : dict
        Records of the page's job; `mapped` and `classified` are read.

    Returns
    -------
    list of Embedding
    dict of str to str
        Notes on sections that are empty.
    """
    every = [(plate, well) for plate, table in wells.items() for well in table["Metadata_Well"]]
    reasons = [record["reason"] for record in inputs["mapped"] if record["status"] != "done"]
    if reasons or not inputs["mapped"] or not every:
        return [], {"cell_maps": reasons[0] if reasons else "There is no map of cells."}
    card = done_classifier(inputs["classified"])
    of_clusters = ["Cluster"] if read_clusters(inputs["mapped"]) else []
    chosen = choose_wells(every, MAP_WELLS)
    quota = -(-MAP_CELLS // len(chosen))
    parts, total = [], 0
    for plate, well in chosen:
        if not well_table(plate, "maps", well).exists():
            continue
        table = read_table(well_table(plate, "maps", well), [*KEYS, "Map_1", "Map_2", *of_clusters])
        if card and card["classes"] and well_table(plate, "classes", well).exists():
            classes = read_table(well_table(plate, "classes", well), [*KEYS, "Class"])
            table = table.merge(classes, on=list(KEYS), how="left").fillna({"Class": ""})
        parts.append(table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)])
        total += len(table)
    filled = [part for part in parts if len(part)]
    if not filled:
        return [], {"cell_maps": "There is no cell."}
    cells = pd.concat(filled, ignore_index=True)
    known = pd.concat(list(wells.values()), ignore_index=True)
    keys = ["Metadata_Plate", "Metadata_Well"]
    cells = cells.merge(known[[*keys, "Metadata_Treatment", "Metadata_Control", "Metadata_Batch"]], on=keys, how="left")
    config = read_json(model_folder("map") / "map.json")["config"]
    name = "PCA" if config["reason"] else config["method"].upper()
    axes = name_components(config["explained"]) if name == "PCA" else (f"{name} 1", f"{name} 2")
    every_cell = len(cells) == total and len(chosen) == len(every)
    note = f"All {len(cells):,} cells." if every_cell else f"{len(cells):,} cells, drawn evenly over the wells."
    note += (
        " Their features are scaled by the median and spread of the whole sample and not normalized to the controls of each "
        f"plate{': where plates lie apart, so do their stainings' if len(wells) > 1 else ''}."
    )
    if "Class" in cells:
        learned = learned_note(list(dict.fromkeys(zip(cells["Metadata_Plate"], cells["Metadata_Well"], strict=True))))
        note += f" {learned}" if learned else ""
    if config["reason"]:
        note += f" No {config['method'].upper()}: {config['reason']}."
    return [make_embedding(f"Cells, {name}", cells, "Map_1", "Map_2", note, axes)], {}


def make_embedding(title, table, x, y, reason, axes):
    """A map colored by what the wells hold, and by plate, which should not be seen in it.

    Parameters
    ----------
    title : str
    table : DataFrame
        Wells, or cells with the keys of their wells.
    x, y : str
        Columns.
    reason : str
        Note below the map.
    axes : tuple of str
        Titles.

    Returns
    -------
    Embedding
    """
    treatment = table["Metadata_Treatment"].fillna("").where(table["Metadata_Control"] == "", table["Metadata_Control"])
    colorings = {"treatment": treatment}
    if table["Metadata_Plate"].nunique() > 1:
        colorings["plate"] = table["Metadata_Plate"]
    if "Metadata_Batch" in table and table["Metadata_Batch"].nunique() > 1:
        colorings["batch"] = table["Metadata_Batch"]
    if "Class" in table:
        colorings["class"] = table["Class"]
    colorings = {name: [value or "none" for value in values] for name, values in colorings.items()}
    if "Cluster" in table:  # a cell without one is gray, not one more color
        colorings["cluster"] = ["" if number < 0 else str(number) for number in table["Cluster"]]
    return report.Embedding(
        title=title,
        x=table[x].to_numpy(float),
        y=table[y].to_numpy(float),
        colorings=colorings,
        axes=axes,
        note=reason,
    )


def name_components(explained):
    """Titles of the axes of a map by PCA, with the share of the variance that each explains."""
    shares = [f" ({share:.0%} of the variance)" for share in explained[:2]] + ["", ""]
    return f"PCA 1{shares[0]}", f"PCA 2{shares[1]}"
