#!/usr/bin/env bash
# Builds the project and runs its whole test suite, on a machine that may have nothing installed.
#
#   scripts/test.sh [--cpp] [--preset dev|ci|asan|tsan|clang] [--label unit|integration|fault|gpu] [--jobs N]
#
# --cpp: the C++ suite, which is the default so far. --python: the Python suite instead; it makes a virtual
# environment once and fills it from a Python package index. Ends with the test runner's own closing lines.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=dev
label=()
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --cpp) ;;
    --python)
      scripts/install_deps.sh
      exec scripts/test_python.sh
      ;;
    --preset) preset=${2:?"--preset needs a name"} && shift ;;
    --asan) preset=asan ;;
    --tsan) preset=tsan ;;
    --label) label=(-L "${2:?"--label needs a name"}") && shift ;;
    --jobs) jobs=${2:?"--jobs needs a number"} && shift ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "test.sh: unknown option $1 (see --help)" >&2
      exit 1
      ;;
  esac
  shift
done

scripts/install_deps.sh
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
cmake --preset "$preset" "${launcher[@]}" >/dev/null
cmake --build --preset "$preset" --parallel "$jobs"
ctest --preset "$preset" --parallel "$jobs" "${label[@]}"
