"""Source folder -> plate.zarr images, well by well; then one job that assembles the plate."""

import logging
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom import projection, stitching
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import DeferredError, PlateLayoutError, UnreadableImageError, some_of
from plateloom.readers import SourceImage, load_reader
from plateloom.readers.folders import digest_changes
from plateloom.readers.planes import TAIL, load_plane
from plateloom.store import plate as store
from plateloom.store.flatfields import read_shadings, shadings_path, write_shadings
from plateloom.store.layout import part_of, plate_folder, plate_store, well_table
from plateloom.store.provenance import digest, read_json, recipe, write_json
from plateloom.store.tables import read_record, read_tables
from plateloom.wells import acquisition_of, explain_holes, plate_format

log = logging.getLogger(__name__)

DONE, PARTIAL, FAILED, MISSING, HOLE = "done", "partial", "failed", "missing", "hole"
STITCHED = 1  # number of the one image of a stitched well
FRESH_MINUTES = 60  # files younger than this may still be on their way
UNEVEN = 0.2  # steps of a stage differ a little; of the median step
LAST_FILES = 64  # copies run in order: only what came last can be cut short


def convert_part(*, plate, part, parts, source, reader, listing, settings, code, record, deferral=""):
    """Convert the wells of one part.

    Parameters
    ----------
    plate : str
    part, parts : int
        This part, and into how many the plate is cut.
    source : str
        Folder of the plate's images.
    reader : str
        Name of the reader.
    listing : str
        Digest of the part's source files when the run was planned; stands in the record. The part is deferred if the
        folder looks different now. Empty: not compared.
    settings : dict
        `channels`, `conversion` and `reader_params` of the config.
    code : str
    record : str
    deferral : str
        When the part was last deferred; stands in the record.
    """
    module = load_reader(reader)
    params = module.Params(**settings["reader_params"])
    facts = {"listing": listing} | ({"after_deferral": deferral} if deferral else {})

    def plan(_):
        if not Path(source).exists():
            raise DeferredError(f"no folder {source!r}: gone, or not mounted")
        found = module.scan(source, params)
        if not found.images:  # an empty mount or a wrong pattern must not cost the wells that are there
            raise PlateLayoutError(f"no image in {source!r} matches the reader {reader!r} and its parameters")
        conversion = settings["conversion"]
        kept = [axis for axis, how in (("t", conversion["time"]), ("z", conversion["z"])) if how == "keep"]
        facts.update(shape=found.shape, notes=found.notes, kept=kept)
        described = describe_source(found.images, settings)
        if "every_z" in described:
            facts["planes"] = len(described["every_z"])
        wells = {}
        for image in described.pop("images"):
            if part_of(image.well, parts) == part:
                wells.setdefault(image.well, []).append(image)
        if line := explain_holes([(image.well, image.field) for image in found.images], wells):
            facts["notes"] = [*found.notes, line]
        _refuse_unfinished(source, found, wells)
        if listing and digest_changes(module, source, params, part_of, parts)[part] != listing:
            raise DeferredError(f"files in {source!r} have changed since the run was planned")
        if part == 0 and (shadings := keep_shadings(plate, source, found.channels, settings, code)):
            facts["shadings"] = shadings
        parameters = {name: settings[name] for name in ("channels", "conversion")} | described
        return [
            _unit(plate, well, images, source, reader, parameters, settings, code) for well, images in wells.items()
        ]

    run_job(
        "conversion",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        plate=plate,
        part=part,
        parts=parts,
        facts=facts,
        remove=remover(
            plate_folder(plate) / "fields",
            part=part,
            parts=parts,
            also=lambda well: store.remove_well(plate_store(plate), well),
        ),
    )


