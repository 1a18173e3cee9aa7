#!/usr/bin/env bash
# Makes the Python suite's virtual environment, once, in build/python-env, and installs the package from this
# tree into it, each time. Prints the environment's folder. pip's own settings (PIP_INDEX_URL, …) choose the
# index: on a machine without a GPU one with CPU wheels of PyTorch saves gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=build/python-env
requirements=tests/python/requirements.txt

fail() {
  echo "python_env.sh: $*" >&2
  exit 1
}

wanted=$(python3 --version && cat "$requirements")
if [ "$(cat "$environment/installed" 2>/dev/null || true)" != "$wanted" ]; then
  mkdir -p build
  free_mib=$(df -Pm build | awk 'NR == 2 {print $4}')
  [ "$free_mib" -ge 8192 ] || fail "PyTorch with its packages needs up to 8 GiB; $free_mib MiB are free"
  echo "making $environment (once; PyTorch is large)" >&2
  rm -rf "$environment"
  python3 -m venv "$environment" >&2 || fail "python3 can't make virtual environments; see install_deps.sh --python"
  "$environment/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" >&2 ||
    fail "the packages of $requirements could not be installed (is the package index reachable?)"
  printf '%s\n' "$wanted" >"$environment/installed"
fi
"$environment/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-index ./client/python >&2 ||
  fail "the package in client/python did not build (see above)"
echo "$PWD/$environment"
