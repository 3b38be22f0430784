#!/usr/bin/env bash
# What a change must show on a CUDA device, in under eight minutes on an H100: the tests marked
# `gpu`, then what watching costs there. Takes python, torch, numpy, pandas, pyarrow and pytest
# from the PATH; plotly, dash and the tests' other packages may be missing.
#
#     tests/benchmarks/gpu.sh [ROUNDS]
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
rounds=${1:-5}
left=470 # seconds, of both stages
failed=0

stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$(($2 < left ? $2 : left)) start=$SECONDS code
    shift 2
    echo "== $name: $*"
    timeout --kill-after=5 "$limit" "$@"
    code=$?
    left=$((left - (SECONDS - start)))
    ((code)) && failed=1
    echo "== $name: $((SECONDS - start)) s, exit code $code"
}

device='import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
python -c "$device" 2>&1 | tail -n 1
((PIPESTATUS[0] == 0)) || exit 2 # no torch, or no CUDA device: nothing below would say anything

# Only files that have such a test: others import what may be missing. The options of pyproject.toml
# name plugins that may be missing, too.
mapfile -t files < <(grep -rl 'mark\.gpu\b' tests --include='test_*.py' | sort)
stage tests 240 python -m pytest -q -m gpu -o addopts= -p no:xdist -p no:dash -p no:cacheprovider \
    --import-mode=importlib --durations=5 "${files[@]}"
stage costs 470 python -m gradscope bench --device cuda --every 1 10 --against naive --rounds "$rounds"
exit $failed
