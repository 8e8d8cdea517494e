"""Fingerprints: what an artefact was made from, as a recipe that can be compared without reading pixels."""

import ast
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import stat
import sys
import tempfile
from pathlib import Path

from plateloom.errors import ModelMismatchError

PACKAGE = Path(__file__).resolve().parents[1]
FORMAT = 1
MOST_KNOWN = 5000  # modules in the cache, all their versions together
FULL = (errno.ENOSPC, errno.EDQUOT)
ABANDONED_S = 3600.0  # age of a file [s] from which on its writer, whose lock may show on its own node only, is gone


def digest(value):
    """Hash any JSON value, independent of the order of its keys.

    Parameters
    ----------
    value : JSON value

    Returns
    -------
    str
        32 hexadecimal digits (the first half of SHA-256).

    Examples
    --------
    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return digest_of_text(text.encode())


def digest_of_text(text):
    """`digest` of the value that compact JSON with sorted keys, `text` (bytes), stands for."""
    return hashlib.sha256(text).hexdigest()[:32]


def recipe(stage, *, parameters, code, inputs):
    """State what an artefact is made from.

    Parameters
    ----------
    stage : str
    parameters : dict
        Every setting that can change the result, and none that cannot.
    code : str
        `code_digest` of the stage.
    inputs : dict of str to str
        Fingerprints of the artefacts read, or content digests of source files.

    Returns
    -------
    dict
        The `plateloom` record that the artefact carries, its `fingerprint` included. It holds no time, host or
        version: the same recipe gives the same bytes.
    """
    made_from = {"format": FORMAT, "stage": stage, "parameters": parameters, "code": code, "inputs": inputs}
    return {**made_from, "fingerprint": digest(made_from)}


def file_digest(data):
    """Hash the content of a file, given as bytes; 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_large(path):
    """Hash a file that need not fit into memory, as `file_digest` does its content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_weights(weights):
    """Check that models of the user are still those that an artefact is said to be made with.

    Parameters
    ----------
    weights : dict of str to str
        Path to `digest_large` of the file.

    Raises
    ------
    ModelMismatchError
        If one is another file by now, or is gone.
    """
    for file, content in weights.items():
        try:
            found = _digest_as_it_is(file, *_state(file))
        except FileNotFoundError:
            found = None
        if found != content:
            raise ModelMismatchError(f"{file!r} was altered, or is gone: expected {content}; run again")


def _state(file):
    """What changes with a file's content: whatever is written into it, or takes its place."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@functools.lru_cache(maxsize=64)
def _digest_as_it_is(file, *state):
    return digest_large(file)


def code_digest(*modules):
    """Hash the meaning of modules and of everything of ours that they import.

    Comments, docstrings and layout do not count: the syntax tree does. Imports inside functions are followed;
    modules named only in a registry are not, so give the chosen method's module as well.

    Parameters
    ----------
    *modules : str
        Dotted module names (``"plateloom.stages.features"``) or paths of scripts.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    seen, waiting, known = {}, list(modules), len(_known_modules())
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen[name], imported = _read_module(name)
        waiting.extend(imported)
    if len(_known_modules()) > known:
        with contextlib.suppress(OSError):
            write_json(_cache_file(), _known_modules())
    # A script is known by its name alone: where the project lies must not matter.
    return digest(sorted([Path(name).name if os.sep in name else name, tree] for name, tree in seen.items()))


@functools.cache
def _read_module(name):
    """Digest of one module's syntax tree, and the modules of ours that it imports."""
    path = Path(name) if os.sep in name else _module_file(name)
    if path is None:
        raise ModuleNotFoundError(f"no module {name!r} below {PACKAGE.parent}")
    data = path.read_bytes()
    key = file_digest(data)
    if key not in _known_modules():
        _known_modules()[key] = _digest_module(data)
    tree, imported = _known_modules()[key]
    return tree, [module for module in imported if _module_file(module)]


@functools.cache
def _known_modules():
    """What `_digest_module` has said of modules' bytes, also in other processes: parsing all of ours takes a second."""
    known = None
    with contextlib.suppress(OSError):
        known = read_json(_cache_file())
    return known if isinstance(known, dict) and len(known) < MOST_KNOWN else {}


