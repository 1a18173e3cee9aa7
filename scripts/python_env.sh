#!/usr/bin/env bash
# Makes the Python suite's virtual environment, once, in build/python-env, and installs the package
# from this tree into it, each time. Prints the environment's folder. pip's own settings
# (PIP_INDEX_URL, …) choose the index: on a machine without a GPU, an index with CPU wheels of
# PyTorch saves gigabytes. PyTorch and vLLM are installed by uv if the index has it, else by pip.
#
#   scripts/python_env.sh [--vllm] [--routers] [--no-package]
#
# --vllm: build/vllm-env on top of it, with vLLM's CPU build, for the tests of the connector; prints
# that one. And build/vllm-newest-env on top of both, with the newest vLLM's and its PyTorch; if
# that one can't be made, a line says so. --routers: build/dynamo-env with Dynamo's router, for
# the tests of kvmd-mesh's events; without it they are skipped, and a line says so. --no-package:
# what is downloaded alone.
set -euo pipefail
cd "$(dirname "$0")/.."
with_vllm=no
with_routers=no
package=yes
for argument in "$@"; do
  case "$argument" in
    --vllm) with_vllm=yes ;;
    --routers) with_routers=yes ;;
    --no-package) package=no ;;
    *)
      echo "python_env.sh: unknown option $argument" >&2
      exit 1
      ;;
  esac
done
environment=build/python-env
vllm=build/vllm-env
newest=build/vllm-newest-env
dynamo=build/dynamo-env
requirements=tests/python/requirements.txt
model_requirements=tests/python/requirements-model.txt
vllm_requirements=(tests/python/requirements-vllm-deps.txt tests/python/requirements-vllm.txt)
newest_requirements=tests/python/requirements-vllm-newest.txt
dynamo_requirements=tests/python/requirements-dynamo.txt

fail() {
  echo "python_env.sh: $*" >&2
  exit 1
}

# up_to_date ENVIRONMENT STAMP: whether the existing environment was made with this stamp.
up_to_date() {
  [ "$(cat "$1/installed" 2>/dev/null || true)" = "$2" ]
}

fresh() {
  rm -rf "$1"
  python3 -m venv "$1" >&2 || fail "python3 can't make virtual environments; see install_deps.sh --python"
}

# The version is pinned. uv is optional: after any failure of its installation, pip is used.
uv=
find_uv() {
  [ -n "$uv" ] && return
  uv=none
  [ -x "$1/bin/uv" ] || "$1/bin/pip" install --quiet --no-compile --disable-pip-version-check uv==0.13.9 >&2 || return 0
  uv=$PWD/$1/bin/uv
}

# setting NAME: prints the value of one of pip's settings.
setting() {
  "$1/bin/pip" config get "global.$2" 2>/dev/null || true
}

install_by_uv() {
  local index links certificates arguments=()
  index=${PIP_INDEX_URL:-$(setting "$1" index-url)}
  links=${PIP_FIND_LINKS:-$(setting "$1" find-links)}
  certificates=${PIP_CERT:-$(setting "$1" cert)}
  [ -z "$index" ] || arguments+=(--default-index "$index")
  [ -z "$links" ] || arguments+=(--find-links "$links")
  [ -z "$certificates" ] || export SSL_CERT_FILE=$certificates
  "$uv" pip install --quiet --no-cache --python "$1/bin/python" "${arguments[@]}" "${@:2}" >&2
}

# install_index ENVIRONMENT ARGUMENTS: installs from the package index.
install_index() {
  find_uv "$environment"
  [ "$uv" != none ] && install_by_uv "$@" && return
  install "$@"
}

# site_packages ENVIRONMENT: its folder of packages.
site_packages() {
  echo "$PWD/$(echo "$1"/lib/python3*/site-packages)"
}

