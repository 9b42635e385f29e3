#!/usr/bin/env bash
# Checks and measures vitadapter on an NVIDIA GPU, within 8 minutes, and writes what it finds to
# OUT/report.md, with report.json, plots and log.txt. It builds the package for the GPU at hand (in
# build/gpu_check), runs the tests that need a GPU and compute-sanitizer, and measures the operator, the
# backbones, two models and a short training. A part that fails, or whose time is over, is reported,
# and the others go on. The exit status is 1 if anything has failed, 2 if nothing could be done.
#
#   ./scripts/gpu_check.sh [OUT]              OUT is output/gpu_check unless it is given
#   ./scripts/gpu_check.sh --dry-run [OUT]    everything at toy size on the CPU, without building;
#                                             vitadapter must be installed
#   ./scripts/gpu_check.sh --wheels FOLDER    takes missing packages from a folder, not from PyPI
#   ./scripts/gpu_check.sh --collect FOLDER   fills that folder, on a machine with a network, for
#                                             Python 3.11 and 3.12 on x86-64 (less than 40 MB)
#   ./scripts/gpu_check.sh --seconds N        takes N seconds at most instead of 480
#
# Python is that of .venv if there is one, else python3; PYTHON=/path/to/python names another. It
# must have torch (2.6 or newer), torchvision, and what scripts/gpu_requirements.txt says.
set -uo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

fail() {
    echo "gpu_check.sh: $*" >&2
    exit 2
}

# The path of a file that was named in the folder from which the script was called.
absolute() {
    case "$1" in
        /*) echo "$1" ;;
        *) echo "$here/$1" ;;
    esac
}

out='' wheels='' collect='' dry_run=() seconds=''
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry_run=(--dry-run) ;;
        --wheels | --collect | --seconds)
            [ -n "${2:-}" ] || fail "$1 needs a value (see --help)"
            case "$1" in
                --wheels) wheels=$(absolute "$2") ;;
                --collect) collect=$(absolute "$2") ;;
                --seconds) seconds=$2 ;;
            esac
            shift
            ;;
        --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' scripts/gpu_check.sh; exit ;;
        -*) fail "unknown option '$1' (see --help)" ;;
        *)
            [ -z "$out" ] || fail "one folder for the report is enough, got a second one, '$1'"
            out=$(absolute "$1")
            ;;
    esac
    shift
done
if [ ${#dry_run[@]} -gt 0 ]; then seconds=${seconds:-3600}; fi
seconds=${seconds:-480}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "--seconds must be a number of at least 1, got '$seconds'"
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels must be a folder, got '$wheels'"
out=${out:-$PWD/output/gpu_check}

python=${PYTHON:-.venv/bin/python}
case "$python" in */*) [ -z "${PYTHON:-}" ] || python=$(absolute "$python") ;; esac
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
command -v "$python" >/dev/null || fail "there is no Python '$python'; PYTHON=/path/to/python names one"
requirements=scripts/gpu_requirements.txt
detectron2=(--only-binary=:all: --python-version 3.10 "sal-detectron2==0.7.2")
pip() { "$python" -m pip --disable-pip-version-check -q "$@"; }

