"""The RO-Crate of an export: what every file and folder is, and which stage made it from what.

RO-Crate 1.1 and, for the stages, Process Run Crate 0.5: a `CreateAction` per stage and plate, whose instrument is Plateloom
with the versions that the records name. Columns are described once per kind of table, in a Table Schema that all tables of
that kind conform to: hundreds of plates then need no million entries.
"""

import dataclasses
import datetime
import hashlib
import json
import re
from urllib.parse import quote

from plateloom.store.provenance import digest, write_json

METADATA = "ro-crate-metadata.json"
CRATE = "https://w3id.org/ro/crate/1.1"
PROCESS_RUN = "https://w3id.org/ro/wfrun/process/0.5"
SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"
TABLE_SCHEMA = "https://datapackage.org/standard/table-schema/"
NGFF = "https://ngff.openmicroscopy.org/{}/"
STATUS = {"done": "http://schema.org/CompletedActionStatus", "failed": "http://schema.org/FailedActionStatus"}

PARQUET, ZARR, SHEET = "application/vnd.apache.parquet", "application/vnd+zarr", "text/tab-separated-values"
TYPES = {
    "string": "string",
    "bool": "boolean",
    "int32": "integer",
    "int64": "integer",
    "double": "number",
    "float": "number",
}

# What columns mean; the rest is told from the parts of their names.
COLUMNS = {
    "Metadata_Plate": "Name of the plate.",
    "Metadata_Well": "Well, as A01.",
    "Metadata_Field": "Number of the field, the name of its image in the well.",
    "Metadata_ObjectNumber": "Number of the cell, its value in the field's label images.",
    "Cluster": "Number of the cluster of cells that are alike, the largest is 0; -1 for none.",
    "Metadata_Batch": "Plates of one batch were stained together.",
    "Metadata_CellCount": "Number of cells.",
    "Metadata_FieldCount": "Number of fields whose cells are known.",
    "Metadata_CellsPerField": "Number of cells by number of fields; nothing where no field's cells are known.",
    "Metadata_Treatment": "Treatment, from the plate map.",
    "Metadata_Dose": "Dose, from the plate map, in the unit of Metadata_Unit.",
    "Metadata_Unit": "Unit of the dose, from the plate map.",
    "Metadata_Control": "negative, positive or empty for control wells, else nothing; from the plate map.",
    "Metadata_Readout": "The assay's readout, as the config defines it.",
    "Metadata_Normalized": "Whether the plate had the controls that features are normalized to.",
    "Channel": "Name of the channel.",
    "Metadata_SourceField": "Number of the field in the source that the cell lies on; differs where wells are stitched.",
    "SourceField": "Number of the field in the source; differs where wells are stitched.",
    "Status": "done, partial (a channel is missing), missing, hole (left out of a stitched well) or failed.",
    "Reason": "Why it is not done, or flagged; nothing where all is well.",
    "File": "The source file, below the plate's source folder.",
    "Planes": "Number of planes that were read.",
    "Seconds": "When the first of them was taken, since 1970 [s]; nothing where the source does not say.",
    "Height": "Of the image [px].",
    "Width": "Of the image [px].",
    "DataType": "Of the pixels.",
    "focus_slope": "Slope of the log power over the log frequency: -2 sharp, -7 blurred, 0 noise.",
    "focus_laplacian": "Variance of the Laplacian of Gaussian over variance; larger is sharper.",
    "focus_detail": "Largest Laplacian of Gaussian, without specks [noise]; 5 in noise alone.",
    "saturated_fraction": "Fraction of saturated pixels.",
    "background": "5th percentile [counts].",
    "noise": "Standard deviation from pixel to pixel [counts].",
    "contrast": "99.9th percentile, or brightest 5 x 5 px if brighter, less median [noise].",
    "p01": "1st percentile [counts].",
    "p50": "Median [counts].",
    "p99": "99th percentile [counts].",
    "p999": "99.9th percentile [counts].",
    "mean": "Mean [counts].",
    "std": "Standard deviation [counts].",
    "artefact_fraction": "Fraction of pixels in saturated regions, or in regions far brighter than cells are.",
    "Latent_error": "How badly the autoencoder restores the cell: mean squared error in units of the channels' variance.",
    "Class": "The likeliest class.",
    "class": "One of the classifier's classes.",
    "cells": "Number of cells that have a class, and in class_shares are not novel.",
    "novel": "Number of cells unlike all that were labeled.",
    "counted": "Fraction of these cells that were taken for the class.",
    "share": "Fraction of cells of the kind; in class_shares what the probabilities of all cells say together.",
    "kind": "Kind of cells: a class, a cluster, or novel.",
    "control_share": "Fraction of cells of the kind in the negative controls of the same plates.",
    "difference": "Share less that of the controls of the same plate, on the scale of the test (twice the arcsine of the root).",
    "change": "enriched or depleted; nothing where it is neither.",
    "low": "Lower end of its 95 % interval.",
    "high": "Upper end of its 95 % interval.",
    "Novelty": "How far the cell lies from the cells that the classifier was trained on.",
    "ec50": "Dose of half the effect [Metadata_Unit].",
    "ec50_low": "Lower end of its 95 % interval [Metadata_Unit].",
    "ec50_high": "Upper end of its 95 % interval [Metadata_Unit].",
    "hill": "Hill slope.",
    "bottom": "Response at dose 0.",
    "top": "Response at the highest effect.",
    "r2": "Share of the variance that the curve explains.",
    "p": "p value: of a curve, against no effect; of replicates, against wells of different treatments, or random rankings where "
    "beyond is empty; of shares of cells, against those of negative controls.",
    "q": "p corrected for all rows that were tested together (Benjamini, Hochberg).",
    "map": "Mean average precision with which replicates find each other among negative controls.",
    "expected": "Mean average precision by chance: of wells of different treatments on the same plates, or of random rankings where "
    "beyond is empty.",
    "beyond": "map less expected; nothing where there are too few treatments for chance to be that of their wells.",
    "space": "What profiles are made of: features, or latents by their encoder.",
    "correction": "none, normalized or sphered.",
    "n_wells": "Number of wells.",
    "Metadata_Wells": "Number of wells.",
    "Metadata_Plates": "Number of plates.",
    "n": "Number of wells with a value.",
    "n_doses": "Number of doses.",
    "n_plates": "Number of plates.",
    "n_beyond": "Number of wells at or beyond the threshold.",
    "median": "Median of the readout.",
    "robust_z": "Distance from the negative controls in scaled median absolute deviations, median over the wells.",
    "Dark": "Whether the channel shows nothing in the field.",
    "hit": "Whether it is a hit.",
    "reason": "Why there is no value, or no hit.",
}
PATTERNS = (
    (r"Count_(\w+)", "Number of {} in the field."),
    (r"Flag_(\w+)", "Whether quality control calls the field {}."),
    (r"Probability_(.+)", "Probability of the class {}."),
    (r"Latent_(\w+)_(\d+)", "{} dimension {} of the latent space."),
    (r"(?:Metadata_)?Map_(\d+)", "Axis {} of the two-dimensional map."),
    (r"(?:Metadata_)?PCA_(\d+)", "Principal component {}."),
    (r"Metadata_(.+)", "Column {} of the plate map, in words of its own."),
    (r"(Nuclei|Cells|Cytoplasm)_([A-Za-z]+)_(.+)", "{}: {} of the family {}, named as CellProfiler names it."),
)


