#!/usr/bin/env bash
# Makes .venv with all that the project, its tests and its quickstart need.
# Does nothing when that is up to date. PYTHON names the interpreter to start from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/vitadapter-setup
wanted="$PWD $(find scripts/setup_env.sh scripts/requirements.txt setup.py pyproject.toml kernels \
    -type f -print0 | sort -z | xargs -0 cat | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

step() { printf '\n==> %s\n' "$*"; }

if [ ! -x .venv/bin/python ]; then
    for python in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.10}; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            found=$python
            break
        fi
    done
    if [ -z "${found:-}" ]; then
        echo "setup_env.sh: Python >= 3.10 is needed (set PYTHON=/path/to/python)" >&2
        exit 1
    fi
    step "making .venv with $("$found" --version)"
    "$found" -m venv .venv
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

step "installing PyTorch, Detectron2's needs and the test tools (the first time some 3 GB)"
pip install --upgrade "pip>=24"
pip install -r scripts/requirements.txt

if ! .venv/bin/python -W ignore -c 'import detectron2' 2>/dev/null; then
    step "installing Detectron2"
    # Its Python code is all that is used; the wheel's tag is only that of its own binary part.
    pip install --no-deps --only-binary=:all: --python-version 3.10 \
        --target "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
        sal-detectron2==0.7.2
fi

step "building vitadapter"
pip install --no-build-isolation --no-deps -v -e . 2>&1 | grep -E '^ *vitadapter:|rror|Successfully'
printf '%s' "$wanted" > "$stamp"
