#!/usr/bin/env bash
# Installs missing packages, builds kvmd and kvctl, starts a kvmd, replays a generated chat workload
# over four worker processes, on GPUs if there are any, and shows what an operator sees meanwhile.
# It stops the processes that it started, also when it fails or is interrupted, and leaves only
# build/ behind.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
kvmd_pid=""
replay_pid=""

# shellcheck disable=SC2317 # called by the trap
cleanup() {
  local pid
  for pid in $replay_pid $kvmd_pid; do
    kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
  done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  echo "quickstart.sh: $*" >&2
  exit 1
}

scripts/install_deps.sh --required || fail "packages are missing and could not be installed (see above)"
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
echo "building kvmd and kvctl in build/release (the first time takes minutes)"
cmake --preset release -DKVM_UNITY=ON "${launcher[@]}" >"$work/build.log" || fail "configuring failed: $(tail -n 20 "$work/build.log")"
if [ -t 1 ]; then # ninja's progress is one line on a terminal
  cmake --build --preset release --target kvmd kvctl --parallel "$(nproc)" || fail "the build failed (see above)"
else
  cmake --build --preset release --target kvmd kvctl --parallel "$(nproc)" >"$work/build.log" 2>&1 ||
    fail "the build failed: $(tail -n 40 "$work/build.log")"
fi
bin=build/release/bin

export KVMD_SOCKET=$work/kvmd.sock
"$bin/kvmd" --socket "$KVMD_SOCKET" --log-level warn </dev/null 2>"$work/kvmd.log" &
kvmd_pid=$!
for _ in $(seq 200); do
  [ -S "$KVMD_SOCKET" ] && "$bin/kvctl" status >/dev/null 2>&1 && break
  kill -0 "$kvmd_pid" 2>/dev/null || fail "kvmd did not start: $(cat "$work/kvmd.log")"
  sleep 0.05
done
"$bin/kvctl" status >/dev/null || fail "kvmd does not answer: $(cat "$work/kvmd.log")"

show() {
  printf '\n$ kvctl %s\n' "$*"
  "$bin/kvctl" "$@"
}

show topo

replay=(replay --workload chat --requests 20000 --workers 4 --pool-blocks 4000 --block-bytes 16384)
"$bin/kvctl" "${replay[@]}" </dev/null >"$work/replay.txt" &
replay_pid=$!
# The views show workers only while these are connected.
for _ in $(seq 200); do
  entries=$("$bin/kvctl" status --json | sed -n 's/.*"entries":\([0-9]*\).*/\1/p') || entries=0
  [ "${entries:-0}" -gt 1000 ] && break
  kill -0 "$replay_pid" 2>/dev/null || break
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
[ "$status" -eq 0 ] || fail "the replay ended with status $status (kvmd said: $(cat "$work/kvmd.log"))"
printf '\nThe workers kept their blocks in: %s\n' "$(sed -n 's/^backend  *//p' "$work/replay.txt")"