def describe_source(images, settings):
    """Choose the planes that a screen's config asks for, and say what all fields of the plate have in common.

    Parameters
    ----------
    images : list of SourceImage
    settings : dict
        `channels` and `conversion` of the config.

    Returns
    -------
    dict
        `images`, those of the wanted channels and times; `pixel_size_um` [µm/px]; `planes`, how many z planes most
        fields have in a channel; where planes are kept `every_z`, those that all of a field's stacks have to have.

    Raises
    ------
    PlateLayoutError
        If no pixel size is known, or several; if there are several time points and the config names none; if fields are
        to be stitched and have no positions; if planes are to be kept that do not lie equally far apart.
    """
    conversion, wanted = settings["conversion"], {str(channel["source"]) for channel in settings["channels"].values()}
    images = [image for image in images if image.channel in wanted]
    times = sorted({image.t for image in images})
    if len(times) > 1 and conversion["time"] is None:
        raise PlateLayoutError(
            f"{len(times)} time points ({some_of(times)}): set conversion.time to one of them, or to keep"
        )
    if conversion["time"] not in (None, "keep"):
        if conversion["time"] not in times:
            there = (
                f"there are {some_of(times, 20)}" if any(times) else "the images have none: leave conversion.time out"
            )
            raise PlateLayoutError(f"no time point {conversion['time']}; {there}")
        images = [image for image in images if image.t == conversion["time"]]
    size = conversion["pixel_size_um"]
    if size is None:
        sizes = Counter(image.pixel_size_um for image in images if image.pixel_size_um)
        different = sorted({f"{one:.4g}" for one in sizes})
        if len(different) != 1:
            said = "say nothing" if not sizes else f"say {' and '.join(different[:4])} µm"
            raise PlateLayoutError(f"the files {said} about the size of a pixel; set conversion.pixel_size_um [µm/px]")
        size = max(sorted(sizes), key=sizes.get)
    if conversion["layout"] == "stitched" and any(image.y_um is None or image.x_um is None for image in images):
        raise PlateLayoutError(
            "fields have no positions in this source, so they cannot be stitched; set conversion.layout to fields"
        )
    counts = Counter((image.well, image.field, image.channel, image.t) for image in images)
    usual = {}
    for (_, _, channel, _), count in counts.items():
        usual.setdefault(channel, Counter())[count] += 1
    # Of equally frequent numbers the larger: what is missing is to be noticed.
    planes = {channel: max(found, key=lambda n, found=found: (found[n], n)) for channel, found in sorted(usual.items())}
    found = {"images": images, "pixel_size_um": size, "planes": planes}
    return found | ({"every_z": _every_z(images)} if conversion["z"] == "keep" else {})


def _every_z(images):
    """The z of most fields' stacks, of all channels that have stacks together; one where no channel has."""
    stacks, usual = {}, {}
    for image in images:
        stacks.setdefault((image.well, image.field, image.channel, image.t), []).append(image)
    for (_, _, channel, _), stack in stacks.items():
        usual.setdefault(channel, Counter())[tuple(sorted(image.z for image in stack))] += 1
    # Of equally frequent ones the longer: what is missing is to be noticed.
    chosen = [max(found, key=lambda zs, found=found: (found[zs], len(zs), zs)) for found in usual.values()]
    every_z = sorted({z for zs in chosen if len(zs) > 1 for z in zs}) or [min((zs[0] for zs in chosen), default=0)]
    steps = next(
        (steps for stack in stacks.values() if len(stack) == len(every_z) and (steps := _z_steps(stack))), None
    )
    steps = np.diff(every_z).tolist() if steps is None else steps
    if steps and max(steps) - min(steps) > UNEVEN * np.median(steps):
        raise PlateLayoutError(
            f"the z planes ({some_of(every_z)}) do not lie equally far apart, so they are no volume: set conversion.z to a projection"
        )
    return every_z


def keep_shadings(plate, source, described, settings, code):
    """Keep what a source says of the light of its channels beside the plate: later stages do not need the source.

    Parameters
    ----------
    plate, source : str
    described : dict of str to dict
        `Source.channels`.
    settings : dict
        `channels` of the config.
    code : str

    Returns
    -------
    str
        Fingerprint of what lies there now; empty where the source says nothing.
    """
    said, contents = {}, {}
    for name, channel in settings["channels"].items():
        known = described.get(str(channel["source"]), {})
        if "flatfield" in known:
            said[name] = {"profiles": known["flatfield"]}
        elif "correction" in known:
            said[name] = {}
            try:
                said[name]["image"] = _read_shading(source, known["correction"], contents)
                if "dark" in known:
                    said[name]["dark"] = float(np.median(_read_shading(source, known["dark"], contents)))
            except UnreadableImageError as error:
                said[name] = {"reason": str(error)}
    if not said:
        return ""
    described = {name: {key: value for key, value in found.items() if key != "image"} for name, found in said.items()}
    made = recipe("shadings", parameters=described, code=code, inputs=contents)
    try:
        read_shadings(shadings_path(plate), made["fingerprint"])
    except PlateLayoutError:
        write_shadings(shadings_path(plate), said, made)
    return made["fingerprint"]


