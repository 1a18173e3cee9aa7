#!/usr/bin/env bash
# Checks the vLLM connector against a release of vLLM that is not installed, by the source in its
# wheel: every hook, attribute and configuration field that the connector uses
# (tests/python/test_vllm_interface.py). A wheel for GPUs can be checked on any machine. Needs the
# environment of python_env.sh.
#
#   scripts/vllm_interface.sh [PACKAGE==VERSION | WHEEL]     default: vllm, the newest one
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:-vllm}
environment=$PWD/build/python-env
[ -x "$environment/bin/python" ] || {
  echo "vllm_interface.sh: no $environment: make it with scripts/python_env.sh" >&2
  exit 1
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ ! -f "$wanted" ]; then
  "$environment/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$folder/wheel" "$wanted" >&2
  wanted=$(echo "$folder"/wheel/*.whl)
fi
release=$(basename "$wanted" | cut -d- -f1-2)
python3 - "$wanted" "$folder/$release" <<'PYTHON'
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.endswith(".py")])
PYTHON
echo "checking the connector against $release" >&2
cd tests/python
KVM_VLLM_SOURCE=$folder/$release PYTHONDONTWRITEBYTECODE=1 "$environment/bin/python" -m pytest -q -p no:cacheprovider test_vllm_interface.py
