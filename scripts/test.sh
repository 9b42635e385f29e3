#!/usr/bin/env bash
# Sets up .venv, then runs the linters, the type checker and all tests, in two processes of one
# thread each. Arguments are passed to pytest; after them it obeys the last: -n 8, or -n 0 --pdb.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup_env.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
