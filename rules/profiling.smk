# Profiling: cells -> one row per well, one job per plate; then profiles, readouts and hits of the screen.


rule profile_plate:
    input:
        measured=every_part("features"),
        flagged="results/plates/{plate}/records/flagging/part-0.json",
        encoded=if_profiles_need("latent", every_part("latent")),
    output:
        record="results/plates/{plate}/records/profiling/part-0.json",
    log:
        "logs/profile_plate/{plate}/part-0.log",
    benchmark:
        "benchmarks/profile_plate/{plate}/part-0.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("profiling", 60),
    params:
        plate_map=plate_map_of,
        batch=batch_of,
        max_failed_fields=SCREEN.config.max_failed_fields,
        settings=settings_of("profiling"),
        code=code_of("profiling"),
    message:
        "Profiling {wildcards.plate}"
    script:
        "../scripts/profile_plate.py"


rule profile_screen:
    input:
        profiled=every_plate("profiling"),
    output:
        record="results/screen/records/profiles.json",
    log:
        "logs/profile_screen.log",
    benchmark:
        "benchmarks/profile_screen.tsv"
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=memory_for(8 + len(SCREEN.plates) / 20),
        runtime=runtime_for("profiles", 60),
    params:
        plates=SCREEN.complete_plates,
        missing=SCREEN.missing_from("profiling"),
        settings=settings_of("profiles"),
        code=code_of("profiles"),
    message:
        "Profiling the screen"
    script:
        "../scripts/profile_screen.py"
