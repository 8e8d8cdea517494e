"""`plateloom trace`: what a result was made from, down to the microscope's files."""

import json
import re
from pathlib import Path

import click

from plateloom import ledgers
from plateloom.runs import find_run

MOST = 12  # files that are listed of one result


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, with all parameters, as JSON.")
def command(path, as_json):
    """Tell what the result at PATH was made from: stage, settings, code, job, and the same of what went into it.

    \b
    plateloom trace screens/mine/results/plates/plate1/features/B03.parquet
    plateloom trace screens/mine/results/screen/hits.parquet --json
    """
    from plateloom.lineage import Lineage, find_screen

    lineage = Lineage(find_screen(path))
    made = lineage.identify(path)
    if as_json:
        click.echo(json.dumps(_collect(lineage, made), indent=1, ensure_ascii=False))
        return
    click.echo(_title(made))
    for line in _describe(lineage, made):
        click.echo(f"  {line}")
    if not made.recipe:
        click.echo("  it carries no recipe of its own; see `plateloom trace` of the tables beside it")
    seen = {made.fingerprint}
    _tell_inputs(lineage, made, 1, seen)


def _title(made):
    where = " ".join(filter(None, [made.plate, made.stage, made.name if made.name != made.stage else ""]))
    return f"{where or 'a result that no record vouches for'}  [{made.fingerprint[:12]}]"


def _describe(lineage, made):
    """Settings, code and job of a result, a line each."""
    recipe, record = made.recipe, made.record
    if recipe.get("parameters"):
        yield f"settings: {_short(json.dumps(recipe['parameters'], ensure_ascii=False))}"
    if recipe:
        yield f"code: {recipe['code'][:12]}"
        for row in lineage.accepted(made):
            yield f"    adopted {ledgers.describe(row)} (the code of Plateloom {row['version']} was {row['code'][:12]})"
    if record:
        versions = record.get("versions", {})
        kept = made.name in record.get("kept", ())
        yield (
            f"job: {'kept by' if kept else 'made by'} the job of {record.get('started', '?')} on {record.get('host', '?')}, "
            f"Plateloom {versions.get('plateloom', '?')}, attempt {record.get('attempts', '?')}; log {record.get('log') or 'none'}"
        )
        if run := find_run(lineage.folder, record.get("started", "")):
            yield f"run: {run}"
    else:
        yield "job: no record vouches for it"


def _short(text, most=300):
    """The beginning of a long line."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _tell_inputs(lineage, made, depth, seen):
    """What went into a result, indented; several alike are counted."""
    indent = "    " * depth
    groups = {}
    for name, value in made.recipe.get("inputs", {}).items():
        for fingerprint in _fingerprints(value):
            found = lineage.look_up(fingerprint)
            groups.setdefault((found.stage, found.plate), []).append((name, found))
    for (stage, plate), members in groups.items():
        if not stage:  # files, tables that people write, and what is said of pixels
            for name, found in members[:MOST]:
                click.echo(f"{indent}{name.rsplit('/', 1)[-1]}  [{found.fingerprint[:12]}]")
            if len(members) > MOST:
                click.echo(f"{indent}… and {len(members) - MOST} more")
            continue
        results = {found.fingerprint: found for _, found in members}
        if len(results) > 1:
            names = ", ".join(sorted({found.name for found in results.values()}))
            click.echo(f"{indent}{plate} {stage}: {len(results)} results ({_short(names, 200)}); the first of them:")
        _tell(lineage, members[0][1], depth, seen)


def _tell(lineage, found, depth, seen):
    indent = "    " * depth
    again = found.fingerprint in seen
    click.echo(f"{indent}{_title(found)}{'  (see above)' if again else ''}")
    if again:
        return
    seen.add(found.fingerprint)
    for line in _describe(lineage, found):
        click.echo(f"{indent}  {line}")
    _tell_inputs(lineage, found, depth + 1, seen)


def _fingerprints(value):
    """Digests in the value of an input: itself, or one among other things."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str) and re.fullmatch("[0-9a-f]{32,}", one)][:1]


def _collect(lineage, made):
    """The result and, by fingerprint, everything that went into it."""
    found, waiting = {}, [made]
    while waiting:
        one = waiting.pop()
        if one.fingerprint in found:
            continue
        found[one.fingerprint] = {
            "plate": one.plate,
            "stage": one.stage,
            "name": one.name,
            "parameters": one.recipe.get("parameters"),
            "code": one.recipe.get("code"),
            "inputs": one.recipe.get("inputs", {}),
            "adopted": lineage.accepted(one),
            "job": {name: one.record.get(name) for name in ("started", "host", "attempts", "log", "versions")}
            if one.record
            else None,
        }
        for value in one.recipe.get("inputs", {}).values():
            waiting += [next_ for digest in _fingerprints(value) if (next_ := lineage.look_up(digest)).stage]
    return {"result": made.fingerprint, "made": found}
