"""Features of cells of the screen, or their latents -> a map and clusters; every cell -> its place on the map and its cluster, well by well."""

import functools
import io

import numpy as np
import pandas as pd

from plateloom.engine.parts import Outcome, Unit, remover, run_job, versions
from plateloom.errors import ModelMismatchError, PlateLayoutError
from plateloom.latent import CLUSTERINGS, MAPS
from plateloom.registry import load_method, log_notices
from plateloom.schema import schema_hash
from plateloom.stages.latent_tables import input_columns, join_latents, one_encoder
from plateloom.stages.sampling import inputs_of, sample_rows, wells_to_learn_from
from plateloom.store.layout import model_folder, plate_folder, well_table
from plateloom.store.provenance import file_digest, read_json, recipe, write_bytes, write_json
from plateloom.store.tables import KEYS, read_table

COMPONENTS = 10
OF_CLUSTERS = "clusters_"  # begins the names of their arrays, in the map's file


def fit_screen(*, plates, settings, code, measured, flagged, record, encoded=(), missing=()):
    """Fit the map on cells drawn evenly over wells, and clusters on the same cells.

    Parameters
    ----------
    plates : list of str
        Plates that are complete.
    settings : dict
        The config's section `latent.maps`.
    code : str
    measured, flagged : list of str
        Records of all plates.
    missing : list of str
        Plates that are not complete, which the record names.
    record : str
    encoded : list of str
        Records of the latents of all plates, where the map is of them.
    """
    folder = model_folder("map")

    def plan(inputs):
        chosen = [plate for plate in plates if not settings["plates"] or plate in settings["plates"]]
        read = inputs["encoded" if settings["inputs"] == "latent" else "measured"]
        wells = wells_to_learn_from(read, plates=chosen, count=settings["wells"])
        if not wells:
            raise PlateLayoutError("no plate is complete")
        made = recipe("map", parameters=settings, code=code, inputs=inputs_of(wells))
        source = settings["inputs"]

        def work():
            quota = -(-settings["cells"] // len(wells))
            tables = yield [
                (sample_cells, well["plate"], well["well"], source, well["excluded"], quota) for well in wells
            ]
            sample = pd.concat(tables, ignore_index=True)
            encoder = one_encoder((well["plate"], well["well"]) for well in wells) if source == "latent" else ""
            features = input_columns(sample, source)
            sample = sample[np.isfinite(sample[features].to_numpy(float)).any(axis=1)]
            values = sample[features].to_numpy(float)
            if not len(values):
                where = "field that QC has not flagged" if any(well["excluded"] for well in wells) else "plate"
                raise PlateLayoutError(f"no cell on any {where}, so there is no map")
            if not _any_varies(values):
                raise PlateLayoutError(
                    f"none of {len(features)} features varies among {len(values)} cells, so there is no map"
                )
            from plateloom.latent.maps import fit_map

            params = load_method(MAPS, settings["method"], "map").Params(**settings["parameters"])
            fitted = fit_map(values, features=features, method=settings["method"], params=params)
            arrays, config, features = fitted.to_arrays()
            clusters, of_clusters = _fit_clusters(fitted, sample, values, settings["clusters"])
            buffer = io.BytesIO()
            np.savez(buffer, **arrays, **of_clusters)
            write_bytes(folder / "map.npz", buffer.getvalue())
            content = file_digest(buffer.getvalue())
            card = {"config": config, "features": features, "clusters": clusters, "content": content}
            card |= {"inputs": source, "encoder": encoder, "schema": schema_hash(features), "versions": versions()}
            write_json(folder / "map.json", {"plateloom": made} | card)
            facts = {"cells": len(values), "reason": config["reason"], "features": len(features)}
            return Outcome(facts=facts | {"clusters": clusters and clusters["config"]["number"]})

        return [Unit("map", folder / "map.json", made, work, beside=(folder / "map.npz",))]

    run_job(
        "map",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"measured": measured, "flagged": flagged, "encoded": list(encoded)},
        strict=False,
        facts={"missing": sorted(missing)},
    )


def _any_varies(values):
    """Whether any column has two different finite values."""
    finite = np.where(np.isfinite(values), values, np.nan)
    columns = finite[:, ~np.isnan(finite).all(axis=0)]
    return bool((np.nanmax(columns, axis=0) > np.nanmin(columns, axis=0)).any())


