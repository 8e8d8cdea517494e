"""What must not be handed on: paths and names of machines, and cells that a spreadsheet would run as formulas."""

import csv
import html
import io
import os
import re
from pathlib import Path

import pyarrow.parquet as pq

from plateloom.store.provenance import PACKAGE, write_bytes
from plateloom.store.tables import read_record, read_table, write_table

# What only tells where a job ran. Its log is not handed on either.
OF_THE_MACHINE = ("host", "log")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# In sentences, not in settings: a pattern of file names may hold slashes of its own.
POSIX = re.compile(r"(?<![\w./:~)\]}<-])/(?:[^\s/'\"<>:,;)\]]+/)*([^\s/'\"<>:,;)\]]+)/?")
WINDOWS = re.compile(r"(?:\b[A-Za-z]:|\\)[\\/](?:[^\s\\/'\"<>:,;]+[\\/])*([^\s\\/'\"<>:,;]+)")


class Redaction:
    """Takes the places of one screen out of whatever is handed on.

    Parameters
    ----------
    folder : Path
        The screen's folder, resolved.
    sources : iterable of str
        Source folders, as plates.tsv names them.

    Examples
    --------
    >>> hide = Redaction(Path("/home/ada/screen"), ["/mnt/scope7/run 12"])
    >>> hide.sentence("no file '/mnt/scope7/run 12/A01.tif', see /scratch/ada/log.txt")
    "no file 'run 12/A01.tif', see log.txt"
    """

    def __init__(self, folder, sources):
        roots = {str(folder): "", str(Path.home()): "", str(PACKAGE.parent): ""}
        for source in sources:
            name = Path(source).name
            if os.path.isabs(source):
                roots[source.rstrip("/")] = name
            roots[os.path.realpath(folder / source)] = name
        # The longest first: a source may lie in the screen's folder. Whole names only: pages hold base64, which has slashes.
        self.roots = {
            re.compile(rf"(?<![\w.+/-]){re.escape(spelling)}(?:(/)|(?![\w.+-]))"): roots[root]
            for root in sorted(roots, key=len, reverse=True)
            for spelling in {root, html.escape(root)}
            if len(root) > 1
        }

    def text(self, text):
        """Take the known folders out of a text: a source keeps its last name, what lies in the screen its path there."""
        for root, name in self.roots.items():
            text = root.sub(
                lambda found, name=name: f"{name}{found[1] or ''}" if name else "" if found[1] else ".", text
            )
        return text

    def sentence(self, text):
        """Take every absolute path out of a sentence, down to its last name."""
        return WINDOWS.sub(r"\1", POSIX.sub(r"\1", self.text(text)))

    def setting(self, value):
        """A setting, or nested ones, without absolute paths."""
        if isinstance(value, dict):
            return {key: self.setting(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.setting(inner) for inner in value]
        if not isinstance(value, str):
            return value
        value = self.text(value)
        whole = os.path.isabs(value) or re.match(r"[A-Za-z]:[\\/]|\\\\", value)
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if whole else value

    def record(self, value):
        """A job's record without host, log and addresses, and without paths in what it says."""
        if isinstance(value, dict):
            kept = {key: inner for key, inner in value.items() if key not in OF_THE_MACHINE}
            if isinstance(kept.get("cluster"), dict):
                kept["cluster"] = {key: inner for key, inner in kept["cluster"].items() if key != "workers"}
            return {key: self.record(inner) for key, inner in kept.items()}
        if isinstance(value, list):
            return [self.record(inner) for inner in value]
        return self.sentence(value) if isinstance(value, str) else value

    def page(self, data):
        """Bytes of a page without the known folders."""
        return self.text(data.decode("utf-8")).encode("utf-8")

    def table(self, source, target):
        """Write a table whose reasons name a path without it; returns whether there was anything to take out.

        Nothing is written where there was not: the table can be copied as it is.
        """
        if "Reason" not in pq.read_schema(source).names:
            return False
        table, record = read_table(source), read_record(source) or {}
        reasons = table["Reason"].map(lambda reason: self.sentence(reason) if isinstance(reason, str) else reason)
        clean = record | ({"failures": self.record(record["failures"])} if "failures" in record else {})
        if reasons.equals(table["Reason"]) and clean == record:
            return False
        write_table(target, table.assign(Reason=reasons), clean)
        return True


def without_formula(cell):
    """A cell that no spreadsheet takes for a formula; numbers stay numbers.

    >>> [without_formula(cell) for cell in ("=1+1", "-DMSO", "-1.5", "@x", "B03")]
    ["'=1+1", "'-DMSO", '-1.5', "'@x", 'B03']
    """
    text = str(cell)
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def write_sheet(path, columns, rows):
    """Write a table of text with tabs, its cells safe to open in a spreadsheet.

    Parameters
    ----------
    path : path
    columns : sequence of str
    rows : iterable of dict
        Cells by column; NaN, None and what is missing are written as nothing.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow([without_formula(name) for name in columns])
    for row in rows:
        cells = [row.get(name) for name in columns]
        writer.writerow(["" if cell is None or cell != cell else without_formula(cell) for cell in cells])
    write_bytes(path, buffer.getvalue().encode())
