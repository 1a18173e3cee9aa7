#!/usr/bin/env bash
# Programs of another architecture, run by an emulator: kvmd serves two workers of kvctl, every byte
# that they import is compared, and kvctl shows them. kvmd-mesh takes the configuration that is
# shipped.
#
#   arm64_kvctl.sh BIN
set -euo pipefail
bin=$(realpath "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
export KVMD_SOCKET=$work/kvmd.sock
kvmd_pid=""
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  [ -z "$kvmd_pid" ] || { kill "$kvmd_pid" 2>/dev/null && wait "$kvmd_pid"; }
  rm -rf "$work"
}
trap cleanup EXIT
for program in kvmd kvctl kvmd-mesh; do
  readelf --file-header "$bin/$program" | grep -q 'Machine:.*AArch64'
  "$bin/$program" --version | head -n 1
done
"$bin/kvmd-mesh" --config systemd/kvmd-mesh.toml --check-config

"$bin/kvmd" --socket "$KVMD_SOCKET" --host-cache 64M --log-level warn </dev/null 2>"$work/kvmd.log" &
kvmd_pid=$!
for _ in $(seq 600); do
  "$bin/kvctl" status >/dev/null 2>&1 && break
  kill -0 "$kvmd_pid" 2>/dev/null || break
  sleep 0.1
done
"$bin/kvctl" status || {
  cat "$work/kvmd.log" >&2
  exit 1
}
"$bin/kvctl" replay --backend host --workload chat --requests 500 --workers 2 --pool-blocks 1000 --block-bytes 4096 --json >"$work/replay.json"
python3 -c '
import json, sys
said = json.load(sys.stdin)
print("{blocks_imported} blocks imported, {mismatched_blocks} wrong".format(**said))
sys.exit(said["mismatched_blocks"] != 0 or said["blocks_imported"] == 0)' <"$work/replay.json"
"$bin/kvctl" doctor
kill "$kvmd_pid"
wait "$kvmd_pid" # it has to end with 0
kvmd_pid=""
