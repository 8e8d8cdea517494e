"""Crops of cells of the screen -> encoder; every cell -> its latent columns, well by well."""

import functools
import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from plateloom.devices import choose_device
from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, remover, run_job
from plateloom.errors import ModelMismatchError, PlateLayoutError
from plateloom.latent import METHODS
from plateloom.registry import load_method
from plateloom.stages.illumination import mosaic_of, read_corrected
from plateloom.stages.mosaics import find_centers, source_fields
from plateloom.stages.novelty import ERROR
from plateloom.stages.sampling import inputs_of, sample_rows, wells_to_learn_from
from plateloom.store import plate as store
from plateloom.store.layout import model_folder, plate_folder, plate_store, well_table
from plateloom.store.provenance import file_digest, read_json, recipe, write_bytes, write_json
from plateloom.store.tables import read_table

log = logging.getLogger(__name__)
KEPT_ERRORS = 2000  # of held-out cells, in the model's card
EXAMPLES = 12  # held-out cells shown on the page, and as many of those that are restored worst


def train_screen(*, plates, settings, code, segmented, illuminated, flagged, record):
    """Train the encoder on crops drawn evenly over wells; whole wells are held out to test it.

    Parameters
    ----------
    plates : list of str
        Plates that are complete.
    settings : dict
        The config's section `latent.autoencoder`, without what is done with the errors.
    code : str
    segmented, illuminated, flagged : list of str
        Records of all plates.
    record : str
    """
    folder = model_folder("autoencoder")

    def plan(inputs):
        chosen = [plate for plate in plates if not settings["plates"] or plate in settings["plates"]]
        flatfields = {
            found["plate"]: found["artefacts"]["illumination"]
            for found in inputs["illuminated"]
            if found["status"] == "done"
        }
        wells = wells_to_learn_from(inputs["segmented"], plates=chosen, count=settings["wells"])
        if len(wells) < 2:
            raise PlateLayoutError("fewer than two wells are complete, so nothing can be held out")
        made = recipe("autoencoder", parameters=settings, code=code, inputs=inputs_of(wells))
        return [
            Unit("autoencoder", folder / "model.json", made, lambda: _train(folder, wells, flatfields, settings, made))
        ]

    run_job(
        "autoencoder",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"segmented": segmented, "illuminated": illuminated, "flagged": flagged},
        strict=False,
    )


