"""The inbox of a screen: which folders are plates, whether they are whole, and their rows in plates.tsv."""

import csv
import dataclasses
import io
import re
import tempfile
import time
from pathlib import Path

from plateloom.errors import ConfigError, DataFault
from plateloom.planning import NO_PLATE, PLATE_NAME, list_plates, number_plates
from plateloom.readers import load_reader
from plateloom.readers.folders import IMAGES, list_files
from plateloom.store.provenance import file_digest, read_json, write_bytes, write_json
from plateloom.store.sheets import read_plate_map
from plateloom.wells import AGAIN

STATE = Path(".plateloom/inbox.json")
COMPLETE, WAITING, SETTLING, REFUSED = "complete", "waiting", "settling", "refused"
SEEN = "seen for the first time as it is; a second look is needed"
COLUMNS = ("plate", "source", "reader", "plate_map", "batch", "acquisition")


@dataclasses.dataclass
class Arrival:
    """A folder of an inbox that is no plate of the screen yet.

    Attributes
    ----------
    source : Path
    plate : str
        What it would be called, without the number of its acquisition.
    acquisition : int
        0: nobody has said which it is.
    batch : str
    state : str
        `complete`; `settling` (all that lacks is a second look); `waiting` (not whole yet, looked at again the next time)
        or `refused` (a person has to do something).
    reason : str
        Why it is not taken; of one that is taken, what is odd about it.
    since : float
        When it was first seen [s since 1970].
    unchanged : float
        When it was first seen as it is [s since 1970].
    files : int
    reader, plate_map : str
    """

    source: Path
    plate: str = ""
    acquisition: int = 0
    batch: str = ""
    state: str = WAITING
    reason: str = ""
    since: float = 0.0
    unchanged: float = 0.0
    files: int = 0
    reader: str = ""
    plate_map: str = ""

    @property
    def name(self):
        """The plate's name in results."""
        return f"{self.plate}-acquisition{self.acquisition}" if self.acquisition > 1 else self.plate


def read_state(folder):
    """What earlier nights have seen of the inbox: ``{"folders": {path: {...}}, ...}``; empty if nothing, or not whole."""
    state = read_json(Path(folder) / STATE)
    state = state if isinstance(state, dict) else {}
    return state | {"folders": state.get("folders") or {}}


def write_state(folder, state):
    """Keep what was seen for the next night."""
    write_json(Path(folder) / STATE, state)


def read_registered(folder, config):
    """Plates of a screen, whose list may be empty or not there yet; `ConfigError` if a line of it is wrong."""
    path = Path(folder) / config.plates
    if not path.exists():
        return []
    plates, problems = list_plates(path)
    problems = [problem for problem in problems if problem != f"{path}: {NO_PLATE}"]
    if problems:
        raise ConfigError(problems)
    return plates


def look(folder, config, inboxes, state, *, acquisitions=None, now=None, ahead=False):
    """Look at every folder of the inboxes that is no plate yet.

    Parameters
    ----------
    folder : path
        The screen's.
    config : Config
    inboxes : sequence of path
    state : dict
        From `read_state`; what is seen now is added, what is no longer of interest removed.
    acquisitions : dict of Path to int, optional
        Numbers that a person has given to folders; they are remembered in the state.
    now : float, optional
        [s since 1970].
    ahead : bool
        Also say what will be wrong with folders that are seen for the first time; while they are copied, it may be too early.

    Returns
    -------
    list of Arrival
        By their paths.

    Raises
    ------
    OSError
        If an inbox cannot be listed.
    ConfigError
        If plates.tsv is wrong.
    """
    now = time.time() if now is None else now
    plates = read_registered(folder, config)
    taken = {(Path(folder) / plate.source).resolve() for plate in plates}
    for source, number in (acquisitions or {}).items():
        state["folders"].setdefault(str(source), {"since": now})["acquisition"] = number
    arrivals = []
    for source in list_folders(inboxes, config.nightly):
        if source not in taken:
            arrivals.append(_look_at(source, folder, config, state["folders"].setdefault(str(source), {}), now, ahead))
    seen = {str(arrival.source) for arrival in arrivals}
    state["folders"] = {path: known for path, known in state["folders"].items() if path in seen}
    _refuse_conflicts(arrivals, plates, config.nightly)
    return arrivals


