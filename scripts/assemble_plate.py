"""List the wells of a converted plate in its metadata; fail the plate when too much of it failed."""

from plateloom.engine.parts import start_job
from plateloom.stages.conversion import assemble_plate

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    assemble_plate(
        plate=snakemake.wildcards.plate,
        max_failed_fields=snakemake.params.max_failed_fields,
        code=snakemake.params.code,
        converted=snakemake.input.converted,
        record=snakemake.output.record,
    )
