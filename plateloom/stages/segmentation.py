"""plate.zarr images -> label images of nuclei, cells and cytoplasm, field by field, large fields tile by tile."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd

from plateloom import segmentation
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import DataFault, ModelMismatchError, PlateLayoutError
from plateloom.registry import load_method, log_notices
from plateloom.stages.illumination import read_corrected, read_volume, usable_fields, wells_of
from plateloom.store import plate as store
from plateloom.store.corrections import correction_path, digest_image, read_correction, same_image
from plateloom.store.layout import model_folder, plate_folder, plate_store, well_table
from plateloom.store.provenance import check_weights, read_json, recipe
from plateloom.tiling import cut_tiles


class Segmented(NamedTuple):
    """What became of a field.

    Attributes
    ----------
    counts : dict of str to int
        Number of objects per compartment.
    reason : str
        Why there are none to count; empty where there are.
    facts : dict
        How a network ran.
    """

    counts: dict
    reason: str = ""
    facts: dict = {}


def segment_part(*, plate, part, parts, settings, corrections, code, converted, illuminated, trained, record):
    """Segment the wells of one part.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
        `method` and `parameters` of the config's section.
    corrections : dict of str to dict of str to str
        Well to field to the digest of labels that a person has corrected; they are taken as they are.
    code : str
    converted, illuminated : str
        Records.
    trained : list of str
        Record of the network's training, where the screen trains one.
    record : str
    """

    def plan(inputs):
        check_weights(settings.get("weights", {}))
        flatfield = inputs["illuminated"]["artefacts"]["illumination"]
        network = {
            name: check_network(made) for found in inputs["trained"] for name, made in found["artefacts"].items()
        }
        module = load_method(segmentation.METHODS, settings["method"], "segmentation method")
        log_notices(module, module.Params(**settings["parameters"]))
        return [
            _unit(plate, well, images, flatfield, network, settings, corrections.get(well, {}), code)
            for well, images in wells_of([inputs["converted"]]).items()
        ]

    run_job(
        "segmentation",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"converted": converted, "illuminated": illuminated, "trained": list(trained)},
        plate=plate,
        part=part,
        parts=parts,
        facts={"corrections": corrections} if corrections else {},
        remove=remover(plate_folder(plate) / "segmentation", part=part, parts=parts),
    )


def check_network(fingerprint):
    """Give the fingerprint of the screen's own network back, if its file is the one that was trained.

    Raises
    ------
    ModelMismatchError
        If another lies there, or it was altered.
    """
    from plateloom.segmentation.network_file import hash_file

    folder = model_folder("segmenter")
    card = read_json(folder / "model.json")
    if card is None or card["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{folder} does not hold the network {fingerprint}; run again")
    if hash_file(folder / "nuclei.safetensors") != card["content"]:
        raise ModelMismatchError(f"{folder / 'nuclei.safetensors'} was altered: expected {card['content']}")
    return fingerprint


def _unit(plate, well, images, flatfield, network, settings, corrections, code):
    inputs = {"images": images, "illumination": flatfield} | network
    inputs |= {f"correction of field {field}": found for field, found in corrections.items()}
    made = recipe("segmentation", parameters=settings, code=code, inputs=inputs)
    tile_px, device = engine.EXECUTION.tile_px, engine.EXECUTION.device

    def work():
        module = load_method(segmentation.METHODS, settings["method"], "segmentation method")
        together = segmentation.count_together(module, device)
        fields = usable_fields(plate, [well])
        if fields:
            axes = store.describe_image(store.field_path(plate_store(plate), *fields[0]))["axes"]
            if misfit := segmentation.explain_planes(settings["method"], "z" in axes):
                raise PlateLayoutError(misfit)
        # A labels folder of an earlier recipe must not be taken for this one's if the job is killed half-way.
        for _, field in fields:
            shutil.rmtree(store.field_path(plate_store(plate), well, field) / "labels", ignore_errors=True)
        corrected, whole, large = [], [], []
        for _, field in fields:
            if str(field) in corrections:
                corrected.append(field)
                continue
            shape = store.image_shape(store.field_path(plate_store(plate), well, field))[1:]
            (large if max(shape) > tile_px and len(shape) == 2 else whole).append(field)
        tasks = [(take_correction, plate, well, field, corrections[str(field)], made) for field in corrected]
        tasks += [(segment_field, plate, well, field, flatfield, settings, device, made) for field in whole]
        found = yield from _run_together(tasks, together)
        for field in large:
            where = (plate, well, field, flatfield, settings, device)
            found.append((yield from _segment_tiles(*where, made, tile_px, together)))
        rows, failures, facts = [], [], {}
        for field, (counts, reason, used) in zip(corrected + whole + large, found, strict=True):
            facts |= used
            if reason:
                failures.append({"well": well, "field": field, "channel": "", "reason": reason})
            rows.append(
                {
                    "Metadata_Plate": plate,
                    "Metadata_Well": well,
                    "Metadata_Field": field,
                    "Status": "failed" if reason else "done",
                    "Reason": reason,
                    "Corrected": field in corrected,
                    **{f"Count_{name}": counts.get(name, 0) for name in segmentation.COMPARTMENTS},
                }
            )
        columns = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Status", "Reason", "Corrected"]
        columns += [f"Count_{name}" for name in segmentation.COMPARTMENTS]
        table = pd.DataFrame(rows, columns=columns)
        check_weights(settings.get("weights", {}))  # replaced meanwhile, they are not what the recipe says
        return Outcome(table.sort_values("Metadata_Field", ignore_index=True), failures, facts=facts)

    return Unit(well, well_table(plate, "segmentation", well), made, work)


def _run_together(tasks, number):
    """Yield tasks, so many of them as one (see `work_together`); returns their results in order."""
    if number == 1:
        return (yield tasks)
    found = yield [(work_together, tasks[i : i + number]) for i in range(0, len(tasks), number)]
    return [result for some in found for result in some]


def work_together(tasks):
    """Do some tasks side by side, in a worker that has a GPU: list of their results.

    While the network computes for one, the next are read and prepared; what they ask for meanwhile is one batch.
    """
    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(lambda task: task[0](*task[1:]), tasks))


def take_correction(plate, well, field, digest, record):
    """Make a field's labels from those that a person has corrected; runs in a worker.

    Returns
    -------
    Segmented
    """
    path = correction_path(plate, well, field)
    try:
        labels, image = read_correction(path, digest)
    except DataFault as fault:
        return Segmented({}, str(fault))
    group = store.field_path(plate_store(plate), well, field)
    shape = store.image_shape(group)[1:]
    if labels["Nuclei"].shape != tuple(shape):
        reason = (
            f"the corrected labels in {str(path)!r} are {_size(labels['Nuclei'].shape)} px and the image is "
            f"{_size(shape)} px; withdraw them or import others"
        )
        return Segmented({}, reason)
    if image and not same_image(image, digest_image(group)):
        reason = (
            f"the corrected labels in {str(path)!r} were painted on other images than the field has now; "
            "`plateloom labels withdraw` them, or import labels that were painted on these"
        )
        return Segmented({}, reason)
    labels["Cytoplasm"] = segmentation.subtract_nuclei(labels["Cells"], labels["Nuclei"])
    return Segmented(_write(plate, well, field, labels, record))


def _size(shape):
    return " × ".join(map(str, shape))


def segment_field(plate, well, field, flatfield, settings, device, record):
    """Segment a field in one piece; runs in a worker.

    Returns
    -------
    Segmented
    """
    try:
        channels, pixel_size_um = _channels(plate, well, field, settings)
    except DataFault as fault:
        return Segmented({}, str(fault))
    if segmentation.works_on_volumes(settings["method"]):
        return _segment_volume(plate, well, field, flatfield, settings, record, pixel_size_um)
    image = read_corrected(plate, well, field, flatfield, channels=channels, uncovered=np.nan)
    labels = segmentation.segment_image(
        image,
        channels,
        method=settings["method"],
        params=settings["parameters"],
        pixel_size_um=pixel_size_um,
        device=device,
    )
    return Segmented(_write(plate, well, field, labels, record), facts=_describe_run(settings, device))


def _segment_volume(plate, well, field, flatfield, settings, record, pixel_size_um):
    """Segment a field that keeps z planes."""
    described = store.describe_image(store.field_path(plate_store(plate), well, field))
    if described["z_step_um"] is None:
        return Segmented({}, "the source does not say how far the z planes lie apart; set conversion.z_step_um [µm]")
    needed = segmentation.needed_channels(settings["method"], settings["parameters"])
    channels = [name for name in described["channels"] if name in needed]
    labels = segmentation.segment_volume(
        read_volume(plate, well, field, flatfield, channels=channels),
        channels,
        method=settings["method"],
        params=settings["parameters"],
        pixel_size_um=pixel_size_um,
        z_step_um=described["z_step_um"],
    )
    return Segmented(_write(plate, well, field, labels, record))


def _segment_tiles(plate, well, field, flatfield, settings, device, record, tile_px, together):
    """Segment a field tile by tile, in the phases of a method (see `plateloom.segmentation`); yields lists of tasks."""
    path = store.field_path(plate_store(plate), well, field)
    shape = store.image_shape(path)[1:]
    try:
        method = _method(plate, well, field, settings, device)
    except DataFault as fault:
        return Segmented({}, str(fault))
    halo = method.halo_px
    folder = engine.EXECUTION.private_folder(path / ".tiles")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    where = (plate, well, field, flatfield, settings, device, str(folder))
    measured = yield [(measure_tile, *where, tile) for tile in cut_tiles(shape, tile_px, halo_px=halo["measure"])]
    thresholds = method.combine(measured)
    tasks = [(seed_tile, *where, tile, thresholds) for tile in cut_tiles(shape, tile_px, halo_px=halo["seed"])]
    seeded = yield from _run_together(tasks, together)
    np.save(folder / "numbers.npy", segmentation.number(ids for ids, _ in seeded))
    grown = yield [
        (grow_tile, *where, tile, thresholds, shape, tile_px)
        for tile in cut_tiles(shape, tile_px, halo_px=halo["grow"])
    ]
    yield [(join_tiles, plate, well, field, record, str(folder), shape, tile_px)]
    shutil.rmtree(folder)
    counts = {name: len(segmentation.number(one[name] for one in grown)) for name in segmentation.COMPARTMENTS}
    return Segmented(counts, facts=seeded[-1][1])


def measure_tile(plate, well, field, flatfield, settings, device, folder, tile):
    """What a tile adds to the knowledge of its image; runs in a worker."""
    method, view = _view(plate, well, field, flatfield, settings, device, tile)
    return method.measure(view, tile.origin, tile.inner)


def seed_tile(plate, well, field, flatfield, settings, device, folder, tile, thresholds):
    """Find a tile's nuclei, leave their ids in a file, and return which there are, and how that ran; runs in a worker."""
    method, view = _view(plate, well, field, flatfield, settings, device, tile)
    ids = method.seed(view, tile.origin, tile.inner, thresholds)
    np.save(_tile_file(folder, "ids", tile), ids)
    return np.unique(ids), _describe_run(settings, device)


