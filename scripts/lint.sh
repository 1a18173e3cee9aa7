#!/usr/bin/env bash
# Every linter over every tracked file: clang-format, clang-tidy (needs a configured build), shellcheck,
# systemd-analyze. Fails if any of them has something to say.
#
#   scripts/lint.sh [BUILD_DIR]     default build/ci
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/ci}
scripts/install_deps.sh --lint

mapfile -t sources < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
mapfile -t shell < <(git ls-files '*.sh' .ci/run)
echo "clang-format: ${#sources[@]} files"
clang-format --dry-run -Werror "${sources[@]}"
echo "shellcheck: ${#shell[@]} files"
shellcheck -x "${shell[@]}"

# clang-tidy over the library, the daemon and the tool; tests are covered by the compiler and sanitizers.
# Asio's coroutines are beyond clang 14's analysis with GCC's headers, so those two files are left out.
mapfile -t tidy < <(git ls-files 'proto/*.cc' 'cuda/*.cc' 'client/*.cc' 'daemon/*.cc' |
  grep -vE '^daemon/(session|server)\.cc$')
echo "clang-tidy: ${#tidy[@]} files"
printf '%s\n' "${tidy[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet 2>/dev/null
