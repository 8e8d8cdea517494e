# Illumination: plate images -> one flat-field per channel, one job per plate.


rule estimate_illumination:
    input:
        assembled="results/plates/{plate}/records/assembly/part-0.json",
        converted=every_part("conversion"),
    output:
        record="results/plates/{plate}/records/illumination/part-0.json",
    log:
        "logs/estimate_illumination/{plate}/part-0.log",
    benchmark:
        "benchmarks/estimate_illumination/{plate}/part-0.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("illumination", 60),
    params:
        settings=settings_of("illumination"),
        code=code_of("illumination"),
    message:
        "Estimating the illumination of {wildcards.plate}"
    script:
        "../scripts/estimate_illumination.py"
