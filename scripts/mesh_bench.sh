#!/usr/bin/env bash
# Measures how fast blocks of one node reach another one, over TCP and over UCX's own TCP in turns:
# two kvmd, two kvmd-mesh, and `kvm_bench mesh`. On the loopback, or, with --namespaces and as root,
# in two network namespaces with a veth pair between them. Where ucx_perftest and python3 are, what
# UCX and one TCP stream do by themselves is measured in the same turns.
#
# --baselines PYTHON: also what Redis, NIXL and Mooncake's store take for the same blocks, those of
# them that are there (tests/bench/mesh_baselines.py, run by this Python).
#
# --congestion NAME, with --namespaces: TCP's congestion control of all that is measured; else the
# system's, except that kvmd-mesh's own TCP does not use BBR.
#
# --delays: instead, what a join takes that brings nothing, and when a node finds what another one
# has published.
#
#   scripts/mesh_bench.sh [--namespaces [--congestion NAME]] [--runs N] [--block-bytes SIZE]
#                         [--blocks N] [--baselines PYTHON] [--delays] [BUILD_DIR]
#
# Default: 3 runs, 64 blocks of 2 MiB, build/dev.
set -euo pipefail
cd "$(dirname "$0")/.."
namespaces=no
runs=3
block_bytes=2MiB
blocks=64
python=
congestion=
delays=no
while [ $# -gt 0 ]; do
  case "$1" in
    --namespaces) namespaces=yes && shift ;;
    --runs) runs=$2 && shift 2 ;;
    --block-bytes) block_bytes=$2 && shift 2 ;;
    --blocks) blocks=$2 && shift 2 ;;
    --baselines) python=$2 && shift 2 ;;
    --congestion) congestion=$2 && shift 2 ;;
    --delays) delays=yes && shift ;;
    -h | --help)
      sed -n '2,20s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) break ;;
  esac
done
build=${1:-build/dev}
work=$(mktemp -d)
started=()
names=("kvmb$$a" "kvmb$$b")
stop_started() {
  [ "${#started[@]}" -eq 0 ] || kill -KILL "${started[@]}" 2>/dev/null || true
  [ "${#started[@]}" -eq 0 ] || wait "${started[@]}" 2>/dev/null || true
  started=()
}
clean_up() {
  stop_started
  if [ "$namespaces" = yes ]; then
    for name in "${names[@]}"; do ip netns delete "$name" 2>/dev/null || true; done
  fi
  rm -rf --one-file-system "$work"
}
trap clean_up EXIT

in_a=() in_b=()
device=lo
address_a=127.0.0.1 address_b=127.0.0.1
allowed=()
if [ "$namespaces" = yes ]; then
  for name in "${names[@]}"; do ip netns add "$name"; done
  ip link add veth0 netns "${names[0]}" type veth peer name veth0 netns "${names[1]}"
  address_a=192.0.2.1 address_b=192.0.2.2
  ip -n "${names[0]}" address add "$address_a/24" dev veth0
  ip -n "${names[1]}" address add "$address_b/24" dev veth0
  for name in "${names[@]}"; do ip -n "$name" link set veth0 up && ip -n "$name" link set lo up; done
  # The /sys of `ip netns exec` lacks the control groups, which kvmd's clients read.
  # shellcheck disable=SC2016 # for the shell in there
  groups='awk "\$2 ~ /^.sys.fs.cgroup/ {print \$3, \$2, \$4}" /proc/1/mounts |
    while read -r type at options; do mkdir -p "$at" && mount -t "$type" -o "$options" "$type" "$at"; done; exec "$@"'
  in_a=(ip netns exec "${names[0]}" bash -c "$groups" bash)
  in_b=(ip netns exec "${names[1]}" bash -c "$groups" bash)
  device=veth0
  allowed=(--allow-unencrypted)
  for name in "${names[@]}"; do
    [ -z "$congestion" ] || ip netns exec "$name" sysctl -qw "net.ipv4.tcp_congestion_control=$congestion"
  done
  until ip -n "${names[0]}" link show veth0 | grep -q 'state UP'; do sleep 0.1; done
