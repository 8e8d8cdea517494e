"""plate.zarr images -> qualities of every field and channel, well by well; then flags against the whole plate."""

import numpy as np
import pandas as pd

from plateloom import quality
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.stages.illumination import require_one_time, tile_window, usable_tiles, wells_of
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import recipe
from plateloom.store.tables import read_tables
from plateloom.wells import QUARANTINED


def measure_part(*, plate, part, parts, settings, code, assembled, converted, record):
    """Measure the raw planes of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
        `saturation_level`, if it is given.
    code : str
    assembled, converted : str
        Records.
    record : str
    """

    def plan(inputs):
        accepted = inputs["assembled"]["facts"]["accepted"]
        require_one_time(inputs["assembled"])
        return [
            _unit(plate, well, found, accepted, settings, code)
            for well, found in inputs["converted"]["artefacts"].items()
        ]

    run_job(
        "quality",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"assembled": assembled, "converted": converted},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "quality", part=part, parts=parts),
    )


def _unit(plate, well, fingerprint, accepted, settings, code):
    path = well_table(plate, "quality", well)
    made = recipe("quality", parameters=settings, code=code, inputs={"images": fingerprint, "accepted": accepted})

    def work():
        fields = list(usable_tiles(plate, [well]).items())
        paths = [str(store.field_path(plate_store(plate), well, image)) for _, image in fields]
        level = settings.get("saturation_level")
        results = yield [
            (measure_field, path, field, level) for path, ((_, field), _) in zip(paths, fields, strict=True)
        ]
        rows = [
            {
                "Metadata_Plate": plate,
                "Metadata_Well": well,
                "Metadata_Field": image,
                "SourceField": np.int64(field),
                **row,
            }
            for ((_, field), image), found in zip(fields, results, strict=True)
            for row in found
        ]
        columns = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "SourceField", "Channel"]
        return Outcome(pd.DataFrame(rows, columns=None if rows else columns))

    return Unit(well, path, made, work)


def measure_field(path, field, level=None):
    """Qualities of a field's channels, the field being an image or its place in a stitched one; runs in a worker.

    One plane is in memory at a time; of z planes that are kept, their brightest values are looked at.
    """
    described, window = store.describe_image(path), tile_window(path, field)
    return [
        {
            "Channel": channel,
            **quality.measure_plane(
                store.read_image(path, channels=[i], window=window, z="max")[0], saturation_level=level
            ),
        }
        for i, channel in enumerate(described["channels"])
        if channel not in described["missing"]
    ]


def flag_plate(*, plate, settings, code, measured, record):
    """Flag fields that are blurred, saturated, empty or dirty, against the rest of the plate.

    Parameters
    ----------
    plate : str
    settings : dict
        `parameters` of the config's section; `quarantined`: wells that a person has taken out, if any.
    code : str
    measured : list of str
        Records of the measurement of every part.
    record : str
    """
    path = plate_folder(plate) / "qc.parquet"

    def plan(inputs):
        wells = wells_of(inputs["measured"])
        made = recipe("flagging", parameters=settings, code=code, inputs=wells)

        def work():
            yield []
            table = read_tables([well_table(plate, "quality", well) for well in sorted(wells)])
            held = table["Metadata_Well"].isin(settings.get("quarantined", ()))
            flagged = quality.flag_fields(table[~held], quality.Params(**settings["parameters"]))
            facts = {"flagged": int((flagged["Reason"] != "").sum()), "planes": len(flagged)}
            return Outcome(_with_held(flagged, table[held]), facts=facts)

        return [Unit("qc", path, made, work)]

    run_job(
        "flagging", record=record, plan=plan, code=code, settings=settings, upstream={"measured": measured}, plate=plate
    )


def _with_held(flagged, held):
    """Flagged fields of a plate, and those of quarantined wells, which nothing was compared with, in their place."""
    if not len(held):
        return flagged
    flags = {name: False for name in flagged if name == "Dark" or name.startswith("Flag_")}
    return pd.concat([flagged, held.assign(**flags, Reason=QUARANTINED)]).sort_index()
