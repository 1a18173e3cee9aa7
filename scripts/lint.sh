#!/usr/bin/env bash
# Runs every linter over every tracked file: clang-format, shellcheck, clang's check of locks and
# clang-tidy (which need a configured build). If the Python suite's environment exists
# (scripts/python_env.sh), runs ruff and mypy, too; the Python suite runs them as a test as well.
# Fails if any of them reports a problem. (The test suite verifies the systemd units.)
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

# clang-tidy checks the code that runs in workers and in the daemon; the tool and the tests are
# covered by the compiler and the sanitizers. Files that this build does not compile (GPU code
# without the CUDA toolkit) can't be checked. The analyzer stops after 50,000 steps in a function.
# It is off for coroutines, where all its findings are inside Asio.
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
  echo "ruff, mypy: not run here, the Python suite runs them"
elif [ -x build/python-env/bin/ruff ]; then
  echo "ruff, mypy: client/python, tests/python"
  tests/python/check.sh "$PWD/build/python-env"
else
  echo "ruff, mypy: no build/python-env here, the Python suite runs them"
fi
