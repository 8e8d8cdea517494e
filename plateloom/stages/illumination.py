"""plate.zarr images -> one flat-field per channel; and the corrected pixels that every later step reads."""

import hashlib

import numpy as np
from scipy import ndimage

from plateloom import illumination, restoration
from plateloom.engine.parts import Outcome, Unit, artefact_record, run_job
from plateloom.errors import PlateLayoutError
from plateloom.illumination import correction
from plateloom.registry import load_method
from plateloom.stitching import Mosaic
from plateloom.store import plate as store
from plateloom.store.flatfields import read_flatfields, read_restoration, read_shadings, shadings_path, write_flatfields
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import recipe
from plateloom.store.tables import read_tables
from plateloom.tiling import with_halo

FIELDS_AT_ONCE = 4  # of a well, before the next well's turn
ENOUGH_FIELDS = 32  # for a flat-field; from fewer, no wells are spared


def estimate_plate(*, plate, settings, code, assembled, converted, record):
    """Make a plate's flat-fields: from a bounded choice of its fields, or from what its source says.

    Parameters
    ----------
    plate : str
    settings : dict
        `method`, `parameters`, `fields` and `late` of the config's section; `restoration`, if the config has any.
    code : str
    assembled, converted : str and list of str
        Records.
    record : str
    """
    path = plate_folder(plate) / "illumination.zarr"
    module = load_method(illumination.METHODS, settings["method"], "illumination method")
    params = module.Params(**settings["parameters"])
    # What happens to late images says nothing of how a flat-field is made.
    parameters = {name: value for name, value in settings.items() if name != "late"}
    facts = {}

    def plan(inputs):
        wells = wells_of(inputs["converted"])
        accepted = inputs["assembled"]["facts"]["accepted"]
        require_one_time(inputs["assembled"])
        images, shape = usable_tiles(plate, wells), tuple(accepted[:2])
        by_vendor = hasattr(module, "evaluate")
        chosen = [] if by_vendor else choose_fields(list(images), settings["fields"])
        source = {f"{well}/{field}": wells[well] for well, field in chosen}
        if by_vendor:
            shadings = next(filter(None, (part["facts"].get("shadings") for part in inputs["converted"])), "")
            source = {"shadings": shadings}
        made = recipe("illumination", parameters=parameters, code=code, inputs=source | {"accepted": accepted})
        if settings.get("late") == "keep" and not by_vendor:
            there = {f"{well}/{field}": wells[well] for well, field in images}
            if kept := _recipe_to_keep(artefact_record(path), made, there):
                old = kept["inputs"].keys()
                facts["late"] = f"kept; {len(old & source.keys())} of {len(source)} fields of the present choice"
                made = kept

        def estimate():
            paths = {tile: str(store.field_path(plate_store(plate), tile[0], images[tile])) for tile in chosen}
            results = yield [(shrink_field, paths[well, field], field, settings) for well, field in chosen]
            found = {}
            for channel in store.describe_image(paths[chosen[0]])["channels"]:
                thumbnails = [thumbnail[channel] for thumbnail in results if channel in thumbnail]
                if not thumbnails:
                    found[channel] = np.ones(shape, np.float32), "no field has this channel", ""
                else:
                    found[channel] = (
                        *module.estimate(np.stack(thumbnails), shape, params),
                        f"from {len(thumbnails)} fields",
                    )
            # An offset that is only estimated is good enough for a flat-field, not for shifting every intensity.
            return found, dict.fromkeys(found, getattr(params, "camera_offset", None) or 0.0)

        def evaluate():
            yield []
            (well, _), image = next(iter(images.items()))
            channels = store.describe_image(store.field_path(plate_store(plate), well, image))["channels"]
            said = read_shadings(shadings_path(plate), shadings) if shadings else {}
            found = {
                channel: (*module.evaluate(said.get(channel), shape, params), "the vendor's flat-field")
                for channel in channels
            }
            return found, {channel: module.offset_of(said.get(channel), params) for channel in channels}

        def work():
            found, offsets = yield from evaluate() if by_vendor else estimate()
            flatfields = {channel: one[0] for channel, one in found.items()}
            write_flatfields(path, flatfields, made, offset=offsets, restoration=settings.get("restoration", ()))
            refused = {channel: reason for channel, (_, reason, _) in found.items() if reason}
            said = {channel: reason or origin for channel, (_, reason, origin) in found.items()}
            return Outcome(facts=said | ({"refused": refused} if refused else {}))

        return [Unit("illumination", path, made, work)]

    run_job(
        "illumination",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"assembled": assembled, "converted": converted},
        plate=plate,
        facts=facts,
    )


