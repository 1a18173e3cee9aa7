#!/usr/bin/env bash
# Style (ruff) and types (mypy --strict over the installed package) of the Python code.
#
#   check.sh ENVIRONMENT       a folder with bin/ruff, bin/mypy and the package
set -euo pipefail
environment=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
settings=$root/client/python/pyproject.toml
folders=("$root/client/python" "$root/tests/python")
"$environment/bin/ruff" check --no-cache --quiet --config "$settings" "${folders[@]}"
"$environment/bin/ruff" format --no-cache --quiet --check --config "$settings" "${folders[@]}"
cd "$environment" # not the source tree: the stub of the extension is where it is installed
exec bin/mypy --config-file "$settings" --cache-dir "$environment/mypy-cache"
