#!/usr/bin/env bash
# Makes a root directory of this distribution for 64-bit Arm, with what programs of this tree are
# compiled and linked with, unless it is there already. It is unpacked only: nothing in it is run.
# Its dpkg knows which package has which file, by the file's path on this machine, as
# dpkg-shlibdeps asks for it (scripts/package.sh).
#
#   arm64_root.sh ROOT       77: it can't be made here; the reason is said
set -euo pipefail
export LC_ALL=C

# note ROOT PATH: writes dpkg's lists of what is unpacked in ROOT, which will be at PATH.
note() {
  local info=$1/var/lib/dpkg/info archive package control
  for archive in "$1"/var/cache/apt/archives/*.deb; do
    package=$(dpkg-deb --field "$archive" Package)
    [ "$(dpkg-deb --field "$archive" Multi-Arch)" != same ] || package+=:$(dpkg-deb --field "$archive" Architecture)
    dpkg-deb --fsys-tarfile "$archive" | tar -t | sed "s#^\.##; s#/\$##; s#^/lib/#/usr/lib/#; s#^#$2#" >"$info/$package.list"
    control=$(mktemp -d)
    dpkg-deb --control "$archive" "$control"
    for file in shlibs symbols; do
      [ ! -f "$control/$file" ] || cp "$control/$file" "$info/$package.$file"
    done
    rm -r "$control"
    dpkg-deb --field "$archive" | sed '/^Package:/a Status: install ok installed'
    echo
  done >>"$1/var/lib/dpkg/status"
}
if [ "$1" = --note ]; then
  note "$2" "$3"
  exit 0
fi

root=$(realpath -m "${1:?"arm64_root.sh: which directory?"}")
skip() {
  echo "SKIPPED: $*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "needs root, to make a root directory"
command -v mmdebstrap >/dev/null || skip "no mmdebstrap here (scripts/install_deps.sh --arm64)"
wanted=libc6-dev,libprotobuf-dev,libssl-dev,libcli11-dev,libxxhash-dev,libucx-dev,libzmq3-dev,cppzmq-dev,liburing-dev,zlib1g-dev,catch2,libbenchmark-dev,libhiredis-dev,prometheus-cpp-dev
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
if [ "$codename" = bookworm ]; then
  wanted+=,libstdc++-12-dev,libboost1.81-dev
else
  wanted+=,libstdc++-13-dev,libboost-dev
fi
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9
if [ "$(cat "$root.packages" 2>/dev/null)" = "$root $codename $wanted, with dpkg lists" ]; then exit 0; fi
rm -rf --one-file-system "$root" "$root.new" "$root.packages"
apt-config shell proxy Acquire::http::Proxy >"$root.proxy"
proxy=""
# shellcheck source=/dev/null
. "$root.proxy"
rm -f "$root.proxy"
[ -z "$proxy" ] || export http_proxy=$proxy
# What is mounted there ends with a mount namespace of its own, however this script ends.
if ! unshare --mount mmdebstrap --mode=root --variant=extract --architectures=arm64 "--include=$wanted" \
  --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr "--extract-hook=$(realpath "$0") --note \"\$1\" '$root'" \
  "$codename" "$root.new" >"$root.log" 2>&1; then
  tail -n 5 "$root.log"
  rm -rf --one-file-system "$root.new"
  skip "no root directory for 64-bit Arm could be made"
fi
# A linker would take absolute links for files of the machine that it runs on.
find "$root.new" -lname '/*' -printf '%p %l\n' | while read -r link target; do
  ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$root.new$target")" "$link"
done
mv "$root.new" "$root"
echo "$root $codename $wanted, with dpkg lists" >"$root.packages"
