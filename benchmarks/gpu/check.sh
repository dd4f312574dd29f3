#!/bin/bash
# The tests on a machine with a GPU:
#     OUT=results bash benchmarks/gpu/check.sh
# They end after TESTS seconds; SELECT names some of them.
set -u
: "${PYTHON:=python3}" "${TESTS:=540}" "${WORKERS:=10}" "${SELECT:=}"
export PYTHONUNBUFFERED=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
mkdir -p "$OUT"
{ nvidia-smi; $PYTHON -m pip list; } > "$OUT/machine.txt" 2>&1
ends=$($PYTHON -m pytest --help 2> /dev/null | grep -q session-timeout && echo "--session-timeout $TESTS")
OMP_NUM_THREADS=1 timeout -s INT -k 20 $((TESTS + 20)) $PYTHON -m pytest -n "$WORKERS" --timeout 100 $ends -v --tb=short \
    -W default --junitxml "$OUT/junit.xml" --durations 15 $SELECT > "$OUT/pytest.txt" 2>&1
tail -n 30 "$OUT/pytest.txt"
