#!/usr/bin/env bash
# Builds kvmd and libkvclient for 64-bit Arm (without CUDA) with Debian's cross compiler, and runs
# kvmd with a worker under qemu's emulation. The libraries of that architecture are in
# build/arm64-root, and only processes started from here run its programs by qemu: this machine's
# own registry of program formats stays as it is.
#
#   scripts/arm64.sh [--skip] [--jobs N]
#
# --skip: install nothing, and end with 77 where something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=install
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --skip) missing=skip ;;
    --jobs) jobs=${2:?"--jobs needs a number"} && shift ;;
    -h | --help)
      sed -n '2,9s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "arm64.sh: unknown option $1 (see --help)" >&2
      exit 1
      ;;
  esac
  shift
done
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
cmake --build --preset arm64 --target kvmd package_worker --parallel "$jobs"

status=0
tests/package/emulated.sh "$root" true || status=$?
[ "$status" -ne 77 ] || cannot "this kernel has no binfmt_misc for user namespaces"
tests/package/emulated.sh "$root" tests/package/arm64.sh build/arm64/bin
