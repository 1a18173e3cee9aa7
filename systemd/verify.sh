#!/usr/bin/env bash
# Checks the configured unit files with systemd-analyze; skipped (77) where that is missing.
#
#   verify.sh BUILD_DIR KVMD KVMD_MESH
set -euo pipefail
command -v systemd-analyze >/dev/null || {
  echo "SKIPPED: no systemd-analyze here"
  exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(cd "$(dirname "$0")" && pwd)
# The unit names an installed program; verify it with the program that was built.
sed -E "s|^ExecStart=[^ ]+|ExecStart=$2|" "$1/systemd/kvmd.service" >"$work/kvmd.service"
sed -E "s|^ExecStart=[^ ]+|ExecStart=$3|" "$here/kvmd-mesh@.service" >"$work/kvmd-mesh@0.service"
cp "$here/kvmd.socket" "$work/"
units=("$work/kvmd.service" "$work/kvmd.socket" "$work/kvmd-mesh@0.service")
output=$(SYSTEMD_UNIT_PATH="$work:" systemd-analyze verify --man=no "${units[@]}" 2>&1) || {
  echo "$output"
  exit 1
}
if grep -F "$work" <<<"$output"; then exit 1; fi
