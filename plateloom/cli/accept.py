"""`plateloom accept`: keep results though the code that made them has changed."""

import shlex
from pathlib import Path

import click

from plateloom.errors import ConfigError, did_you_mean


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--stage", "stages", multiple=True, metavar="STAGE", help="Keep the results of this stage; may be repeated."
)
@click.option("--all", "every", is_flag=True, help="Keep the results of every stage whose code has changed.")
@click.option("--reason", default="", metavar="TEXT", help="Why, e.g. what the release notes say of it.")
@click.option("--by", "who", default="", metavar="NAME", help="Who says so; default: your login name.")
def command(folder, stages, every, reason, who):
    """Keep results of SCREEN though the code that made them has changed, as after an upgrade of Plateloom.

    Without a stage it says whose code has changed, and what making the results again would cost; `plateloom run --recompute`
    does that. Nothing is rewritten: a line of SCREEN/accepted.tsv says that results of the earlier code hold for the present
    one, who says so and why, and `plateloom trace` tells it. New plates are made by the present code and say so. The next
    change of code asks again.

    \b
    plateloom accept screens/mine
    plateloom accept screens/mine --stage segmentation --stage features --reason "release 1.3: same numbers"
    plateloom accept screens/mine --all --by Ada
    """
    from plateloom.acceptances import append_rows
    from plateloom.cli.quarantine import login_name
    from plateloom.config import read_config
    from plateloom.planning import STAGES, Screen
    from plateloom.upgrades import describe, find_changed

    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    changed = find_changed(screen)
    own = {one.stage: one for one in changed if one.codes}
    if not stages and not every:
        for line in describe(changed) if changed else ["no code has changed since the results were made"]:
            click.echo(line)
        if own:
            names = " ".join(f"--stage {name}" for name in own)
            click.echo(f"keep them: plateloom accept {shlex.quote(str(folder))} {names}")
        return
    if problems := [
        f"--stage: there is no stage {name!r} here.{did_you_mean(name, screen.stages())}"
        for name in stages
        if name not in screen.stages()
    ]:
        raise ConfigError(problems)
    chosen = [name for name in own if every or name in stages]
    for name in stages:
        if name in own:
            continue
        plates = [None] if STAGES[name].scope == "screen" else screen.plates
        made = any((folder / path).exists() for plate in plates for path in screen.records(name, plate))
        again = f"it has no results yet: plateloom run {shlex.quote(str(folder))}"
        click.echo(f"{name}: {'its code is that of its results' if made else again}")
    accepted = [
        (name, present, code)
        for name in chosen
        for present in sorted({screen.code(name, plate) for plate in own[name].plates or [None]})
        for code in sorted(own[name].codes)
    ]
    if accepted:
        append_rows(folder, accepted, reason=reason, who=who or login_name())
    for name in chosen:
        click.echo(f"{name}: {own[name].jobs} job{'s' * (own[name].jobs != 1)} kept as they are")
    left = find_changed(Screen(read_config(folder).model_dump(mode="json"), folder))
    for line in describe(left) if left else ["nothing is left to be made again because of code"]:
        click.echo(line)
