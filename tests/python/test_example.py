"""The example, as a user runs it: no settings, no kvmd."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "client" / "python" / "examples" / "transformers_demo.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--device", "cpu", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )


def test_it_shows_hits_and_parity() -> None:
    result = run("--prompt-tokens", "512", "--layers", "4", "--new-tokens", "16")
    assert result.returncode == 0, result.stderr
    assert re.search(r"blocks imported +30 ", result.stdout)
    assert re.search(r"tokens not recomputed +480 of 512", result.stdout)
    assert re.search(r"first token, with +[\d.]+ ms", result.stdout)
    assert re.search(r"parity +16 of 16 tokens", result.stdout)


def test_it_says_what_to_do_when_there_is_no_kvmd() -> None:
    result = run(KVMD_BINARY="/nonexistent/kvmd")
    assert result.returncode != 0
    assert "cannot start a kvmd" in result.stderr
    assert "/nonexistent/kvmd" in result.stderr


def test_the_gpu_example_says_that_there_is_no_gpu() -> None:
    result = subprocess.run(
        [sys.executable, str(EXAMPLE.with_name("two_gpu_demo.py"))],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("skipped: no GPU")
