#!/usr/bin/env bash
# Style (ruff) of all Python code, types (mypy --strict) of the installed package and of
# tests/monitoring, and, where there is a clang-tidy, what it finds in the extension module's
# sources.
#
#   check.sh ENVIRONMENT       a folder with bin/ruff, bin/mypy and the package
set -euo pipefail
environment=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
settings=$root/client/python/pyproject.toml
folders=("$root/client" "$root/scripts" "$root/systemd" "$root/tests")
"$environment/bin/ruff" check --no-cache --quiet --config "$settings" "${folders[@]}"
"$environment/bin/ruff" format --no-cache --quiet --check --config "$settings" "${folders[@]}"
tidy=$(command -v clang-tidy-22 || command -v clang-tidy || true)
nanobind=$(echo "$environment"/lib/python3*/site-packages/nanobind)
if [ -n "$tidy" ] && [ -d "$nanobind" ]; then
  # All at once: most of the time goes into nanobind's headers. (Operators are bound by nb::self ==
  # nb::self.)
  together=$(mktemp --suffix=.cc)
  trap 'rm -f "$together"' EXIT
  printf '#include "%s"\n' "$root"/client/python/src/*.cc >"$together"
  python=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  "$tidy" --config-file="$root/.clang-tidy" --quiet --header-filter='/client/python/src/' \
    --checks=-bugprone-suspicious-include,-misc-redundant-expression --extra-arg=-Wno-unknown-warning-option "$together" -- \
    -std=c++20 -I"$root" -I"$root/proto/include" -I"$root/client/include" -I"$root/cuda/include" \
    -isystem "$nanobind/include" -isystem "$nanobind/ext/robin_map/include" -isystem "$python" 2>/dev/null
  rm -f "$together"
fi
# Programs that only these tests have.
(cd "$root/tests/monitoring" && "$environment/bin/mypy" --strict --python-version 3.11 --cache-dir "$environment/mypy-cache" ./*.py)
cd "$environment" # not the source tree: the stub of the extension is where it is installed
exec bin/mypy --config-file "$settings" --cache-dir "$environment/mypy-cache"
