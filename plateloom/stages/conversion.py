"""Source folder -> plate.zarr images, well by well; then one job that assembles the plate."""

import logging

import numpy as np
import pandas as pd

from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import load_reader
from plateloom.store import plate as store
from plateloom.store.layout import part_of, plate_folder, plate_store, well_table
from plateloom.store.provenance import digest, read_json, recipe, write_json
from plateloom.store.tables import read_record, read_tables
from plateloom.wells import plate_format

log = logging.getLogger(__name__)

DONE, PARTIAL, FAILED, MISSING = "done", "partial", "failed", "missing"


def convert_part(*, plate, part, parts, source, reader, listing, settings, code, record):
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
        Digest of the part's source files when the run was planned; stands in the record.
    settings : dict
        `channels`, `conversion` and `reader_params` of the config.
    code : str
    record : str
    """
    module = load_reader(reader)
    params = module.Params(**settings["reader_params"])

    def plan(_):
        images = module.scan(source, params).images
        if not images:  # an empty mount or a wrong pattern must not cost the wells that are there
            raise PlateLayoutError(f"no image in {source!r} matches the reader's pattern")
        wells = {}
        for image in images:
            if part_of(image.well, parts) == part:
                wells.setdefault(image.well, []).append(image)
        return [_unit(plate, well, images, source, reader, settings, code) for well, images in wells.items()]

    run_job(
        "conversion",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        plate=plate,
        part=part,
        parts=parts,
        facts={"listing": listing},
        remove=remover(
            plate_folder(plate) / "fields",
            part=part,
            parts=parts,
            also=lambda well: store.remove_well(plate_store(plate), well),
        ),
    )


def _unit(plate, well, images, source, reader, settings, code):
    """One well: known as done by its listing, which is kept beside the results, so that no file is read for it."""
    path = well_table(plate, "fields", well)
    listing = digest([settings, code, [list(image) for image in images]])
    memory = plate_folder(plate) / ".sources" / f"{well}.json"
    known = read_json(memory) or {}
    found = read_record(path) or {}
    current = known.get("listing") == listing and known.get("fingerprint") == found.get("fingerprint", "")
    if current and known["images"]:
        group = store.read_group(store.well_path(plate_store(plate), well)) or {}
        current = group.get("plateloom", {}).get("fingerprint") == known["fingerprint"]

    def work():
        well_table(plate, "segmentation", well).unlink(missing_ok=True)  # its labels go with the images
        store.remove_well(plate_store(plate), well)
        fields = {}
        for image in images:
            fields.setdefault(image.field, []).append(image)
        parameters = {name: settings[name] for name in ("channels", "conversion")}
        results = yield [
            (convert_field, plate, well, field, planes, source, reader, parameters, code)
            for field, planes in fields.items()
        ]
        rows = [row for found in results for row in found["rows"]]
        made = recipe("conversion", parameters=parameters, code=code, inputs=_inputs(results))
        written = [found["field"] for found in results if found["status"] != FAILED]
        if written:
            store.write_well(plate_store(plate), well, written, made)
        write_json(memory, {"listing": listing, "fingerprint": made["fingerprint"], "images": bool(written)})
        table = pd.DataFrame(rows).assign(Metadata_Plate=plate, Metadata_Well=well)
        first = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Channel"]
        failures = [
            {"well": well, "field": row["Metadata_Field"], "channel": row["Channel"], "reason": row["Reason"]}
            for row in rows
            if row["Reason"]
        ]
        return Outcome(table[first + [c for c in table if c not in first]], failures, recipe=made)

    return Unit(path.stem, path, None, work, current=current)


def _inputs(results):
    """Content digests of a well's files, those that could not be read included."""
    return {f"{found['field']}/{name}": content for found in results for name, content in found["contents"].items()}