def list_folders(inboxes, settings):
    """Folders of the inboxes that may be plates, as their real paths, sorted; hidden ones are passed over."""
    found = set()
    for inbox in inboxes:
        next(Path(inbox).iterdir(), None)  # an inbox that cannot be listed is an error, not empty
        for path in Path(inbox).glob(settings.folders):
            below = path.relative_to(inbox)
            hidden = any(part.startswith(".") for part in below.parts)
            if not hidden and path.is_dir() and not any(below.match(pattern) for pattern in settings.ignore):
                found.add(path.resolve())
    return sorted(found)


def _look_at(source, folder, config, known, now, ahead):
    """One folder; `known` is what is remembered of it, and is brought up to date."""
    arrival = Arrival(source, since=known.setdefault("since", now), unchanged=now)
    try:
        listing, names = digest_folder(source)
    except OSError as error:
        known.pop("listing", None)
        return dataclasses.replace(arrival, state=REFUSED, reason=f"cannot be read: {error.strerror or error}")
    except DataFault as fault:  # it has gone while it was listed
        return dataclasses.replace(arrival, reason=str(fault))
    first = known.get("listing") != listing
    if first:
        known |= {"listing": listing, "unchanged": now}
    arrival.unchanged, arrival.files = known["unchanged"], len(names)
    try:
        _name(arrival, config.nightly, known)
        reason = _unfinished(arrival, names, config.nightly, now)
        if reason:
            arrival.reason = reason
            return arrival
        settling = first or now - arrival.unchanged < 60 * config.nightly.settle_minutes
        if settling and not ahead:
            arrival.state, arrival.reason = SETTLING, SEEN
            return arrival
        found = _identify(arrival, names, config)
        if config.nightly.barcode:
            _name(arrival, config.nightly, known, found.plate)
        if found.finished is False and config.engine.end_marker:
            arrival.reason = (
                "the microscope's end marker is not there; was the measurement stopped by hand, set engine.end_marker "
                "to false, or add the plate to plates.tsv yourself"
            )
            return arrival
        if found.absent:
            arrival.reason = f"{found.absent} planes that the microscope's metadata declare are not there"
            if _is_recent(arrival, config.nightly, now):
                return arrival
        arrival.plate_map = _plate_map(arrival, folder, config.nightly)
        if arrival.plate_map is None:
            arrival.reason = (
                f"no plate map {' or '.join(map(repr, _map_names(arrival, config.nightly)))}; put it there, or change "
                "nightly.plate_map"
            )
            return arrival
    except (DataFault, ConfigError, OSError, KeyError, ValueError) as error:
        arrival.state, arrival.reason = REFUSED, str(error).splitlines()[0]
        return arrival
    arrival.state = SETTLING if settling else COMPLETE
    arrival.reason = SEEN if settling else arrival.reason
    return arrival


def digest_folder(source):
    """Digest names, sizes and times of all files below a folder.

    Returns
    -------
    digest : str
    names : list of str
        Paths below the folder.
    """
    lines, names = [], []
    for name, entry in list_files(source, ("",)):
        status = entry.stat()
        lines.append(f"{name}/{status.st_size}/{status.st_mtime_ns}")
        names.append(name)
    return file_digest("\n".join(sorted(lines)).encode(errors="surrogateescape")), names


