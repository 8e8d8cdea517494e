"""Parquet tables that carry their fingerprint in the schema's metadata."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plateloom.store.provenance import replacing

KEY = b"plateloom"
FLOATS = ("float64", "float32")
GROUP_ROWS = 1000  # of a row group at least: each costs as much as 100 rows of thousands of columns
KEYS = ("Metadata_Plate", "Metadata_Well", "Metadata_Field", "Metadata_ObjectNumber")


def write_table(path, table, record, *, described=None, group_rows=GROUP_ROWS):
    """Write a table whole or not at all; the same table and record give the same bytes.

    Parameters
    ----------
    path : path
    table : DataFrame
        Its index is not written.
    record : dict
        The `plateloom` record (see `provenance.recipe`).
    described : dict of str to dict of str to str, optional
        Metadata of columns, for the schema.
    group_rows : int
        Row groups are whole fields, as many as reach so many rows; fewer at the end join the last.
    """
    try:
        columns = _to_arrow(table)
    except UnicodeEncodeError:  # names of files need not be UTF-8
        readable = lambda v: v.encode(errors="surrogateescape").decode(errors="backslashreplace")  # noqa: E731
        table = table.map(lambda value: readable(value) if isinstance(value, str) else value)
        columns = _to_arrow(table)
    layout = _describe_columns(table.dtypes, columns, described)
    schema = layout.schema.with_metadata({KEY: json.dumps(record, sort_keys=True)})
    arrow = pa.Table.from_arrays([columns[name] for name in table], schema=schema)
    with replacing(path, size=arrow.nbytes) as file, pq.ParquetWriter(file, schema, **layout.options) as writer:
        for first, last in _row_groups(table, group_rows):
            writer.write_table(arrow.slice(first, last - first))


class _Layout(NamedTuple):
    """How a table's columns are written."""

    dtypes: pd.Series
    others: dict  # the types of what is no float
    described: dict
    schema: pa.Schema
    options: dict


# A plate's wells have the same thousands of columns, which need describing once.
_last_layout = None


def _describe_columns(dtypes, columns, described):
    global _last_layout
    others = {name: columns[name].type for name, kind in dtypes.items() if kind not in FLOATS}
    kept = _last_layout
    if kept and kept.described is described and kept.others == others and kept.dtypes.equals(dtypes):
        return kept
    told = described or {}
    schema = pa.schema([pa.field(name, columns[name].type, metadata=told.get(name)) for name in dtypes.index])
    # Of thousands of columns that were measured, statistics and dictionaries would outgrow the values. Their bytes
    # compress better and sooner by significance: the last ones of a float are noise.
    measured = [name for name in dtypes.index if name not in others]
    options = {"write_statistics": list(others), "use_dictionary": list(others), "use_byte_stream_split": measured}
    options |= {"compression": "zstd", "compression_level": -7, "write_page_checksum": True}
    _last_layout = _Layout(dtypes, others, described, schema, options)
    return _last_layout


def _to_arrow(table):
    """Columns by name; floats by type at once, since one column at a time takes as long as writing them."""
    columns, length = {}, len(table)
    for kind in FLOATS:
        names = [name for name, found in table.dtypes.items() if found == kind]
        values = np.ascontiguousarray(table[names].to_numpy(kind).T)
        joined = pa.array(values.ravel(), from_pandas=True)
        columns |= {name: joined.slice(i * length, length) for i, name in enumerate(names)}
    others = pa.Table.from_pandas(table[[name for name in table if name not in columns]], preserve_index=False)
    for name, column in zip(others.column_names, others.columns, strict=True):
        # Columns of text without a value would get the type null, and the files of a dataset would differ in type.
        columns[name] = column.cast(pa.string()) if pa.types.is_null(column.type) else column
    return columns


def _row_groups(table, least):
    """First and last + 1 row of every row group: whole fields where they are keys, else all rows."""
    if "Metadata_ObjectNumber" not in table or not len(table):
        return [(0, len(table))]
    fields = table["Metadata_Field"].to_numpy()
    starts = [0]
    for begin in np.flatnonzero(fields[1:] != fields[:-1]) + 1:
        if begin - starts[-1] >= least and len(table) - begin >= least:
            starts.append(begin)
    return list(zip(starts, [*starts[1:], len(table)], strict=True))


def read_record(path):
    """The record of a table without reading its rows; None where there is no such table, or it is not whole."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):  # a damaged footer raises either
        return None
    return json.loads(metadata[KEY]) if KEY in metadata else None


def read_table(path, columns=None):
    """Read one table, or some of its columns, as a DataFrame; a page whose checksum does not hold raises `OSError`."""
    # As a dataset, which one file is for `pq.read_table`, thousands of columns take nearly twice as long.
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=True) as file:
        table = file.read(columns)
    if columns is not None:
        table = table.select(columns)
    return table.replace_schema_metadata(None).to_pandas()


def read_metadata(path):
    """Read the `Metadata_` columns of a table: what is known of its rows, without what was measured."""
    return read_table(path, [name for name in pq.read_schema(path).names if name.startswith("Metadata_")])


def read_tables(paths, columns=None):
    """Read the tables that exist, one below the other in the order given; an empty DataFrame where there is none."""
    tables = [read_table(path, columns) for path in paths if Path(path).exists()]
    filled = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
