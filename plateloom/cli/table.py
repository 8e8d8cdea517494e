"""`plateloom table`: a table of results as text, for spreadsheets and for programs that read no parquet."""

import contextlib
import fnmatch
import os
import re
import shlex
import sys
from pathlib import Path

import click

from plateloom.errors import ConfigError, CorruptStoreError, counted, did_you_mean, some_of

SEPARATORS = {".csv": ",", ".tsv": "\t"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEYS = {"--plate": "Metadata_Plate", "--wells": "Metadata_Well"}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name", required=False)
@click.option("--plate", "plates", multiple=True, help="Only this plate; may be repeated.")
@click.option("--wells", help="Only these wells: B02,C03.")
@click.option("--columns", help="Only these columns, * for any letters: 'Metadata_*,*_AreaShape_Area'.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A new file, .csv or .tsv.")
@click.option("--excel", is_flag=True, help="Begin the file as Excel needs it to read letters such as µ.")
def command(folder, name, plates, wells, columns, out, excel):
    """Write the table NAME of the screen in FOLDER as CSV, to the terminal or a file; without NAME, list its tables.

    Tables of cells (features, latent, maps, classes …) have a file per well and are written one after the other; as text they
    are large, so choose wells or columns. What is no number is empty; a text that a spreadsheet would run gets an apostrophe.

    \b
    plateloom table screens/mine
    plateloom table screens/mine hits --out hits.csv
    plateloom table screens/mine features --plate P1 --wells B02 --columns 'Metadata_*,Nuclei_AreaShape_*' --out cells.csv
    """
    from plateloom.wells import read_wells

    tables = _list_tables(folder, name if re.fullmatch(r"\w+", name or "") else "*")
    if name is None:
        _show(folder, tables)
        return
    if name not in tables:
        tables = _list_tables(folder, "*")
        known = f"there are {', '.join(tables)}" if tables else "there are none: plateloom run makes them"
        raise ConfigError(f"no table {name!r}.{did_you_mean(name, tables)} {known}")
    if out and out.suffix.lower() not in SEPARATORS:
        raise ConfigError(f"--out {str(out)!r}: expected a name that ends with {' or '.join(SEPARATORS)}")
    if out and out.exists():
        raise ConfigError(f"{str(out)!r} is there already; choose another name")
    chosen, problems = read_wells(wells or "")
    if problems:
        raise ConfigError([f"--wells: {problem}" for problem in problems])
    wanted = {"--plate": set(plates), "--wells": set(chosen)}
    files = _choose_files(tables[name], wanted)
    _tell_what_is_stale(folder, name, tables[name], plates)
    separator = SEPARATORS[out.suffix.lower()] if out else ","
    with _opened(out) as file:
        if excel:
            file.write(BYTE_ORDER_MARK)
        rows = _write(file, files, wanted, columns, separator)
    if out:
        click.echo(f"{counted(rows, 'row')} in {str(out)!r}")


def _list_tables(folder, name):
    """Files of the tables called so (*: all), by name, as (plate, path); a screen's has no plate, and stands for its plates'."""
    tables = {path.stem: [("", path)] for path in sorted((folder / "results/screen").glob(f"{name}.parquet"))}
    if name in tables:
        return tables
    whole = set(tables)
    for plate in sorted((folder / "results/plates").glob("*/")):
        for path in sorted(plate.glob(f"{name}.parquet")):
            if path.stem not in whole:
                tables.setdefault(path.stem, []).append((plate.name, path))
        for path in sorted(plate.glob(f"{name}/*.parquet")):
            tables.setdefault(path.parent.name, []).append((plate.name, path))
    return tables


def _show(folder, tables):
    """One line per table."""
    if not tables:
        click.echo(f"no table yet: plateloom run {shlex.quote(str(folder))}")
    for name, files in tables.items():
        plates = {plate for plate, _ in files if plate}
        of = f"{counted(len(plates), 'plate')} in {counted(len(files), 'file')}" if plates else "the screen"
        with _reading(files[0][1]) as file:
            click.echo(f"{name:<22}{counted(len(file.schema_arrow.names), 'column'):>14} of {of}")


def _choose_files(files, wanted):
    """The files that can hold what is wanted."""
    plates = {plate for plate, _ in files}
    if plates == {""}:
        return [path for _, path in files]
    if strange := sorted(wanted["--plate"] - plates):
        raise ConfigError(f"--plate: no {some_of(strange)}; there are {some_of(sorted(plates), 20)}")
    files = [(plate, path) for plate, path in files if not wanted["--plate"] or plate in wanted["--plate"]]
    if any(path.parent.name == plate for plate, path in files):  # a table per plate
        return [path for _, path in files]
    return [path for _, path in files if not wanted["--wells"] or path.stem in wanted["--wells"]]


def _tell_what_is_stale(folder, name, files, plates):
    """Say where a run would make the table anew: what is written is what the last run has made."""
    from plateloom.repair import PLATE_ARTEFACTS, SCREEN_ARTEFACTS
    from plateloom.status import LEFT, read_screen

    of_screen = files[0][0] == ""
    made = SCREEN_ARTEFACTS if of_screen else PLATE_ARTEFACTS
    stage = next((stage for stage, own in made.items() if {f"{name}.parquet", f"{name}/{{}}.parquet"} & {*own}), None)
    try:
        states = read_screen(folder)
    except (ConfigError, OSError):  # also of a screen that is no more than its results
        return
    found = {"": states["screen"]} if of_screen else states["plates"]
    for plate in sorted({plate for plate, _ in files if not plates or plate in plates or of_screen}):
        state = found.get(plate, {}).get(stage)
        if state and state.state in LEFT:
            of = f" of {plate}" if plate else ""
            why = f": {state.reason}" if state.reason else ""
            told = (
                f"{name}{of} is not up to date ({stage} {state.state}{why}); plateloom run {shlex.quote(str(folder))}"
            )
            click.echo(told, err=True)


@contextlib.contextmanager
def _opened(out):
    """A new file, there when it is whole, or the terminal, which may be closed when it has seen enough."""
    from plateloom.store.provenance import replacing

    if out:
        with replacing(out) as file:
            yield file
        return
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _reading(path):
    """A parquet file, every page of which is checked when it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except pa.ArrowInvalid as error:
        raise CorruptStoreError(path, f"cannot be read: {error}") from None
    with file:
        yield file


def _write(file, files, wanted, columns, separator):
    """Write a line of names and then row group by row group; returns how many rows."""
    import pyarrow.csv

    rows, schema, seen = 0, None, {option: set() for option, chosen in wanted.items() if chosen}
    for path in files:
        with _reading(path) as source:
            if schema is None:
                there = source.schema_arrow
                _refuse_rows_without_keys(path, there.names, wanted)
                names = _choose_columns(there.names, columns)
                schema = pyarrow.schema([there.field(name).remove_metadata() for name in names])
                writer = pyarrow.csv.CSVWriter(
                    file, schema, write_options=pyarrow.csv.WriteOptions(delimiter=separator)
                )
            elif source.schema_arrow.names != there.names:
                raise ConfigError(f"{str(path)!r} has other columns than the files before it; choose a --plate")
            needed = [*names, *(key for option, key in KEYS.items() if wanted[option] and key not in names)]
            for number in range(source.num_row_groups):
                try:
                    group = source.read_row_group(number, columns=needed)
                except OSError as error:
                    raise CorruptStoreError(path, f"cannot be read: {error}") from None
                group = _chosen_rows(group, wanted)
                writer.write(_for_spreadsheets(group.select(names), schema))
                rows += len(group)
                for option, found in seen.items():
                    found.update(group[KEYS[option]].unique().to_pylist())
    for option, found in seen.items():
        if absent := sorted(wanted[option] - found):
            raise ConfigError(f"{option}: no row of {some_of(absent)}")
    writer.close()
    return rows


def _refuse_rows_without_keys(path, names, wanted):
    """Rows can be chosen by what the table says of them only."""
    for option, key in KEYS.items():
        if wanted[option] and key not in names:
            raise ConfigError(f"{option}: {path.stem} has no {key}")


def _choose_columns(names, columns):
    """Columns of the patterns given, in the table's order."""
    if columns is None:
        return names
    patterns = [pattern.strip() for pattern in columns.split(",") if pattern.strip()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--columns: no {pattern!r}.{did_you_mean(pattern, names)} there are {some_of(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _chosen_rows(group, wanted):
    """Rows of the plates and wells that are wanted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for option, key in KEYS.items():
        if wanted[option]:
            group = group.filter(pc.is_in(group[key], pa.array(sorted(wanted[option]))))
    return group


def _for_spreadsheets(group, schema):
    """The same with nothing where there is no number, and texts that are no formula."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from plateloom.export.redaction import without_formula

    arrays = []
    for field, values in zip(schema, group.itercolumns(), strict=True):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            texts = values.unique()
            safe = pa.array(
                [None if text is None else without_formula(text) for text in texts.to_pylist()], pa.string()
            )
            values = safe.take(pc.index_in(values, texts).combine_chunks())
        if pa.types.is_floating(field.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        arrays.append(values.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
