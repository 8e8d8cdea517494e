"""Annotated fields -> the network of the method `unet` that a screen is segmented with."""

import logging
import shutil
from pathlib import Path

from plateloom.engine import parts as engine
from plateloom.engine.parts import Outcome, Unit, run_job
from plateloom.errors import ConfigError, ModelMismatchError, PlateLayoutError
from plateloom.store.annotations import digest_pairs, read_pairs
from plateloom.store.layout import model_folder
from plateloom.store.provenance import recipe, write_bytes, write_json

log = logging.getLogger(__name__)

SHIPPED = "shipped"


def train_segmenter(*, settings, code, record):
    """Train the network of a screen, from the last checkpoint on where there is one.

    Parameters
    ----------
    settings : dict
        The config's section `segmentation.training`, and `content`: digests of the files that it names.
    code : str
    record : str
    """
    folder = model_folder("segmenter")
    made = recipe("training", parameters=settings, code=code, inputs=settings["content"])

    def plan(inputs):
        beside = (folder / "nuclei.safetensors",)
        return [Unit("network", folder / "model.json", made, lambda: _train(folder, settings, made), beside=beside)]

    run_job("training", record=record, plan=plan, code=code, settings=settings)


def _train(folder, settings, made):
    """Train and save; the unit of `train_segmenter`, which needs no other workers."""
    from plateloom.segmentation.network import save_network

    yield ()
    work = folder / f".work-{made['fingerprint']}"
    for old in folder.glob(".work-*"):
        if old != work:
            shutil.rmtree(old)
    work.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in settings.items() if name != "content"}
    try:
        if not digest_pairs(options["images"], options["labels"]).items() <= settings["content"].items():
            raise PlateLayoutError("the annotated fields have changed since this run began; run again")
        trained, resumed = train_network(
            **options,
            device=engine.EXECUTION.device,
            threads=engine.EXECUTION.threads,
            checkpoint=work / "checkpoint.safetensors",
            say=log.info,
        )
    except (ConfigError, ModelMismatchError) as error:  # what a person gave is wrong, and stays so
        raise PlateLayoutError(str(error)) from error
    draft = work / "nuclei.safetensors"
    sha256 = save_network(draft, trained.network)
    write_bytes(folder / draft.name, draft.read_bytes())
    card = {"plateloom": made, "content": sha256, "config": trained.network.config, "training": trained.facts}
    write_json(folder / "model.json", card | {"curves": trained.history})
    shutil.rmtree(work)
    best = max(trained.history, key=lambda row: row["mean_ap"] or 0)
    facts = {name: trained.facts[name] for name in ("device", "images", "nuclei", "held_out", "steps")}
    scores = {name: best[name] for name in ("f1", "ap", "mean_ap")}
    return Outcome(facts=facts | {"resumed_after_step": resumed, "best": scores})


def train_network(
    images,
    labels,
    *,
    start="",
    steps=None,
    batch_size=8,
    learning_rate=None,
    validations=10,
    all_images=False,
    full_precision=False,
    seed=0,
    device="prefer",
    threads=1,
    checkpoint,
    say,
):
    """Train on two folders, from the last checkpoint on where there is one: what the command and the rule share.

    Parameters
    ----------
    images, labels : path
        Folders, see `read_pairs`.
    start : str
        Weights to go on from: a path, or ``shipped``; empty: a new network.
    steps, batch_size, learning_rate, validations, all_images, full_precision, seed
        As the command's options, which explain them.
    device : {'require', 'prefer', 'cpu'}
    threads : int
        Of the processor.
    checkpoint : Path
        Written after each validation, and left there.
    say : callable(str)
        Is told how far the training is.

    Returns
    -------
    trained : plateloom.segmentation.training.Trained
    resumed : int
        Step that it went on from; 0 where it began anew.

    Raises
    ------
    ConfigError
        If folders or files are not what they must be, or the checkpoint comes from something else.
    ModelMismatchError
        If `start` is no network of ours.
    """
    fields, truth = read_pairs(images, labels)
    import torch

    from plateloom.segmentation.network import load_network
    from plateloom.segmentation.network_file import SHIPPED as SHIPPED_FILE
    from plateloom.segmentation.training import TrainingParams, train

    say(f"{len(fields)} images")
    torch.set_num_threads(threads)
    begin = None
    if start:
        path = SHIPPED_FILE if start == SHIPPED else Path(start)
        if not path.is_file():
            raise ConfigError(f"no weights to go on from at {start!r}")
        begin = load_network(path)
    steps = steps or (6000 if begin is None else 600)
    params = TrainingParams(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        holdout=not all_images,
        validate_every=max(1, steps // validations),
        patience=max(3, validations // 2),
        mixed_precision=not full_precision,
        seed=seed,
        device=device,
    )
    state = _read_checkpoint(checkpoint)
    try:
        trained = train(
            fields,
            truth,
            params=params,
            start=begin,
            resume=state,
            on_checkpoint=lambda state, history: _report(checkpoint, state, history[-1], say),
        )
    except ModelMismatchError as error:
        raise ConfigError(f"{str(checkpoint)!r}: {error} Remove that file to train from the start") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return trained, 0 if state is None else int(state["progress"][0])


def _report(checkpoint, state, row, say):
    """Leave a checkpoint and say how far the training is."""
    from safetensors.torch import save

    write_bytes(checkpoint, save(state))
    loss = "" if row["loss"] is None else f"  loss {row['loss']:.4f}"
    scores = "" if row["ap"] is None else f"  F1 {row['f1']:.3f}  AP {row['ap']:.3f}  mean AP {row['mean_ap']:.3f}"
    say(f"step {row['step']:>6}{loss}{scores}")


def _read_checkpoint(path):
    """State of an interrupted training; None where there is none."""
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ConfigError(f"{str(path)!r} is not whole ({error}); remove it to train from the start") from None
