#!/usr/bin/env bash
# Makes Debian packages of this tree, for the distribution that it runs on (Debian 12, Ubuntu
# 24.04): kvmd with kvctl and the service, kvmd-mesh, the library, and its headers. Prints their
# paths. Support for GPUs is in them if the CUDA toolkit was there: one package then serves machines
# with and without a GPU.
#
#   scripts/package.sh [--arch amd64|arm64] [--out DIR] [--no-lint] [--as-is]
#
# --arch: for another architecture than this machine's, by a cross compiler, without support for
# GPUs (preset package-arm64). --out: where they go (default build/packages, for another
# architecture build/packages-ARCH). --no-lint: don't run lintian over them. --as-is: install
# nothing, for a machine without network or rights; what its tools can't make is left out, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=$(dpkg --print-architecture)
out=""
lint=yes
as_is=no
while [ $# -gt 0 ]; do
  case "$1" in
    --arch) arch=${2:?"--arch needs an architecture"} && shift ;;
    --out) out=${2:?"--out needs a directory"} && shift ;;
    --no-lint) lint=no ;;
    --as-is) as_is=yes ;;
    -h | --help)
      sed -n '2,12s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "package.sh: unknown option $1 (see --help)" >&2
      exit 1
      ;;
  esac
  shift
done
build=build/package
out_default=build/packages
dependencies=(--package)
emulator=()
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
  [ "$arch" = arm64 ] || {
    echo "package.sh: no cross compiler is known for $arch" >&2
    exit 1
  }
  build=build/package-$arch
  out_default=build/packages-$arch
  dependencies+=(--arm64)
  emulator=(qemu-aarch64-static -L "$PWD/build/arm64-root")
  export DEB_HOST_ARCH=arm64
fi
out=${out:-$out_default}
[ "$as_is" = yes ] || scripts/install_deps.sh "${dependencies[@]}"
# has PROGRAM LACK: with --as-is, whether it is there; if not, says what the packages lack.
has() {
  { [ "$as_is" = no ] || command -v "$1" >/dev/null; } && return
  echo "package.sh: no $1 here, so $2" >&2
  return 1
}
[ ${#emulator[@]} -eq 0 ] || scripts/arm64_root.sh build/arm64-root >&2

launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
# The compiler's flags are those that Debian builds its own packages with.
if has dpkg-buildflags "the compiler's flags aren't Debian's"; then
  CXXFLAGS="$(dpkg-buildflags --get CPPFLAGS) $(dpkg-buildflags --get CXXFLAGS | sed 's/-g //')"
  LDFLAGS=$(dpkg-buildflags --get LDFLAGS)
  export CXXFLAGS LDFLAGS
fi
cmake --preset "${build#build/}" "${launcher[@]}" >&2
cmake --build --preset "${build#build/}" >&2

# Manual pages say what --help says, one page a command.
pages=$build/debian
rm -rf "$pages/man1" "$pages"/*.8.gz
mkdir -p "$pages/man1"
# manual PROGRAM SECTION NAME WHAT OUTPUT [COMMAND]: COMMAND of kvctl has a page of its own.
manual() {
  local wrapper=$pages/$3
  # shellcheck disable=SC2016 # for the wrapper's shell
  printf '#!/bin/sh\n[ "$1" = --version ] && exec %s "%s" --version\nexec %s "%s" %s "$@"\n' \
    "${emulator[*]}" "$PWD/$1" "${emulator[*]}" "$PWD/$1" "${6:-}" >"$wrapper"
  chmod 755 "$wrapper"
  help2man --no-info --no-discard-stderr "--section=$2" "--name=$4" --output="$5" "$wrapper"
  rm -f "$wrapper"
  gzip -9n -f "$5"
}
if has help2man "there are no manual pages"; then
  manual "$build/bin/kvmd" 8 kvmd "registry of KV cache blocks shared between inference processes" "$pages/kvmd.8"
  manual "$build/bin/kvctl" 1 kvctl "show and exercise kvmd" "$pages/man1/kvctl.1"
  [ ! -x "$build/bin/kvmd-mesh" ] || manual "$build/bin/kvmd-mesh" 8 kvmd-mesh "brings KV cache blocks of other nodes to this one" "$pages/kvmd-mesh.8"
  "${emulator[@]}" "$build/bin/kvctl" --help | awk '/^Subcommands:/ {on = 1; next} on && /^  [a-z]/ {print $1} on && /^$/ {exit}' | while read -r command; do
    manual "$build/bin/kvctl" 1 "kvctl-$command" "kvctl's command $command" "$pages/man1/kvctl-$command.1" "$command"
  done
fi

# What shells complete.
for shell in bash zsh fish; do
  "${emulator[@]}" "$build/bin/kvctl" completion "$shell" >"$pages/kvctl.$shell"
  [ ! -x "$build/bin/kvmd-mesh" ] || "${emulator[@]}" "$build/bin/kvmd-mesh" --completion "$shell" >"$pages/kvmd-mesh.$shell"
done

# Debian's form of the changelog: one entry, which names the document that has them all.
version=$(sed -n 's/^project(kvmd VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-unstable}")
contact=$(sed -n 's/^KVM_PACKAGE_CONTACT:STRING=//p' "$build/CMakeCache.txt")
printf 'kvmd (%s) %s; urgency=medium\n\n  * See CHANGELOG.md of the source.\n\n -- %s  %s\n' \
  "$version" "$codename" "$contact" "$(git log -1 --format=%cD 2>/dev/null || date -R)" | gzip -9n >"$pages/changelog.gz"

mkdir -p "$out"
out=$(realpath "$out")
rm -f "$out"/*.deb
# What the programs are linked with is searched for in the other architecture's packages.
[ ${#emulator[@]} -eq 0 ] || export DPKG_ADMINDIR=$PWD/build/arm64-root/var/lib/dpkg
depends=ON
has dpkg-shlibdeps "they don't say which libraries they need" || depends=OFF
cpack --config "$build/CPackConfig.cmake" -D CPACK_DEBIAN_PACKAGE_SHLIBDEPS=$depends -B "$out" >&2
unset DPKG_ADMINDIR
rm -rf "$out/_CPack_Packages"
[ "$lint" = no ] || ! has lintian "nothing checks them" || lintian --fail-on error,warning --tag-display-limit 0 "$out"/*.deb >&2
ls "$out"/*.deb
