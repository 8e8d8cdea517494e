"""Features of cells of the screen -> a map; every cell -> its place on the map, well by well."""

import functools
import io

import numpy as np
import pandas as pd

from plateloom import profiling
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import ModelMismatchError, PlateLayoutError
from plateloom.latent import MAPS
from plateloom.registry import load_method
from plateloom.stages.sampling import inputs_of, sample_rows, wells_to_learn_from
from plateloom.store.layout import model_folder, plate_folder, well_table
from plateloom.store.provenance import file_digest, read_json, recipe, write_bytes, write_json
from plateloom.store.tables import KEYS, read_table

COMPONENTS = 10


def fit_screen(*, plates, settings, code, measured, flagged, record):
    """Fit the map on cells drawn evenly over wells.

    Parameters
    ----------
    plates : list of str
        Plates that are complete.
    settings : dict
        The config's section `latent.maps`.
    code : str
    measured, flagged : list of str
        Records of all plates.
    record : str
    """
    folder = model_folder("map")

    def plan(inputs):
        chosen = [plate for plate in plates if not settings["plates"] or plate in settings["plates"]]
        wells = wells_to_learn_from(inputs["measured"], plates=chosen, count=settings["wells"])
        if not wells:
            raise PlateLayoutError("no plate is complete")
        made = recipe("map", parameters=settings, code=code, inputs=inputs_of(wells))

        def work():
            quota = -(-settings["cells"] // len(wells))
            tables = yield [(sample_features, well["plate"], well["well"], well["excluded"], quota) for well in wells]
            sample = pd.concat(tables, ignore_index=True)
            features = profiling.feature_columns(sample)
            values = sample[features].to_numpy(float)
            values = values[np.isfinite(values).any(axis=1)]
            if not len(values):
                raise PlateLayoutError("no cell on any plate, so there is no map")
            from plateloom.latent.maps import fit_map

            params = load_method(MAPS, settings["method"], "map").Params(**settings["parameters"])
            fitted = fit_map(values, features=features, method=settings["method"], params=params)
            arrays, config, features = fitted.to_arrays()
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            write_bytes(folder / "map.npz", buffer.getvalue())
            content = file_digest(buffer.getvalue())
            write_json(
                folder / "map.json", {"plateloom": made, "config": config, "features": features, "content": content}
            )
            return Outcome(facts={"cells": len(values), "reason": config["reason"], "features": len(features)})

        return [Unit("map", folder / "map.json", made, work)]

    run_job(
        "map",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"measured": measured, "flagged": flagged},
        strict=False,
    )


def sample_features(plate, well, excluded, quota):
    """A few cells of a well; runs in a worker."""
    table = read_table(well_table(plate, "features", well))
    table = table[~table["Metadata_SourceField"].isin(excluded)]
    return table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)]


def map_part(*, plate, part, parts, code, fitted, measured, record):
    """Place the cells of a part's wells on the map.

    Parameters
    ----------
    plate : str
    part, parts : int
    code : str
    fitted, measured : str
        Records.
    record : str
    """

    def plan(inputs):
        fingerprint = inputs["fitted"]["artefacts"]["map"]
        return [_unit(plate, well, found, fingerprint, code) for well, found in inputs["measured"]["artefacts"].items()]

    run_job(
        "maps",
        record=record,
        plan=plan,
        code=code,
        upstream={"fitted": fitted, "measured": measured},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "maps", part=part, parts=parts),
    )


def _unit(plate, well, cells, fingerprint, code):
    made = recipe("maps", parameters={}, code=code, inputs={"cells": cells, "map": fingerprint})

    def work():
        (table,) = yield [(place_cells, plate, well, fingerprint)]
        return Outcome(table)

    return Unit(well, well_table(plate, "maps", well), made, work)


def place_cells(plate, well, fingerprint):
    """Places of a well's cells on the map, and their first principal components; runs in a worker."""
    cells = read_table(well_table(plate, "features", well))
    fitted = load_map(fingerprint)
    values = cells[fitted.features].to_numpy(float)
    places = fitted.transform(values, features=fitted.features)
    components = fitted.project(values, features=fitted.features)[:, :COMPONENTS]
    table = cells[list(KEYS)].assign(Map_1=places[:, 0], Map_2=places[:, 1])
    return table.assign(**{f"PCA_{i + 1}": column for i, column in enumerate(components.T)})


@functools.lru_cache(maxsize=1)
def load_map(fingerprint):
    """The screen's map, if it is the one expected.

    Raises
    ------
    ModelMismatchError
        If another map lies there, or its file was altered.
    """
    from plateloom.latent.maps import Map

    described = read_json(model_folder("map") / "map.json")
    if described is None or described["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{model_folder('map')} does not hold the map {fingerprint}; run again")
    data = (model_folder("map") / "map.npz").read_bytes()
    if file_digest(data) != described["content"]:
        raise ModelMismatchError(f"{model_folder('map') / 'map.npz'} was altered: expected {described['content']}")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Map.from_arrays(dict(arrays), described["config"], described["features"])
