#!/usr/bin/env bash
# Every check of the project: ruff, ruff format, mypy, pydoclint, the imports' order, the docs, pytest (unit tests, and end to end
# on the real SmolLM2-135M).
#
#   bash scripts/test.sh                     all of it
#   bash scripts/test.sh -m "not e2e"        arguments go to pytest
#   COVERAGE=1 bash scripts/test.sh          with coverage before Python 3.12, too, where it slows the unit tests by 45 %
#
# Makes .venv if there is none (PYTHON=… names another than python3). All checks run; the exit code is 1 if one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv || exit 2
fi
# a copy of pyproject.toml in the environment says which one was installed last
if ! cmp -s pyproject.toml .venv/installed-pyproject.toml; then
  echo "=== install"
  .venv/bin/python -m pip install --quiet --editable '.[dev]' || exit 2
  cp pyproject.toml .venv/installed-pyproject.toml
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1

failed=()
check() {
  local name=$1 start=$SECONDS
  shift
  printf '\n=== %s\n' "$name"
  "$@" || failed+=("$name")
  printf -- '--- %s: %d s\n' "$name" $((SECONDS - start))
}

build_docs() {
  local site
  site=$(mktemp -d) || return
  NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "$site"
  local code=$?
  rm -rf "$site"
  return $code
}

# Python 3.12 and newer say which lines run at no cost (sys.monitoring)
coverage=()
if python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  export COVERAGE_CORE=sysmon
  COVERAGE=1
fi
if [ "${COVERAGE:-0}" != 0 ]; then
  coverage=(--cov=lonas_edge --cov-report=term:skip-covered)
fi

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "pydoclint" pydoclint --quiet lonas_edge
check "import order" lint-imports --no-cache --no-logo
check "docs" build_docs
# one file after another in each of several processes; one that crashes ends the run (xdist 3.8 would wait for it for ever)
check "pytest" python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "${coverage[@]}" "$@"

echo
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "All checks passed."