@dataclasses.dataclass
class Run:
    """What the records say of one stage of a plate, or of the screen.

    Attributes
    ----------
    stage : str
    plate : str or None
    records : list of dict
        Without what tells of the machine (see `Redaction.record`).
    parameters : dict or None
        What it was configured with; None where the config has changed since.
    """

    stage: str
    plate: str | None
    records: list
    parameters: dict | None

    @property
    def status(self):
        """`done`; `failed` where the data are at fault; `skipped` where something upstream failed."""
        found = {record["status"] for record in self.records}
        return next(status for status in ("failed", "skipped", "done") if status in found)

    @property
    def reason(self):
        """Why it is not done, in one line."""
        return "; ".join(dict.fromkeys(record["reason"] for record in self.records if record["reason"]))

    @property
    def started(self):
        """When the first job began; ISO 8601. Records have local times: the zone is that of the machine that exports."""
        return moment(datetime.datetime.fromisoformat(min(record["started"] for record in self.records)))

    @property
    def ended(self):
        """When the last job ended."""
        begin = datetime.datetime.fromisoformat
        ends = [begin(record["started"]) + datetime.timedelta(seconds=record["seconds"]) for record in self.records]
        return moment(max(ends))

    @property
    def listings(self):
        """Digests of the listings of the source files, part by part; empty for all stages but conversion."""
        return [record["facts"]["listing"] for record in self.records if record["facts"].get("listing")]

    @property
    def artefacts(self):
        """How many artefacts are there: wells, or one for a plate or the screen."""
        return sum(len(record["artefacts"]) for record in self.records)

    @property
    def failures(self):
        """Data faults that it recorded and went on after."""
        return [failure for record in self.records for failure in record["failures"]]

    def distinct(self, key):
        """The different values of a key, in the order of the parts."""
        values = {json.dumps(record[key], sort_keys=True): record[key] for record in self.records}
        return list(values.values())

    def summary(self):
        """What a reader of the plate alone should know of it, as JSON."""
        told = {
            "status": self.status,
            "reason": self.reason,
            "code": self.distinct("code"),
            "parameters": self.parameters,
            "versions": self.distinct("versions"),
            "started": self.started,
            "ended": self.ended,
            "failures": self.failures,
        }
        return told | ({"listings": self.listings} if self.listings else {})