def convert_field(plate, well, field, planes, source, reader, parameters, code):
    """Read one field's planes, project z and write its image group; runs in a worker.

    Returns
    -------
    dict
        `field`, `status`, `rows` of the table of fields, and `contents`, a digest per file.
    """
    channels, conversion = parameters["channels"], parameters["conversion"]
    by_source = {str(channel["source"]): name for name, channel in channels.items()}
    found = {name: [] for name in channels}
    for image in planes:
        if image.channel in by_source:
            found[by_source[image.channel]].append(image)
    module = load_reader(reader)
    contents, image, reasons, shape = {}, {}, {}, None
    for name, stack in found.items():
        if not stack:
            reasons[name] = (MISSING, "no file for this channel")
            continue
        try:
            if len({plane.t for plane in stack}) > 1:
                raise UnreadableImageError(f"{stack[0].file}: one of several time points; name one in the pattern")
            image[name] = _project(module, source, stack, conversion["projection"], contents)
            if shape is None:
                shape = image[name].shape, image[name].dtype
            elif (image[name].shape, image[name].dtype) != shape:
                raise UnreadableImageError(
                    f"{stack[0].file}: {image[name].dtype} {image[name].shape}, where the field's other channels have "
                    f"{shape[1]} {shape[0]}"
                )
        except (UnreadableImageError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            reasons[name] = (FAILED, str(error))
    failed = any(status == FAILED for status, _ in reasons.values()) or not image
    status = FAILED if failed else PARTIAL if reasons else DONE
    if not failed:
        made = recipe("conversion", parameters=parameters, code=code, inputs=contents)
        pixels = np.stack([image[name] if name in image else np.zeros(*shape) for name in channels])
        store.write_image(
            store.field_path(plate_store(plate), well, field),
            pixels,
            channels=[_omero(name, channel, pixels[i]) for i, (name, channel) in enumerate(channels.items())],
            pixel_size_um=conversion["pixel_size_um"],
            levels=_levels(pixels.shape, conversion["levels"]),
            record=made,
            missing=[name for name in channels if name not in image],
        )
    rows = [
        {
            "Metadata_Field": field,
            "Channel": name,
            "Status": status if failed else DONE if name in image else MISSING,
            "Reason": reasons.get(name, (None, ""))[1],
            "File": found[name][0].file if found[name] else "",
            "Planes": len(found[name]),
            "Height": shape[0][0] if shape else 0,
            "Width": shape[0][1] if shape else 0,
            "DataType": str(shape[1]) if shape else "",
        }
        for name in channels
    ]
    return {"field": field, "status": status, "rows": rows, "contents": contents}


def _project(module, source, stack, projection, contents):
    """Project the z planes of one channel, one plane in memory at a time."""
    total = None
    for plane in stack:
        # Which plane a file is taken for belongs to what the field is made from.
        key = f"{plane.channel}/{plane.z}/{plane.t}/{plane.file}"
        try:
            pixels, contents[key] = module.load(source, plane)
        except UnreadableImageError:
            contents[key] = f"unreadable: {plane.size} bytes"
            raise
        if total is None:
            total, kind = pixels if projection == "max" else pixels.astype(np.uint64), pixels.dtype
        elif pixels.shape != total.shape or pixels.dtype != kind:
            raise UnreadableImageError(
                f"{plane.file}: {pixels.dtype} {pixels.shape}, other planes {kind} {total.shape}"
            )
        elif projection == "max":
            total = np.maximum(total, pixels)
        else:
            total += pixels
    return total if projection == "max" else ((total + len(stack) // 2) // len(stack)).astype(kind)


def _omero(name, channel, plane):
    """NGFF's rendering of one channel: the config's window, or that of the pixels."""
    window = channel.get("window") or [int(value) for value in np.percentile(plane, [1, 99.9])]
    return {"label": name, "color": channel["color"].lstrip("#").upper(), "window": window}


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
        status = fields.groupby(["Metadata_Well", "Metadata_Field"])["Status"].agg(lambda s: (s == FAILED).any())
        if status.mean() > max_failed_fields:
            reasons = fields.loc[fields["Status"] == FAILED, "Reason"]
            raise PlateLayoutError(
                f"{int(status.sum())} of {len(status)} fields failed, more than max_failed_fields {max_failed_fields:g} "
                f"allows; first: {next((reason for reason in reasons if reason), '')}"
            )
        usable = status[~status].reset_index()
        made = recipe("assembly", parameters={"accepted": accepted}, code=code, inputs=wells)
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
                shape=plate_format(list(wells)),
                field_count=int(per_well.max()),
                record=made,
            )
            facts = {"fields": len(status), "failed_fields": int(status.sum()), "accepted": accepted}
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
