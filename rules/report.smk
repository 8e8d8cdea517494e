# Report: everything -> one page per plate, and one of the screen.


rule report_plate:
    input:
        profiled="results/plates/{plate}/records/profiling/part-0.json",
        flagged="results/plates/{plate}/records/flagging/part-0.json",
        screened="results/screen/records/profiles.json",
        mapped=if_wanted("maps", every_part("maps")),
        classified=if_wanted("classes", every_part("classes")),
        encoded=if_wanted("latent", every_part("latent")),
    output:
        record="results/plates/{plate}/records/report/part-0.json",
    log:
        "logs/report_plate/{plate}/part-0.log",
    benchmark:
        "benchmarks/report_plate/{plate}/part-0.tsv"
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("report", 60),
    params:
        batch=batch_of,
        source=source_of,
        settings=settings_of("report"),
        code=code_of("report"),
    message:
        "Writing the report of {wildcards.plate}"
    script:
        "../scripts/report_plate.py"


rule report_screen:
    input:
        screened="results/screen/records/profiles.json",
        reported=every_plate("report"),
        mapped=if_wanted("map", "results/screen/records/map.json"),
        encoded=if_wanted("autoencoder", "results/screen/records/autoencoder.json"),
        compared=if_wanted("comparison", "results/screen/records/comparison.json"),
        classified=if_wanted("classifier", "results/screen/records/classifier.json"),
    output:
        record="results/screen/records/screen_report.json",
    log:
        "logs/report_screen.log",
    benchmark:
        "benchmarks/report_screen.tsv"
    conda:
        "../envs/core.yaml"
    threads: 1
    resources:
        mem_mb=memory_for(4),
        runtime=runtime_for("screen_report", 60),
    params:
        plates=SCREEN.plate_table(),
        missing=SCREEN.missing_from("report"),
        settings=settings_of("screen_report"),
        code=code_of("screen_report"),
    message:
        "Writing the report of the screen"
    script:
        "../scripts/report_screen.py"