def _fit_clusters(fitted, sample, values, settings):
    """The clusters' part of the map's card, None where there are none, and their arrays."""
    if settings["method"] == "none":
        return None, {}
    from plateloom.latent.clusters import describe_clusters, fit_clusters

    module = load_method(CLUSTERINGS, settings["method"], "clustering method")
    params = module.Params(**settings["parameters"])
    log_notices(module, params)
    components = fitted.project(values, features=fitted.features)
    whole = np.isfinite(components).all(axis=1)
    sample, components = sample[whole], components[whole]
    wells = (sample["Metadata_Plate"] + "/" + sample["Metadata_Well"]).to_numpy(str)
    clusters, labels = fit_clusters(
        components, wells, method=settings["method"], params=params, resamples=settings["resamples"]
    )
    rows = describe_clusters(labels, components, values[whole], fitted=fitted, wells=wells)
    keys = sample[list(KEYS)]
    for row in rows:
        cells = keys.iloc[row["examples"]].itertuples(index=False, name=None)
        row["examples"] = [[plate, well, int(field), int(number)] for plate, well, field, number in cells]
    arrays, config = clusters.to_arrays()
    return {"config": config, "rows": rows}, {OF_CLUSTERS + name: array for name, array in arrays.items()}


def read_cells(plate, well, source, encoder=None):
    """Cells of a well with their features, or with their latents (of `join_latents`)."""
    if source == "features":
        return read_table(well_table(plate, "features", well))
    cells = read_table(well_table(plate, "features", well), [*KEYS, "Metadata_SourceField"])
    return join_latents(plate, well, cells, encoder=encoder)


def sample_cells(plate, well, source, excluded, quota):
    """A few cells of a well; runs in a worker."""
    table = read_cells(plate, well, source)
    table = table[~table["Metadata_SourceField"].isin(excluded)]
    return table.iloc[sample_rows(f"{plate}/{well}", len(table), quota)]


def map_part(*, plate, part, parts, code, fitted, measured, record, encoded=()):
    """Place the cells of a part's wells on the map, and find their clusters.

    Parameters
    ----------
    plate : str
    part, parts : int
    code : str
    fitted, measured : str
        Records.
    record : str
    encoded : list of str
        Record of the latents of the part, where the map is of them.
    """

    def plan(inputs):
        fingerprint = inputs["fitted"]["artefacts"]["map"]
        cells = inputs["measured"]["artefacts"]
        for found in inputs["encoded"]:
            cells = {well: [made, found["artefacts"][well]] for well, made in cells.items()}
        return [_unit(plate, well, found, fingerprint, code) for well, found in cells.items()]

    run_job(
        "maps",
        record=record,
        plan=plan,
        code=code,
        upstream={"fitted": fitted, "measured": measured, "encoded": list(encoded)},
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
    """Places of a well's cells on the map, their first principal components and clusters; runs in a worker."""
    fitted, clusters = load_map(fingerprint)
    described = read_json(model_folder("map") / "map.json")
    cells = read_cells(plate, well, described["inputs"], described["encoder"])
    values = cells[fitted.features].to_numpy(float)
    places = fitted.transform(values, features=fitted.features)
    components = fitted.project(values, features=fitted.features)
    table = cells[list(KEYS)].assign(Map_1=places[:, 0], Map_2=places[:, 1])
    table = table.assign(**{f"PCA_{i + 1}": column for i, column in enumerate(components[:, :COMPONENTS].T)})
    return table if clusters is None else table.assign(Cluster=clusters.assign(components))


@functools.lru_cache(maxsize=1)
def load_map(fingerprint):
    """The screen's map, if it is the one expected, and its clusters; None if there are none.

    Raises
    ------
    ModelMismatchError
        If another map lies there, or its file was altered.
    """
    from plateloom.latent.clusters import Clusters
    from plateloom.latent.maps import Map

    described = read_json(model_folder("map") / "map.json")
    if described is None or described["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{model_folder('map')} does not hold the map {fingerprint}; run again")
    data = (model_folder("map") / "map.npz").read_bytes()
    if file_digest(data) != described["content"]:
        raise ModelMismatchError(f"{model_folder('map') / 'map.npz'} was altered: expected {described['content']}")
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        arrays, of_clusters = {}, {}
        for name, array in stored.items():
            (of_clusters if name.startswith(OF_CLUSTERS) else arrays)[name.removeprefix(OF_CLUSTERS)] = array
    fitted = Map.from_arrays(arrays, described["config"], described["features"])
    clusters = described["clusters"]
    return fitted, clusters and Clusters.from_arrays(of_clusters, clusters["config"])