def grow_tile(plate, well, field, flatfield, settings, device, folder, tile, thresholds, shape, tile_px):
    """Find a tile's cells, leave their labels in a file, and return which labels there are; runs in a worker."""
    method, view = _view(plate, well, field, flatfield, settings, device, tile)
    nuclei = _read_nuclei(folder, shape, tile_px, tile.window)
    cells = method.grow(view, nuclei, tile.origin, tile.inner, thresholds)
    np.save(_tile_file(folder, "cells", tile), cells)
    nuclei = nuclei[tile.inner]
    labels = {"Nuclei": nuclei, "Cells": cells, "Cytoplasm": segmentation.subtract_nuclei(cells, nuclei)}
    return {name: np.unique(image) for name, image in labels.items()}


def join_tiles(plate, well, field, record, folder, shape, tile_px):
    """Put the tiles' labels together, shard by shard, as the one writer of the field's shards; runs in a worker."""
    labels = {name: _Joined(name, folder, shape, tile_px) for name in segmentation.COMPARTMENTS}
    _write_labels(plate, well, field, labels, record)


class _Joined:
    """Labels of an image in the files of its tiles; never whole in memory."""

    dtype = np.dtype(np.uint32)

    def __init__(self, name, folder, shape, tile_px):
        self.name, self.folder, self.shape, self.tile_px = name, folder, tuple(shape), tile_px

    def __getitem__(self, window):
        nuclei = cells = None
        if self.name != "Cells":
            nuclei = _read_nuclei(self.folder, self.shape, self.tile_px, window)
        if self.name != "Nuclei":
            cells = _read_tiles("cells", self.folder, self.shape, self.tile_px, window, np.uint32)
        if self.name == "Cytoplasm":
            return segmentation.subtract_nuclei(cells, nuclei)
        return cells if nuclei is None else nuclei


