#!/usr/bin/env bash
# Builds the Python package into a virtual environment of its own (build/python/venv, made once) and runs its tests.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=build/python/venv
packages=("nanobind>=2.9,<3" "scikit-build-core>=0.11,<2" "numpy>=1.24" "pytest>=8,<10" "ruff>=0.8,<1")
stamp=$(printf '%s\n' "${packages[@]}")
if [ "$(cat "$venv/.packages" 2>/dev/null)" != "$stamp" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" || {
    echo "test_python.sh: the Python suite needs these packages from an index: ${packages[*]}" >&2
    exit 1
  }
  printf '%s\n' "$stamp" >"$venv/.packages"
fi
"$venv/bin/ruff" check --quiet --config client/python/pyproject.toml client/python tests/python
"$venv/bin/ruff" format --quiet --check --config client/python/pyproject.toml client/python tests/python
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --no-deps ./client/python
"$venv/bin/pytest" --quiet -p no:cacheprovider tests/python "$@"