def _read_shading(source, file, contents):
    """Pixels of a file that is no image of a field; its digest is added to the contents."""
    pixels, contents[file] = load_plane(source, SourceImage("", 0, "", 0, 0, file, 0, 0))
    return pixels


def _refuse_unfinished(source, found, wells):
    """Put a part off whose files are still on their way."""
    if found.finished is False and engine.EXECUTION.end_marker:
        raise DeferredError(
            f"{source!r} lacks the microscope's end marker: the plate is still being imaged or copied; was the measurement "
            "stopped by hand, set engine.end_marker to false"
        )
    files = {image.file: image.modified for images in wells.values() for image in images}
    now, fresh = time.time(), []
    for name, modified in sorted(files.items(), key=lambda file: -file[1])[:LAST_FILES]:
        minutes = (now - modified / 1e9) / 60
        if 0 <= minutes < engine.EXECUTION.settle_minutes:
            raise DeferredError(
                f"{name!r} is {minutes:.0f} min old; engine.settle_minutes asks for {engine.EXECUTION.settle_minutes:g}"
            )
        if minutes < FRESH_MINUTES:
            fresh.append(name)
    for name in fresh:
        if _ends_in_zeros(Path(source, name)):
            raise DeferredError(f"{name!r} ends in zeros and is new: it is still being copied")


def _ends_in_zeros(path):
    """Whether a file looks like one whose space was set aside, and whose end has not come yet."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8 * TAIL:
                return False
            first = file.read(TAIL)
            file.seek(-TAIL, os.SEEK_END)
            return not any(file.read(TAIL)) and any(first)
    except OSError:  # an OME-Zarr array is a folder
        return False


def _unit(plate, well, images, source, reader, parameters, settings, code):
    """One well: known as done by its listing, which is kept beside the results, so that no file is read for it."""
    # All fields of a well have the same time points, where these are kept: a gap is a fault, not a shift.
    if parameters["conversion"]["time"] == "keep":
        parameters = parameters | {"every_t": sorted({image.t for image in images})}
    path = well_table(plate, "fields", well)
    listing = digest([settings, parameters, code, [list(image) for image in images]])
    memory = plate_folder(plate) / ".sources" / f"{well}.json"
    known = read_json(memory) or {}
    found = read_record(path) or {}
    current = known.get("listing") == listing and known.get("fingerprint") == found.get("fingerprint", "")
    if current and known["images"]:
        group = store.finished_record(store.well_path(plate_store(plate), well)) or {}
        current = group.get("fingerprint") == known["fingerprint"]

    def work():
        well_table(plate, "segmentation", well).unlink(missing_ok=True)  # its labels go with the images
        store.remove_well(plate_store(plate), well)
        fields = {}
        for image in images:
            fields.setdefault(image.field, []).append(image)
        stitched = parameters["conversion"]["layout"] == "stitched"
        tiles = str(engine.EXECUTION.private_folder(store.well_path(plate_store(plate), well) / ".tiles"))
        convert = (load_field, tiles) if stitched else (convert_field,)
        results = yield [
            (*convert, plate, well, field, planes, source, reader, parameters, code) for field, planes in fields.items()
        ]
        made = recipe("conversion", parameters=parameters, code=code, inputs=_inputs(results))
        if stitched:
            ((written, rows),) = yield [(stitch_well, tiles, plate, well, results, parameters, made)]
        else:
            written = [found["field"] for found in results if found["status"] != FAILED]
            rows = [row for found in results for row in found["rows"]]
        if written:
            acquisitions = dict.fromkeys(written, acquisition_of(plate))
            store.write_well(plate_store(plate), well, written, made, acquisitions=acquisitions)
        write_json(memory, {"listing": listing, "fingerprint": made["fingerprint"], "images": bool(written)})
        table = pd.DataFrame(rows).assign(Metadata_Plate=plate, Metadata_Well=well)
        first = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Channel"]
        failures = [
            {"well": well, "field": row["SourceField"], "channel": row["Channel"], "reason": row["Reason"]}
            for row in rows
            if row["Reason"]
        ]
        return Outcome(table[first + [c for c in table if c not in first]], failures, recipe=made)

    return Unit(path.stem, path, None, work, current=current)


def _inputs(results):
    """Content digests of a well's files, those that could not be read included."""
    return {f"{found['field']}/{name}": content for found in results for name, content in found["contents"].items()}


