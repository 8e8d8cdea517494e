"""`plateloom tune`: memory, time and parts by what a screen's own jobs have taken."""

from pathlib import Path

import click

from plateloom.errors import ConfigError


@click.command()
@click.argument("folder", metavar="SCREEN", type=click.Path(exists=True, file_okay=False, path_type=Path))
def command(folder):
    """Propose memory, time limits and the number of parts for SCREEN, by what its own jobs have taken.

    It prints lines for a profile (set-resources) and for config.yaml, and changes nothing. Memory is the most that was seen and
    a third more, time twice the longest, in steps; jobs that only kept what was there do not count. A stage needs three
    jobs to learn from: run a plate or two first.

    \b
    plateloom tune screens/mine
    plateloom tune screens/mine > tuned.yaml
    """
    from plateloom.config import read_config
    from plateloom.estimate import LEAST_JOBS, observe_screen, propose_parts
    from plateloom.planning import STAGES, Screen

    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    observed = observe_screen(screen)
    # Of the screen's own steps there is one job only.
    known = [one for one in observed if one.jobs >= LEAST_JOBS or STAGES[one.stage].scope == "screen"]
    if not any(STAGES[one.stage].scope != "screen" for one in known):
        there = ", ".join(f"{one.stage} {one.jobs}" for one in observed) or "none"
        raise ConfigError(
            f"too little to learn from: no stage has {LEAST_JOBS} jobs that made all of their results (there are: {there}); "
            "run a plate or two with several parts first"
        )
    click.echo("# profile.yaml, beside your site's account and partitions; by the most that was seen:")
    click.echo("set-resources:")
    for one in known:
        ask = one.ask
        click.echo(
            f"  {STAGES[one.stage].script}:  # {one.jobs} jobs, {one.memory_mb:.0f} MB, {one.seconds:.0f} s at most"
        )
        for name in ("mem_mb", "runtime"):
            click.echo(f"    {name}: {ask[name]} * attempt")
    parts = propose_parts(screen, observed)
    if parts:
        now = screen.config.parts
        why = "as it is" if parts == now else f"now {now}; the longest job then takes about a quarter of an hour"
        click.echo(f"# config.yaml ({why}):")
        click.echo(f"# parts: {parts}")
    if few := [one.stage for one in observed if one not in known]:
        click.echo(f"# too few jobs to learn from: {', '.join(few)}")
