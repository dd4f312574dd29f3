#!/bin/bash
# The tests and a MoCo of some minutes on one GPU, at the same time:
#     OUT=results CIFAR=folder-with-train-and-test MINUTES=5 bash benchmarks/gpu/check.sh
# MoCo's numbers are written as it goes, and its backbone in parts of 12 MB; the tests end after TESTS seconds.
set -u
: "${PYTHON:=python3}" "${MINUTES:=5}" "${TESTS:=330}" "${WORKERS:=10}" "${MOCO:=}" "${SELECT:=}"
export PYTHONUNBUFFERED=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
mkdir -p "$OUT"
{ nvidia-smi; $PYTHON -m pip list; } > "$OUT/machine.txt" 2>&1
work=$(mktemp -d)
train() {
    OMP_NUM_THREADS=4 timeout -s INT $((${MINUTES%.*} * 60 + 90)) $PYTHON benchmarks/gpu/moco.py --data "$CIFAR" \
        --minutes "$MINUTES" --out "$work" $MOCO "$@" > "$OUT/moco.log" 2>&1 && return
    mv "$OUT/moco.log" "$OUT/moco_failed.log"
    return 1
}
(
    train || train --workers 8 # where augmentation on the GPU is what fails
    cp "$work/moco.json" "$OUT/"
    split -b 12M -d "$work/backbone_fp16.pth" "$OUT/backbone_fp16.pth."
) &
moco=$!
ends=$($PYTHON -m pytest --help 2> /dev/null | grep -q session-timeout && echo "--session-timeout $TESTS")
OMP_NUM_THREADS=1 timeout -s INT -k 20 $((TESTS + 20)) $PYTHON -m pytest -n "$WORKERS" --timeout 100 $ends -v --tb=short \
    -W default --junitxml "$OUT/junit.xml" --durations 15 $SELECT > "$OUT/pytest.txt" 2>&1
tail -n 30 "$OUT/pytest.txt"
wait $moco
tail -n 3 "$OUT"/moco*.log
