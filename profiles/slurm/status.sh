#!/usr/bin/env bash
# State of one Slurm job, for Snakemake: running, success or failed. Called in the screen's folder.
#
# `squeue` is asked for all jobs together, at most once in PLATELOOM_POLL seconds (10), `sacct` for a job that squeue does not
# list. A job is running until one of them says otherwise, so that an outage of either loses none. A job that neither knows,
# though squeue answers, is taken for failed after PLATELOOM_LOST seconds (300): it is not at work any more.
set -u
trap '' INT TERM HUP # a signal that ends the run is not to make an error of this
job=$1
folder=.plateloom/slurm
table=$folder/squeue
asked=$folder/asked
lost=$folder/lost-$job
mkdir -p $folder

age() { echo $(($(printf '%(%s)T' -1) - $(stat -c %Y "$1" 2>/dev/null || echo 0))); }

list_jobs() {
    touch $asked
    # What squeue said before an outage is no longer known.
    squeue --noheader --user="$(id -un)" --states=all --format='%A %T' >$table.new 2>/dev/null && mv $table.new $table || rm -f $table
}

find_job() {
    local number is
    state=
    [ -e $table ] || return 0
    while read -r number is; do
        [ "$number" != "$job" ] || state=$is
    done <$table
}

[ "$(age $asked)" -lt "${PLATELOOM_POLL:-10}" ] || list_jobs
find_job
if [ -z "$state" ] && [ "$(age $asked)" -ge 2 ]; then # submitted since then
    list_jobs
    find_job
fi
listed=$state
answering=
[ ! -e $table ] || answering=yes
if [ -z "$state" ]; then
    said=$(sacct --allocations --noheader --parsable2 --jobs="$job" --format=State 2>&1) ||
        [[ $said == *disabled* ]] || answering= # accounting is not absent, but away
    read -r state _ <<<"$said" || true          # the first word of "CANCELLED by 0"
fi

case $state in
    COMPLETED) answer=success ;;
    BOOT_FAIL | CANCELLED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | REVOKED | TIMEOUT) answer=failed ;;
    *)
        answer=running
        if [ -z "$listed" ] && [ -n "$answering" ]; then
            [ -e "$lost" ] || touch "$lost"
            [ "$(age "$lost")" -lt "${PLATELOOM_LOST:-300}" ] || { answer=failed && state=LOST; }
        else
            rm -f "$lost"
        fi
        ;;
esac
if [ $answer = failed ]; then
    rm -f "$lost"
    IFS=$'\t' read -r _ log name <<<"$(grep -P "^$job\t" .plateloom/jobs.tsv 2>/dev/null | tail -1)"
    echo "Slurm job $job ($name) has ended: $state" | tee -a "${log:-/dev/null}" >&2
fi
echo $answer
