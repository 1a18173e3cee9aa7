#!/usr/bin/env bash
# Installs the build into a scratch prefix and builds the outside program against it, once with CMake's
# find_package and once with pkg-config.
#
#   run.sh BUILD_DIR CXX [CXX_FLAGS]
set -euo pipefail
build=$1
cxx=$2
flags=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

DESTDIR='' cmake --install "$build" --prefix "$work/prefix" >/dev/null
for file in bin/kvmd bin/kvctl include/kvclient/kvclient.h include/kvm/block_key.h lib/systemd/system/kvmd.service \
  lib/systemd/system/kvmd.socket lib/sysusers.d/kvmd.conf lib/tmpfiles.d/kvmd.conf etc/kvmd/kvmd.toml; do
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
"$cxx" -std=c++20 "${extra[@]}" "$here/outside.cc" "${pc[@]}" -o "$work/outside"
LD_LIBRARY_PATH=$(dirname "$(dirname "$package")") "$work/outside"
