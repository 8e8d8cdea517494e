#!/usr/bin/env bash
# State of one LSF job, for Snakemake: running, success or failed. While LSF does not answer, it is running.
set -u
trap '' INT TERM HUP
said=$(bjobs -a -noheader -o stat "$1" 2>&1)
case $said in
    DONE) echo success ;;
    EXIT | *"is not found"*) echo failed ;;
    *) echo running ;;
esac
