"""Every error that Plateloom raises on purpose.

PlateloomError
├── ConfigError (ValueError)          the user's config, plates.tsv or plate map is wrong: exit 2, nothing started
├── UnknownMethodError (LookupError)  a name that no registry knows
├── DataFault (ValueError)            what the microscope wrote is unusable: recorded, never retried
│   ├── PlateLayoutError              a folder or a plate that is not laid out as its reader expects
│   │   └── DeferredError             a folder that is still being written: looked at again by the next run
│   └── UnreadableImageError          one file that cannot be decoded, or is not what was declared
├── LabelError (ValueError)           labels of cells or wells that do not allow an honest test
├── TileOverlapError (ValueError)     an object is wider than a tile's halo
├── ModelMismatchError (ValueError)   a model and the data or file that it meets do not belong together
├── CorruptStoreError (OSError)       a plate no longer holds what was written into it: the job fails, nothing is recorded
├── SchedulerError (RuntimeError)     a batch scheduler refuses a job, or does not answer
└── LockedError (RuntimeError)        another run holds this screen

Anything else that is raised in a job is an infrastructure fault: the job fails, is retried, and then fails its plate only.
"""

import difflib

# What a run and a job say when a signal has ended them; whatever else they log while they end is no fault.
INTERRUPTION = "interrupted; the same command goes on where it stopped"


class PlateloomError(Exception):
    """Base of the tree; `exit_code` is what a command returns for it."""

    exit_code = 1


class ConfigError(PlateloomError, ValueError):
    """The user's config, plate list or plate map is wrong; `problems` lists every mistake found."""

    exit_code = 2

    def __init__(self, problems):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnknownMethodError(PlateloomError, LookupError):
    """A method's name is not registered."""

    exit_code = 2

    def __init__(self, kind, name, known):
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"Unknown {kind} {name!r}.{did_you_mean(name, known)} Registered: {', '.join(self.known)}.")

    def __reduce__(self):
        return type(self), (self.kind, self.name, self.known)


class DataFault(PlateloomError, ValueError):
    """What the microscope wrote is unusable; retrying cannot help."""

    exit_code = 3


class PlateLayoutError(DataFault):
    """A folder or a plate is not laid out as its reader expects."""


class DeferredError(PlateLayoutError):
    """A folder is still being written; the next run looks at it again, whether it has changed or not."""


class UnreadableImageError(DataFault):
    """One image file cannot be decoded, or is not what was declared."""


class LabelError(PlateloomError, ValueError):
    """Labels of cells or wells do not allow an honest test: too few groups, one class, gaps."""


class TileOverlapError(PlateloomError, ValueError):
    """An object is wider than the halo, so that no tile sees it whole; the message names the halo needed [px]."""


class ModelMismatchError(PlateloomError, ValueError):
    """A model and the data or the file that it meets do not belong together."""


class CorruptStoreError(PlateloomError, OSError):
    """What Plateloom wrote no longer reads as it was written; `file` says where, `reason` what was found.

    Exit code 1, and no data fault: a damaged disk must not become a result. The job fails and is retried (a bad read
    over the network may pass), then fails its plate only, until the well is made again.
    """

    def __init__(self, file, reason):
        self.file, self.reason = str(file), reason
        super().__init__(f"{self.file!r} {reason}; `plateloom verify --repair` makes its well again")

    def __reduce__(self):
        return type(self), (self.file, self.reason)


class SchedulerError(PlateloomError, RuntimeError):
    """A batch scheduler (Slurm, LSF, SGE) refuses a job, or does not answer; the message is its own."""


class LockedError(PlateloomError, RuntimeError):
    """Another run holds this screen; the message says who."""


def did_you_mean(name, known):
    """Return ` Did you mean 'x'?` for the nearest of the known names, or an empty string.

    >>> did_you_mean("er", ["DNA", "ER"])
    " Did you mean 'ER'?"
    """
    known = [str(one) for one in known]
    alike = [one for one in known if one.lower() == str(name).lower()]
    near = alike or difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def some_of(values, most=5):
    """The first of several values and how many more there are, for a message.

    >>> some_of(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    values = [str(value) for value in values]
    rest = f" and {len(values) - most:,} more" if len(values) > most else ""
    return f"{', '.join(values[:most])}{rest}"


def counted(number, noun):
    """A number with its noun.

    >>> counted(1, "well"), counted(1200, "well")
    ('1 well', '1,200 wells')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
