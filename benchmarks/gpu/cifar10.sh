#!/bin/bash
# Stages of cifar10.py, by environment variables, with what is said in OUT/log.txt:
#     OUT=first CIFAR=cifar10-jpeg.tar.zst MINUTES=9 bash benchmarks/gpu/cifar10.sh features
#     OUT=second CIFAR=cifar10-jpeg.tar.zst IN=first bash benchmarks/gpu/cifar10.sh features self reliable table
# More of its options, --smoke say, come behind the stages.
set -u -o pipefail
: "${PYTHON:=python3}" "${OUT:?where the results go}" "${CIFAR:?archive or folder of the images}" "${IN:=}" "${MINUTES:=9}"
cd "$(dirname "$0")/../.."
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
# shellcheck disable=SC2086
$PYTHON benchmarks/gpu/cifar10.py "$@" --data "$CIFAR" --out "$OUT" --minutes "$MINUTES" ${IN:+--in $IN} 2>&1 |
    tee -a "$OUT/log.txt"