def _name(arrival, settings, known, barcode=""):
    """Name a folder's plate by its barcode or by the folder; `ValueError` where that gives no name."""
    text = barcode or arrival.source.name
    said = re.compile(settings.name).search(text)
    if not said:
        raise ValueError(f"nothing in {text!r} is as nightly.name says ({settings.name!r})")
    groups = said.groupdict()
    arrival.plate = re.sub(r"[^A-Za-z0-9._-]+", "_", groups["plate"] or "").lstrip("._-")
    arrival.batch = re.sub(r"[\t\r\n]", " ", groups.get("batch") or settings.batch).strip()
    arrival.acquisition = int(known.get("acquisition") or groups.get("acquisition") or 0)
    if not re.fullmatch(PLATE_NAME, arrival.plate) or AGAIN.fullmatch(arrival.plate):
        raise ValueError(f"{text!r} gives no name for a plate: letters, digits, '.', '_' and '-' are needed")
    if not str(arrival.source).isprintable() or str(arrival.source) != str(arrival.source).strip():
        raise ValueError(f"its path {str(arrival.source)!r} cannot be written into a table; rename the folder")


def _unfinished(arrival, names, settings, now):
    """Why a folder is not whole, as far as its names tell; empty if nothing does."""
    if not names:
        return "the folder is empty"
    if settings.end_marker and not any(Path(name).match(settings.end_marker) for name in names):
        return f"no file {settings.end_marker!r} (nightly.end_marker)"
    images = sum(name.lower().endswith(IMAGES) for name in names) or len(names)
    if settings.files and images < settings.files and _is_recent(arrival, settings, now):
        return f"{images} of {settings.files} image files (nightly.files)"
    return ""


def _is_recent(arrival, settings, now):
    """Whether what lacks may still come."""
    return now - arrival.unchanged < 3600 * settings.patience_hours


def _identify(arrival, names, config):
    """Find the reader of a folder, that of the screen if it fits, and scan it; the `Source`.

    Raises
    ------
    ValueError
        If no reader fits, or the screen's channels are not there.
    """
    from plateloom.readers import READERS
    from plateloom.stages.conversion import describe_source

    fallback, fault = None, None
    wanted = {channel.source for channel in config.channels.values()}
    guesses = [load_reader(name).recognize(arrival.source, sorted(names)) for name in READERS]
    guesses = sorted(filter(None, guesses), key=lambda guess: -guess["share"])
    # The screen's own settings come first: what is configured is no guess.
    order = dict.fromkeys([*config.readers, *(guess["reader"] for guess in guesses)])
    for name in order:
        module = load_reader(name)
        try:
            params = module.Params(**config.readers.get(name, {}))
            found = module.scan(arrival.source, params)
            sources = {image.channel for image in found.images}
            if found.images and wanted <= sources:
                describe_source(found.images, config.model_dump(mode="json"))
                arrival.reader = name
                return found
            if found.images:
                lacking = [name for name, channel in config.channels.items() if channel.source not in sources]
                fallback = fallback or (
                    f"channels {', '.join(lacking)} of the config are in no file; the reader {name!r} finds: "
                    f"{', '.join(sorted(sources))}"
                )
        except (DataFault, ValueError) as error:
            fault = fault or f"the reader {name!r} says: {str(error).splitlines()[0]}"
    shown = ", ".join(sorted(names)[:3])
    raise ValueError(
        fallback
        or fault
        or f"no reader, with the parameters of this screen's config, knows its layout; found e.g. {shown}"
    )


def _map_names(arrival, settings):
    """Files that may be a plate's map, the first that is there counts."""
    rules = [settings.plate_map] if isinstance(settings.plate_map, str) else settings.plate_map
    return [rule.replace("{plate}", arrival.plate) for rule in rules]


def _plate_map(arrival, folder, settings):
    """Path of a plate's map, empty where the screen has none, None where it is missing; `ConfigError` if it is wrong."""
    for name in _map_names(arrival, settings):
        if not name or (Path(folder) / name).is_file():
            if name:
                read_plate_map(Path(folder) / name)
            return name
    return None


