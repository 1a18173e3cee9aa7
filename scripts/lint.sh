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

# Every source but the test cases, which the compiler and the sanitizers cover, and the Python
# package's, which tests/python/check.sh reads. Files that this build does not compile (GPU code
# without the CUDA toolkit) can't be checked. In a build with KVM_UNITY, several sources are read at
# a time, which takes a fraction of the time: most of it goes into the headers that they share. The
# analyzer stops after 50,000 steps in a function. It is off for coroutines, where all its findings
# are inside Asio. Sources are included in such a file alone, where that is no mistake. What costs
# microseconds is no matter for a tool at a terminal or a test's process, nor is a flush after each
# line; and Catch2's REQUIRE is a chain of comparisons.
tidy=clang-tidy
command -v clang-tidy-22 >/dev/null && tidy=clang-tidy-22
coroutines='(daemon/server/(session|server|listener)|client/kvctl/exporter/http_server)\.cc'
checks=-bugprone-suspicious-include
tool_checks="$checks,-performance-inefficient-*,-performance-avoid-endl,-bugprone-chained-comparison"
# What this build compiles, sources and files that include several of them.
mapfile -t tidied < <(sed -n 's/^ *"file": "\(.*\)",\{0,1\}$/\1/p' "$build/compile_commands.json" |
  grep -E "^$PWD/((proto|cuda|client|daemon|tests/support)/|.*/(proto|cuda|client|daemon)/([a-z_/]*/)?CMakeFiles/[a-z_]*\.dir/Unity/)" |
  grep -vE '/generated/|\.cu$' | sort -u)
echo "$tidy: ${#tidied[@]} files, which hold $(git ls-files {proto,cuda,client,daemon,tests/support}/'*.cc' ':!client/python' | wc -l) sources"
# run_tidy CHECKS: reads the names of files from its input.
run_tidy() {
  xargs -r -P "$(nproc)" -n 1 "$tidy" -p "$build" --quiet --header-filter='/(proto|cuda|client|daemon|tests/support)/[^.]*\.(h|cc)$' \
    --extra-arg=-Wno-unknown-warning-option --extra-arg={-Xclang,-analyzer-config,-Xclang,max-nodes=50000} --checks="$1" 2>/dev/null
}
mapfile -t with_coroutines < <(grep -lE "(^|/)$coroutines" "${tidied[@]}" /dev/null; printf '%s\n' "${tidied[@]}" | grep -E "/$coroutines\$")
tools='/client/(kvctl|examples)/|/tests/support/'
others() { printf '%s\n' "${tidied[@]}" | grep -vxFf <(printf '%s\n' "${with_coroutines[@]}"); }
others | grep -vE "$tools" | run_tidy "$checks"
others | grep -E "$tools" | run_tidy "$tool_checks"
printf '%s\n' "${with_coroutines[@]}" | sort -u | run_tidy "$tool_checks,-clang-analyzer-*"

if [ "$python" = no ]; then
  echo "ruff, mypy: not run here, the Python suite runs them"
elif [ -x build/python-env/bin/ruff ]; then
  echo "ruff: $(git ls-files '*.py' | wc -l) files; mypy: client/python, tests/monitoring"
  tests/python/check.sh "$PWD/build/python-env"
else
  echo "ruff, mypy: no build/python-env here, the Python suite runs them"
fi
