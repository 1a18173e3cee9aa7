#!/usr/bin/env bash
# Programs of another architecture, run by an emulator (emulated.sh): a kvmd, and a worker whose
# prompt's blocks are found, imported and compared, byte by byte.
#
#   arm64.sh BIN
set -euo pipefail
bin=$(realpath "$1")
work=$(mktemp -d)
pids=()
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null && wait "$pid"
  done
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "$*; kvmd said:" >&2
  cat "$work/kvmd.log" >&2
  exit 1
}
for program in kvmd package_worker; do
  readelf --file-header "$bin/$program" | grep -q 'Machine:.*AArch64'
done
"$bin/kvmd" --version

"$bin/kvmd" --socket "$work/kvmd.sock" --host-cache 64M </dev/null 2>"$work/kvmd.log" &
kvmd=$!
pids=("$kvmd")
for _ in $(seq 1200); do
  [ -S "$work/kvmd.sock" ] && break
  kill -0 "$kvmd" 2>/dev/null || fail "kvmd did not start"
  sleep 0.1
done

mkfifo "$work/asked" "$work/answered"
"$bin/package_worker" "$work/kvmd.sock" <"$work/asked" >"$work/answered" &
worker=$!
pids+=("$worker")
exec 3>"$work/asked" 4<"$work/answered"
read -r -t 120 said <&4 || fail "the worker published nothing"
[ "$said" = ok ] || fail "the worker: $said"
echo >&3
read -r -t 120 said <&4 || fail "the worker found nothing"
echo "blocks found, and imported as they were published: $said"
[ "$said" = "8 8" ] || fail "not all of 8"

# Both have to end with 0.
exec 3>&-
wait "$worker" || fail "the worker ended with $?"
kill "$kvmd"
wait "$kvmd" || fail "kvmd ended with $?"
pids=()
