"""Images and labels -> one row per cell, well by well."""

import numpy as np
import pandas as pd

from plateloom import features
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.stages.illumination import read_corrected
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import recipe
from plateloom.store.tables import KEYS, read_table

COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")


def measure_part(*, plate, part, parts, settings, code, segmented, illuminated, record):
    """Measure the cells of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
        `families`, `channels` and `neighbor_distance` of the config's section.
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
        if not tables:
            return Outcome(empty_table(settings))
        return Outcome(pd.concat(tables, ignore_index=True))

    return Unit(well, path, made, work)


def measure_field(plate, well, field, flatfield, made, settings):
    """Measure one field's cells; runs in a worker. `made` is the fingerprint of the well's labels.

    Returns
    -------
    DataFrame
        One row per nucleus: keys, then the features of all compartments; NaN where a compartment is empty, or where a
        feature needs a channel that this field lacks.
    """
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    wanted = settings["channels"] or described["channels"]
    channels = [name for name in wanted if name not in described["missing"]]
    labels = {compartment: store.read_labels(path, compartment, made=made) for compartment in COMPARTMENTS}
    if channels:
        image = read_corrected(plate, well, field, flatfield, channels=channels)
    else:  # shape and neighbors need no channel
        image = np.zeros((0, *labels["Nuclei"].shape), np.float32)
    options = {"families": settings["families"], "neighbor_distance": settings["neighbor_distance"]}
    tables = features.measure_image(image, labels, channels, **options)
    joined = pd.concat([tables[compartment].reindex(tables["Nuclei"].index) for compartment in COMPARTMENTS], axis=1)
    joined = joined.reindex(columns=feature_names(settings, wanted))
    keys = pd.DataFrame(
        {
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "Metadata_Field": np.int64(field),
            "Metadata_ObjectNumber": joined.index.to_numpy(np.int64),
        },
        index=joined.index,
    )
    return pd.concat([keys, joined], axis=1).reset_index(drop=True)


def feature_names(settings, channels):
    """Columns of a plate's features, in order."""
    options = {"families": settings["families"], "neighbor_distance": settings["neighbor_distance"]}
    return [name for compartment in COMPARTMENTS for name in features.feature_columns(compartment, channels, **options)]


def empty_table(settings):
    """A table without rows that has every column; its channels are those of the config."""
    table = pd.DataFrame({key: pd.Series(dtype="str" if i < 2 else "int64") for i, key in enumerate(KEYS)})
    names = feature_names(settings, settings["channels"] or [])
    return table.join(pd.DataFrame(columns=names, dtype="float64"))
