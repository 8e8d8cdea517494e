# Quality: plate images -> qualities of every field, one job per part; then one job that flags the bad ones.


rule measure_quality:
    input:
        assembled="results/plates/{plate}/records/assembly/part-0.json",
        converted="results/plates/{plate}/records/conversion/part-{part}.json",
    output:
        record="results/plates/{plate}/records/quality/part-{part}.json",
    log:
        "logs/measure_quality/{plate}/part-{part}.log",
    benchmark:
        "benchmarks/measure_quality/{plate}/part-{part}.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("quality", 60),
    params:
        parts=len(PARTS),
        settings=settings_of("quality"),
        code=code_of("quality"),
    message:
        "Measuring the quality of {wildcards.plate}, part {wildcards.part}"
    script:
        "../scripts/measure_quality.py"


rule flag_fields:
    input:
        measured=every_part("quality"),
    output:
        record="results/plates/{plate}/records/flagging/part-0.json",
    log:
        "logs/flag_fields/{plate}/part-0.log",
    benchmark:
        "benchmarks/flag_fields/{plate}/part-0.tsv"
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=memory_for(2),
        runtime=runtime_for("flagging", 30),
    params:
        settings=settings_of("flagging"),
        code=code_of("flagging"),
    message:
        "Flagging fields of {wildcards.plate}"
    script:
        "../scripts/flag_fields.py"
