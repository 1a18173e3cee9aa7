#!/usr/bin/env bash
# Installs the build into a scratch prefix and builds the outside program against it, once with
# CMake's find_package and once with pkg-config; then builds the README's example, and runs it on
# the kvmd that was installed.
#
#   run.sh BUILD_DIR CXX [CXX_FLAGS]
set -euo pipefail
build=$1
cxx=$2
flags=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
kvmd_pid=""
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  [ -n "$kvmd_pid" ] && kill "$kvmd_pid" 2>/dev/null && wait "$kvmd_pid"
  rm -rf "$work"
}
trap cleanup EXIT

DESTDIR='' cmake --install "$build" --prefix "$work/prefix" >/dev/null
for file in bin/kvmd bin/kvctl include/kvclient/kvclient.h include/kvm/block_key.h lib/systemd/system/kvmd.service \
  lib/systemd/system/kvmd.socket lib/systemd/system/kvmd-exporter.service lib/systemd/system/kvmd-exporter.socket lib/sysusers.d/kvmd.conf lib/tmpfiles.d/kvmd.conf etc/kvmd/kvmd.toml share/kvmd/monitoring/kvmd.rules.yml share/kvmd/deploy/compose.yaml share/kvmd/kvctl.schema.json; do
  [ -e "$work/prefix/$file" ] || {
    echo "not installed: $file" >&2
    exit 1
  }
done
"$work/prefix/bin/kvmd" --config "$work/prefix/etc/kvmd/kvmd.toml" --check-config

cmake -S "$here" -B "$work/cmake" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_CXX_FLAGS="$flags" >/dev/null
cmake --build "$work/cmake" >/dev/null
"$work/cmake/outside"

package=$(find "$work/prefix" -name kvclient.pc)
# The file names the prefix it was configured for; --define-prefix takes the one it lies in.
read -ra pc < <(PKG_CONFIG_PATH=$(dirname "$package") pkg-config --define-prefix --cflags --libs kvclient)
read -ra extra <<<"$flags"
build_with_pkg_config() {
  "$cxx" -std=c++20 -Wall -Wextra -Werror "${extra[@]}" "$1" "${pc[@]}" -o "$2"
}
LD_LIBRARY_PATH=$(dirname "$(dirname "$package")")
export LD_LIBRARY_PATH
build_with_pkg_config "$here/outside.cc" "$work/outside"
"$work/outside"

awk '/^```cpp$/ {inside = 1; next} /^```$/ {inside = 0} inside' "$here/../../README.md" >"$work/example.cc"
build_with_pkg_config "$work/example.cc" "$work/example"
"$work/prefix/bin/kvmd" --socket "$work/kvmd.sock" --log-level warn </dev/null &
kvmd_pid=$!
for _ in $(seq 200); do
  [ -S "$work/kvmd.sock" ] && break
  sleep 0.05
done
output=$("$work/example" "$work/kvmd.sock")
[ "$output" = "0 blocks reused, 5 computed, 5 found now" ] || {
  echo "the README's example said: $output" >&2
  exit 1
}
kill "$kvmd_pid"
wait "$kvmd_pid" # it has to end with 0
kvmd_pid=""
