"""plate.zarr images -> label images of nuclei, cells and cytoplasm, field by field, large fields tile by tile."""

import shutil

import numpy as np
import pandas as pd

from plateloom import segmentation
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import DataFault, PlateLayoutError
from plateloom.registry import load_method
from plateloom.stages.illumination import read_corrected, usable_fields, wells_of
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store, well_table
from plateloom.store.provenance import recipe
from plateloom.tiling import cut_tiles


def segment_part(*, plate, part, parts, settings, code, converted, illuminated, record):
    """Segment the wells of one part.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
        `method` and `parameters` of the config's section.
    code : str
    converted, illuminated : str
        Records.
    record : str
    """

    def plan(inputs):
        flatfield = inputs["illuminated"]["artefacts"]["illumination"]
        return [
            _unit(plate, well, images, flatfield, settings, code)
            for well, images in wells_of([inputs["converted"]]).items()
        ]

    run_job(
        "segmentation",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"converted": converted, "illuminated": illuminated},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "segmentation", part=part, parts=parts),
    )


def _unit(plate, well, images, flatfield, settings, code):
    made = recipe("segmentation", parameters=settings, code=code, inputs={"images": images, "illumination": flatfield})
    tile_px = engine.EXECUTION.tile_px

    def work():
        fields = usable_fields(plate, [well])
        # A labels folder of an earlier recipe must not be taken for this one's if the job is killed half-way.
        for _, field in fields:
            shutil.rmtree(store.field_path(plate_store(plate), well, field) / "labels", ignore_errors=True)
        whole, large = [], []
        for _, field in fields:
            shape = store.image_shape(store.field_path(plate_store(plate), well, field))[1:]
            (large if max(shape) > tile_px else whole).append(field)
        found = yield [(segment_field, plate, well, field, flatfield, settings, made) for field in whole]
        for field in large:
            found.append((yield from _segment_tiles(plate, well, field, flatfield, settings, made, tile_px)))
        rows, failures = [], []
        for field, result in zip(whole + large, found, strict=True):
            counts, reason = ({}, result) if isinstance(result, str) else (result, "")
            if reason:
                failures.append({"well": well, "field": field, "channel": "", "reason": reason})
            rows.append(
                {
                    "Metadata_Plate": plate,
                    "Metadata_Well": well,
                    "Metadata_Field": field,
                    "Status": "failed" if reason else "done",
                    "Reason": reason,
                    **{f"Count_{name}": counts.get(name, 0) for name in segmentation.COMPARTMENTS},
                }
            )
        columns = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Status", "Reason"]
        columns += [f"Count_{name}" for name in segmentation.COMPARTMENTS]
        table = pd.DataFrame(rows, columns=columns)
        return Outcome(table.sort_values("Metadata_Field", ignore_index=True), failures)

    return Unit(well, well_table(plate, "segmentation", well), made, work)


def segment_field(plate, well, field, flatfield, settings, record):
    """Segment a field in one piece; runs in a worker.

    Returns
    -------
    dict of str to int, or str
        Number of objects per compartment; or why the field cannot be segmented.
    """
    try:
        channels, pixel_size_um = _channels(plate, well, field, settings)
    except DataFault as fault:
        return str(fault)
    image = read_corrected(plate, well, field, flatfield, channels=channels)
    labels = segmentation.segment_image(
        image, channels, method=settings["method"], params=settings["parameters"], pixel_size_um=pixel_size_um
    )
    return _write(plate, well, field, labels, record)


def _segment_tiles(plate, well, field, flatfield, settings, record, tile_px):
    """Segment a field tile by tile, in the phases of a method (see `plateloom.segmentation`); yields lists of tasks."""
    path = store.field_path(plate_store(plate), well, field)
    shape = store.image_shape(path)[1:]
    try:
        method = _method(plate, well, field, settings)
    except DataFault as fault:
        return str(fault)
    halo = method.halo_px
    folder = path / ".tiles"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    where = (plate, well, field, flatfield, settings, str(folder))
    measured = yield [(measure_tile, *where, tile) for tile in cut_tiles(shape, tile_px, halo_px=halo["measure"])]
    thresholds = method.combine(measured)
    ids = yield [(seed_tile, *where, tile, thresholds) for tile in cut_tiles(shape, tile_px, halo_px=halo["seed"])]
    np.save(folder / "numbers.npy", segmentation.number(ids))
    yield [
        (grow_tile, *where, tile, thresholds, shape, tile_px)
        for tile in cut_tiles(shape, tile_px, halo_px=halo["grow"])
    ]
    (counts,) = yield [(join_tiles, plate, well, field, record, str(folder), shape, tile_px)]
    shutil.rmtree(folder)
    return counts