def convert_field(plate, well, field, planes, source, reader, parameters, code):
    """Read one field's planes and write its image group; runs in a worker.

    Returns
    -------
    dict
        `field`, `status`, `rows` of the table of fields, and `contents`, a digest per file.
    """
    found = read_field(field, planes, source, reader, parameters)
    pixels, missing = found.pop("pixels"), found.pop("missing")
    if found["status"] != FAILED:
        store.write_image(
            store.field_path(plate_store(plate), well, field),
            pixels,
            missing=missing,
            record=recipe("conversion", parameters=parameters, code=code, inputs=found["contents"]),
            position_um=_corner(planes[0], pixels.shape[-2:], parameters["pixel_size_um"]),
            **_described(
                parameters, [_window(pixels, c, parameters) for c in range(len(parameters["channels"]))], found
            ),
            levels=_levels(pixels.shape, parameters["conversion"]["levels"]),
        )
    return found


def load_field(folder, plate, well, field, planes, source, reader, parameters, code):
    """Read one field's planes and leave them in a file of a folder, for `stitch_well`; runs in a worker.

    Returns
    -------
    dict
        As of `convert_field`, and `position_um` of the field's center, `missing` channels, and `windows`.
    """
    found = read_field(field, planes, source, reader, parameters)
    pixels = found.pop("pixels")
    if found["status"] != FAILED:
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.save(_tile_file(folder, field), pixels)
        found["windows"] = [_window(pixels, c, parameters) for c in range(len(parameters["channels"]))]
    return found | {"position_um": (planes[0].y_um, planes[0].x_um)}


def stitch_well(folder, plate, well, results, parameters, made):
    """Put a well's fields side by side and write them as one image, as its one writer; runs in a worker.

    Returns
    -------
    written : list of int
        Numbers of the images.
    rows : list of dict
        Of the table of fields.
    """
    missing = _leave_out_odd_ones(results)
    used = [found for found in results if found["status"] in (DONE, PARTIAL)]
    if used:
        tiles = [np.load(_tile_file(folder, found["field"]), mmap_mode="r") for found in used]
        mosaic = stitching.place_fields(
            [found["position_um"] for found in used], parameters["pixel_size_um"], tiles[0].shape[-2:]
        )
        windows = np.array([found["windows"] for found in used])
        windows = [
            [int(low), int(high)] for low, high in zip(windows[..., 0].min(0), windows[..., 1].max(0), strict=True)
        ]
        corner = np.min([found["position_um"] for found in used], axis=0)
        corner = corner - (np.array(mosaic.field_shape) - 1) / 2 * parameters["pixel_size_um"]
        where = [{"field": found["field"], "y": y, "x": x} for found, (y, x) in zip(used, mosaic.origins, strict=True)]
        image = _Stitched(mosaic, tiles)
        store.write_image(
            store.field_path(plate_store(plate), well, STITCHED),
            image,
            missing=missing,
            record=made | {"tiles": where, "tile_shape": list(mosaic.field_shape)},
            position_um=tuple(float(one) for one in corner),
            **_described(parameters, windows, used[0]),
            levels=_levels(image.shape, parameters["conversion"]["levels"]),
        )
        del image, tiles  # a network file system keeps what is still mapped
    shutil.rmtree(folder, ignore_errors=True)
    rows = [row | {"Metadata_Field": STITCHED} for found in results for row in found["rows"]]
    if not used:
        rows = [row | {"Status": FAILED} for row in rows]
    return [STITCHED] if used else [], rows


def _leave_out_odd_ones(results):
    """Make holes of fields that cannot stand beside the others: unreadable, of another kind, or lacking a channel.

    Returns the channels that most of the fields lack.
    """
    kinds = Counter(
        (row["Height"], row["Width"], row["DataType"])
        for found in results
        if found["status"] != FAILED
        for row in found["rows"][:1]
    )
    usual = max(sorted(kinds), key=kinds.get) if kinds else None
    lacking = Counter(tuple(found["missing"]) for found in results if found["status"] != FAILED)
    common = max(sorted(lacking, key=len), key=lacking.get) if lacking else ()
    for found in results:
        first = found["rows"][0]
        reason = ""
        if found["status"] == FAILED:
            reason = "the field cannot be read"
        elif (first["Height"], first["Width"], first["DataType"]) != usual:
            reason = f"{first['DataType']} {first['Height']} × {first['Width']}, other fields of the well {usual}"
        elif more := sorted(set(found["missing"]) - set(common)):
            reason = f"lacks {', '.join(more)}, which other fields of the well have"
        if reason:
            found["status"] = HOLE
            for row in found["rows"]:
                row["Status"], row["Reason"] = HOLE, row["Reason"] or f"left out of the stitched well: {reason}"
    return list(common)


