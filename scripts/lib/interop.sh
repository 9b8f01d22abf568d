# shellcheck shell=bash
# Sourced after common.sh: the environment with the real libraries, kept outside the repository because of its size.

export INTEROP_VENV=${XDG_CACHE_HOME:-$HOME/.cache}/prunectl/interop-venv
