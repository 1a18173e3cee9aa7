#!/usr/bin/env bash
# Builds the project and runs its test suites, on a machine that may have nothing installed.
#
#   scripts/test.sh [--cpp | --python] [--preset dev|ci|asan|tsan|clang]
#                   [--label unit|integration|fault|gpu|python] [--nightly] [--retry] [--jobs N]
#   scripts/test.sh --fuzz [SECONDS]
#
# --cpp: only the C++ suite, which needs no Python packages. --python: only the Python suite, in a
# virtual environment under build/ that is made once. Without either, both suites; with a sanitizer
# or a label, only the C++ suite, unless the label is python. --nightly: also repetitions and soaks,
# which take much longer. --retry: a test that fails is run once more, and only two failures count;
# ctest prints both. The last lines and the exit status are ctest's. --fuzz: builds the libFuzzer
# binaries with clang and runs each for so many seconds (60), from tests/fuzz/corpus and with what
# earlier runs have found in build/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=dev
suite=""
label=()
nightly=(-LE nightly)
retry=()
fuzz_seconds=0
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --cpp) suite=cpp ;;
    --python) suite=python ;;
    --preset) preset=${2:?"--preset needs a name"} && shift ;;
    --asan) preset=asan ;;
    --tsan) preset=tsan ;;
    --label) label=(-L "${2:?"--label needs a name"}") && shift ;;
    --nightly) nightly=() ;;
    --retry) retry=(--repeat until-pass:2) ;;
    --fuzz)
      fuzz_seconds=60
      if [[ ${2:-} =~ ^[0-9]+$ ]]; then fuzz_seconds=$2 && shift; fi
      ;;
    --jobs) jobs=${2:?"--jobs needs a number"} && shift ;;
    -h | --help)
      sed -n '2,14s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "test.sh: unknown option $1 (see --help)" >&2
      exit 1
      ;;
  esac
  shift
done
if [ "$fuzz_seconds" -gt 0 ]; then
  scripts/install_deps.sh
  command -v clang++ >/dev/null || { echo "test.sh: --fuzz needs clang++" >&2 && exit 1; }
  cmake --preset clang -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DKVM_FUZZ=ON -DKVM_PYTHON_ENV= -DKVM_VLLM_ENV= >/dev/null
  cmake --build build/fuzz --parallel "$jobs" --target fuzz_all
  failed=0
  for binary in build/fuzz/bin/fuzz_*; do
    name=${binary##*/fuzz_}
    case $name in smoke | replay) continue ;; esac
    mkdir -p "build/fuzz/corpus/$name" "build/fuzz/crashes/$name"
    "$binary" --write-seeds "build/fuzz/corpus/$name"
    stored=()
    [ ! -d "tests/fuzz/corpus/$name" ] || stored=("tests/fuzz/corpus/$name")
    echo "== fuzz_$name, $fuzz_seconds s"
    "$binary" -max_total_time="$fuzz_seconds" -rss_limit_mb=4096 -timeout=25 -verbosity=0 -print_final_stats=1 \
      -artifact_prefix="build/fuzz/crashes/$name/" "build/fuzz/corpus/$name" "${stored[@]}" || failed=1
  done
  exit "$failed"
fi
if [ -z "$suite" ]; then
  case "$preset ${label[*]}" in
    *python*) suite=both ;;
    asan* | tsan* | *-L*) suite=cpp ;;
    *) suite=both ;;
  esac
fi

launcher=()
targets=()
python=()
if [ "$suite" = cpp ]; then
  scripts/install_deps.sh
  python=(-DKVM_PYTHON_ENV= -DKVM_VLLM_ENV= -DKVM_VLLM_NEWEST_ENV= -DKVM_DYNAMO_ENV=)
else
  scripts/install_deps.sh --python
  newest='' dynamo=''
  if vllm=$(scripts/python_env.sh --vllm --routers); then
    environment=$PWD/build/python-env
    [ ! -e build/vllm-newest-env/installed ] || newest=$PWD/build/vllm-newest-env
  else
    environment=$(scripts/python_env.sh) || exit 1
    echo "test.sh: no vLLM here: the tests with its engines are skipped" >&2
  fi
  [ ! -e build/dynamo-env/installed ] || dynamo=$PWD/build/dynamo-env
  python=("-DKVM_PYTHON_ENV=$environment" "-DKVM_VLLM_ENV=$vllm" "-DKVM_VLLM_NEWEST_ENV=$newest" "-DKVM_DYNAMO_ENV=$dynamo")
fi
if [ "$suite" = python ]; then
  label=(-L python)
  targets=(--target kvmd)
fi
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
cmake --preset "$preset" "${launcher[@]}" "${python[@]}" "-DKVM_TEST_LABELS=${label[1]:-.*}" >/dev/null
cmake --build --preset "$preset" --parallel "$jobs" "${targets[@]}"
ctest --preset "$preset" --parallel "$jobs" "${label[@]}" "${nightly[@]}" "${retry[@]}"
