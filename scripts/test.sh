#!/usr/bin/env bash
# All checks of the project: ruff, mypy, import-linter, the docs, and pytest, which runs while the others do.
#
#   bash scripts/test.sh                              the default tier, 10 to 17 minutes on two cores
#   bash scripts/test.sh --all                        the slow tier, too: all model families, kills, memory limits, PostgreSQL
#   bash scripts/test.sh --ignore tests/test_e2e.py   more arguments go to pytest
#   COVERAGE=1 bash scripts/test.sh                   with coverage before Python 3.12, too, where it slows the unit tests by 45 %
#
# Creates .venv if there is none (PYTHON=… names another interpreter than python3). The exit code is 1 if a check failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

unset PYTHONDONTWRITEBYTECODE  # containers set it: each process would compile its imports again (3 to 14 s)
tier=(-m "not slow") extras=dev
if [ "${1:-}" = --all ]; then
  tier=() extras=dev,clients
  shift
fi
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv || exit 2
fi
# a copy of pyproject.toml in the environment tells which one was installed last, for each extra
for extra in ${extras//,/ }; do
  if ! cmp -s pyproject.toml ".venv/installed-$extra.toml"; then
    echo "=== install $extra"
    # modules are compiled when they are first imported: most never are
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extra]" || exit 2
    cp pyproject.toml ".venv/installed-$extra.toml"
  fi
done
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1

scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT

# check NAME COMMAND…: prints a line, and the output of a command that fails
check() {
  local name=$1 start=$SECONDS output="$scratch/$1" result=passed
  shift
  if ! "$@" >"$output" 2>&1; then
    result=FAILED
    cat "$output"
    echo "$name" >>"$scratch/failed"
  fi
  printf '=== %s %s, %d s\n' "$name" "$result" $((SECONDS - start))
}

static_checks() {
  check "ruff check" ruff check .
  check "ruff format" ruff format --check .
  check "import order" lint-imports --no-cache --no-logo
  check "mypy" mypy
  check "docs" env NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "$scratch/site"
}

# Python 3.12 and newer count lines at no cost (sys.monitoring)
coverage=()
if python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  export COVERAGE_CORE=sysmon
  COVERAGE=1
fi
if [ "${COVERAGE:-0}" != 0 ]; then
  coverage=(--cov=lonas_edge --cov-report=term:skip-covered)
fi

static_checks &
static=$!
# a file runs in one process; a worker that crashes ends the run (xdist 3.8 would wait for it forever)
python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
  ${tier[@]+"${tier[@]}"} ${coverage[@]+"${coverage[@]}"} "$@" || echo pytest >>"$scratch/failed"
wait "$static"

if [ -e "$scratch/failed" ]; then
  sed 's/^/FAILED: /' "$scratch/failed"
  exit 1
fi
echo "All checks passed in $SECONDS s."