class Crate:
    """An RO-Crate under construction.

    Parameters
    ----------
    root : Path
        The folder that it describes.
    name, description : str
    license : str
        A URL; empty where the user has given none.
    now : datetime
    """

    def __init__(self, root, *, name, description, license, now):
        self.root, self.entities, self.schemas = root, {}, {}
        self._add(METADATA, "CreativeWork", conformsTo=ref(CRATE), about=ref("./"))
        self.dataset = self._add(
            "./",
            "Dataset",
            name=name,
            description=description,
            datePublished=now.date().isoformat(),
            license=ref(license) if license else "No license has been stated; ask whoever has handed this on.",
            conformsTo=ref(PROCESS_RUN),
            hasPart=[],
            mentions=[],
        )
        self._add(CRATE, "CreativeWork", name="RO-Crate", version="1.1")
        self._add(PROCESS_RUN, "CreativeWork", name="Process Run Crate", version="0.5")
        if license:
            self._add(license, "CreativeWork", name=license)

    def _add(self, identity, kind, **properties):
        """Describe an entity, once; empty properties are left out."""
        if identity not in self.entities:
            kept = {key: value for key, value in properties.items() if value not in (None, "")}
            self.entities[identity] = {"@id": identity, "@type": kind} | kept
        return self.entities[identity]

    def add_file(self, path, description, encoding, *, within=None, **more):
        """Describe a file that has been written; returns the reference to it.

        Parameters
        ----------
        path : str
            Below the root.
        description, encoding : str
        within : dict, optional
            The folder's reference; the root where there is none.
        """
        data = (self.root / path).read_bytes()
        identity = quote(path)
        self._add(
            identity,
            "File",
            name=path.rpartition("/")[2],
            description=description,
            encodingFormat=encoding,
            contentSize=str(len(data)),
            sha256=hashlib.sha256(data).hexdigest(),
            **more,
        )
        return self._part(identity, within)

    def add_folder(self, path, description, *, size=None, within=None, **more):
        """Describe a folder as a whole; returns the reference to it. `size` in [bytes]."""
        identity = f"{quote(path)}/"
        self._add(
            identity,
            "Dataset",
            name=path.rpartition("/")[2],
            description=description,
            contentSize=None if size is None else str(size),
            **more,
        )
        return self._part(identity, within)

    def _part(self, identity, within):
        holder = self.entities[within["@id"]] if within else self.dataset
        holder.setdefault("hasPart", []).append(ref(identity))
        return ref(identity)

    def add_plate(self, path, plate, *, ngff, size, facts):
        """Describe an OME-Zarr plate; `facts` are pairs of a name, and a value or a value and its unit."""
        standard = NGFF.format(ngff)
        self._add(standard, "CreativeWork", name=f"OME-Zarr {ngff}", url=standard)
        return self.add_folder(
            path,
            f"Images and label images of the plate {plate}: OME-Zarr {ngff}, HCS layout.",
            size=size,
            encodingFormat=[ZARR, ref(standard)],
            conformsTo=ref(standard),
            additionalProperty=[
                self._property(
                    f"#{plate}-{name.replace(' ', '-')}", name, *(value if isinstance(value, tuple) else (value,))
                )
                for name, value in facts.items()
            ],
        )

    def _property(self, identity, name, value, unit=None, **more):
        value = value if isinstance(value, str | int | float) else json.dumps(value)
        self._add(quote(identity, safe="#+,:"), "PropertyValue", name=name, value=value, unitText=unit, **more)
        return ref(quote(identity, safe="#+,:"))

    def add_table(self, path, kind, description, files, *, within, channels):
        """Describe a table, or a folder of tables that are read as one.

        Parameters
        ----------
        path : str
            Below the root: a parquet file or a folder of some.
        kind : str
            ``"features"``, ``"profiles"`` …; names the schema.
        description : str
        files : list of Path
            The parquet files; the first one's columns stand for all.
        within : dict or None
        channels : list of str

        Returns
        -------
        dict
            The reference.
        """
        import pyarrow.parquet as pq

        schema = self._schema(kind, pq.read_schema(files[0]), channels)
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        more = {
            "conformsTo": schema,
            "additionalProperty": [self._property(f"#rows-of-{path.replace('/', '-')}", "rows", rows)],
        }
        if path.endswith(".parquet"):
            return self.add_file(path, description, PARQUET, within=within, **more)
        size = sum(file.stat().st_size for file in files)
        return self.add_folder(path, description, size=size, within=within, encodingFormat=PARQUET, **more)

    def _schema(self, kind, schema, channels):
        """The Table Schema of a kind of table, written when it is first met; returns the reference."""
        fields = [
            {"name": name, "type": TYPES.get(str(type_), "any"), "description": describe_column(name, channels)}
            for name, type_ in zip(schema.names, schema.types, strict=True)
        ]
        key = kind, digest(fields)
        if key not in self.schemas:
            others = sum(known == kind for known, _ in self.schemas)
            path = f"schemas/{kind}{f'-{others + 1}' if others else ''}.json"
            write_json(self.root / path, {"fields": fields, "missingValues": [""]})
            self._add(TABLE_SCHEMA, "CreativeWork", name="Table Schema", url=TABLE_SCHEMA)
            self.schemas[key] = self.add_file(
                path, f"Columns of tables of the kind {kind}.", "application/json", conformsTo=ref(TABLE_SCHEMA)
            )
        return self.schemas[key]

    def add_source(self, plate, name, reader, listings):
        """Describe the images that a plate was made from, which are no part of the crate; returns the reference."""
        digests = [
            self._property(f"#listing-of-{plate}-{part}", "digest of names, sizes and times of the files", found)
            for part, found in enumerate(listings)
        ]
        identity = f"#source-of-{plate}"
        self._add(
            identity,
            "CreativeWork",
            name=name,
            description=f"Images of the plate {plate} as the microscope wrote them (reader {reader}); not part of this crate.",
            identifier=digests,
        )
        return ref(identity)

    def add_run(self, run, *, made_from, made):
        """Describe what one stage did to a plate, or to the screen.

        Parameters
        ----------
        run : Run
            Done or failed.
        made_from, made : list of dict
            References.
        """
        where = f"plate {run.plate}" if run.plate else "screen"
        parameters = [
            self._property(f"#{run.stage}-{name}-{digest([name, value])[:8]}", name, value)
            for name, value in flatten(run.parameters or {})
        ]
        code = [
            self._property(f"#code-of-{run.stage}-{found[:8]}", f"digest of the code of {run.stage}", found)
            for found in run.distinct("code")
        ]
        told = f"artefacts: {run.artefacts}" + (f"; data faults recorded: {len(run.failures)}" if run.failures else "")
        if run.parameters is None:
            told += "; the config has changed since, so its parameters are not known"
        self._act(
            f"#{run.stage}-of-{run.plate or 'screen'}",
            f"{run.stage} of the {where}",
            told,
            run.started,
            run.ended,
            instrument=[self._software(versions) for versions in run.distinct("versions")],
            object=[*made_from, *parameters, *code],
            result=made,
            actionStatus=STATUS[run.status],
            error=run.reason if run.status == "failed" else None,
        )

    def add_export(self, begun, versions, made_from, made):
        """Describe the export itself, begun at a local time: the copies and the tables in them."""
        self._act(
            "#export",
            "Export",
            "plateloom export",
            moment(begun),
            moment(datetime.datetime.now()),
            instrument=[self._software(versions)],
            object=made_from,
            result=made,
            actionStatus=STATUS["done"],
        )

    def _act(self, identity, name, description, started, ended, **more):
        self._add(
            identity, "CreateAction", name=name, description=description, startTime=started, endTime=ended, **more
        )
        self.dataset["mentions"].append(ref(identity))

    def _software(self, versions):
        """Plateloom in the surroundings that a job ran in."""
        packages = []
        for name, version in versions.items():
            if name != "plateloom":
                kind, url = "pypi", f"https://pypi.org/project/{quote(name)}/"
                if name == "python":
                    kind, url = "generic", "https://www.python.org/"
                identity = f"pkg:{kind}/{quote(name)}@{quote(version)}"  # a package URL
                self._add(identity, "SoftwareApplication", name=name, softwareVersion=version, url=url)
                packages.append(ref(identity))
        identity = f"#plateloom-{versions.get('plateloom', '')}-{digest(versions)[:8]}"
        self._add(
            identity,
            "SoftwareApplication",
            name="Plateloom",
            description="High-content screens from the microscope's folder to the list of hits",
            softwareVersion=versions.get("plateloom"),
            softwareRequirements=packages,
        )
        return ref(identity)

    def write(self):
        """Write the crate's metadata, the description of the root first."""
        context = [f"{CRATE}/context", {"sha256": SHA256}]
        graph = [
            {key: _alone(value) for key, value in entity.items() if value not in ([], None)}
            for entity in self.entities.values()
        ]
        text = json.dumps({"@context": context, "@graph": graph}, indent=1, ensure_ascii=False)
        (self.root / METADATA).write_text(text + "\n", encoding="utf-8")


