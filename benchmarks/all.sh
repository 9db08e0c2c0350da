#!/usr/bin/env bash
# Reruns every benchmark and study, and writes benchmarks/results/ anew. TRL_PYTHON and UNSLOTH_PYTHON: other environments.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
trl=${TRL_PYTHON:+--trl-python $TRL_PYTHON}
unsloth=${UNSLOTH_PYTHON:+--unsloth-python $UNSLOTH_PYTHON}

# shellcheck disable=SC2086 -- an option and its value, or nothing
run() { echo "== $*"; "$python" benchmarks/"$@"; }
run startup.py ${TRL_PYTHON:+--trl "$(dirname "$TRL_PYTHON")/trl"}
run loss.py
run sampling.py
run end_to_end.py $trl --budget 60 --growth
run backends.py $trl $unsloth
run estimators.py
run objectives.py
run demo.py
run plan_memory.py
run model_families.py --again
run kill.py --overhead
run soak.py
run diagnose_speed.py
run diagnose_rates.py
run diagnose_drift.py
run evaluate_speed.py
run evaluate_honesty.py
run verb_growth.py
run damaged_files.py --share 0.03