def _refuse_conflicts(arrivals, plates, settings):
    """Refuse folders that claim the same plate, each other's or one that is there; both are named."""
    owners = {plate.plate.lower(): plate.source for plate in plates}
    numbers = {}
    for plate in plates:
        base, number = AGAIN.fullmatch(plate.plate).groups() if AGAIN.fullmatch(plate.plate) else (plate.plate, 1)
        numbers.setdefault(base.lower(), {})[int(number)] = plate.source
    # What is not whole has no barcode yet.
    named = [one for one in arrivals if one.plate and one.state != REFUSED]
    named = [one for one in named if one.state == COMPLETE or not settings.barcode]
    claims = {}
    for arrival in named:
        claims.setdefault(arrival.name.lower(), []).append(arrival)
    for arrival in named:
        taken = numbers.get(arrival.plate.lower(), {})
        other = owners.get(arrival.name.lower())
        if other is None and not arrival.acquisition and taken:  # all that is there has numbers
            other = next(iter(taken.values()))
        if other is None:
            other = next((one.source for one in claims[arrival.name.lower()] if one is not arrival), None)
        if other is not None:
            arrival.state, free = REFUSED, max(taken, default=1) + 1
            arrival.reason = (
                f"plate {arrival.name!r} is claimed by {str(other)!r} and by {str(arrival.source)!r}; was it imaged again, "
                f"say so once: --acquisition {arrival.source.name}={free}; else rename one of the folders"
            )


def register(folder, config, arrivals):
    """Append plates to plates.tsv, all of them or none: rows that are there stay as they are, to the byte.

    Parameters
    ----------
    folder : path
        The screen's.
    config : Config
    arrivals : sequence of Arrival
        Complete ones.

    Raises
    ------
    ConfigError
        If the table would not be read back as it is meant.
    """
    if not arrivals:
        return
    path = Path(folder) / config.plates
    before = read_registered(folder, config)
    data = append_rows(
        path.read_bytes() if path.exists() else b"",
        [
            {
                "plate": arrival.plate,
                "source": str(arrival.source),
                "reader": arrival.reader,
                "plate_map": arrival.plate_map,
                "batch": arrival.batch,
                "acquisition": str(arrival.acquisition or ""),
            }
            for arrival in arrivals
        ],
    )
    with tempfile.NamedTemporaryFile(suffix=path.name) as draft:
        draft.write(data)
        draft.flush()
        numbered, problems = number_plates(draft.name)
    problems = [problem.replace(draft.name, str(path)) for problem in problems]
    after = [plate for _, plate in numbered]
    expected = [(arrival.name, str(arrival.source), arrival.reader) for arrival in arrivals]
    if not problems and (
        after[: len(before)] != before
        or [(plate.plate, plate.source, plate.reader) for plate in after[len(before) :]] != expected
    ):
        problems = [f"{path}: {', '.join(name for name, *_ in expected)} cannot be added; add them by hand"]
    if problems:
        raise ConfigError(problems)
    write_bytes(path, data)


def append_rows(data, rows):
    """Append rows to a table of tabs or commas; columns that it lacks are added to its header.

    Parameters
    ----------
    data : bytes
        The table's file; may be empty.
    rows : list of dict of str to str
        By column.

    Returns
    -------
    bytes

    Examples
    --------
    >>> append_rows(b"source,plate\\n/a,P1", [{"plate": "P2", "source": "/b", "batch": "", "reader": "harmony"}])
    b'source,plate,reader\\n/a,P1\\n/b,P2,harmony\\n'
    """
    lines = data.decode("utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\r\n" if lines[0].endswith("\r\n") else "\n"
    at = next(
        (
            i
            for i, line in enumerate(lines)
            if line.strip("\ufeff \t\r\n,") and not line.lstrip("\ufeff").startswith("#")
        ),
        None,
    )
    if at is None:
        lines, at = [*lines, "\t".join(COLUMNS) + "\n"], len(lines)
    header = lines[at]
    ending = "\r\n" if header.endswith("\r\n") else "\n"
    delimiter = "\t" if "\t" in header else ","
    names = next(csv.reader([header.strip("\ufeff\r\n")], delimiter=delimiter))
    known = [name.strip().lower() for name in names]
    new = [name for name in COLUMNS if name not in known and any(row.get(name) for row in rows)]
    lines[at] = delimiter.join([header.rstrip("\r\n"), *new]) + ending
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending)
    writer.writerows([row.get(name, "") for name in [*known, *new]] for row in rows)
    return ("".join(lines) + text.getvalue()).encode("utf-8")
