"""The file of a segmentation network: safetensors with its architecture in the header, known by its SHA-256.

A model is read as numbers and one dict, never as code: a pickle is refused unread.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from plateloom.errors import ModelMismatchError

FORMAT = 1
KIND = "plateloom segmentation network"
LARGEST = 64 * 2**20  # bytes; the shipped one has a hundredth of this
SHIPPED = Path(__file__).parent / "weights" / "nuclei.safetensors"


@dataclass(frozen=True)
class Stored:
    """A network as its file has it.

    Attributes
    ----------
    config : dict
        `widths` and `diameter_px`: the arguments of `plateloom.segmentation.network.Network`.
    tensors : dict of str to ndarray
    sha256 : str
        Of the file, 64 hexadecimal digits.
    """

    config: dict
    tensors: dict = field(repr=False)
    sha256: str


def hash_file(path):
    """SHA-256 of a network's file, 64 hexadecimal digits.

    Raises
    ------
    ModelMismatchError
        If there is none.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelMismatchError(f"no weights at {str(path)!r}: {error.strerror}") from None


def read_network_file(path, sha256=None):
    """Read a network's file.

    Parameters
    ----------
    path : path
    sha256 : str, optional
        What the file's hash must be.

    Returns
    -------
    Stored

    Raises
    ------
    ModelMismatchError
        If the file is no safetensors file (a pickle, say), is not one of ours, has an architecture that this version
        does not know, or not the hash that was expected.
    OSError
        If there is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST:
        raise ModelMismatchError(
            f"{str(path)!r} has {path.stat().st_size:,} bytes, expected a network of at most {LARGEST:,}."
        )
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ModelMismatchError(
            f"{str(path)!r} has the SHA-256 {found}, expected {sha256}; it is another file or was altered."
        )
    config = _check_header(path, data)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelMismatchError(f"{str(path)!r} is not whole: {error}") from None
    return Stored(config, tensors, found)


def _check_header(path, data):
    """The config in a file's header."""
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ModelMismatchError(
            f"{str(path)!r} is a pickle, which could run any code; expected a safetensors file of train-segmenter."
        )
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]) if size <= len(data) - 8 else None
        metadata = header.get("__metadata__", {})
    except (ValueError, AttributeError):
        raise ModelMismatchError(f"{str(path)!r} is no safetensors file.") from None
    try:
        about = json.loads(metadata["plateloom"])
        kind, version, config = about["kind"], about["format"], about["config"]
        widths, diameter = config["widths"], config["diameter_px"]
    except (KeyError, TypeError, ValueError):
        raise ModelMismatchError(
            f"{str(path)!r} holds other tensors than a segmentation network of ours; expected a file of train-segmenter."
        ) from None
    if (kind, version) != (KIND, FORMAT):
        raise ModelMismatchError(
            f"{str(path)!r} holds a {kind!r} of format {version}; this version reads {KIND!r} of format {FORMAT}."
        )
    known = (
        isinstance(widths, list) and 2 <= len(widths) <= 6 and all(type(w) is int and 1 <= w <= 1024 for w in widths)
    )
    if (
        set(config) != {"widths", "diameter_px"}
        or not known
        or not isinstance(diameter, float)
        or not 4 <= diameter <= 128
    ):
        raise ModelMismatchError(f"{str(path)!r} has an architecture that this version does not know: {config}.")
    return config


def write_network_file(path, config, tensors):
    """Write a network's file, which takes the place of an old one at once; the same network gives the same bytes.

    Parameters
    ----------
    path : path
    config : dict
    tensors : dict of str to ndarray

    Returns
    -------
    str
        SHA-256 of the file.
    """
    from safetensors.numpy import save

    about = {"kind": KIND, "format": FORMAT, "config": config}
    data = save(tensors, {"plateloom": json.dumps(about, sort_keys=True)})
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def multiple_of(config):
    """Rows and columns of a network's input come in multiples of this, counted from the whole image's first.

    >>> multiple_of({"widths": [16, 32, 64, 128]})
    8
    """
    return 2 ** (len(config["widths"]) - 1)


def reach_of(config):
    """Whatever lies farther from an output of a network than this changes nothing in it [px of the network's grid].

    >>> reach_of({"widths": [16, 32]})  # 2 + 2 x 2 + 2 for the convolutions, 2 for blocks
    10
    """
    last = len(config["widths"]) - 1
    # Two convolutions on the way down and two on the way up; a coarse pixel stands for a block of fine ones.
    return sum(2**level * (4 if level < last else 2) for level in range(last + 1)) + multiple_of(config)