def _recipe_to_keep(found, made, there):
    """The recipe of the flat-field that is there, if it lacks nothing but fields that came later; None if it must go.

    `there` has the fingerprint of the well of every field that may be chosen now.
    """
    if not found or any(found.get(name) != made[name] for name in ("format", "parameters", "code")):
        return None
    inputs = dict(found["inputs"])
    if inputs.pop("accepted") != made["inputs"]["accepted"] or not inputs.items() <= there.items():
        return None
    wanted = len(made["inputs"]) - 1
    if len(inputs) < min(ENOUGH_FIELDS, wanted / 2):
        return None
    return {name: found[name] for name in made}


def shrink_field(path, field, settings):
    """Thumbnails of a field's channels, the field being an image or its place in a stitched one; runs in a worker.

    Of a field in a stitched image only the pixels that are its own: in the overlaps lie its neighbors'.
    """
    module = load_method(illumination.METHODS, settings["method"], "illumination method")
    params = module.Params(**settings["parameters"])
    described = store.describe_image(path)
    window = tile_window(path, field)
    own = _own_pixels(path, field, window)
    thumbnails = {}
    for i, channel in enumerate(described["channels"]):
        if channel in described["missing"]:
            continue
        plane = store.read_image(path, channels=[i], window=window, z="max")[0]
        if own is not None:
            plane = np.where(own, plane.astype(np.float32), np.float32(np.nan))
        thumbnails[channel] = module.shrink(plane, params)
    return thumbnails


def _own_pixels(path, field, window):
    """Which pixels of its window belong to a field of a stitched image; None where all do."""
    found = mosaic_of(path)
    if found is None:
        return None
    mosaic, fields = found
    own = mosaic.owners(window) == fields.index(field)
    return None if own.all() else own


def mosaic_of(path):
    """How a stitched image is put together, and the fields' numbers; None for an image that is one field.

    Returns
    -------
    (Mosaic, list of int) or None
    """
    said = (store.read_group(path) or {}).get("plateloom", {})
    if "tiles" not in said:
        return None
    origins = tuple((tile["y"], tile["x"]) for tile in said["tiles"])
    return Mosaic(origins, tuple(said["tile_shape"])), [tile["field"] for tile in said["tiles"]]


def tile_window(path, field):
    """Rows and columns of a field on its image."""
    found = mosaic_of(path)
    if found is None:
        return slice(None), slice(None)
    mosaic, fields = found
    origin = mosaic.origins[fields.index(field)]
    return tuple(slice(start, start + size) for start, size in zip(origin, mosaic.field_shape, strict=True))


def require_one_time(assembled):
    """Refuse a plate that keeps several time points, in a line that says what to do."""
    if "t" in assembled["facts"].get("kept", []):
        raise PlateLayoutError(
            "the plate keeps its time points (conversion.time); what follows conversion works on one: choose it, or run with "
            "--until conversion"
        )


