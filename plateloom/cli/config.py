"""`plateloom config`: every setting with default, unit and meaning; a JSON schema for editors."""

import json

import click


@click.command()
@click.option("--yaml", "form", flag_value="yaml", default="yaml", help="As a commented config file (default).")
@click.option("--schema", "form", flag_value="schema", help="As a JSON schema for editors.")
@click.option("--methods", "form", flag_value="methods", help="The parameters of every method.")
def command(form):
    """Show every setting with its default, unit and meaning.

    \b
    plateloom config
    plateloom config --methods
    plateloom config --schema > plateloom.schema.json
    """
    from plateloom.config import Config

    if form == "schema":
        click.echo(json.dumps(Config.model_json_schema(), indent=2))
    elif form == "methods":
        click.echo(describe_methods())
    else:
        click.echo(describe_settings(), nl=False)


def describe_settings():
    """The defaults as a commented config file: what `config/config.yaml` holds."""
    from plateloom.config import Config

    lines = [
        "# Every setting of a screen and its default; a screen's own config.yaml overrides them.",
        "# Written by `plateloom config`; the parameters of methods are listed by `plateloom config --methods`.",
    ]
    return "\n".join(lines + _section(Config, "")) + "\n"


def _section(model, indent):
    """Lines of one section of the config, each setting under what it means."""
    lines = []
    for name, field in model.model_fields.items():
        if name == "complete_only":
            continue
        nested = field.annotation if hasattr(field.annotation, "model_fields") else None
        if nested:
            lines += ["", f"{indent}# {nested.__doc__.strip()}", f"{indent}{name}:", *_section(nested, indent + "  ")]
        else:
            if not indent:
                lines.append("")
            lines += [f"{indent}# {field.description}", f"{indent}{name}: {json.dumps(field.default)}"]
    return lines


def describe_methods():
    """Parameters of every registered method, section by section."""
    from importlib import import_module

    from plateloom import classification, illumination, latent, restoration, segmentation
    from plateloom.readers import READERS

    modules = {"quality.parameters": "plateloom.quality", "profiling.parameters": "plateloom.profiling"}
    for section, methods in (
        ("illumination", illumination.METHODS),
        ("restoration", restoration.METHODS),
        ("segmentation", segmentation.METHODS),
        ("latent.autoencoder", latent.METHODS),
        ("latent.maps", latent.MAPS),
        ("latent.maps.clusters", latent.CLUSTERINGS),
        ("classification", classification.METHODS | classification.CROP_METHODS | classification.REGRESSORS),
    ):
        modules |= {f"{section}.parameters of {name}": module for name, module in methods.items()}
    modules |= {f"readers.{name}": module for name, module in READERS.items()}
    lines = []
    for title, module in modules.items():
        lines += [title]
        for name, field in import_module(module).Params.model_fields.items():
            preset = field.get_default(call_default_factory=True)
            default = "required" if field.is_required() else json.dumps(preset, default=str)
            lines.append(f"    {name}: {default}    {field.description or ''}".rstrip())
    return "\n".join(lines)