if [ -n "$collect" ]; then
    mkdir -p "$collect" || exit 2
    none=(antlr4-python3-runtime==4.9.3 fairscale fvcore iopath) # of which PyPI has no wheels
    mapfile -t others < <(grep -v '^#' $requirements | grep -vxF "$(printf '%s\n' "${none[@]}")")
    options=(--no-deps --constraint scripts/requirements.txt)
    for version in 3.11 3.12; do
        pip download "${options[@]}" --only-binary=:all: --python-version $version \
            --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest "$collect" \
            "${others[@]}" || fail "pip cannot fetch all packages for Python $version (see above)"
    done
    pip wheel "${options[@]}" --no-build-isolation --wheel-dir "$collect" "${none[@]}" ||
        fail "pip cannot build the wheels of ${none[*]} (see above)"
    pip download --no-deps --dest "$collect" "${detectron2[@]}" ||
        fail "pip cannot fetch Detectron2 (see above)"
    # To compare with. It is for Python 3.12 alone.
    pip download --no-deps --dest "$collect" --only-binary=:all: --python-version 3.12 deformops ||
        echo "gpu_check.sh: without deformops, which pip cannot fetch (see above)" >&2
    megabytes=$(($(cat "$collect"/*.whl | wc -c) / 1000000))
    [ $megabytes -lt 40 ] || fail "the wheels in $collect have $megabytes MB, more than 40"
    echo "$(ls "$collect" | wc -l) wheels, $megabytes MB, in $collect"
    exit
fi

# Missing packages go to a folder of their own: the environment stays as it is.
packages=$PWD/build/gpu_check/packages
export PYTHONPATH=$PWD/scripts:$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}
if [ ${#dry_run[@]} -eq 0 ]; then
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
else
    export CUDA_VISIBLE_DEVICES=
fi
machine=$("$python" scripts/gpu_machine.py "${dry_run[@]}") || exit 2
{ read -r capability; mapfile -t missing; } <<<"$machine"
if [ ${#dry_run[@]} -eq 0 ]; then
    export TORCH_CUDA_ARCH_LIST=$capability VITADAPTER_CUDA=1
    # Asks for nvcc, and whether it fits this torch, before anything is done. Without setuptools, which
    # is then among what is missing, the build says so.
    if "$python" -c 'import setuptools' 2>/dev/null; then
        "$python" setup.py --version >/dev/null || fail "the CUDA kernels cannot be built (see above)"
    fi
fi

mkdir -p "$out" || fail "cannot write to '$out'"
work=$(mktemp -d) || exit 2
running=
trap 'rm -rf "$work"' EXIT
trap '[ -z "$running" ] || kill "$running"; exit 130' INT TERM
rm -f "$out"/{report.md,report.json,log.txt,operator.png,backbone.png,training.png}

# section NAME SECONDS COMMAND...: runs a part for so long at most (of 480 in all), and notes how
# it ended. The last 10 seconds are the report's.
section() {
    local name=$1 limit=$(($2 * seconds / 480)) status=0 start=$SECONDS
    local left=$((seconds - SECONDS - 10))
    shift 2
    [ ${#dry_run[@]} -eq 0 ] && [ "$left" -ge "$limit" ] || limit=$left
    echo "==> $name" | tee -a "$out/log.txt"
    if [ "$limit" -lt 1 ]; then
        status=124
    else
        timeout --kill-after=5 "$limit" "$@" >"$work/$name.log" 2>&1 &
        running=$!
        wait $running || status=$?
        running=
        cat "$work/$name.log" >>"$out/log.txt"
    fi
    printf '%s\t%s\t%s\n' "$name" $status $((SECONDS - start)) >>"$work/sections.tsv"
    echo "    exit status $status after $((SECONDS - start)) s"
}

install=("$python" -m pip --disable-pip-version-check install -q --no-deps --target "$packages")
[ -z "$wheels" ] || install+=(--no-index --find-links "$wheels")
if [ -n "${missing[*]}" ]; then
    section packages 60 "${install[@]}" --constraint scripts/requirements.txt "${missing[@]}"
fi
has_detectron2='import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)'
if ! "$python" -c "$has_detectron2"; then
    section detectron2 30 "${install[@]}" "${detectron2[@]}"
fi
is_for_deformops='import sys; sys.exit(not (3, 12) <= sys.version_info < (3, 14))'
if ! compgen -G "$wheels/deformops-*.whl" >/dev/null; then
    : # it is only to compare with
elif "$python" -c "$is_for_deformops"; then
    section deformops 30 "${install[@]}" deformops
else
    printf 'deformops\tits wheel is for Python 3.12 and 3.13\t0\n' >>"$work/sections.tsv"
fi

if [ ${#dry_run[@]} -eq 0 ]; then
    rm -rf build/gpu_check/lib
    section build 140 "$python" setup.py build --build-lib build/gpu_check/lib
    # What is built has configs and experiments in their places. It, not this folder, is tested.
    export PYTHONSAFEPATH=1 PYTHONPATH=$PWD/build/gpu_check/lib:${PYTHONPATH/:$PWD:/:}
fi
section environment 30 "$python" -m vitadapter.doctor
mapfile -t gpu_tests < <(grep -rlE 'mark\.gpu|device: torch\.device' tests --include='test_*.py')
pytest=("$python" -m pytest -m gpu -q -p no:cacheprovider)
section tests 40 "${pytest[@]}" "${gpu_tests[@]}"
small=(tests/kernels/test_cuda_device.py tests/layers/fast/test_norm.py
    -k "far_locations or more_levels or (equals_reference and -32-) or test_cuda_kernels")
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        # Without PyTorch's cache, each tensor has an allocation, whose end is known to memcheck.
        section $tool 30 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool \
            --error-exitcode 9 "${pytest[@]}" "${small[@]}"
    else
        printf '%s\tcompute-sanitizer is not installed\t0\n' $tool >>"$work/sections.tsv"
    fi
done
# Each part is a process, so that one that crashes spoils no other; a dry run saves the time.
check=("$python" scripts/gpu_check.py "$work" "${dry_run[@]}")
if [ ${#dry_run[@]} -gt 0 ]; then
    section measured 0 "${check[@]}" --parts operator training detectors compiled backbone
else
    section operator 35 "${check[@]}" --parts operator
    section training 30 "${check[@]}" --parts training
    section detectors 45 "${check[@]}" --parts detectors
    section compiled 75 "${check[@]}" --parts compiled
    section backbone 480 "${check[@]}" --parts backbone # all the time that is left
fi
"${check[@]}" --output "$out"
