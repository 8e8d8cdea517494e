"""An OME-Zarr plate that exists already: NGFF 0.4 (Zarr 2) and 0.5 (Zarr 3), HCS layout."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import Source, SourceImage
from plateloom.readers.folders import sort_planes
from plateloom.store.provenance import file_digest
from plateloom.wells import parse_well, well_name


class Params(BaseModel):
    """The plate's own metadata say everything."""

    model_config = ConfigDict(extra="forbid")


def scan(source, params):
    """List the planes of a plate from its metadata; see `plateloom.readers.pattern.scan`.

    Size and time are those of the image's metadata files: a changed pixel is noticed only if its writer touched them.
    """
    source = Path(source)
    plate = _attributes(source).get("plate")
    if not plate:
        raise PlateLayoutError(f"{str(source)!r} is no OME-Zarr plate: its metadata have no `plate`")
    images = []
    for entry in plate["wells"]:
        path = _below(source, entry["path"])
        well = well_name(*parse_well(entry["path"].replace("/", "")))
        for position, image in enumerate(_attributes(path)["well"]["images"]):
            folder = _below(path, image["path"])
            attributes = _attributes(folder)
            names = [axis["name"] for axis in attributes["multiscales"][0]["axes"]]
            level = attributes["multiscales"][0]["datasets"][0]["path"]
            array = _below(folder, level)
            metadata = next((array / name for name in ("zarr.json", ".zarray") if (array / name).exists()), None)
            if metadata is None:
                raise PlateLayoutError(f"no array at {str(array)!r}")
            shape = dict(zip(names, json.loads(metadata.read_bytes())["shape"], strict=True))
            labels = [channel.get("label") for channel in attributes.get("omero", {}).get("channels", [])]
            status = metadata.stat()
            field = int(image["path"]) if image["path"].isdigit() else position
            for c in range(shape.get("c", 1)):
                channel = str(labels[c] if c < len(labels) and labels[c] else c)
                for t in range(shape.get("t", 1)):
                    for z in range(shape.get("z", 1)):
                        selection = [{"t": t, "c": c, "z": z}[name] for name in names if name in "tcz"]
                        file = "/".join([array.relative_to(source).as_posix(), *(f"@{i}" for i in selection)])
                        images.append(SourceImage(well, field, channel, z, t, file, status.st_size, status.st_mtime_ns))
    return Source(sort_planes(images))


def listing(source, params):
    """See `plateloom.readers.pattern.listing`."""
    for image in scan(source, params).images:
        yield image.well, "/".join(map(str, image[1:]))


def load(source, image):
    """Read one plane; see `plateloom.readers.pattern.load`. The plane's bytes stand for its content."""
    import numpy as np
    import zarr

    path, *selection = image.file.split("/@")
    array = zarr.open_array(str(Path(source, path)), mode="r")
    try:
        plane = np.asarray(array[tuple(int(i) for i in selection)])
    except Exception as error:  # a codec raises whatever it likes; any of it means that the chunk is bad
        raise UnreadableImageError(f"{image.file}: cannot be decoded ({error})") from None
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(f"{image.file}: {plane.dtype} {plane.shape}, expected one plane of uint8 or uint16")
    return plane, file_digest(plane.tobytes())


def recognise(source, names):
    """See `plateloom.readers.pattern.recognise`."""
    if any(Path(source, name).is_file() for name in ("zarr.json", ".zattrs")):
        try:
            found = "plate" in _attributes(Path(source))
        except PlateLayoutError:
            return None
        return {"reader": "ome_zarr", "params": {}, "layout": "OME-Zarr", "share": 1.0} if found else None
    return None


def _attributes(path):
    """NGFF attributes of a group, of either version."""
    for name, unwrap in (
        ("zarr.json", lambda found: found["attributes"].get("ome", {})),
        (".zattrs", lambda found: found),
    ):
        try:
            return unwrap(json.loads((path / name).read_bytes()))
        except FileNotFoundError:
            continue
        except (json.JSONDecodeError, KeyError) as error:
            raise PlateLayoutError(f"{str(path / name)!r} cannot be read: {error}") from None
    raise PlateLayoutError(f"no OME-Zarr group at {str(path)!r}")


def _below(root, name):
    """A path inside a folder; metadata that point outside of it are refused."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise PlateLayoutError(f"{name!r} in {str(root)!r} points outside of it")
    return root / name
