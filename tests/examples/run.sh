#!/usr/bin/env bash
# Runs one of client/examples on a kvmd of its own, and compares its output. If the example can't
# run on this machine, the test is skipped.
#
#   run.sh KVMD EXAMPLE [EXPECTED_FILE]      without a file: the example's exit code decides
set -euo pipefail
kvmd=$1
example=$2
expected=${3:-}
work=$(mktemp -d)
kvmd_pid=""
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  [ -n "$kvmd_pid" ] && kill "$kvmd_pid" 2>/dev/null && wait "$kvmd_pid"
  rm -rf "$work"
}
trap cleanup EXIT

"$kvmd" --socket "$work/kvmd.sock" --host-cache 64M --log-level warn </dev/null &
kvmd_pid=$!
for _ in $(seq 200); do
  [ -S "$work/kvmd.sock" ] && break
  sleep 0.05
done
"$example" "$work/kvmd.sock" >"$work/output"
cat "$work/output"
if grep -q '^skipped: ' "$work/output"; then
  exit 77
fi
[ -z "$expected" ] || diff "$expected" "$work/output"
kill "$kvmd_pid"
wait "$kvmd_pid" # it has to end with 0
kvmd_pid=""