def _read_nuclei(folder, shape, tile_px, window):
    """Labels of the nuclei in a window, from the files of the tiles that it touches."""
    ids = _read_tiles("ids", folder, shape, tile_px, window, np.int64)
    return segmentation.relabel(ids, np.load(f"{folder}/numbers.npy"))


def _read_tiles(kind, folder, shape, tile_px, window, dtype):
    """What the files of tiles hold of a window."""
    found = np.zeros([part.stop - part.start for part in window], dtype)
    for tile in cut_tiles(shape, tile_px):
        shared = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(tile.core, window, strict=True)]
        if all(part.start < part.stop for part in shared):
            source = np.load(_tile_file(folder, kind, tile), mmap_mode="r")
            there = tuple(slice(s.start - c.start, s.stop - c.start) for s, c in zip(shared, tile.core, strict=True))
            here = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(shared, window, strict=True))
            found[here] = source[there]
    return found


def _tile_file(folder, kind, tile):
    return f"{folder}/{kind}-{tile.core[0].start}-{tile.core[1].start}.npy"


def _describe_run(settings, device):
    """How this process runs the method's network."""
    module = load_method(segmentation.METHODS, settings["method"], "segmentation method")
    return segmentation.describe_run(module, module.Params(**settings["parameters"]), device)


