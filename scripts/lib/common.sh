# shellcheck shell=bash
# Sourced by the scripts one folder up: the repository as the working folder, --help, steps that say how long they took,
# Python environments, and fresh outputs.

set -euo pipefail
SCRIPT_PATH=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
SCRIPT_STARTED=$SECONDS
export CARGO_TARGET_DIR=$PWD/target

# Prints the comment at the head of the script that was started.
show_help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$SCRIPT_PATH"
}

# fail MESSAGE [REMEDY]: the two lines prunectl itself would print, and exit code 1.
fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'help: %s\n' "$2" >&2
    exit 1
}

# refuse_arguments "$@": for scripts whose only option is --help.
refuse_arguments() {
    case "${1:-}" in
        '') ;;
        -h | --help) show_help; exit 0 ;;
        *) printf 'error: unknown argument %s\nhelp: see --help\n' "$1" >&2; exit 2 ;;
    esac
}

# step TITLE COMMAND...: says what is about to happen, does it, says how long it took. The command runs bare, not behind
# `if` or `||`, which would switch off errexit inside it; the trap below says which step ended the script.
step() {
    local started=$SECONDS
    CURRENT_STEP=$1
    shift
    printf '\n==> %s\n' "$CURRENT_STEP"
    "$@"
    printf '    %s s\n' "$((SECONDS - started))"
    CURRENT_STEP=
}

CURRENT_STEP=
name_failed_step() {
    local code=$?
    if [ "$code" -ne 0 ] && [ -n "$CURRENT_STEP" ]; then
        printf 'error: step "%s" failed (exit code %s), %s s after the start\n' \
            "$CURRENT_STEP" "$code" "$((SECONDS - SCRIPT_STARTED))" >&2
    fi
}
trap name_failed_step EXIT

# total: the last line of a script.
total() {
    printf '\n%s in %s s\n' "$1" "$((SECONDS - SCRIPT_STARTED))"
}

# need COMMAND REMEDY
need() {
    command -v "$1" >/dev/null || fail "$1 is not installed" "$2"
}

# find_nvcc: the nvcc to compile with, as build.rs looks for it.
find_nvcc() {
    local candidate
    for candidate in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "${CUDA_PATH:+$CUDA_PATH/bin/nvcc}" \
        "$(command -v nvcc || true)" target/cuda-toolchain/lib/python3*/site-packages/nvidia/cu13/bin/nvcc; do
        if [ -x "$candidate" ]; then
            echo "$candidate"
            return
        fi
    done
    fail "there is no nvcc" "run scripts/cuda-toolchain"
}

# fresh OUTPUT INPUT...: true where OUTPUT exists and is no older than any INPUT.
fresh() {
    local output=$1 input
    shift
    [ -e "$output" ] || return 1
    for input in "$@"; do
        [ ! "$input" -nt "$output" ] || return 1
    done
}

# python_environment FOLDER REQUIREMENTS: a virtual environment that holds exactly these pinned packages; kept while the
# list is the same.
python_environment() {
    local folder=$1 requirements=$2
    if cmp -s "$requirements" "$folder/installed.txt"; then
        echo "    $folder is there already"
        return
    fi
    need python3 "install Python 3.10 or later with pip and venv (Debian: apt install python3-pip python3-venv)"
    python3 -m venv --clear "$folder" || fail "python3 cannot make a virtual environment" "Debian: apt install python3-venv"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$folder/installed.txt"
}
