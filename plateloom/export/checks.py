"""An export, against what its crate says of sizes and digests, and what its plates and tables vouch for themselves."""

import hashlib
from pathlib import Path
from urllib.parse import unquote

from plateloom.export.copies import measure_tree
from plateloom.export.crate import METADATA
from plateloom.store.provenance import read_json
from plateloom.store.verification import Problem, check_group, table_fault


def find_export(path):
    """The export that a path is, or lies in; None where there is none."""
    for folder in (path, *path.parents):
        if (folder / METADATA).is_file() and (folder / "plates").is_dir():
            return folder
    return None


def check_export(root, *, within=None, deep=False):
    """Check an export, or a part of it.

    Parameters
    ----------
    root : Path
        The export's folder.
    within : list of Path, optional
        Folders of it to look at; else all.
    deep : bool
        Read every chunk, page and file; else only metadata, sizes and what is there at all.

    Returns
    -------
    list of Problem
    """
    crate = read_json(root / METADATA)
    if not isinstance(crate, dict) or not isinstance(crate.get("@graph"), list):
        return [Problem(str(root / METADATA), "is no RO-Crate")]
    found = []
    for entity in crate["@graph"]:
        name = entity.get("@id", "")
        if entity.get("@type") not in ("File", "Dataset") or name.startswith(("#", "./", "http:", "https:")):
            continue
        path = root / unquote(name)
        if within is None or any(path.is_relative_to(folder) for folder in within):
            found += _check_part(path, entity, deep)
    return found


def _check_part(path, entity, deep):
    """Check a file or a folder that the crate describes."""
    size, sha256 = entity.get("contentSize"), entity.get("sha256")
    if not path.exists():
        return [Problem(str(path), "is missing")]
    if path.suffix == ".zarr":
        return check_group(path, deep=deep)
    if sha256:
        if path.stat().st_size != int(size):
            return [Problem(str(path), f"has {path.stat().st_size} bytes, was written with {size}")]
        if deep and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            return [Problem(str(path), "does not match its digest in the crate")]
        return []
    tables = {str(file): table_fault(file, deep=deep) for file in sorted(Path(path).glob("*.parquet"))}
    problems = [Problem(file, reason) for file, reason in tables.items() if reason]
    if not problems and size and measure_tree(path) != int(size):
        return [Problem(str(path), f"holds {measure_tree(path)} bytes, was written with {size}")]
    return problems
