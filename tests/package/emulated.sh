#!/usr/bin/env bash
# Runs a command in a user namespace (with all users of this machine) whose kernel runs programs of
# 64-bit Arm by qemu, so that these can start others. Libraries of that architecture are in ROOT.
# Nothing changes for processes outside.
#
#   emulated.sh ROOT COMMAND…
#
# 77: there is no user namespace here, or its kernel has no binfmt_misc for one (Linux 6.7 and newer
# have it).
set -euo pipefail
if [ "$1" = --inside ]; then
  read -r _ <"$2"
  registry=/proc/sys/fs/binfmt_misc
  mount -t binfmt_misc none "$registry" || exit 77
  # ELF, 64 bits, little-endian, a program or a shared library, EM_AARCH64. F: the interpreter is
  # opened now, so it is found inside of other roots, too.
  elf='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":arm64:M::$elf:$mask:$(command -v qemu-aarch64-static):F" >"$registry/register"
  exec "${@:3}"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkfifo "$work/mapped"
export QEMU_LD_PREFIX=$1
shift
unshare --user --mount bash "$0" --inside "$work/mapped" "$@" &
pid=$!
# The kernel takes a map of several users only from outside of the namespace.
until [ "$(readlink "/proc/$pid/ns/user")" != "$(readlink /proc/self/ns/user)" ] || ! kill -0 "$pid" 2>/dev/null; do sleep 0.01; done
for map in uid_map gid_map; do
  echo "0 0 65536" 2>/dev/null >"/proc/$pid/$map" || {
    kill "$pid" 2>/dev/null || true
    exit 77
  }
done
echo >"$work/mapped"
wait "$pid"
