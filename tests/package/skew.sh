#!/usr/bin/env bash
# kvmd of the version before with workers of this one, the other way round, and an upgrade and a
# downgrade of kvmd under live workers. What is required depends on what both say of themselves:
# with equal versions of protocol and layouts, everything works; else each refuses the other.
#
#   skew.sh SOURCE_DIR KVMD KVCTL
#
# The version before is built from this repository's history, once. 77: it can't run here; the
# reason is said.
set -euo pipefail
source=$1
kvmd=$(realpath "$2")
kvctl=$(realpath "$3")
cd "$source"
old=$(tests/package/version_before.sh .) || exit "$?"
old_kvmd=$old/installed/bin/kvmd
old_kvctl=$old/installed/bin/kvctl

# versions FOLDER: what two processes must agree on.
versions() {
  grep -rhoE 'constexpr std::uint32_t k(Protocol|Layout|GenerationLayout)Version = [0-9]+' "$1/proto" | sort
}
agree=no
[ "$(versions .)" = "$(versions "$old")" ] && agree=yes
echo "$("$old_kvctl" --version) and $("$kvctl" --version): the same versions of protocol and layouts: $agree"

work=$(mktemp -d)
export KVMD_SOCKET=$work/kvmd.sock
kvmd_pid=""
replay_pid=""
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  for pid in $replay_pid $kvmd_pid; do
    kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
  done
  rm -rf "$work"
}
trap cleanup EXIT

# start KVMD: on the socket; one that runs there ends first, as an upgrade without systemd does it.
start() {
  if [ -n "$kvmd_pid" ]; then
    kill "$kvmd_pid"
    wait "$kvmd_pid"
  fi
  "$1" --socket "$KVMD_SOCKET" --log-level warn </dev/null 2>>"$work/kvmd.log" &
  kvmd_pid=$!
  for _ in $(seq 1200); do
    "$2" status >/dev/null 2>&1 && return
    sleep 0.05
  done
  echo "$1 does not answer: $(tail -n 5 "$work/kvmd.log")" >&2
  exit 1
}

# replayed KVCTL REQUESTS: workers of this version share, and every byte is compared.
replayed() {
  "$1" replay --backend host --workload chat --requests "$2" --workers 2 --pool-blocks 2000 --block-bytes 4096 --json
}

# right FILE: nothing was wrong, and blocks were imported.
right() {
  python3 -c '
import json, sys
said = json.load(sys.stdin)
print("  {blocks_imported} blocks imported, {mismatched_blocks} wrong".format(**said))
sys.exit(said["mismatched_blocks"] != 0 or said["blocks_imported"] == 0)' <"$1"
}

for pair in "$old_kvmd $kvctl" "$kvmd $old_kvctl"; do
  read -r server client <<<"$pair"
  echo "kvmd of $("$server" --version | head -n 1), workers of $("$client" --version | head -n 1)"
  start "$server" "$([ "$server" = "$kvmd" ] && echo "$kvctl" || echo "$old_kvctl")"
  if [ "$agree" = yes ]; then
    "$client" status >/dev/null
    replayed "$client" 2000 >"$work/replay.json"
    right "$work/replay.json"
  elif replayed "$client" 100 >"$work/replay.json" 2>"$work/error"; then
    echo "workers of another version were taken" >&2
    exit 1
  else
    grep -q "protocol version\|layout version" "$work/error" "$work/kvmd.log"
  fi
done
[ "$agree" = yes ] || exit 0

for order in "$old_kvmd $kvmd $old_kvctl" "$kvmd $old_kvmd $kvctl"; do
  read -r before after client <<<"$order"
  echo "kvmd of $("$before" --version | head -n 1) is replaced under live workers of $("$client" --version | head -n 1)"
  start "$before" "$client"
  replayed "$client" 60000 >"$work/replay.json" 2>"$work/error" &
  replay_pid=$!
  for _ in $(seq 1200); do
    "$client" regions --json 2>/dev/null | grep -q '"live"' && break
    sleep 0.05
  done
  start "$after" "$client"
  wait "$replay_pid" || {
    cat "$work/error" >&2
    exit 1
  }
  replay_pid=""
  right "$work/replay.json"
done
