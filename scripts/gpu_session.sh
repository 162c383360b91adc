#!/usr/bin/env bash
# All that is to be measured on a GPU, in the order of its value, in under nine minutes: exact resume, speed beside other
# programs, and a training run of minutes with its pictures. Usage: scripts/gpu_session.sh OUT [SECONDS [CIFAR10_FOLDER]]
# OUT receives the tables and pictures. Without a package index: PYTHON=python3, with what pyproject.toml names on
# PYTHONPATH.
set -uo pipefail
out=${1:?usage: scripts/gpu_session.sh OUT [SECONDS [CIFAR10_FOLDER]]}
seconds=${2:-520}
cifar=${3:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$here/scripts/run python}
mkdir -p "$out"
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
began=$(date +%s)
left() { echo $((seconds - $(date +%s) + began)); }

nvidia-smi -L
$python "$here/scripts/bench_gpu.py" --seconds $(($(left) * 45 / 100)) 2>&1 | tee "$out/bench.txt"
$python "$here/scripts/check_gpu.py" --seconds 60 2>&1 | tee "$out/check.txt"
data=(dataset=shapes dataset.image_size=32)
[[ -z $cifar ]] || data=(dataset=image_folder "dataset.root=$cifar" dataset.image_size=32)
if (($(left) > 130)); then
    $python -m ddpm_cli.train experiment=cifar10_fast "${data[@]}" dataset.flip=true \
        budget=$(($(left) - 110))s run_dir="$out/run" 2>&1 | tee "$out/train.txt"
    $python -m ddpm_cli.sample ckpt="$out/run" sampler=dpmpp sampler.num_steps=20 num_images=1000 \
        out_dir="$out/samples" 2>&1 | tee "$out/sample.txt"
    $python -m ddpm_cli.eval ckpt="$out/run" sampler=dpmpp sampler.num_steps=20 num_images=1000 metrics=[fid] \
        features=classifier out_dir="$out/eval" 2>&1 | tee "$out/eval.txt"
fi
