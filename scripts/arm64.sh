#!/usr/bin/env bash
# Builds for 64-bit Arm (without CUDA) with Debian's cross compiler, and runs kvmd with kvctl, then
# the unit tests, under qemu's emulation. The libraries of that architecture are in
# build/arm64-root, and only processes started from here run its programs by qemu: this machine's
# own registry of program formats stays as it is.
#
#   scripts/arm64.sh [--skip] [--jobs N] [ctest's options]
#
# ctest's options: instead of all unit tests. --skip: install nothing, and end with 77 where
# something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=install
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --skip) missing=skip ;;
    --jobs) jobs=${2:?"--jobs needs a number"} && shift ;;
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) break ;;
  esac
  shift
done
tests=("$@")
# Tests that are scripts check this tree, or what a compiler of this machine makes of it.
[ ${#tests[@]} -gt 0 ] || tests=(-L unit -R '^unit/([a-z_]*(_tests|fuzz_smoke)/|Fuzz corpora)')
# What the emulator can't do: it places huge pages where the kernel does not take them, ignores
# MADV_WIPEONFORK and MADV_DONTFORK, and is too slow for 12,000 rounds of a lock that is waited for
# 5 s.
left_out=(
  'Memory guard: a hole in reserved huge pages'
  'kvmd memory: a generation table on huge pages is refused'
  'Shared memory: a forked child has none of its parent'
  'Owner process: a (forked child knows|child that no fork handler)'
  'Start lock: one process at a time has it'
)
# cannot WHY: ends, as skipped or as failed.
cannot() {
  if [ "$missing" = skip ]; then
    echo "SKIPPED: $*"
    exit 77
  fi
  echo "arm64.sh: $*" >&2
  exit 1
}
[ "$missing" = skip ] || scripts/install_deps.sh --arm64
for program in aarch64-linux-gnu-g++ qemu-aarch64-static mmdebstrap unshare; do
  command -v "$program" >/dev/null || cannot "no $program here (scripts/install_deps.sh --arm64)"
done
root=$PWD/build/arm64-root
why=$(scripts/arm64_root.sh "$root") || cannot "${why#SKIPPED: }"

launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
cmake --preset arm64 "${launcher[@]}" -DKVM_TEST_LABELS=unit -DKVM_PYTHON_ENV= -DKVM_VLLM_ENV= -DKVM_VLLM_NEWEST_ENV= >/dev/null
cmake --build --preset arm64 --parallel "$jobs"

status=0
tests/package/emulated.sh "$root" true || status=$?
[ "$status" -ne 77 ] || cannot "this kernel has no binfmt_misc for user namespaces"
cmake --build --preset arm64 --target package_worker
tests/package/emulated.sh "$root" tests/package/arm64.sh build/arm64/bin
tests/package/emulated.sh "$root" tests/package/arm64_kvctl.sh build/arm64/bin
tests/package/emulated.sh "$root" ctest --preset arm64 --parallel "$jobs" "${tests[@]}" -E "$(IFS='|' && echo "${left_out[*]}")"