def _train(folder, wells, flatfields, settings, made):
    """Draw crops through Dask, train with a checkpoint per epoch, save; the unit of `train_screen`."""
    import torch
    from safetensors.torch import load_file, save

    from plateloom.latent import network
    from plateloom.latent.crops import intensity_range, normalize_crops

    params = load_method(METHODS, settings["method"], "latent method").Params(**settings["parameters"])
    work = folder / f".work-{made['fingerprint']}"
    for old in folder.glob(".work-*"):
        if old != work:
            shutil.rmtree(old)
    work.mkdir(parents=True, exist_ok=True)
    quota = -(-settings["cells"] // len(wells))
    counts = yield [
        (
            crop_well,
            well["plate"],
            well["well"],
            well["fingerprint"],
            well["excluded"],
            flatfields[well["plate"]],
            quota,
            settings["crop_um"],
            params.out_px,
            str(work),
        )
        for well in wells
    ]
    held = max(1, round(settings["holdout"] * len(wells)))
    drawn = {"holdout": wells[:held], "train": wells[held:]}
    private = engine.EXECUTION.private_folder(work)  # of what is read at random in every epoch
    private.mkdir(parents=True, exist_ok=True)
    number = dict(zip([(well["plate"], well["well"]) for well in wells], counts, strict=True))
    if not any(number[well["plate"], well["well"]] for well in drawn["train"]):
        raise PlateLayoutError("no cell to train on")
    low, high = intensity_range(np.concatenate([_crops(work, well)[:8] for well in drawn["train"]]))
    channels = _channels(drawn["train"])
    sets = {}
    for name, members in drawn.items():
        shape = (
            sum(number[well["plate"], well["well"]] for well in members),
            len(channels),
            params.out_px,
            params.out_px,
        )
        sets[name] = np.lib.format.open_memmap(private / f"{name}.npy", mode="w+", dtype=np.float16, shape=shape)
        position = 0
        for well in members:
            crops = _crops(work, well)
            sets[name][position : position + len(crops)] = normalize_crops(crops, low, high)
            position += len(crops)
    device = choose_device(engine.EXECUTION.device)
    torch.set_num_threads(engine.EXECUTION.threads)
    checkpoint = work / "checkpoint.safetensors"
    resumed = load_file(checkpoint) if checkpoint.exists() else None

    def on_epoch(state, history):
        write_bytes(checkpoint, save(state))
        log.info("epoch %(epoch)d: train %(train).4f, held out %(holdout).4f", history[-1])

    trained = network.train(
        sets["train"], params=params, device=device, holdout=sets["holdout"], resume=resumed, on_epoch=on_epoch
    )
    config, tensors = network.to_tensors(trained.model)
    chosen = np.linspace(0, len(sets["holdout"]) - 1, min(KEPT_ERRORS, len(sets["holdout"]))).round().astype(int)
    _, errors = network.encode_with_errors(trained.model, sets["holdout"][chosen])
    examples = {"pairs": chosen[:: max(1, len(chosen) // EXAMPLES)][:EXAMPLES], "worst": chosen[:0]}
    if errors is None:
        examples["pairs"] = chosen[:0]
    else:
        examples["worst"] = chosen[np.argsort(-errors, kind="stable")[:EXAMPLES]]
    pictures = {}
    for name, numbers in examples.items():
        crops = np.asarray(sets["holdout"][numbers], np.float32)
        restored = network.reconstruct(trained.model, crops) if len(crops) else crops
        pictures[name] = torch.from_numpy(np.stack([crops, restored]).astype(np.float16))
    write_bytes(folder / "examples.safetensors", save(pictures))
    data = save(tensors)
    write_bytes(folder / "model.safetensors", data)
    card = {
        "plateloom": made,
        "config": config,
        "content": file_digest(data),
        "channels": channels,
        "crop_um": settings["crop_um"],
        "low": low.tolist(),
        "high": high.tolist(),
        "history": trained.history,
        "baseline": trained.baseline,
        "held_out_errors": [] if errors is None else [float(f"{error:.6g}") for error in errors],
        "wells": {name: [f"{well['plate']}/{well['well']}" for well in members] for name, members in drawn.items()},
        "cells": {name: len(crops) for name, crops in sets.items()},
    }
    write_json(folder / "model.json", card)
    shutil.rmtree(work)
    return Outcome(
        facts={
            "device": device,
            "method": settings["method"],
            "epochs": len(trained.history),
            "resumed_after_epoch": 0 if resumed is None else len(resumed["history"]),
            "held_out_error": trained.history[-1]["holdout"],
            "mean_crop_error": trained.baseline,
            "cells": card["cells"],
        }
    )


def crop_well(plate, well, made, excluded, flatfield, quota, crop_um, out_px, folder):
    """Cut out some cells of a well and leave them in a file; runs in a worker.

    Returns
    -------
    int
        Number of cells.
    """
    from plateloom.latent.crops import crop_cells

    path = Path(folder) / f"{plate}-{well}.npy"
    if path.exists():  # drawn before the job was interrupted; the folder's name holds the recipe
        return len(np.load(path, mmap_mode="r"))
    fields = read_table(well_table(plate, "segmentation", well))
    fields = fields[fields["Status"] == "done"]
    crops, cells, before = [], [], 0
    for field, count in zip(fields["Metadata_Field"].astype(int), fields["Count_Nuclei"].astype(int), strict=True):
        cells.append((field, _cells_to_learn_from(plate, well, field, count, made, excluded)))
    chosen = sample_rows(f"{plate}/{well}", sum(len(found) for _, found in cells), quota)
    for field, found in cells:
        mine = found[chosen[(chosen >= before) & (chosen < before + len(found))] - before]
        before += len(found)
        if len(mine):
            path_of_field = store.field_path(plate_store(plate), well, field)
            described = store.describe_image(path_of_field)
            if described["missing"]:
                continue  # a black channel is nothing to learn from
            _, centers = find_centers(path_of_field, made)
            image = read_corrected(plate, well, field, flatfield)
            size = round(crop_um / described["pixel_size_um"])
            crops.append(crop_cells(image, centers[mine], size_px=size, out_px=out_px))
    empty = np.zeros((0, len(_channels([{"plate": plate, "well": well}])), out_px, out_px), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(crops) if crops else empty)
    write_bytes(path, buffer.getvalue())
    return sum(len(found) for found in crops)


def _cells_to_learn_from(plate, well, image, count, made, excluded):
    """Places of an image's cells, among all of them, that do not lie on a field that QC has flagged."""
    path = store.field_path(plate_store(plate), well, image)
    if excluded and mosaic_of(path) is not None:
        _, centers = find_centers(path, made)
        return np.flatnonzero(~np.isin(source_fields(path, image, centers), excluded))
    return np.arange(0 if image in excluded else count)


def _crops(folder, well):
    return np.load(folder / f"{well['plate']}-{well['well']}.npy", mmap_mode="r")


@functools.cache
def _channels_of_plate(plate):
    fields = store.list_fields(plate_store(plate))
    well, field = next((well, field) for well, found in fields.items() for field in found)
    return store.describe_image(store.field_path(plate_store(plate), well, field))["channels"]


def _channels(wells):
    """Channels of the plates of these wells; they must be the same."""
    found = {tuple(_channels_of_plate(well["plate"])) for well in wells}
    if len(found) > 1:
        raise ModelMismatchError(f"the plates have different channels: {sorted(found)}")
    return list(found.pop())


def encode_part(*, plate, part, parts, settings, code, trained, segmented, illuminated, record):
    """Encode the cells of a part's wells.

    Parameters
    ----------
    plate : str
    part, parts : int
    settings : dict
    code : str
    trained, segmented, illuminated : str
        Records.
    record : str
    """

    def plan(inputs):
        model = inputs["trained"]["artefacts"]["autoencoder"]
        flatfield = inputs["illuminated"]["artefacts"]["illumination"]
        return [
            _unit(plate, well, labels, flatfield, model, settings, code)
            for well, labels in inputs["segmented"]["artefacts"].items()
        ]

    run_job(
        "latent",
        record=record,
        plan=plan,
        code=code,
        settings=settings,
        upstream={"trained": trained, "segmented": segmented, "illuminated": illuminated},
        plate=plate,
        part=part,
        parts=parts,
        remove=remover(plate_folder(plate) / "latent", part=part, parts=parts),
    )


def _unit(plate, well, labels, flatfield, model, settings, code):
    made = recipe(
        "latent", parameters=settings, code=code, inputs={"labels": labels, "illumination": flatfield, "model": model}
    )

    def work():
        fields = read_table(well_table(plate, "segmentation", well), ["Metadata_Field", "Status"])
        fields = fields.loc[fields["Status"] == "done", "Metadata_Field"].astype(int)
        device = engine.EXECUTION.device
        tables = yield [
            (encode_field, plate, well, field, flatfield, labels, model, device) for field in [*fields, None]
        ]
        return Outcome(pd.concat([table for table in tables if len(table)] or tables[-1:], ignore_index=True))

    return Unit(well, well_table(plate, "latent", well), made, work)


def encode_field(plate, well, field, flatfield, made, fingerprint, policy):
    """Latent columns of one field's cells; runs in a worker. Field None gives a table without rows.

    The last column, `ERROR`, says how badly a cell is reconstructed; a method that reconstructs nothing has no such one.
    """
    from plateloom.latent import network
    from plateloom.latent.crops import crop_cells, normalize_crops

    model, card = load_autoencoder(fingerprint, choose_device(policy))
    side = card["config"]["out_px"]
    values, latent = np.zeros(0, np.int64), np.zeros((0, card["config"]["latent_dim"]), np.float32)
    errors = np.zeros(0, np.float32)
    if field is not None:
        path = store.field_path(plate_store(plate), well, field)
        described = store.describe_image(path)
        values, centers = find_centers(path, made)
        if len(values) and not described["missing"]:
            size = round(card["crop_um"] / described["pixel_size_um"])
            image = read_corrected(plate, well, field, flatfield, channels=card["channels"])
            blocks = []
            for start in range(0, len(values), 256):
                crops = crop_cells(image, centers[start : start + 256], size_px=size, out_px=side)
                blocks.append(network.encode_with_errors(model, normalize_crops(crops, card["low"], card["high"])))
            latent = np.concatenate([found for found, _ in blocks])
            errors = np.concatenate([found for _, found in blocks]) if model.reconstructs else None
        else:  # a latent vector needs every channel
            latent = np.full((len(values), card["config"]["latent_dim"]), np.nan, np.float32)
            errors = np.full(len(values), np.nan, np.float32)
    columns = [f"Latent_{model.config['method'].capitalize()}_{i:02d}" for i in range(latent.shape[1])]
    keys = pd.DataFrame(
        {
            "Metadata_Plate": pd.Series([plate] * len(values), dtype="str"),
            "Metadata_Well": pd.Series([well] * len(values), dtype="str"),
            "Metadata_Field": np.full(len(values), field or 0, np.int64),
            "Metadata_ObjectNumber": values.astype(np.int64),
        }
    )
    table = keys.join(pd.DataFrame(latent, columns=columns))
    return table.assign(**{ERROR: errors}) if model.reconstructs else table


@functools.lru_cache(maxsize=1)
def load_autoencoder(fingerprint, device="cpu"):
    """The screen's encoder and its card, if it is the one expected.

    Raises
    ------
    ModelMismatchError
        If another model lies there, or its file was altered.
    """
    from safetensors.torch import load

    from plateloom.latent import network

    folder = model_folder("autoencoder")
    card = read_json(folder / "model.json")
    if card is None or card["plateloom"]["fingerprint"] != fingerprint:
        raise ModelMismatchError(f"{folder} does not hold the model {fingerprint}; run again")
    data = (folder / "model.safetensors").read_bytes()
    if file_digest(data) != card["content"]:
        raise ModelMismatchError(f"{folder / 'model.safetensors'} was altered: expected {card['content']}")
    return network.from_tensors(card["config"], load(data)).to(device), card
