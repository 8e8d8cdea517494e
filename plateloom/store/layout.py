"""Where the results of a screen lie. All paths are relative to the screen's folder."""

from pathlib import Path

from plateloom.wells import parse_well


def part_of(well, parts):
    """The part that works on a well: from its position alone, so that one more well moves no other.

    Diagonals, because plates are often filled by whole rows or whole columns only.
    """
    row, column = parse_well(well)
    return (row + column) % parts


def plate_folder(plate):
    return Path("results/plates") / plate


def plate_store(plate):
    return plate_folder(plate) / "plate.zarr"


def well_table(plate, kind, well):
    """A well's parquet file in one of the plate's datasets: fields, quality, segmentation, features, latent …"""
    return plate_folder(plate) / kind / f"{well}.parquet"


def record_path(plate, stage, part=0):
    return plate_folder(plate) / "records" / stage / f"part-{part}.json"


def screen_folder():
    return Path("results/screen")


def screen_record(stage):
    return screen_folder() / "records" / f"{stage}.json"


def model_folder(name):
    return screen_folder() / "models" / name
