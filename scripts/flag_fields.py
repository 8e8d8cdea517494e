"""Flag the bad fields of a plate."""

from plateloom.engine.parts import start_job
from plateloom.stages.quality import flag_plate

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    flag_plate(
        plate=snakemake.wildcards.plate,
        settings=snakemake.params.settings,
        code=snakemake.params.code,
        measured=snakemake.input.measured,
        record=snakemake.output.record,
    )
