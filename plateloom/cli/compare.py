"""`plateloom compare`: features and the latents of several encoders side by side, on the same wells."""

import json
from pathlib import Path

import click

from plateloom.errors import ConfigError


@click.command()
@click.argument(
    "folders", metavar="SCREEN…", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here as well.")
def command(folders, out):
    """Compare the latents of each SCREEN, and the features of the first, on the wells that all of them have.

    A screen has one encoder. To compare two, copy the finished screen with its times (cp -a), set another
    `latent.autoencoder.method` or other parameters there, and run the copy: only what follows from it is made again.

    \b
    cp -a screens/mine screens/contrastive        # then latent: {autoencoder: {method: contrastive}}
    plateloom run screens/contrastive
    plateloom compare screens/mine screens/contrastive
    """
    from plateloom import profiling
    from plateloom.config import read_config
    from plateloom.report.comparison import (
        classes_verdict,
        name_of,
        retrieval_verdict,
        spaces_table,
        unseen_words,
        wells_words,
    )
    from plateloom.stages.comparison import FEATURES, compare_profiles, plain, read_features, read_latents

    if out is not None and not out.resolve().parent.is_dir():
        raise ConfigError(f"--json {str(out)!r}: there is no folder {str(out.parent)!r}; make it first")
    first = read_config(folders[0])
    _check_profiles(folders[0])
    described = _list_plates(folders[0], "profiling")
    encoded = {folder: _list_plates(folder, "latent_profiling") for folder in folders}
    params = profiling.Params(**first.profiling.parameters)
    spaces = {FEATURES: read_features(described, folder=folders[0])}
    for folder, plates in encoded.items():
        name, *found = read_latents(plates, params, folder=folder)
        spaces[name if name not in spaces else f"{name} of {folder}"] = found
    options = first.comparison.model_dump(exclude={"enabled"})
    found, _ = compare_profiles(spaces, **options)
    found = plain({name: value for name, value in found.items() if name != "profiles"})
    click.echo(f"{wells_words(found)[0]} Replicates on {found['replicates'] or 'no plate'}.")
    for row in spaces_table(found["spaces"]).to_dict("records"):
        click.echo(f"\n{row.pop('profiles of')}")
        for title, value in row.items():
            click.echo(f"  {title}: {value}")
    for space in found["spaces"]:
        mixing = [(step["correction"], step["mixing"]["plate"]) for step in space["corrections"] if not step["reason"]]
        told = ", ".join(f"{one['own']:.0%} {name}" for name, one in mixing if "own" in one)
        if told:
            chance = f"{mixing[-1][1]['own_expected']:.0%}"
            click.echo(f"\n{name_of(space['space'])}: near wells of the own plate: {told} (chance {chance})")
    click.echo()
    for pair in found["better"]["by_retrieval"]:
        click.echo(retrieval_verdict(pair))
    for pair in found["better"]["by_classes"]:
        click.echo(classes_verdict(pair))
    for text in unseen_words(found["spaces"]):
        click.echo(text)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


def _check_profiles(folder):
    """Refuse a screen of which the step that joins the profiles of its plates is not done."""
    from plateloom.store.layout import screen_folder, screen_record
    from plateloom.store.provenance import read_json

    record = read_json(folder / screen_record("profiles")) or {}
    if record.get("status") != "done" or not (folder / screen_folder() / "profiles.parquet").exists():
        why = f" ({record['reason']})" if record.get("reason") else ""
        raise ConfigError(f"{str(folder)!r}: the screen has no profiles{why}; `plateloom run {folder}` makes them")


def _list_plates(folder, stage):
    """Plates of the screen, as it is now, of which a stage is done; refused where there is none."""
    from plateloom.config import read_config
    from plateloom.planning import Screen
    from plateloom.store.provenance import read_json

    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    done = [
        plate
        for plate in sorted(screen.complete_plates)
        if all((read_json(folder / path) or {}).get("status") == "done" for path in screen.records(stage, plate))
    ]
    if not done:
        raise ConfigError(f"{str(folder)!r}: no plate has {stage.replace('_', ' ')}; `plateloom run {folder}` makes it")
    return done
