"""Parquet tables that carry their fingerprint in the schema's metadata."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plateloom.store.provenance import replacing

KEY = b"plateloom"
GROUP_ROWS = 1000  # of a row group at least: each costs as much as 100 rows of thousands of columns
KEYS = ("Metadata_Plate", "Metadata_Well", "Metadata_Field", "Metadata_ObjectNumber")


def write_table(path, table, record, *, described=None):
    """Write a table whole or not at all; the same table and record give the same bytes.

    Parameters
    ----------
    path : path
    table : DataFrame
        Its index is not written. Row groups are whole fields, as many as reach `GROUP_ROWS`; fewer at the end join the last.
    record : dict
        The `plateloom` record (see `provenance.recipe`).
    described : dict of str to dict of str to str, optional
        Metadata of columns, for the schema.
    """
    try:
        arrow = _to_arrow(table)
    except UnicodeEncodeError:  # names of files need not be UTF-8
        readable = lambda v: v.encode(errors="surrogateescape").decode(errors="backslashreplace")  # noqa: E731
        table = table.map(lambda value: readable(value) if isinstance(value, str) else value)
        arrow = _to_arrow(table)
    fields, columns = list(arrow.schema), arrow.columns
    for i, field in enumerate(fields):
        # Columns of text without a value would get the type null, and the files of a dataset would differ in type.
        if pa.types.is_null(field.type):
            fields[i], columns[i] = pa.field(field.name, pa.string()), columns[i].cast(pa.string())
        if described and field.name in described:
            fields[i] = fields[i].with_metadata(_metadata(tuple(described[field.name].items())))
    schema = pa.schema(fields, metadata={KEY: json.dumps(record, sort_keys=True)})
    arrow = pa.Table.from_arrays(columns, schema=schema)
    # Of thousands of columns that were measured, statistics and dictionaries would outgrow the values. Their bytes
    # compress better and sooner by significance: the last ones of a float are noise.
    keys = [field.name for field in arrow.schema if not pa.types.is_floating(field.type)]
    measured = [field.name for field in arrow.schema if pa.types.is_floating(field.type)]
    options = {"write_statistics": keys, "use_dictionary": keys, "use_byte_stream_split": measured}
    options |= {"compression": "zstd", "compression_level": -7, "write_page_checksum": True}
    with replacing(path, size=arrow.nbytes) as file, pq.ParquetWriter(file, arrow.schema, **options) as writer:
        for first, last in _row_groups(table):
            writer.write_table(arrow.slice(first, last - first))


@functools.lru_cache(maxsize=50_000)
def _metadata(described):
    """A column's metadata, which every well's table has again."""
    return pa.KeyValueMetadata(dict(described))


def _to_arrow(table):
    """Convert a table; floats by type at once, since one column at a time takes as long as writing them."""
    columns, length = {}, len(table)
    for kind in ("float64", "float32"):
        names = [name for name, found in table.dtypes.items() if found == kind]
        values = np.ascontiguousarray(table[names].to_numpy(kind).T)
        joined = pa.array(values.ravel(), from_pandas=True)
        columns |= {name: joined.slice(i * length, length) for i, name in enumerate(names)}
    others = pa.Table.from_pandas(table[[name for name in table if name not in columns]], preserve_index=False)
    columns |= dict(zip(others.column_names, others.columns, strict=True))
    return pa.table({name: columns[name] for name in table})


def _row_groups(table):
    """First and last + 1 row of every row group: whole fields where they are keys, else all rows."""
    if "Metadata_ObjectNumber" not in table or not len(table):
        return [(0, len(table))]
    fields = table["Metadata_Field"].to_numpy()
    starts = [0]
    for begin in np.flatnonzero(fields[1:] != fields[:-1]) + 1:
        if begin - starts[-1] >= GROUP_ROWS and len(table) - begin >= GROUP_ROWS:
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
    table = pq.read_table(path, columns=columns, page_checksum_verification=True)
    return table.replace_schema_metadata(None).to_pandas()


def read_metadata(path):
    """Read the `Metadata_` columns of a table: what is known of its rows, without what was measured."""
    return read_table(path, [name for name in pq.read_schema(path).names if name.startswith("Metadata_")])


def read_tables(paths, columns=None):
    """Read the tables that exist, one below the other in the order given; an empty DataFrame where there is none."""
    tables = [read_table(path, columns) for path in paths if Path(path).exists()]
    filled = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)
