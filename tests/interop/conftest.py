"""Interoperation: prunectl against the libraries people use. Started by scripts/test-interop, which sets

PRUNECTL          the program under test
PRUNECTL_SMOLLM2  SmolLM2-135M-Instruct as `prunectl import` wrote it
PRUNECTL_GGUF     the GGUF file it came from
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
TINY = ["llama", "llama-tied-llama3rope", "qwen2", "cohere", "cohere-qknorm"]


def pytest_configure():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)


@pytest.fixture(scope="session")
def prunectl():
    """Runs the program with --json and gives the parsed document; any failure is the test's."""
    program = os.environ["PRUNECTL"]

    def run(*arguments):
        command = [program, *map(str, arguments), "--json", "--quiet", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout else None

    return run


@pytest.fixture(scope="session")
def smollm2():
    return Path(os.environ["PRUNECTL_SMOLLM2"])


@pytest.fixture(scope="session")
def gguf():
    return Path(os.environ["PRUNECTL_GGUF"])


@pytest.fixture(params=TINY)
def tiny(request):
    """Each tiny model of tests/fixtures in turn: four layers, 259 tokens."""
    return FIXTURES / request.param