def measure_tile(plate, well, field, flatfield, settings, folder, tile):
    """What a tile adds to the knowledge of its image; runs in a worker."""
    method, view = _view(plate, well, field, flatfield, settings, tile)
    return method.measure(view, tile.origin, tile.inner)


def seed_tile(plate, well, field, flatfield, settings, folder, tile, thresholds):
    """Find a tile's nuclei, leave their ids in a file, and return which there are; runs in a worker."""
    method, view = _view(plate, well, field, flatfield, settings, tile)
    ids = method.seed(view, tile.origin, tile.inner, thresholds)
    np.save(_tile_file(folder, "ids", tile), ids)
    return np.unique(ids)


def grow_tile(plate, well, field, flatfield, settings, folder, tile, thresholds, shape, tile_px):
    """Find a tile's cells and leave their labels in a file; runs in a worker."""
    method, view = _view(plate, well, field, flatfield, settings, tile)
    nuclei = _read_nuclei(folder, shape, tile_px, tile.window)
    np.save(_tile_file(folder, "cells", tile), method.grow(view, nuclei, tile.origin, tile.inner, thresholds))


def join_tiles(plate, well, field, record, folder, shape, tile_px):
    """Put the tiles' labels together and write them, as the one writer of the field's shards; runs in a worker."""
    cells = np.zeros(shape, np.uint32)
    for tile in cut_tiles(shape, tile_px):
        cells[tile.core] = np.load(_tile_file(folder, "cells", tile))
    nuclei = _read_nuclei(folder, shape, tile_px, (slice(0, shape[0]), slice(0, shape[1])))
    labels = {"Nuclei": nuclei, "Cells": cells, "Cytoplasm": segmentation.subtract_nuclei(cells, nuclei)}
    return _write(plate, well, field, labels, record)


def _read_nuclei(folder, shape, tile_px, window):
    """Labels of the nuclei in a window, from the files of the tiles that it touches."""
    numbers = np.load(f"{folder}/numbers.npy")
    ids = np.zeros([part.stop - part.start for part in window], np.int64)
    for tile in cut_tiles(shape, tile_px):
        shared = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(tile.core, window, strict=True)]
        if all(part.start < part.stop for part in shared):
            source = np.load(_tile_file(folder, "ids", tile), mmap_mode="r")
            there = tuple(slice(s.start - c.start, s.stop - c.start) for s, c in zip(shared, tile.core, strict=True))
            here = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(shared, window, strict=True))
            ids[here] = source[there]
    return segmentation.relabel(ids, numbers)


def _tile_file(folder, kind, tile):
    return f"{folder}/{kind}-{tile.core[0].start}-{tile.core[1].start}.npy"


def _method(plate, well, field, settings):
    """The method, made for one image."""
    channels, pixel_size_um = _channels(plate, well, field, settings)
    module = load_method(segmentation.METHODS, settings["method"], "segmentation method")
    params = module.Params(**settings["parameters"])
    shape = store.image_shape(store.field_path(plate_store(plate), well, field))[1:]
    return module.Method(params, channels, pixel_size_um=pixel_size_um, shape=shape)


def _view(plate, well, field, flatfield, settings, tile):
    """The method and the pixels of a tile with its halo."""
    method = _method(plate, well, field, settings)
    channels, _ = _channels(plate, well, field, settings)
    return method, read_corrected(plate, well, field, flatfield, channels=channels, window=tile.window)


def _channels(plate, well, field, settings):
    """Channels that a field has, and its pixel size [µm/px]; refused where the method needs one that it lacks."""
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    needed = {name for key, name in settings["parameters"].items() if key.endswith("_channel") and name}
    if lacking := sorted(needed & set(described["missing"])):
        raise PlateLayoutError(f"segmentation needs {', '.join(lacking)}, which this field lacks")
    return [name for name in described["channels"] if name not in described["missing"]], described["pixel_size_um"]


def _write(plate, well, field, labels, record):
    """Write a field's labels; returns the number of objects per compartment."""
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    store.write_labels(
        path, labels, pixel_size_um=described["pixel_size_um"], levels=described["levels"], record=record
    )
    return {name: len(np.unique(image)) - bool((image == 0).any()) for name, image in labels.items()}