def choose_fields(fields, count):
    """Choose fields by a hash of their position on the plate, the same for every plate and whatever else is there.

    The rest of the plate does not follow from a late well outside of the choice. So the choice keeps to a quarter or a
    half of the wells, if these have enough fields, and takes several fields of a well rather than one of many wells.

    Parameters
    ----------
    fields : sequence of (str, int)
        Well and field.
    count : int

    Returns
    -------
    list of (str, int)
        At most `count` of them, sorted.

    Examples
    --------
    >>> choose_fields([("A01", 1), ("A02", 1), ("A03", 1)], 2)
    [('A02', 1), ('A03', 1)]
    """
    by_well = {}
    for well, field in fields:
        by_well.setdefault(well, []).append(field)
    order = []
    for well, found in by_well.items():
        found.sort(key=lambda field, well=well: _chance(f"{well}/{field}"))
        order += [(i // FIELDS_AT_ONCE, _chance(well), well, field) for i, field in enumerate(found)]
    for share in (0.25, 0.5, 1.0):
        eligible = sorted(one for one in order if one[1] < share)
        if len(eligible) >= min(count, ENOUGH_FIELDS):
            break
    return sorted(one[2:] for one in eligible[:count])


def _chance(text):
    """A number in [0, 1) that follows from a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def wells_of(records):
    """Wells and fingerprints that part jobs' records list."""
    return {well: found for part in records for well, found in part["artefacts"].items()}


def usable_fields(plate, wells):
    """Images of the plate's size and type.

    Returns
    -------
    list of (str, int)
        Well and number of the image, sorted.
    """
    return sorted({(well, image) for (well, _), image in usable_tiles(plate, wells).items()})


def usable_tiles(plate, wells):
    """The source's fields that have pixels of the plate's size and type, and the images that they are on.

    Returns
    -------
    dict of (str, int) to int
        Well and field -> number of the image: the field's own, unless wells are stitched.
    """
    columns = ["Metadata_Well", "Metadata_Field", "SourceField", "Status", "Height", "Width", "DataType"]
    table = read_tables([well_table(plate, "fields", well) for well in sorted(wells)], columns)
    height, width, kind = store.read_group(plate_store(plate))["plateloom"]["facts"]["accepted"]
    same = (table["Height"] == height) & (table["Width"] == width) & (table["DataType"] == kind)
    bad = table["Status"].isin(["failed", "hole"]) | ~same
    keys = list(zip(table["Metadata_Well"], table["SourceField"], strict=True))
    lost = {key for key, is_bad in zip(keys, bad, strict=True) if is_bad}
    images = dict(zip(keys, table["Metadata_Field"], strict=True))
    return {key: int(image) for key, image in sorted(images.items()) if key not in lost}


def read_corrected(
    plate, well, field, flatfield, *, channels=None, window=(slice(None), slice(None)), z="max", uncovered=0.0
):
    """Read a field's pixels, corrected for illumination and restored as the config says.

    Of an image that keeps z planes, the brightest value below each pixel is corrected, unless a plane is asked for.

    Parameters
    ----------
    plate, well : str
    field : int
    flatfield : str
        Fingerprint of the plate's flat-fields.
    channels : sequence of str, optional
        Default: all.
    window : tuple of slice
        Rows and columns [px].
    z : int or 'max'
        Plane, of an image that keeps them.
    uncovered : float
        Of pixels of a stitched image where no field lies.

    Returns
    -------
    ndarray of float32, shape (C, Y, X)
        0 … 1 of the data type's range.
    """
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    names = described["channels"]
    chosen = names if channels is None else list(channels)
    chain = read_restoration(plate_folder(plate) / "illumination.zarr", flatfield)
    shape, stitched = store.image_shape(path)[-2:], mosaic_of(path)
    if chain:
        halo = restoration.chain_halo(chain, chosen, pixel_size_um=described["pixel_size_um"])
        core = tuple(slice(*one.indices(size)[:2]) for one, size in zip(window, shape, strict=True))
        _, window, _, inner = with_halo(core, shape, halo)
        if stitched is not None:
            wide = with_halo(core, shape, 2 * halo)  # what is next to an uncovered pixel that the chain looks at
            if (stitched[0].owners(wide.window) < 0).any():
                _, window, _, inner = wide
    pixels = store.read_image(path, channels=[names.index(name) for name in chosen], window=window, z=z)
    flat, offset = read_flatfields(plate_folder(plate) / "illumination.zarr", chosen, flatfield)
    field_shape = shape if stitched is None else stitched[0].field_shape
    if flat.shape[1:] != field_shape:
        raise PlateLayoutError(f"{path}: fields of {field_shape} pixels, the plate's flat-field has {flat.shape[1:]}")
    hole = None
    if stitched is None:
        flat = flat[(slice(None), *window)]
    else:  # every field brings its own shading along
        window = tuple(slice(*part.indices(size)) for part, size in zip(window, shape, strict=True))
        whole = flat
        flat = stitched[0].assemble(window, lambda _, there: whole[(slice(None), *there)], np.float32)
        hole = (flat == 0).reshape(-1, *flat.shape[-2:]).all(axis=0)
        flat[..., hole] = 1
        hole = hole if hole.any() else None
    corrected = correction.correct(pixels, flat, offset=offset)
    if chain:
        if hole is not None:
            _continue_into(corrected, hole)
        corrected = restoration.restore_image(corrected, chosen, chain, pixel_size_um=described["pixel_size_um"])
    if hole is not None:
        corrected[:, hole] = uncovered
    return np.ascontiguousarray(corrected[(slice(None), *inner)]) if chain else corrected


def _continue_into(image, hole):
    """Give the pixels of a hole the values of the nearest ones beyond it, in place: no edge for a restoration to see."""
    if not hole.all():
        nearest = ndimage.distance_transform_cdt(hole, "chessboard", return_distances=False, return_indices=True)
        rows, columns = nearest[:, hole]
        image[:, hole] = image[:, rows, columns]


def read_volume(plate, well, field, flatfield, *, channels=None):
    """Read a field that keeps z planes, each plane corrected and restored as `read_corrected` does it.

    Returns
    -------
    ndarray of float32, shape (C, Z, Y, X)
    """
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    depth = described["shape"][described["axes"].index("z")]
    chosen = described["channels"] if channels is None else list(channels)
    volume = np.empty((len(chosen), depth, *described["shape"][-2:]), np.float32)
    for z in range(depth):
        volume[:, z] = read_corrected(plate, well, field, flatfield, channels=chosen, z=z)
    return volume
