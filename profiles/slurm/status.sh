#!/usr/bin/env bash
# State of one Slurm job, for Snakemake: running, success or failed. Called in the screen's folder.
#
# `squeue` is asked for all jobs together, at most once in PLATELOOM_POLL seconds (10); where it does not list a job that was
# submitted before, `sacct` is, once, for all jobs that have not ended. A job is running until one of them says otherwise, so
# that an outage of either loses none. A job that neither knows, though squeue answers, is taken for failed after PLATELOOM_LOST
# seconds (300): it is not at work any more.
set -u
trap '' INT TERM HUP # a signal that ends the run is not to make an error of this
job=$1
folder=.plateloom/slurm
open=$folder/open # a file for each job that has not ended, made when it was submitted
table=$folder/squeue
asked=$folder/asked
accounts=$folder/sacct
accounted=$folder/accounted
lost=$folder/lost-$job
mkdir -p $open

age() { echo $(($(printf '%(%s)T' -1) - $(stat -c %Y "$1" 2>/dev/null || echo 0))); }

list_jobs() {
    touch $asked
    # What squeue said before an outage is no longer known.
    squeue --noheader --user="$(id -un)" --states=all --format='%A|%T' >$table.new 2>/dev/null && mv $table.new $table ||
        rm -f $table
}

account_jobs() {
    local jobs
    touch $accounted
    jobs=$(ls $open | tr '\n' ',')$job
    sacct --allocations --noheader --parsable2 --jobs="$jobs" --format=JobIDRaw,State >$accounts 2>&1 ||
        grep -q disabled $accounts || rm -f $accounts # accounting is not absent, but away
}

find_job() { # TABLE
    local number is
    state=
    [ -e "$1" ] || return 0
    while IFS='|' read -r number is; do
        [ "$number" != "$job" ] || state=${is%% *} # the first word of "CANCELLED by 0"
    done <"$1"
}

[ "$(age $asked)" -lt "${PLATELOOM_POLL:-10}" ] || list_jobs
find_job $table
listed=$state
answering=
[ ! -e $table ] || answering=yes
if [ -z "$state" ] && [ ! "$open/$job" -nt $asked ]; then
    [ ! $asked -nt $accounted ] || account_jobs
    [ -e $accounts ] || answering=
    find_job $accounts
fi

case $state in
    COMPLETED) answer=success ;;
    BOOT_FAIL | CANCELLED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | REVOKED | TIMEOUT) answer=failed ;;
    *)
        answer=running
        if [ -z "$listed" ] && [ -n "$answering" ]; then
            [ -e "$lost" ] || touch "$lost"
            # Lost is only what a later list does not know either.
            [ "$(age "$lost")" -lt "${PLATELOOM_LOST:-300}" ] || [ ! $asked -nt "$lost" ] || { answer=failed && state=LOST; }
        else
            rm -f "$lost"
        fi
        ;;
esac
[ $answer = running ] || rm -f "$lost" "$open/$job"
if [ $answer = failed ]; then
    IFS=$'\t' read -r _ log name <<<"$(grep -P "^$job\t" .plateloom/jobs.tsv 2>/dev/null | tail -1)"
    echo "Slurm job $job ($name) has ended: $state" | tee -a "${log:-/dev/null}" >&2
fi
echo $answer
