#!/usr/bin/env bash
# Makes .venv with everything that the project, its tests and its quickstart need. Does nothing if
# .venv is up to date. Set PYTHON to choose the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What the environment depends on: our files, and what determines how the operators are built.
stamp=.venv/vitadapter-setup
wanted="$PWD $(command -v "${CXX:-c++}" || echo no-compiler) ${VITADAPTER_COMPILE:-}/${VITADAPTER_CUDA:-}/\
${TORCH_CUDA_ARCH_LIST:-} $(find scripts/setup_env.sh \
    scripts/requirements.txt vitadapter/install_detectron2.py setup.py pyproject.toml kernels \
    -type f -print0 \
    | sort -z | xargs -0 cat | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

step() { printf '\n==> %s\n' "$*"; }
fail() {
    echo "setup_env.sh: $*" >&2
    exit 1
}

# An unfinished environment, left by an interrupted run, has no working pip.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    for python in "${PYTHON:-}" python3.11 python3 python3.12 python3.13 python3.10; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            found=$python
            break
        fi
    done
    [ -n "${found:-}" ] || fail "Python >= 3.10 is needed (set PYTHON=/path/to/python)"
    step "making .venv with $("$found" --version)"
    "$found" -m venv --clear .venv || fail "'$found -m venv' fails (Debian: apt install python3-venv)"
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

step "installing PyTorch, Detectron2's dependencies and the test tools (about 3 GB the first time)"
pip install --upgrade "pip>=24"
pip install -r scripts/requirements.txt

step "installing Detectron2"
# A broken one, which an interrupted run may leave, is replaced.
.venv/bin/python -m vitadapter.install_detectron2 ||
    .venv/bin/python -m vitadapter.install_detectron2 --force

step "building vitadapter"
pip install --no-build-isolation --no-deps -v -e . 2>&1 \
    | grep -E '^ *vitadapter:|rror|Successfully' || fail "vitadapter cannot be installed: run
    .venv/bin/python -m pip install --no-build-isolation --no-deps -e ."
printf '%s' "$wanted" >"$stamp"
