"""Which wells and cells of a screen a model learns from: few enough to read, the same in every run, spread over all plates."""

import hashlib

import numpy as np

from plateloom.stages.fields import flagged_fields, quarantined_wells


def choose_wells(wells, count):
    """Choose wells by a hash of plate and well, so that a well that comes later rarely changes the choice.

    Parameters
    ----------
    wells : sequence of (str, str)
        Plate and well.
    count : int

    Returns
    -------
    list of (str, str)
        In the order of their hashes: any beginning of it is a random choice as well.
    """
    return sorted(wells, key=lambda well: hashlib.sha256("/".join(well).encode()).digest())[:count]


def sample_rows(name, number, wanted):
    """Draw rows of a table without replacement, by a seed that is the table's name.

    >>> sample_rows("P1/A01", 3, 10)
    array([0, 1, 2])
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.sort(np.random.default_rng(seed).permutation(number)[:wanted])


def wells_to_learn_from(records, *, plates, count):
    """Wells that a model is trained on, with what they are made from.

    Parameters
    ----------
    records : list of dict
        Records of the stage read, of every part of every plate.
    plates : list of str
        Plates to choose from.
    count : int

    Returns
    -------
    list of dict
        `plate`, `well`, `fingerprint`, and `excluded`, the fields that QC has flagged; in the order of `choose_wells`.
        Wells that a person has taken out are not among them.
    """
    found = {
        (record["plate"], well): fingerprint
        for record in records
        if record["plate"] in plates and record["status"] == "done"
        for well, fingerprint in record["artefacts"].items()
    }
    held = {(plate, well) for plate in {plate for plate, _ in found} for well in quarantined_wells(plate)}
    chosen = choose_wells([key for key in found if key not in held], count)
    bad = {plate: flagged_fields(plate) for plate in {plate for plate, _ in chosen}}
    return [
        {
            "plate": plate,
            "well": well,
            "fingerprint": found[plate, well],
            "excluded": sorted(field for other, field in bad[plate] if other == well),
        }
        for plate, well in chosen
    ]


def inputs_of(wells):
    """The part of a model's recipe that names its wells."""
    return {f"{well['plate']}/{well['well']}": [well["fingerprint"], well["excluded"]] for well in wells}
