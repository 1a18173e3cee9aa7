#!/usr/bin/env bash
# Three nodes on this machine, each a kvmd with a host cache and a kvmd-mesh with a disk, and six
# workers, two for each node, that serve a chat workload in turns. Prints where the blocks of the
# prompts came from, and the time to the first token (modelled), without the mesh, with it, and once
# more after every process of every node was restarted, so that only the disks have the blocks.
#
# --faults SECONDS: instead, for so long, replays whose nodes' kvmd-mesh are killed and started
# again, stand still, and lose their links (as root) meanwhile, at random. Prints how many blocks
# were fetched from other nodes and disks, and how many of all were wrong; fails if one was.
#
# As root each kvmd-mesh has a network namespace of its own, joined by a bridge; otherwise, and with
# --loopback, they listen on the loopback.
#
#   scripts/mesh_demo.sh [--loopback] [--requests N] [--faults SECONDS] [BUILD_DIR]
#
# Default: 300 requests, build/release, which it builds if it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."
namespaces=yes
requests=300
faults=0
while [ $# -gt 0 ]; do
  case "$1" in
    --loopback) namespaces=no && shift ;;
    --requests) requests=$2 && shift 2 ;;
    --faults) faults=$2 && shift 2 ;;
    -h | --help)
      sed -n '2,17s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) break ;;
  esac
done
build=${1:-build/release}
if ! [ -x "$build/bin/kvmd-mesh" ]; then
  [ "$build" = build/release ] || { echo "$build/bin/kvmd-mesh is not there" >&2 && exit 1; }
  cmake --preset release >/dev/null
  cmake --build --preset release --target kvmd kvctl kvmd-mesh >/dev/null
fi
bin=$(realpath "$build/bin")
[ "$(id -u)" -eq 0 ] || namespaces=no

nodes=(a b c)
work=$(mktemp -d)
started=()
stop_nodes() {
  [ "${#started[@]}" -eq 0 ] || kill -TERM "${started[@]}" 2>/dev/null || true
  [ "${#started[@]}" -eq 0 ] || wait "${started[@]}" 2>/dev/null || true
  started=()
}
clean_up() {
  stop_nodes
  if [ "$namespaces" = yes ]; then
    for node in hub "${nodes[@]}"; do ip netns delete "kvmd$$$node" 2>/dev/null || true; done
  fi
  rm -rf --one-file-system "$work"
}
trap clean_up EXIT

declare -A address inside
allowed=()
if [ "$namespaces" = yes ]; then
  allowed=(--allow-unencrypted)
  ip netns add "kvmd$$hub"
  ip -n "kvmd$$hub" link add bridge0 type bridge
  ip -n "kvmd$$hub" link set bridge0 up
fi
for i in "${!nodes[@]}"; do
  node=${nodes[$i]}
  mkdir -p "$work/$node"
  if [ "$namespaces" = yes ]; then
    ip netns add "kvmd$$$node"
    ip link add "to$node" netns "kvmd$$hub" type veth peer name veth0 netns "kvmd$$$node"
    ip -n "kvmd$$hub" link set "to$node" master bridge0 up
    ip -n "kvmd$$$node" address add "192.0.2.$((i + 1))/24" dev veth0
    ip -n "kvmd$$$node" link set veth0 up
    address[$node]=192.0.2.$((i + 1)):7600
    # Not `ip netns exec`, whose /sys hides the control groups that kvmd reads.
    inside[$node]="nsenter --net=/run/netns/kvmd$$$node"
  else
    address[$node]=127.0.0.1:$((7600 + i))
    inside[$node]=
  fi
done

# wait_for_socket SOCKET LOG: until the process that was started last listens.
wait_for_socket() {
  until [ -S "$1" ]; do
    kill -0 "${started[-1]}" 2>/dev/null || { tail -n 5 "$2" >&2 && exit 1; }
    sleep 0.05
  done
}

