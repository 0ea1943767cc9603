#!/usr/bin/env bash
# Before a run of a sweep: bash sweeps/anew.sh FOLDER. Snakemake has removed the result of a run whose recipe changed,
# and train.py takes no models of a finished run for a new one, so these go too. A run that is there still, or can go
# on, has one of the three files (.lock.owner where the file system has no locks).
if ! [ -e "$1/.lock" ] && ! [ -e "$1/.lock.owner" ] && ! [ -e "$1/resume.pt" ]; then
  for file in "$1"/*/checkpoint; do
    if [ -e "$file" ]; then rm -r "$(dirname "$file")"; fi
  done
fi
