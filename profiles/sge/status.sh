#!/usr/bin/env bash
# State of one SGE job, for Snakemake: running, success or failed. While SGE does not answer, it is running.
#
# A job that has left `qstat` is known to `qacct` some time later; if it still is not after PLATELOOM_LOST seconds (300), the
# job is taken for failed.
set -u
trap '' INT TERM HUP
lost=.plateloom/lost-$1
if said=$(qstat -j "$1" 2>&1); then
    if grep -q '^error reason' <<<"$said"; then echo failed; else echo running; fi
    exit
fi
[[ $said == *"do not exist"* ]] || { echo running && exit; }
if said=$(qacct -j "$1" 2>/dev/null); then
    rm -f "$lost"
    if grep -qE '^failed +0 *$' <<<"$said" && grep -qE '^exit_status +0 *$' <<<"$said"; then echo success; else echo failed; fi
    exit
fi
mkdir -p .plateloom
[ -e "$lost" ] || touch "$lost"
printf -v now '%(%s)T' -1
if [ $((now - $(stat -c %Y "$lost"))) -lt "${PLATELOOM_LOST:-300}" ]; then echo running; else echo failed; fi