start_nodes() {
  local node
  for node in "${nodes[@]}"; do
    rm -f "$work/$node"/*.sock
    "$bin/kvmd" --socket "$work/$node/kvmd.sock" --host-cache 256M --host-cache-admission publish >>"$work/$node/kvmd.log" 2>&1 &
    started+=($!)
    wait_for_socket "$work/$node/kvmd.sock" "$work/$node/kvmd.log"
  done
  for node in "${nodes[@]}"; do start_mesh "$node"; done
}

# start_mesh NODE: its kvmd-mesh, whose process is ${mesh[NODE]} then.
declare -A mesh
start_mesh() {
  local node=$1 other peers=()
  for other in "${nodes[@]}"; do [ "$other" = "$node" ] || peers+=(--peers "$other=${address[$other]}"); done
  # shellcheck disable=SC2086 # a command and its option, or nothing
  ${inside[$node]} "$bin/kvmd-mesh" --node "$node" --socket "$work/$node/kvmd.sock" --mesh-socket "$work/$node/mesh.sock" \
    --listen "${address[$node]}" "${peers[@]}" --pull-interval-ms 100 "${allowed[@]}" \
    --disk-path "$work/$node/disk" --disk-bytes 1G --disk-write-rate 0 >>"$work/$node/mesh.log" 2>&1 &
  mesh[$node]=$!
  started+=("${mesh[$node]}")
  wait_for_socket "$work/$node/mesh.sock" "$work/$node/mesh.log"
}

# disk_reads: blocks that all nodes have read from their disks.
disk_reads() {
  for node in "${nodes[@]}"; do "$bin/kvctl" mesh status --json --mesh-socket "$work/$node/mesh.sock"; done |
    python3 -c 'import json, sys
text, total = sys.stdin.read(), 0
while text := text.lstrip():
    status, end = json.JSONDecoder().raw_decode(text)
    total += status["disk"]["read_blocks"]
    text = text[end:]
print(total)'
}

# replay NAME mesh|alone MODEL: one line of the table.
replay() {
  local node given=()
  for node in "${nodes[@]}"; do
    if [ "$2" = mesh ]; then
      given+=(--node "$work/$node/kvmd.sock,$work/$node/mesh.sock")
    else
      given+=(--node "$work/$node/kvmd.sock")
    fi
  done
  "$bin/kvctl" replay --json "${given[@]}" --model-id "$3" --workload chat --requests "$requests" --workers 6 --pool-blocks 300 \
    --block-bytes 65536 --backend host --prefill-takes-time >"$work/report.json"
  python3 - "$1" "$(disk_reads)" "$work/report.json" <<'PYTHON'
import json, sys
name, disk = sys.argv[1], int(sys.argv[2])
report = json.load(open(sys.argv[3]))
total, joined = report["blocks_total"], report["blocks_joined"]
parts = report["blocks_local"], report["blocks_imported"] - joined, joined - disk, disk
shares = "".join(f"{part / total:>8.1%}" for part in (sum(parts), *parts))
print(f"{name:<30}{shares}{report['ttft_ms']['p50']:>10.1f} ms{report['ttft_ms']['p99']:>8.1f} ms{report['mismatched_blocks']:>8}")
PYTHON
}

# One fault at a random node, which has passed when this returns.
make_fault() {
  local node=${nodes[RANDOM % 3]}
  case $((RANDOM % 3)) in
    0)
      kill -KILL "${mesh[$node]}"
      wait "${mesh[$node]}" 2>/dev/null || true
      rm -f "$work/$node/mesh.sock"
      start_mesh "$node"
      kills=$((kills + 1))
      ;;
    1)
      kill -STOP "${mesh[$node]}"
      sleep 0.$((RANDOM % 9))
      kill -CONT "${mesh[$node]}"
      stops=$((stops + 1))
      ;;
    2)
      [ "$namespaces" = yes ] || return 0
      ip -n "kvmd$$hub" link set "to$node" down
      sleep 0.$((RANDOM % 9))
      ip -n "kvmd$$hub" link set "to$node" up
      downs=$((downs + 1))
      ;;
  esac
}

run_with_faults() {
  local kills=0 stops=0 downs=0 round=0 replays=0 joined=0 blocks=0 wrong=0 given=() node report one
  for node in "${nodes[@]}"; do given+=(--node "$work/$node/kvmd.sock,$work/$node/mesh.sock"); done
  start_nodes
  SECONDS=0
  while [ "$SECONDS" -lt "$faults" ]; do
    round=$((round + 1))
    "$bin/kvctl" replay --json "${given[@]}" --model-id "demo-$((round / 10))" --seed "$round" --workload rag --requests 2000 \
      --workers 6 --pool-blocks 300 --block-bytes 16384 --backend host >"$work/report.json" &
    report=$!
    while kill -0 "$report" 2>/dev/null; do
      sleep 0.$((RANDOM % 5))
      make_fault
    done
    wait "$report" || { echo "a replay has failed" >&2 && exit 1; }
    one=$(python3 -c 'import json, sys
report = json.load(open(sys.argv[1]))
print(report["blocks_joined"], report["blocks_total"], report["mismatched_blocks"])' "$work/report.json")
    read -r -a one <<<"$one"
    replays=$((replays + 1)) joined=$((joined + one[0])) blocks=$((blocks + one[1])) wrong=$((wrong + one[2]))
  done
  echo "$replays replays of rag in $SECONDS s; kvmd-mesh killed $kills times, stopped $stops times; $downs times a link down"
  echo "$blocks blocks, $joined of them fetched from other nodes and disks: $wrong wrong"
  [ "$wrong" -eq 0 ] || exit 1
}

if [ "$faults" -gt 0 ]; then
  run_with_faults
  exit 0
fi

where="in three network namespaces"
[ "$namespaces" = yes ] || where="on the loopback"
echo "three nodes $where, six workers, chat workload of $requests requests, round-robin"
printf '%-30s%8s%8s%8s%8s%8s%13s%11s%8s\n' "" hit local node mesh disk "first token" p99 wrong
start_nodes
replay "without kvmd-mesh" alone demo-alone
stop_nodes
rm -rf --one-file-system "$work"/[abc]/disk
start_nodes
replay "with kvmd-mesh" mesh demo-mesh
sleep 3 # the disks take what the host caches have
stop_nodes
start_nodes
replay "… after all were restarted" mesh demo-mesh
