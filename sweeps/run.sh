#!/usr/bin/env bash
# A sweep: bash sweeps/run.sh SWEEP [FLAGS OF SNAKEMAKE]; docs/SWEEPS.md has examples.
#   bash sweeps/run.sh table1 -n                                              how many would run (-np: each of them)
#   bash sweeps/run.sh table1 -c2                                             two runs at once on this machine
#   GPUS=0,1,2,3 JOBS_PER_GPU=2 bash sweeps/run.sh table1 -c8                 eight runs on four GPUs
#   bash sweeps/run.sh table1 --executor slurm --jobs 100 --default-resources slurm_partition=gpu runtime=120
#   bash sweeps/run.sh table1 progress                                        how many are done, and the time left
#   bash sweeps/run.sh table1 table                                           the table of what is finished
set -euo pipefail
called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
engine=${SNAKEMAKE:-.venv-sweep/bin/snakemake}
sweep=${1:-}
names=$(basename -s .yaml sweeps/*.yaml | paste -sd '|')
case $sweep in
  "" | -*)
    echo "usage: bash sweeps/run.sh $names|FILE.yaml [FLAGS OF SNAKEMAKE]" >&2
    exit 2 ;;
  /*) file=$sweep ;;
  *)
    file=sweeps/$sweep.yaml
    if [ ! -e "$file" ]; then file=$called_from/$sweep; fi ;;
esac
if [ ! -f "$file" ]; then
  echo "Error: there is no file $file; give the path of a sweep, or one of $names" >&2
  exit 2
fi
sweep=$file
if [ ! -x "$engine" ]; then
  echo "Error: there is no Snakemake in $engine; get it with: make sweep-setup" >&2
  exit 2
fi
shift
if [ -x .venv/bin/python ]; then export PYTHON=${PYTHON:-$PWD/.venv/bin/python}; fi
python=$(dirname "$engine")/python
if [ "${1:-}" = progress ]; then exec "$python" sweeps/runs.py "$sweep"; fi
"$python" sweeps/runs.py "$sweep" check

# Slurm gives each job its GPU, and sends it our environment.
case " $* " in *" --executor slurm "* | *" --executor=slurm "* | *" -e slurm "*) unset GPUS ;; esac
# -n alone counts: thousands of runs one by one are no answer, and take half of the time.
case $* in -n | --dry-run | --dryrun) set -- "$@" --quiet ;; esac
case " $* " in
  *" -n"* | *" -"[fFkp]n" "* | *" --dry"* | *" --dag "*) ;;
  *" table "*)
    case " $* " in
      *" -c"* | *" --cores"* | *" -j"* | *" --jobs"*) ;;
      *) set -- "$@" -c1 ;;
    esac ;;
  *)
    mkdir -p .snakemake
    exec 9>".snakemake/$(realpath "$sweep" | sha256sum | cut -c1-16).lock"
    flock -n 9 || { echo "Error: this sweep is running already; wait for it, or stop it first" >&2; exit 1; } ;;
esac
exec "$engine" --configfile "$sweep" --snakefile sweeps/Snakefile --profile sweeps/profile "$@"
