"""Which fields of a plate count, and whose cells are known."""

import pandas as pd

from plateloom.engine.parts import FAILED
from plateloom.quality import FLAGS, find_unlike_counts
from plateloom.store.layout import plate_folder, well_table
from plateloom.store.tables import KEYS, read_metadata, read_table, read_tables
from plateloom.wells import QUARANTINED


def fields_of(table, number="Metadata_Field"):
    """Fields that a table's rows are about: set of (well, field)."""
    return set(zip(table["Metadata_Well"], table[number].astype(int), strict=True))


def flagged_fields(plate):
    """Fields of a plate's source that QC has flagged in any channel, or a person with their well: set of (well, field)."""
    table = read_table(plate_folder(plate) / "qc.parquet", ["Metadata_Well", "SourceField", "Reason"])
    return fields_of(table[table["Reason"] != ""], "SourceField")


def flagged_wells(profiled):
    """Wells that plates' profiles leave out since all of their fields are flagged: set of (plate, well)."""
    found = set()
    for plate in (record["plate"] for record in profiled if record["facts"].get("flagged_fields")):
        table = read_table(plate_folder(plate) / "qc.parquet", ["Metadata_Well", "SourceField", "Reason"])
        bad = (table["Reason"] != "").groupby([table["Metadata_Well"], table["SourceField"]]).any()
        whole = bad.groupby("Metadata_Well").all()
        found |= {(plate, well) for well in whole.index[whole]}
    return found


def quarantined_wells(plate):
    """Wells of a plate that a person has taken out, as far as they have images: set of str."""
    path = plate_folder(plate) / "qc.parquet"
    if not path.exists():
        return set()
    table = read_table(path, ["Metadata_Well", "Reason"])
    return set(table.loc[table["Reason"] == QUARANTINED, "Metadata_Well"])


def empty_fields(quality):
    """Fields of a plate's source that are flagged as empty and as nothing else: set of (well, field).

    Their cells are known: there are none.
    """
    other = [name for name in FLAGS if name != "Flag_Empty" and name in quality]  # earlier code had fewer
    flagged = quality[quality["Reason"] != ""]
    only = flagged["Flag_Empty"] & ~flagged[other].any(axis=1)
    only = only.groupby([flagged["Metadata_Well"], flagged["SourceField"]]).all()
    return {(well, int(field)) for well, field in only.index[only]}


def unlike_fields(objects, quality):
    """Find the fields that no flag keeps out and that have far fewer or more nuclei than the others of their well.

    Parameters
    ----------
    objects : DataFrame
        One row per field: ``Metadata_Well``, ``Metadata_Field``, ``Status`` and ``Count_Nuclei``.
    quality : DataFrame
        One row per field and channel: ``Metadata_Well``, ``Metadata_Field`` and ``Reason``.

    Returns
    -------
    DataFrame
        ``Metadata_Well``, ``Metadata_Field``, ``Count`` and ``Usual``. A stitched well is one field, and so has none.
    """
    keys = ["Metadata_Well", "Metadata_Field"]
    if not len(objects):
        return pd.DataFrame(columns=[*keys, "Count", "Usual"])
    flagged = quality.loc[quality["Reason"] != "", keys].apply(tuple, axis=1)
    counts = objects.loc[objects["Status"] == "done", [*keys, "Count_Nuclei"]]
    counts = counts[~counts[keys].apply(tuple, axis=1).isin(set(flagged))]
    return find_unlike_counts(counts.rename(columns={"Count_Nuclei": "Count"}))


def unlike_fields_of(plate, wells):
    """What `unlike_fields` finds on a plate: set of (well, field)."""
    objects = read_tables([well_table(plate, "segmentation", well) for well in wells])
    quality = read_table(plate_folder(plate) / "qc.parquet", ["Metadata_Well", "Metadata_Field", "Reason"])
    return fields_of(unlike_fields(objects, quality))


def count_fields(segmented, quality, left_out):
    """Number of fields of each well whose cells are known: those that were segmented, but those left out.

    Parameters
    ----------
    segmented : DataFrame
        A row per image: ``Metadata_Well``, ``Metadata_Field`` and ``Status``.
    quality : DataFrame
        A row per field and channel: ``Metadata_Well``, ``Metadata_Field`` (its image) and ``SourceField``.
    left_out : set of (str, int)
        Well and source field.

    Returns
    -------
    Series of int
        By well; wells without any are missing.
    """
    keys = ["Metadata_Well", "Metadata_Field"]
    fields = quality[[*keys, "SourceField"]].drop_duplicates()
    fields = fields.merge(segmented.loc[segmented["Status"] != FAILED, keys], on=keys)
    fields = fields[
        [field not in left_out for field in zip(fields["Metadata_Well"], fields["SourceField"], strict=True)]
    ]
    return fields.groupby("Metadata_Well").size()


def expected_empty(quality, wells):
    """Rows of ``qc.parquet`` that are flagged as empty alone, in wells that are empty controls: no fault, Series of bool."""
    blank = quality["Metadata_Well"].isin(wells.loc[wells["Metadata_Control"] == "empty", "Metadata_Well"])
    return blank & quality["Flag_Empty"] & ~quality.filter(like="Flag_").drop(columns="Flag_Empty").any(axis=1)


def known_cells(wells):
    """Number of cells of each well as float: NaN where no field's cells are known, and not 0, which would be read as toxic.

    Parameters
    ----------
    wells : DataFrame
        ``Metadata_CellCount`` and ``Metadata_FieldCount``.
    """
    return wells["Metadata_CellCount"].astype(float).where(wells["Metadata_FieldCount"] > 0)


def without_fields(cells, plate, well, excluded):
    """Cells of a well but those on some fields of its source.

    Parameters
    ----------
    cells : DataFrame
        With `KEYS`.
    plate, well : str
    excluded : collection of int
    """
    if not excluded:
        return cells
    fields = read_table(well_table(plate, "features", well), [*KEYS, "Metadata_SourceField"])
    cells = cells.merge(fields, on=list(KEYS), validate="one_to_one")
    return cells[~cells["Metadata_SourceField"].isin(excluded)]


def count_by_well(plate, stage, columns, count, names, exclude_flagged):
    """Count among the cells of each well of a plate.

    Parameters
    ----------
    plate : str
    stage : str
        Whose tables are read.
    columns : list of str
        Of these tables, beside `KEYS`.
    count : callable
        Gives numbers of a table of cells.
    names : list of str
        Of the numbers.
    exclude_flagged : bool
        Leave out fields that QC has flagged.

    Returns
    -------
    DataFrame
        One row per well: what it holds, and the numbers.
    """
    bad = flagged_fields(plate) if exclude_flagged else set()
    wells = read_metadata(plate_folder(plate) / "aggregates.parquet")
    rows = []
    for well in wells["Metadata_Well"]:
        cells = read_table(well_table(plate, stage, well), [*KEYS, *columns])
        rows.append(count(without_fields(cells, plate, well, {field for other, field in bad if other == well})))
    known = [f"Metadata_{name}" for name in ("Plate", "Well", "Treatment", "Dose", "Unit", "Control")]
    return pd.concat([wells[known].reset_index(drop=True), pd.DataFrame(rows, columns=names)], axis=1)
