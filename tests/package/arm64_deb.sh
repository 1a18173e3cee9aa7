#!/usr/bin/env bash
# Makes the Debian packages for 64-bit Arm by a cross compiler, checks them with lintian, and runs
# the programs in them by an emulator. They depend on the libraries that this machine's own packages
# would depend on.
#
#   arm64_deb.sh SOURCE_DIR       77: it can't run here; the reason is said
set -euo pipefail
cd "$1"
skip() {
  echo "SKIPPED: $*"
  exit 77
}
for program in aarch64-linux-gnu-g++ qemu-aarch64-static mmdebstrap unshare lintian help2man; do
  command -v "$program" >/dev/null || skip "no $program here (scripts/install_deps.sh --arm64 --package)"
done
root=$PWD/build/arm64-root
why=$(scripts/arm64_root.sh "$root") || skip "${why#SKIPPED: }"
status=0
tests/package/emulated.sh "$root" true || status=$?
[ "$status" -ne 77 ] || skip "this kernel has no binfmt_misc for user namespaces"

packages=build/packages-arm64
scripts/package.sh --arch arm64 --out "$packages"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# depends PACKAGE NAME…: the package is for that architecture, and depends on packages whose names
# begin so.
depends() {
  local package=$1 fields
  fields=$(dpkg-deb --field "$packages/${package}"_*_arm64.deb Architecture Depends)
  grep -qx 'Architecture: arm64' <<<"$fields"
  for name in "${@:2}"; do
    grep -q "^Depends: .*\b$name" <<<"$fields" || {
      echo "$package does not depend on $name: $fields" >&2
      exit 1
    }
  done
}
depends kvmd libc6 libstdc++6 libssl3 libprotobuf zlib1g libprometheus-cpp-core
depends kvmd-mesh libc6 libssl3 libprotobuf liburing2 libzmq5
depends libkvclient0.2 libc6 libstdc++6
for package in "$packages"/*.deb; do dpkg-deb --extract "$package" "$work"; done
library=$(find "$work/usr/lib/aarch64-linux-gnu" -name 'libkvclient.so.*' -type f)
readelf --file-header "$library" | grep -q 'Machine:.*AArch64'
tests/package/emulated.sh "$root" tests/package/arm64_kvctl.sh "$work/usr/bin"
