#!/bin/bash
# Early exit compared with the same network fine-tuned without exits: EfficientNet-Lite0 on CIFAR-100's coarse labels.
#
#     benchmarks/finetune.sh DATA_DIR [OUT] [SEEDS]
#
# Trains the plain network, then joint, byot, muse and hdkd with --tune all and mixed, and ztw and joint on the plain
# network's frozen weights. The same command continues after an interruption, also with more SEEDS (such as 0,1,2).
# Thresholds are fitted on cal; results are measured on test after the last epoch. Their lines are in OUT/finetune.jsonl;
# `offramp compare --show OUT/finetune.jsonl --baseline OUT/plain/vanilla-seed-0` compares them with the plain network.
set -e
data=$1; out=${2:-runs/finetune-proof}; seeds=${3:-0}
train() {  # METHODS TUNE FOLDER OPTIONS...
    offramp compare --recipe finetune-cifar100-coarse --data-dir "$data" --seeds "$seeds" --ledger "$out/finetune.jsonl" \
        --methods "$1" --tune "$2" --out "$out/$3" "${@:4}"
}
mkdir -p "$out"
two="joint,byot(adapt=linear)"
three="$two,muse(adapt=linear)"
train vanilla all plain
train joint all all
train "$two" all all
train "$three" all all
train joint mixed mixed
train "$two" mixed mixed
train "$three" mixed mixed
train joint,ztw exits exits --weights "$out/plain/vanilla-seed-0/last.safetensors" --no-pretrained
train "$three,hdkd" all all
train "$three,hdkd" mixed mixed