fi

wait_for_socket() {
  until [ -S "$1" ]; do sleep 0.05; done
}

# mesh_ticks: processor time of both kvmd-mesh, the last two processes that were started.
mesh_ticks() {
  cat "/proc/${started[-1]}/stat" "/proc/${started[-2]}/stat" | awk '{sum += $14 + $15} END {print sum}'
}

# start_nodes TRANSFER [UCX_RNDV_SCHEME]: nodes a and b, which are each other's peer.
start_nodes() {
  export UCX_TLS=tcp,self UCX_NET_DEVICES=$device UCX_RNDV_SCHEME=${2:-get_zcopy}
  for node in a b; do
    mkdir "$work/$node"
    "$build/bin/kvmd" --socket "$work/$node/kvmd.sock" >"$work/$node/kvmd.log" 2>&1 &
    started+=($!)
  done
  "${in_a[@]}" "$build/bin/kvmd-mesh" --node a --socket "$work/a/kvmd.sock" --mesh-socket "$work/a/mesh.sock" --listen "$address_a:7600" \
    --peers "b=$address_b:7601" --transfer "$1" --pool-size 512M "${allowed[@]}" >"$work/a/mesh.log" 2>&1 &
  started+=($!)
  "${in_b[@]}" "$build/bin/kvmd-mesh" --node b --socket "$work/b/kvmd.sock" --mesh-socket "$work/b/mesh.sock" --listen "$address_b:7601" \
    --peers "a=$address_a:7600" --transfer "$1" --pool-size 512M "${allowed[@]}" >"$work/b/mesh.log" 2>&1 &
  started+=($!)
  for socket in a/kvmd.sock b/kvmd.sock a/mesh.sock b/mesh.sock; do wait_for_socket "$work/$socket"; done
}

stop_nodes() {
  stop_started
  rm -rf --one-file-system "$work/a" "$work/b"
}

# measure TRANSFER [UCX_RNDV_SCHEME]: one run of kvm_bench mesh between two new nodes.
measure() {
  start_nodes "$@"
  local before
  before=$(mesh_ticks)
  printf '%s %s: ' "$1" "${2:-}"
  "$build/bin/kvm_bench" mesh --socket "$work/b/kvmd.sock" --source-socket "$work/a/kvmd.sock" --mesh-socket "$work/b/mesh.sock" \
    --block-bytes "$block_bytes" --blocks "$blocks" --rounds 10
  awk -v ticks="$(($(mesh_ticks) - before))" -v hz="$(getconf CLK_TCK)" -v bytes="$((11 * blocks * $(numfmt --from=auto "${block_bytes%B}")))" \
    'BEGIN {printf "  both kvmd-mesh: %.2f s of a core a GB\n", ticks / hz / (bytes / 1e9)}'
  "$build/bin/kvctl" mesh status --json --mesh-socket "$work/b/mesh.sock" | grep -o '"ucx_received_bytes":[0-9]*'
  stop_nodes
}

measure_delays() {
  start_nodes tcp
  "$build/bin/kvm_bench" mesh-delays --socket "$work/b/kvmd.sock" --source-socket "$work/a/kvmd.sock" --mesh-socket "$work/b/mesh.sock"
  stop_nodes
}

# UCX by itself: active messages, waiting for events as kvmd-mesh does.
measure_ucx() {
  command -v ucx_perftest >/dev/null || return 0
  local bytes
  bytes=$(numfmt --from=auto "${block_bytes%B}")
  UCX_TLS=tcp,self UCX_NET_DEVICES=$device "${in_a[@]}" ucx_perftest -E sleep -p 7610 >"$work/ucx.log" 2>&1 &
  started+=($!)
  sleep 0.5
  printf 'ucp_am_bw: '
  UCX_TLS=tcp,self UCX_NET_DEVICES=$device "${in_b[@]}" ucx_perftest "$address_a" -p 7610 -t ucp_am_bw -E sleep -s "$bytes" -n 1000 -f 2>/dev/null |
    awk '/^ *Final:|^ *[0-9]+ / {line = $0} END {print line}' || echo failed
  stop_started
}