def _alone(value):
    """The one element of a list that has no other, as RO-Crate wants it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def moment(local):
    """ISO 8601 of a local time, with its zone."""
    return local.astimezone().isoformat(timespec="seconds")


def ref(identity):
    """A reference to an entity."""
    return {"@id": identity}


def flatten(settings, prefix=""):
    """Pairs of a dotted name and a value; what is empty or not set has none.

    >>> list(flatten({"method": "pca", "parameters": {"seed": 1, "cells": None}}))
    [('method', 'pca'), ('parameters.seed', 1)]
    """
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            yield f"{prefix}{key}", value


def describe_column(name, channels=()):
    """Say what a column means, in one sentence.

    >>> describe_column("Nuclei_Intensity_MeanIntensity_DNA", ["DNA"])
    'Nuclei: MeanIntensity_DNA of the family Intensity, channel DNA, named as CellProfiler names it.'
    >>> describe_column("PCA_3")
    'Principal component 3.'
    """
    if name in COLUMNS:
        return COLUMNS[name]
    for pattern, sentence in PATTERNS:
        if found := re.fullmatch(pattern, name):
            parts = list(found.groups())
            if parts[0] in ("Nuclei", "Cells", "Cytoplasm") and len(parts) == 3:
                used = [channel for channel in channels if f"_{channel}_" in f"_{parts[2]}_"]
                parts[1:] = parts[2], parts[1] + (f", channel {' and '.join(used)}" if used else "")
            return sentence.format(*parts)
    return name.replace("_", " ")
