#!/usr/bin/env bash
# From nothing to a result: installs what is missing, builds kvmd and kvctl, starts a kvmd, replays a
# generated chat workload over four worker processes and shows what an operator sees meanwhile.
# Leaves nothing behind but build/.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_deps.sh
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
echo "building kvmd and kvctl (build/release)"
cmake --preset release "${launcher[@]}" >/dev/null
cmake --build --preset release --target kvmd kvctl --parallel "$(nproc)" >/dev/null
bin=build/release/bin

work=$(mktemp -d)
kvmd_pid=""
replay_pid=""
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  [ -n "$replay_pid" ] && kill "$replay_pid" 2>/dev/null
  [ -n "$kvmd_pid" ] && kill "$kvmd_pid" 2>/dev/null && wait "$kvmd_pid" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

export KVMD_SOCKET=$work/kvmd.sock
"$bin/kvmd" --socket "$KVMD_SOCKET" --log-level warn 2>"$work/kvmd.log" &
kvmd_pid=$!
for _ in $(seq 100); do
  "$bin/kvctl" status >/dev/null 2>&1 && break
  kill -0 "$kvmd_pid" 2>/dev/null || {
    echo "quickstart.sh: kvmd did not start: $(cat "$work/kvmd.log")" >&2
    exit 1
  }
  sleep 0.05
done

show() {
  printf '\n$ kvctl %s\n' "$*"
  "$bin/kvctl" "$@"
}

replay=(replay --workload chat --requests 40000 --workers 4 --pool-blocks 4000 --block-bytes 16384)
"$bin/kvctl" "${replay[@]}" >"$work/replay.txt" &
replay_pid=$!
# The views are worth looking at while the workers are there.
for _ in $(seq 100); do
  entries=$("$bin/kvctl" status --json | sed -n 's/.*"entries":\([0-9]*\).*/\1/p')
  [ "${entries:-0}" -gt 1000 ] && break
  sleep 0.02
done
sleep 0.6 # workers report their counters four times a second
show status
show clients
show regions

printf '\n$ kvctl %s\n' "${replay[*]}"
status=0
wait "$replay_pid" || status=$?
replay_pid=""
cat "$work/replay.txt"
exit "$status"