@functools.cache
def _cache_file():
    """In the user's cache; how a module is digested, and by which Python, is part of the name."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    how = file_digest(Path(__file__).read_bytes() + sys.version.encode())
    return Path(base, "plateloom", f"modules-{how}.json")


def _digest_module(data):
    """Digest of the syntax tree of a module's bytes, and what of our package it may import."""
    tree = ast.parse(data)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module)
            imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    ours = sorted(module for module in imported if module.split(".")[0] == PACKAGE.name)
    return [hashlib.sha256(repr(_meaning(tree)).encode()).hexdigest(), ours]


def _module_file(name):
    """Source file of a dotted module name, or None where the name is not a module of ours."""
    stem = PACKAGE.parent.joinpath(*name.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _meaning(node):
    """Nested tuples of a syntax tree without docstrings, positions and empty fields (which differ between Pythons)."""
    if isinstance(node, list):
        return tuple(_meaning(item) for item in node)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if value in (None, []) or name in ("ctx", "kind", "type_comment"):
            continue
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = value[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                value = value[1:]
        fields.append((name, _meaning(value)))
    return type(node).__name__, tuple(fields)


def write_json(path, value):
    """Write JSON so that it is there whole or not at all, also after a power cut or on a network file system."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path):
    """Read JSON; None where the file is missing or not whole."""
    try:
        return json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # also bytes that are no UTF-8
        return None


def write_bytes(path, data):
    """Write a file under a temporary name, flush it to the disk and rename it into place."""
    with replacing(path, size=len(data)) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path, *, size=None):
    """Open a file that takes its place, flushed to the disk, when the block ends, and not at all if it fails.

    Parameters
    ----------
    path : path
    size : int, optional
        What will be written at most [bytes], to say so where there is no room.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb", buffering=2**20) as file:
            with contextlib.suppress(OSError):  # a file system without locks: what a killed job leaves, stays
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_abandoned([path], before=os.fstat(file.fileno()).st_mtime - ABANDONED_S)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException as error:
        left = room_left(path) if isinstance(error, OSError) and error.errno in FULL else ""
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if left:
            needed = "one file" if size is None else f"up to {size / 1e6:.2f} MB in one file"
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {needed} needed, {left}", str(path)) from error
        raise


def remove_abandoned(paths, *, before=None):
    """Remove half-written files of writers that were killed: nobody holds their lock.

    Parameters
    ----------
    paths : iterable of path
        What they were to become.
    before : float, optional
        Only files that were last changed before this time [s], by the clock that dates the folder's files, which on a network
        file system is not this machine's. None where the caller knows that nobody else writes these paths.
    """
    prefixes = {}
    for path in map(Path, paths):
        prefixes.setdefault(path.parent, set()).add(f".{path.name}.")
    for folder, of_folder in prefixes.items():
        for name in os.listdir(folder) if folder.is_dir() else ():
            if name[: -len("abcdefgh")] not in of_folder:  # as mkstemp names them
                continue
            with contextlib.suppress(OSError), open(folder / name, "r+b") as left:  # NFS locks for writing only
                if before is None or os.fstat(left.fileno()).st_mtime < before:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(left.name)


def room_left(path):
    """What the file system of a path still has, for messages: `12 MB and 3 files left`; a quota may allow less."""
    path = Path(path)
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    files = f" and {found.f_favail:,} files" if found.f_files else ""
    return f"{found.f_bavail * found.f_frsize / 1e6:.1f} MB{files} left"


def follow_folder(folder="."):
    """Let the group use what this process and its children make, where a group shares a folder (writable, setgid).

    Parameters
    ----------
    folder : path
        Whose permissions are followed; of others the user's own umask decides.
    """
    mode = os.stat(folder).st_mode
    if mode & stat.S_ISGID and mode & stat.S_IWGRP and _umask() & stat.S_IRWXG:
        os.umask(_umask() & ~stat.S_IRWXG)
        _umask.cache_clear()


@functools.cache
def _umask():
    """The process' file mode mask (mkstemp ignores it, and shared folders need it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