class _Stitched:
    """A well's image, of which only the window asked for is ever in memory."""

    def __init__(self, mosaic, tiles):
        self.mosaic, self.tiles = mosaic, tiles
        self.shape, self.dtype = (*tiles[0].shape[:-2], *mosaic.shape), tiles[0].dtype
        self.ndim = len(self.shape)

    def __getitem__(self, window):
        window = tuple(slice(*part.indices(size)) for part, size in zip(window, self.shape, strict=True))
        leading, place = window[:-2], window[-2:]
        read = lambda number, there: self.tiles[number][(*leading, *there)]  # noqa: E731
        pixels = self.mosaic.assemble(place, read, self.dtype)
        size = [part.stop - part.start for part in window]
        return np.broadcast_to(pixels, size) if pixels.ndim < self.ndim else pixels


def _tile_file(folder, field):
    return Path(folder) / f"{field}.npy"


def read_field(field, planes, source, reader, parameters):
    """Read one field's planes, one stack at a time, and project them as the config says.

    Returns
    -------
    dict
        `field`; `pixels`, ndarray of shape (T, C, Z, Y, X) without the axes that are not kept; `status`; `missing`
        channels; `z_step_um`; `rows` of the table of fields; `contents`, a digest per file.
    """
    channels, conversion = parameters["channels"], parameters["conversion"]
    by_source = {str(channel["source"]): name for name, channel in channels.items()}
    stacks = {name: [] for name in channels}
    for image in planes:
        stacks[by_source[image.channel]].append(image)
    times = parameters.get("every_t") or sorted({image.t for image in planes})
    every_z = parameters.get("every_z") or sorted({image.z for image in planes})
    contents, found, reasons, shape = {}, {}, {}, None
    for name, stack in stacks.items():
        if not stack:
            reasons[name] = (MISSING, "no file for this channel")
            continue
        usual = parameters["planes"].get(stack[0].channel, 0)
        if len(stack) < usual * len(times):
            reasons[name] = (DONE, f"{len(stack)} of {usual * len(times)} planes are there")
        try:
            wanted = [stack[0].z] if usual == 1 else every_z
            pixels = _read_stack(load_reader(reader), source, stack, times, wanted, conversion, contents)
            if conversion["z"] == "keep" and usual == 1:  # one plane stands for every z
                pixels = np.repeat(pixels, len(every_z), axis=1)
            kind = pixels.shape[-2:], pixels.dtype
            if shape not in (None, kind):
                raise UnreadableImageError(
                    f"{stack[0].file}: {kind[1]} {kind[0]}, where the field's other channels have {shape[1]} {shape[0]}"
                )
            found[name], shape = pixels, kind
        except UnreadableImageError as error:
            reasons[name] = (FAILED, str(error))
    failed = any(status == FAILED for status, _ in reasons.values()) or not found
    missing = [name for name in channels if name not in found]
    pixels = None
    if not failed:
        blank = np.zeros_like(next(iter(found.values())))
        pixels = np.stack([found.get(name, blank) for name in channels], axis=1)
        pixels = pixels[:, :, 0] if conversion["z"] != "keep" else pixels
        pixels = pixels[0] if conversion["time"] != "keep" else pixels
    rows = [
        {
            "Metadata_Field": field,
            "SourceField": field,
            "Channel": name,
            "Status": FAILED if failed else DONE if name in found else MISSING,
            "Reason": reasons.get(name, (None, ""))[1],
            "File": stacks[name][0].file if stacks[name] else "",
            "Planes": len(stacks[name]),
            "Seconds": min((plane.seconds for plane in stacks[name] if plane.seconds is not None), default=np.nan),
            "Height": shape[0][0] if shape else 0,
            "Width": shape[0][1] if shape else 0,
            "DataType": str(shape[1]) if shape else "",
        }
        for name in channels
    ]
    return {
        "field": field,
        "pixels": pixels,
        "status": FAILED if failed else PARTIAL if missing else DONE,
        "missing": missing,
        "z_step_um": _z_step(planes),
        "rows": rows,
        "contents": contents,
    }


