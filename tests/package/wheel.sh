#!/usr/bin/env bash
# Makes the Python wheel of this tree with each interpreter that is here and new enough, and runs
# wheel.py on it.
#
#   wheel.sh SOURCE_DIR PYTHON
set -euo pipefail
python=$2
cd "$1"
builder=()
bare=()
for candidate in python3.12 python3.13 python3.14 "$python"; do
  path=$(command -v "$candidate") || continue
  "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || continue
  [ ${#builder[@]} -gt 0 ] || builder=(--python "$path")
  bare+=("$path")
done
# Debian 12's own is older, and gets a wheel of its own.
if "$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null; then
  builder+=(--python "$python")
  bare+=("$python")
fi
[ ${#bare[@]} -gt 0 ] || {
  echo "SKIPPED: no Python of 3.10 or later with venv here"
  exit 77
}
rm -rf build/wheels
scripts/wheel.sh --out build/wheels "${builder[@]}"
exec "$python" tests/package/wheel.py --wheels build/wheels --python "${bare[@]}"
