"""Place the cells of one part of a plate on the map."""

from plateloom.engine.parts import start_job
from plateloom.stages.maps import map_part

if __name__ == "__main__":  # Dask's worker processes import this file
    start_job(snakemake)
    map_part(
        plate=snakemake.wildcards.plate,
        part=int(snakemake.wildcards.part),
        parts=snakemake.params.parts,
        code=snakemake.params.code,
        fitted=snakemake.input.fitted,
        measured=snakemake.input.measured,
        encoded=snakemake.input.encoded,
        record=snakemake.output.record,
    )
