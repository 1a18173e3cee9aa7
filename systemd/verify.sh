#!/usr/bin/env bash
# Checks the configured unit files with systemd-analyze; skipped (77) where that is missing.
#
#   verify.sh BUILD_DIR KVMD KVCTL [KVMD_MESH]
set -euo pipefail
command -v systemd-analyze >/dev/null || {
  echo "SKIPPED: no systemd-analyze here"
  exit 77
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(cd "$(dirname "$0")" && pwd)
# The units name installed programs; verify them with the programs that were built.
sed -E "s|^ExecStart=[^ ]+|ExecStart=$2|" "$1/systemd/kvmd.service" >"$work/kvmd.service"
sed -E "s|^ExecStart=[^ ]+|ExecStart=$3|" "$1/systemd/kvmd-exporter.service" >"$work/kvmd-exporter.service"
if [ -n "${4:-}" ]; then
  sed -E "s|^ExecStart=[^ ]+|ExecStart=$4|" "$here/kvmd-mesh@.service" >"$work/kvmd-mesh@0.service"
  cp "$here/kvmd-mesh@.socket" "$work/kvmd-mesh@0.socket"
fi
cp "$here/kvmd.socket" "$here/kvmd-exporter.socket" "$work/"
output=$(SYSTEMD_UNIT_PATH="$work:" systemd-analyze verify --man=no "$work"/kvmd* 2>&1) || {
  echo "$output"
  exit 1
}
if grep -F "$work" <<<"$output"; then exit 1; fi
