#!/bin/bash
# MoCo for some minutes on one GPU, then the heads on its features, which do not change any more:
#     OUT=results CIFAR=folder-of-train-and-test START=backbone_fp16.pth MINUTES=3 HEADS=0.5 bash benchmarks/gpu/heads.sh
# HEADS are the minutes that each training of a head has. MoCo's numbers are written as it goes.
set -u
: "${PYTHON:=python3}" "${MINUTES:=3}" "${HEADS:=0.5}" "${JOBS:=10}" "${LIMIT:=200}"
: "${MOCO:=}" "${START:=}" "${SEEDS:=0 1 2}"
: "${METHODS:=kmeans kmeans-raw dc odc spice-self scan temi turtle consensus}"
export PYTHONUNBUFFERED=1
mkdir -p "$OUT"
work=$(mktemp -d)
OMP_NUM_THREADS=4 timeout -s INT $((${MINUTES%.*} * 60 + 110)) $PYTHON benchmarks/gpu/moco.py --data "$CIFAR" \
    --minutes "$MINUTES" --out "$work" ${START:+--start "$START"} $MOCO > "$OUT/moco.log" 2>&1
cp "$work/moco.json" "$OUT/"
split -b 12M -d "$work/backbone_fp16.pth" "$OUT/backbone_fp16.pth."
last=$(ls "$work"/run/epoch_*.pth | sort -V | tail -n 1)
timeout -s INT -k 20 "$LIMIT" $PYTHON -m odc.cli compare --features "$last" \
    --dataset "$CIFAR/train" --evaluate-on "$CIFAR/test" --clusters 10 --methods $METHODS --seeds $SEEDS \
    --minutes "$HEADS" --jobs "$JOBS" --out "$work/heads" > "$OUT/heads.log" 2>&1
cp "$work"/heads/results.jsonl "$OUT/"
cp "$work"/heads/table.md "$work"/heads/report.html "$OUT/"
tail -n 30 "$OUT/heads.log"
