#!/usr/bin/env bash
# Every linter over every tracked file: clang-format, shellcheck, clang's check of locks and clang-tidy (which need a
# configured build); ruff and mypy where the Python suite's environment is (scripts/python_env.sh), which runs them as a
# test too.
# Fails if any of them has something to say. (The unit files are verified in the test suite.)
#
#   scripts/lint.sh [--no-python] [BUILD_DIR]     default build/ci
set -euo pipefail
cd "$(dirname "$0")/.."
python=yes
if [ "${1:-}" = --no-python ]; then
  python=no
  shift
fi
build=${1:-build/ci}
scripts/install_deps.sh --lint

mapfile -t sources < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
mapfile -t shell < <(git ls-files '*.sh' .ci/run)
echo "clang-format: ${#sources[@]} files"
clang-format --dry-run -Werror "${sources[@]}"
echo "shellcheck: ${#shell[@]} files"
shellcheck -x "${shell[@]}"
scripts/check_locks.py "$build"

# clang-tidy over what runs inside other people's processes and in the daemon; the tool and the tests are
# covered by the compiler and the sanitizers. Files that this build does not compile (GPU memory without the
# toolkit) have nothing to be checked against. The analyzer gives up on a function after 50,000 steps, and
# what it finds in Asio's coroutines is in Asio.
tidy=clang-tidy
command -v clang-tidy-22 >/dev/null && tidy=clang-tidy-22
coroutines='^daemon/server/(session|server|listener)\.cc$'
mapfile -t tidied < <(git ls-files 'proto/*.cc' 'cuda/*.cc' 'client/*.cc' 'daemon/*.cc' | grep -v '^client/kvctl/' |
  while read -r file; do ! grep -qF "$PWD/$file\"" "$build/compile_commands.json" || echo "$file"; done)
echo "$tidy: ${#tidied[@]} files"
run_tidy() {
  xargs -P "$(nproc)" -n 3 "$tidy" -p "$build" --quiet --extra-arg=-Wno-unknown-warning-option \
    --extra-arg={-Xclang,-analyzer-config,-Xclang,max-nodes=50000} "$@" 2>/dev/null
}
printf '%s\n' "${tidied[@]}" | grep -vE "$coroutines" | run_tidy
printf '%s\n' "${tidied[@]}" | grep -E "$coroutines" | run_tidy '--checks=-clang-analyzer-*'

if [ "$python" = no ]; then
  echo "ruff, mypy: left to the Python suite, which checks the same"
elif [ -x build/python-env/bin/ruff ]; then
  echo "ruff, mypy: client/python, tests/python"
  tests/python/check.sh "$PWD/build/python-env"
else
  echo "ruff, mypy: no build/python-env here; the Python suite checks the same"
fi