# measure_stream MEMORY [CONGESTION]: one TCP stream by itself, with this congestion control or the
# system's. MEMORY `cached`: the same 2 MiB again and again at both ends; `blocks`: as many bytes as
# a join has at the source, and kvmd-mesh's pool of 512 MiB at the other end.
measure_stream() {
  local source_bytes=$((1 << 21)) pool_bytes=$((1 << 21))
  if [ "$1" = blocks ]; then
    source_bytes=$((blocks * $(numfmt --from=auto "${block_bytes%B}"))) pool_bytes=$((512 << 20))
  fi
  "${in_a[@]}" python3 -c '
import socket, sys, time
with socket.create_server((sys.argv[1], 7611)) as server:
    pool, at = memoryview(bytearray(b"x") * int(sys.argv[2])), 0
    peer = server.accept()[0]
    begin = time.process_time()
    while got := peer.recv_into(pool[at:at + (1 << 21)]): at = (at + got) % len(pool)
    peer.sendall(b"%20.6f" % (time.process_time() - begin))' "$address_a" "$pool_bytes" &
  started+=($!)
  sleep 2
  "${in_b[@]}" python3 -c '
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 7611))
if len(sys.argv) > 4: peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[4].encode())
name = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
source, size = memoryview(bytearray(b"x") * int(sys.argv[3])), 1 << 21
begin, core = time.monotonic(), time.process_time()
for i in range(1000):
    at = i * size % len(source)
    peer.sendall(source[at:at + size])
peer.shutdown(socket.SHUT_WR)
core = time.process_time() - core + float(peer.recv(20, socket.MSG_WAITALL))
gigabytes = 1000 * size / 1e9
print("one TCP stream, %s, %s: %.2f GB/s, %.2f s of a core a GB" %
      (sys.argv[2], name, gigabytes / (time.monotonic() - begin), core / gigabytes))' "$address_a" "$1" "$source_bytes" "${@:2}"
  stop_started
}

# measure_baseline NAME: one of tests/bench/mesh_baselines.py, node a the source.
measure_baseline() {
  local side=("$python" tests/bench/mesh_baselines.py)
  local options=("$1" "$address_a" --blocks "$blocks" --block-bytes "$(numfmt --from=auto "${block_bytes%B}")")
  export UCX_TLS=tcp,self UCX_NET_DEVICES=$device
  mkfifo "$work/end"
  "${in_a[@]}" "${side[@]}" source "${options[@]}" <"$work/end" >"$work/source.log" 2>&1 &
  started+=($!)
  exec 9>"$work/end"
  until grep -q '^ready' "$work/source.log"; do
    if ! kill -0 "${started[0]}" 2>/dev/null; then
      echo "$1: not measured: $(tail -n 1 "$work/source.log")"
      break
    fi
    sleep 0.1
  done
  if grep -q '^ready' "$work/source.log"; then
    "${in_b[@]}" "${side[@]}" fetch "${options[@]}" --own-address "$address_b" 2>"$work/fetch.log" | grep "^$1: " ||
      echo "$1: failed: $(tail -n 1 "$work/fetch.log")"
  fi
  exec 9>&- # the source ends what it has started
  wait "${started[0]}" || true
  started=()
  rm "$work/end"
}

echo "load before: $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) cores, $device, blocks of $block_bytes"
for _ in $(seq "$runs"); do
  if [ "$delays" = yes ]; then
    measure_delays
    continue
  fi
  measure tcp
  measure ucx get_zcopy
  measure ucx put_zcopy
  for memory in cached blocks; do
    measure_stream "$memory"
    if [[ -z $congestion && $(sysctl -n net.ipv4.tcp_congestion_control) == bbr* ]]; then measure_stream "$memory" reno; fi
  done
  measure_ucx
  [ -z "$python" ] || for name in redis nixl mooncake; do measure_baseline "$name"; done
done
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)"