def _read_stack(module, source, stack, times, every_z, conversion, contents):
    """One channel's planes as an array (T, Z, Y, X); Z is 1 unless the config keeps it."""
    by_time = {t: sorted((plane for plane in stack if plane.t == t), key=lambda plane: plane.z) for t in times}
    for t, planes in by_time.items():
        if not planes:
            raise UnreadableImageError(f"{stack[0].file}: time point {t} is missing")
        if conversion["z"] == "keep" and (there := [plane.z for plane in planes]) != every_z:
            gone, more = (sorted(set(one) - set(other)) for one, other in ((every_z, there), (there, every_z)))
            said = f"{'are missing' if gone else 'are not among'}, most fields have z {some_of(every_z)}"
            raise UnreadableImageError(f"{planes[0].file}: z {some_of(gone or more)} {said}")
    if conversion["z"] != "keep":
        read = [projection.project(_read_planes(module, source, by_time[t], contents), conversion["z"]) for t in times]
        return read[0][None, None] if len(read) == 1 else np.stack(read)[:, None]
    stacks = []
    for t in times:
        planes = list(_read_planes(module, source, by_time[t], contents))
        stacks.append(np.stack(planes))
    return np.stack(stacks)


def _read_planes(module, source, stack, contents):
    """Read planes one by one, and refuse one that is unlike the first by its file's name."""
    kind = None
    for plane in stack:
        # Which plane a file is taken for belongs to what the field is made from.
        key = f"{plane.channel}/{plane.z}/{plane.t}/{plane.file}"
        try:
            pixels, contents[key] = module.load(source, plane)
        except UnreadableImageError:
            contents[key] = f"unreadable: {plane.size} bytes"
            raise
        if kind not in (None, (pixels.shape, pixels.dtype)):
            raise UnreadableImageError(
                f"{plane.file}: {pixels.dtype} {pixels.shape}, the stack's other planes {kind[1]} {kind[0]}"
            )
        kind = pixels.shape, pixels.dtype
        yield pixels


def _z_step(planes):
    """Distance of z planes [µm], of each channel and time by itself; None where it is not known."""
    steps = _z_steps(planes)
    return float(np.median(steps)) if steps else None


def _z_steps(planes):
    """All distances between neighboring z planes [µm]."""
    stacks = {}
    for plane in planes:
        if plane.z_um is not None:
            stacks.setdefault((plane.channel, plane.t), set()).add(plane.z_um)
    return [float(step) for heights in stacks.values() for step in np.diff(sorted(heights))]


def _corner(plane, shape, pixel_size_um):
    """Where the first pixel of a field lies, relative to the well [µm]; None where the source does not say."""
    if plane.y_um is None or plane.x_um is None:
        return None
    return tuple(
        float(center - (size - 1) / 2 * pixel_size_um)
        for center, size in zip((plane.y_um, plane.x_um), shape, strict=True)
    )


def _described(parameters, windows, found):
    """What every image of the plate says of itself."""
    conversion = parameters["conversion"]
    axes = "".join(("t" * (conversion["time"] == "keep"), "c", "z" * (conversion["z"] == "keep"), "yx"))
    return {
        "channels": [
            {"label": name, "color": channel["color"].lstrip("#").upper(), "window": window}
            for (name, channel), window in zip(parameters["channels"].items(), windows, strict=True)
        ],
        "pixel_size_um": parameters["pixel_size_um"],
        "axes": axes,
        "z_step_um": conversion["z_step_um"] or found["z_step_um"] if conversion["z"] == "keep" else None,
        "format": store.Format(
            ngff=conversion["ngff"],
            codec=conversion["codec"],
            level=conversion["compression"],
            chunk_px=conversion["chunk_px"],
            shard_px=conversion["shard_px"] if conversion["layout"] == "stitched" else None,
        ),
    }