def _method(plate, well, field, settings, device):
    """The method, made for one image."""
    channels, pixel_size_um = _channels(plate, well, field, settings)
    module = load_method(segmentation.METHODS, settings["method"], "segmentation method")
    params = module.Params(**settings["parameters"])
    shape = store.image_shape(store.field_path(plate_store(plate), well, field))[1:]
    return segmentation.make_method(module, params, channels, pixel_size_um=pixel_size_um, shape=shape, device=device)


def _view(plate, well, field, flatfield, settings, device, tile):
    """The method and the pixels of a tile with its halo."""
    method = _method(plate, well, field, settings, device)
    channels, _ = _channels(plate, well, field, settings)
    where = {"window": tile.window, "uncovered": np.nan}
    return method, read_corrected(plate, well, field, flatfield, channels=channels, **where)


def _channels(plate, well, field, settings):
    """Channels that a field has, and its pixel size [µm/px]; refused where the method needs one that it lacks."""
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    needed = segmentation.needed_channels(settings["method"], settings["parameters"])
    if lacking := sorted(needed & set(described["missing"])):
        raise PlateLayoutError(f"segmentation needs {', '.join(lacking)}, which this field lacks")
    misfits = segmentation.find_misfits(
        settings["method"], settings["parameters"], pixel_size_um=described["pixel_size_um"]
    )
    if misfits:
        raise PlateLayoutError(f"segmentation cannot work here: {'; '.join(misfits)}")
    return [name for name in described["channels"] if name not in described["missing"]], described["pixel_size_um"]


def _write(plate, well, field, labels, record):
    """Write a field's labels; returns the number of objects per compartment."""
    _write_labels(plate, well, field, labels, record)
    return {name: len(segmentation.number([image])) for name, image in labels.items()}


def _write_labels(plate, well, field, labels, record):
    path = store.field_path(plate_store(plate), well, field)
    described = store.describe_image(path)
    axes = described["axes"].replace("c", "")
    store.write_labels(
        path, labels, pixel_size_um=described["pixel_size_um"], levels=described["levels"], record=record, axes=axes
    )
