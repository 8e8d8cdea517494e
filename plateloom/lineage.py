"""What a result was made from: the recipe that it carries, followed through the records of a screen to the source files."""

import dataclasses
import shlex
from pathlib import Path

from plateloom.acceptances import read_accepted
from plateloom.engine.parts import artefact_record
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.planning import STAGES
from plateloom.repair import PLATE_ARTEFACTS, SCREEN_ARTEFACTS, results_folder
from plateloom.store import plate as store
from plateloom.store.provenance import read_json


@dataclasses.dataclass(frozen=True)
class Made:
    """One result.

    Attributes
    ----------
    fingerprint, stage, plate, name : str
        The name is that of the well, or what the record calls it.
    recipe : dict
        `parameters`, `code`, `inputs` by name; empty where the result itself is gone or carries none.
    record : dict
        Of the job that vouches for it; empty where none does.
    """

    fingerprint: str
    stage: str = ""
    plate: str = ""
    name: str = ""
    recipe: dict = dataclasses.field(default_factory=dict)
    record: dict = dataclasses.field(default_factory=dict)


def find_screen(path):
    """The screen that a path lies in, or is.

    Raises
    ------
    ConfigError
        If it has not run.
    PlateLayoutError
        If there is none.
    """
    path = Path(path).resolve()
    screens = [folder for folder in (path, *path.parents) if (folder / "config.yaml").is_file()]
    for folder in screens:
        if (folder / "results").is_dir():
            return folder
    if screens:
        name = str(screens[0])
        raise ConfigError(f"{name!r} was not run yet, so nothing was made: plateloom run {shlex.quote(name)}")
    raise PlateLayoutError(f"{str(path)!r} lies in no screen that has results")


class Lineage:
    """Every result that the records of a screen vouch for, by its fingerprint.

    Parameters
    ----------
    folder : path
        The screen's.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._records = {}
        plates = sorted(path.name for path in self.folder.glob("results/plates/*") if path.is_dir())
        for plate in [*plates, ""]:
            base = results_folder(self.folder, plate)
            for path in sorted(base.glob("records/*/part-*.json" if plate else "records/*.json")):
                record = read_json(path) or {}
                for name, fingerprint in record.get("artefacts", {}).items():
                    # A file of a well has one maker; what several stages give the same name differs in fingerprint.
                    self._records.setdefault(fingerprint, (plate, record["stage"], name, record))

    def look_up(self, fingerprint):
        """The result with a fingerprint, its recipe read from where it lies.

        Returns
        -------
        Made
        """
        if fingerprint not in self._records:
            return Made(fingerprint)
        plate, stage, name, record = self._records[fingerprint]
        recipe = next((found for path in self._paths(plate, stage, name) if (found := _read_recipe(path))), {})
        recipe = recipe if recipe.get("fingerprint") == fingerprint else {}
        return Made(fingerprint, stage, plate, name, recipe, record)

    def accepted(self, made):
        """Lines of the screen's table by which a result was kept though its stage's code had changed."""
        rows = read_accepted(self.folder, STAGES)
        return [row for row in rows if (row["stage"], row["keeps"]) == (made.stage, made.recipe.get("code"))]

    def identify(self, path):
        """The result that a file or folder is, or belongs to.

        Raises
        ------
        PlateLayoutError
            If it carries no recipe: no result of a stage.
        """
        path = Path(path).resolve()
        for place in (path, *path.parents):
            if place == self.folder:
                break
            if (recipe := _read_recipe(place)) and recipe.get("fingerprint"):
                found = self.look_up(recipe["fingerprint"])
                return dataclasses.replace(found, recipe=recipe)
        if made := self._page(path):
            return made
        raise PlateLayoutError(f"{str(path)!r} is no result that carries its recipe")

    def _page(self, path):
        """A page, or another file that carries no recipe itself and that a record names."""
        for fingerprint, (plate, stage, name, _) in self._records.items():
            if path in [place.resolve() for place in self._paths(plate, stage, name)]:
                return self.look_up(fingerprint)
        return None

    def _paths(self, plate, stage, name):
        """Where a result lies."""
        files = (PLATE_ARTEFACTS if plate else SCREEN_ARTEFACTS).get(stage, ())
        return [results_folder(self.folder, plate) / file.format(name) for file in files]


def _read_recipe(path):
    """The recipe that a result carries; empty where it carries none."""
    try:
        return (artefact_record(path) if path.suffix else (store.read_group(path) or {}).get("plateloom")) or {}
    except (OSError, ValueError, AttributeError, KeyError):
        return {}