def _window(pixels, number, parameters):
    """Display range of a channel [counts]: the config's, or that of some 256² pixels, every so manieth row and column."""
    given = list(parameters["channels"].values())[number].get("window")
    if given:
        return list(given)
    step = max(1, min(pixels.shape[-2:]) // 256)
    channel = pixels[:, number] if parameters["conversion"]["time"] == "keep" else pixels[number]
    return [int(value) for value in np.percentile(channel[..., ::step, ::step], [1, 99.9])]


def _levels(shape, wanted):
    """Number of pyramid levels: none smaller than 64 pixels."""
    return max(1, min(wanted, int(np.log2(max(1, min(shape[-2:]) / 64))) + 1))


def find_odd_fields(fields):
    """Find fields of another size or type than most of the plate: they would need another flat-field and another scale.

    Parameters
    ----------
    fields : DataFrame
        Rows of the plate's fields and channels.

    Returns
    -------
    accepted : list
        Height, width [px] and data type of most fields; empty where no field is done.
    odd : Series of bool
        By row.
    """
    kind = fields[["Height", "Width", "DataType"]].apply(tuple, axis=1)
    done = fields["Status"] == DONE
    if not done.any():
        return [], done
    accepted = kind[done].value_counts().sort_index(kind="stable").idxmax()
    return [int(accepted[0]), int(accepted[1]), str(accepted[2])], done & (kind != accepted)


def assemble_plate(*, plate, max_failed_fields, code, converted, record):
    """Write the plate's list of wells, after every part is converted; fail the plate when too much of it failed.

    Parameters
    ----------
    plate : str
    max_failed_fields : float in [0, 1]
        Share of the plate's fields that may have failed.
    code : str
    converted : list of str
        Records of the conversion of every part.
    record : str
    """

    def plan(inputs):
        wells = {well: found for part in inputs["converted"] for well, found in part["artefacts"].items()}
        if not wells:
            raise PlateLayoutError(
                "no image in the source folder matches the reader's pattern and the config's channels"
            )
        fields = read_tables([well_table(plate, "fields", well) for well in sorted(wells)])
        accepted, odd = find_odd_fields(fields)
        fields.loc[odd, "Status"] = FAILED
        fields.loc[odd, "Reason"] = (
            fields.loc[odd, "File"] + f": not {' × '.join(map(str, accepted))} as the rest of the plate"
        )
        status = fields.groupby(["Metadata_Well", "SourceField"])["Status"].agg(lambda s: s.isin([FAILED, HOLE]).any())
        if status.mean() > max_failed_fields:
            reasons = fields.loc[fields["Status"] == FAILED, "Reason"]
            raise PlateLayoutError(
                f"{int(status.sum())} of {len(status)} fields failed, more than max_failed_fields {max_failed_fields:g} "
                f"allows; first: {next((reason for reason in reasons if reason), '')}"
            )
        if not accepted:
            raise PlateLayoutError("none of the plate's fields can be used")
        usable = fields.groupby(["Metadata_Well", "Metadata_Field"])["Status"].agg(lambda s: (s != FAILED).all())
        usable = usable[usable].reset_index()
        found = (part["facts"]["shape"] for part in inputs["converted"] if part["facts"].get("shape"))
        shape = next(found, None) or plate_format(list(wells))
        parameters = {"accepted": accepted, "shape": list(shape)}
        made = recipe("assembly", parameters=parameters, code=code, inputs=wells)
        kept = next((part["facts"]["kept"] for part in inputs["converted"] if "kept" in part["facts"]), [])
        facts = {"fields": len(status), "failed_fields": int(status.sum()), "accepted": accepted, "kept": kept}
        facts |= {"planes": max(part["facts"].get("planes", 1) for part in inputs["converted"])} if "z" in kept else {}
        failures = [
            {"well": row.Metadata_Well, "field": int(row.Metadata_Field), "channel": row.Channel, "reason": row.Reason}
            for row in fields[odd].itertuples()
        ]

        def work():
            yield []
            per_well = usable.groupby("Metadata_Well").size()
            store.write_plate(
                plate_store(plate),
                name=plate,
                wells=list(per_well.index),
                shape=shape,
                field_count=int(per_well.max()),
                acquisitions=[{"id": acquisition_of(plate)}],
                # What other stages read of it is there as soon as the plate is.
                record=made | {"facts": facts} | ({"failures": failures} if failures else {}),
            )
            return Outcome(failures=failures, facts=facts)

        return [Unit("plate", plate_store(plate), made, work)]

    run_job(
        "assembly",
        record=record,
        plan=plan,
        code=code,
        settings={"max_failed_fields": max_failed_fields},
        upstream={"converted": converted},
        plate=plate,
    )
