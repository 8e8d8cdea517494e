"""Images and labels -> one row per cell, well by well."""

import functools

import numpy as np
import pandas as pd

from plateloom import features
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.features.meaning import add_physical, describe_columns
from plateloom.segmentation import COMPARTMENTS, subtract_nuclei
from plateloom.stages.illumination import mosaic_of, read_corrected, read_volume
from plateloom.stages.mosaics import find_centers, source_fields
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import recipe
from plateloom.store.tables import KEYS, read_table

METADATA = (*KEYS, "Metadata_SourceField")  # the source's field that the nucleus' center lies on


def measure_part(*, plate, part, parts, settings, code, segmented, illuminated, record):
    """Measure the cells of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
        The config's section.
    code : str
    segmented, illuminated : str
        Records.
    record : str
    """

    def plan(inputs):
        flatfield = inputs["illuminated"]["artefacts"]["illumination"]
        return [
            _unit(plate, well, found, flatfield, settings, code)
            for well, found in inputs["segmented"]["artefacts"].items()
        ]

    run_job(
        "features",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"segmented": segmented, "illuminated": illuminated},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "features", part=part, parts=parts),
    )


def _unit(plate, well, labels, flatfield, settings, code):
    path = well_table(plate, "features", well)
    made = recipe("features", parameters=settings, code=code, inputs={"labels": labels, "illumination": flatfield})

    def work():
        fields = read_table(well_table(plate, "segmentation", well), ["Metadata_Field", "Status"])
        fields = fields.loc[fields["Status"] == "done", "Metadata_Field"]
        tables = yield [(measure_field, plate, well, int(field), flatfield, labels, settings) for field in fields]
        described = describe_table(settings, settings["channels"])
        table = pd.concat(tables, ignore_index=True) if tables else empty_table(described)
        if settings["precision"] == "float32":
            labels_of = [name for name, column in described.items() if column["unit"] == "label"]  # keep their digits
            values = table[list(described)].astype("float32")
            values[labels_of] = table[labels_of]
            table = pd.concat([table[list(METADATA)], values], axis=1)
        return Outcome(table, described=described, group_rows=settings["row_group_rows"])

    return Unit(well, path, made, work)


def measure_field(plate, well, field, flatfield, made, settings):
    """Measure one field's cells; runs in a worker. `made` is the fingerprint of the well's labels.

    Returns
    -------
    DataFrame
        One row per object of the first compartment: keys, then the features of all compartments; NaN where a compartment is
        empty, or where a feature needs a channel that this field lacks.
    """
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    wanted = settings["channels"]
    channels = [name for name in wanted if name not in described["missing"]]
    compartments = settings.get("compartments", COMPARTMENTS)
    labels = {name: store.read_labels(path, name, made=made) for name in ("Nuclei", "Cells") if name in compartments}
    if "Cytoplasm" in compartments:
        labels["Cytoplasm"] = subtract_nuclei(labels["Cells"], labels["Nuclei"])  # sooner than reading what it made
    volumes, shape = settings.get("volumes", False), next(iter(labels.values())).shape
    if channels:
        where = (plate, well, field, flatfield)
        if volumes:
            image = read_volume(*where, channels=channels)
        else:
            image = _fill_holes(read_corrected(*where, channels=channels, uncovered=np.nan))
    else:  # shape and neighbors need no channel
        image = np.zeros((0, *shape), np.float32)
    if volumes:
        tables = features.measure_volume(image, labels, channels, families=settings["families"])
    else:
        depth = 8 if store.image_type(path) == np.uint8 else 16  # of the counts that the corrected floats come from
        tables = features.measure_image(image, labels, channels, bit_depth=depth, **_options(settings))
    numbers = tables[compartments[0]].index
    described_columns = describe_table(settings, wanted)
    blocks = [tables[compartment] for compartment in compartments]
    joined = pd.concat([one if one.index.equals(numbers) else one.reindex(numbers) for one in blocks], axis=1)
    size = {"z_step_um": described["z_step_um"]} if volumes else {}
    joined = add_physical(joined, described["pixel_size_um"], described_columns, **size)
    if list(joined.columns) != list(described_columns):  # a copy of everything
        joined = joined.reindex(columns=list(described_columns))
    keys = pd.DataFrame(
        {
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "Metadata_Field": np.int64(field),
            "Metadata_ObjectNumber": numbers.to_numpy(np.int64),
            "Metadata_SourceField": np.int64(field),
        }
    )
    if mosaic_of(path) is not None:
        values, centers = find_centers(path, made)
        found = pd.Series(source_fields(path, field, centers), index=values)
        keys["Metadata_SourceField"] = found.reindex(numbers).to_numpy(np.int64)
    joined.index = keys.index
    return pd.concat([keys, joined], axis=1)


def _fill_holes(image):
    """Give pixels that no field covers their channel's median, in place: as zeros they would be the background around them."""
    hole = np.isnan(image[0])
    if hole.any():
        for plane in image:
            plane[hole] = np.median(plane[~hole])
    return image


def _options(settings):
    """The options of `measure_image` that the config sets."""
    return {name: settings[name] for name in ("families", "texture_scales", "neighbor_distance")}


def describe_table(settings, channels):
    """Columns of a plate's features in order, with what each means: dict of str to dict."""
    options = _options(settings) | {"physical_units": settings["physical_units"]}
    options |= {"compartments": settings.get("compartments", COMPARTMENTS), "volumes": settings.get("volumes", False)}
    return _describe(tuple(channels), *(tuple(v) if isinstance(v, list) else v for v in options.values()))


@functools.cache
def _describe(channels, families, texture_scales, neighbor_distance, physical_units, compartments, volumes):
    return describe_columns(
        compartments,
        channels,
        families=families,
        texture_scales=texture_scales,
        neighbor_distance=neighbor_distance,
        physical_units=physical_units,
        volumes=volumes,
    )


def empty_table(described):
    """A table without rows that has every column."""
    table = pd.DataFrame({key: pd.Series(dtype="str" if i < 2 else "int64") for i, key in enumerate(METADATA)})
    return table.join(pd.DataFrame(columns=list(described), dtype="float64"))