# make_newest STAMP: PyTorch and vLLM alone; all other packages are those of the environments below.
# PyTorch's wheel wants NVIDIA's libraries by name only, and those of the other PyTorch have the
# same names: bound lazily, as the first line in the environment makes Python load extensions, the
# few functions that are missing there are never looked for on a CPU. That saves 2 GiB of downloads.
make_newest() {
  echo "making $newest (once)" >&2
  rm -rf "$newest"
  python3 -m venv --without-pip "$newest" >&2 || return 1
  local packages
  packages=$(site_packages "$newest")
  echo 'import os, sys; sys.setdlopenflags(os.RTLD_LAZY)' >"$packages/bound-lazily.pth"
  site_packages "$environment" >"$packages/environments.pth"
  site_packages "$vllm" >>"$packages/environments.pth"
  find_uv "$environment"
  if [ "$uv" = none ] || ! install_by_uv "$newest" --no-deps -r "$newest_requirements"; then
    "$environment/bin/pip" --python "$newest" install --quiet --no-compile --disable-pip-version-check --no-deps \
      -r "$newest_requirements" >&2 || return 1
  fi
  "$newest/bin/python" -c 'import torch, vllm' 2>&1 >/dev/null | tail -n 1 >&2
  [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
  printf '%s\n' "$1" >"$newest/installed"
}

install() {
  "$1/bin/pip" install --quiet --no-compile --disable-pip-version-check "${@:2}" >&2
}

wanted=$(python3 --version && cat "$requirements" "$model_requirements")
if ! up_to_date "$environment" "$wanted"; then
  mkdir -p build
  free_mib=$(df -Pm build | awk 'NR == 2 {print $4}')
  [ "$free_mib" -ge 8192 ] || fail "PyTorch with its packages needs up to 8 GiB; $free_mib MiB are free"
  echo "making $environment (once; PyTorch is large)" >&2
  fresh "$environment"
  install_index "$environment" -r "$requirements" ||
    fail "the packages of $requirements could not be installed (is the package index reachable? scripts/test.sh --cpp needs none)"
  # Without what it requires, to run the model in another way.
  install_index "$environment" --no-deps -r "$model_requirements" ||
    echo "python_env.sh: no model (${model_requirements}): the tests with a trained one are skipped" >&2
  printf '%s\n' "$wanted" >"$environment/installed"
fi
[ "$package" = no ] || install "$environment" --no-build-isolation --no-deps --no-index ./client/python ||
  fail "the package in client/python did not build (see above)"

if [ "$with_vllm" = yes ]; then
  wanted=$(printf '%s\n' "$wanted" && cat "${vllm_requirements[@]}")
  if ! up_to_date "$vllm" "$wanted"; then
    echo "making $vllm (once)" >&2
    fresh "$vllm"
    site_packages "$environment" >"$(site_packages "$vllm")/python-env.pth"
    # By pip: uv does not see what the environment below has, and would install it twice.
    install "$vllm" -r "${vllm_requirements[0]}" || fail "what vLLM needs could not be installed"
    install_index "$vllm" --no-deps -r "${vllm_requirements[1]}" || fail "vLLM could not be installed"
    printf '%s\n' "$wanted" >"$vllm/installed"
  fi
  wanted=$(printf '%s\n' "$wanted" && cat "$newest_requirements")
  if ! up_to_date "$newest" "$wanted" && ! make_newest "$wanted"; then
    rm -rf "$newest"
    echo "python_env.sh: the newest vLLM could not be installed: its tests are skipped" >&2
  fi
  environment=$vllm
fi

if [ "$with_routers" = yes ]; then
  wanted=$(python3 --version && cat "$dynamo_requirements")
  if ! up_to_date "$dynamo" "$wanted"; then
    echo "making $dynamo (once)" >&2
    fresh "$dynamo"
    if install "$dynamo" --no-deps -r "$dynamo_requirements"; then
      printf '%s\n' "$wanted" >"$dynamo/installed"
    else
      rm -rf "$dynamo"
      echo "python_env.sh: Dynamo could not be installed: its tests are skipped" >&2
    fi
  fi
fi
echo "$PWD/$environment"
