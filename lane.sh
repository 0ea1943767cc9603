#!/bin/bash
# lane.sh: takes jobs (lines of "jobs") one by one; a done line goes to done.txt with its code and seconds.
cd /root/land
export PREC=bf16 OMP_NUM_THREADS=1 PYTHON=/work/main/.venv/bin/python MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
while :; do
  job=$(flock jobs.lock bash -c 'l=$(head -n1 jobs); [ -n "$l" ] && sed -i 1d jobs && printf "%s" "$l"')
  if [ -z "$job" ]; then sleep 5; [ -e stop ] && exit; continue; fi
  s=$(date +%s)
  (cd /work/wt/run && bash -c "$job") >> log.$1 2>&1
  echo "rc $? $(($(date +%s)-s)) s | $job" >> done.txt
  [ -e stop ] && exit
done
