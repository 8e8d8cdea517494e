# Comparison: latents of cells -> profiles of wells; profiles of the screen -> how plates mix, which space serves better.


rule profile_latents:
    input:
        profiled="results/plates/{plate}/records/profiling/part-0.json",
        encoded=every_part("latent"),
    output:
        record="results/plates/{plate}/records/latent_profiling/part-0.json",
    log:
        "logs/profile_latents/{plate}/part-0.log",
    benchmark:
        "benchmarks/profile_latents/{plate}/part-0.tsv"
    conda:
        "../envs/core.yaml"
    threads: 2
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("latent_profiling", 60),
    params:
        settings=settings_of("latent_profiling"),
        code=code_of("latent_profiling"),
    message:
        "Profiling the latents of {wildcards.plate}"
    script:
        "../scripts/profile_latents.py"


rule compare_spaces:
    input:
        screened="results/screen/records/profiles.json",
        profiled=every_plate("profiling"),
        encoded=if_wanted("latent_profiling", every_plate("latent_profiling")),
    output:
        record="results/screen/records/comparison.json",
    log:
        "logs/compare_spaces.log",
    benchmark:
        "benchmarks/compare_spaces.tsv"
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=memory_for(8 + len(SCREEN.plates) / 20),
        runtime=runtime_for("comparison", 120),
    params:
        missing=SCREEN.missing_from("latent_profiling"),
        settings=settings_of("comparison"),
        code=code_of("comparison"),
    message:
        "Comparing features and latents"
    script:
        "../scripts/compare_spaces.py"
