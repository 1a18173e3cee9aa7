#!/usr/bin/env bash
# Installs the distribution's packages that a build needs, on Debian 12 and Ubuntu 24.04. Options
# add the packages for other work: --lint for the linters, --bench for benchmarks, --python for the
# Python package, --systemd for the test of the unit under a real systemd, --package for making
# Debian packages, --metrics for the tests with a real Prometheus, --etcd for those with a real etcd
# (their packages start a service), --arm64 for scripts/arm64.sh. --required: only what kvmd and
# kvctl can't be built without. It downloads only packages that are missing.
set -euo pipefail

lint=no
bench=no
python=no
systemd=no
debian_packages=no
metrics=no
etcd=no
arm64=no
required=no
for argument in "$@"; do
  case "$argument" in
    --lint) lint=yes ;;
    --bench) bench=yes ;;
    --python) python=yes ;;
    --systemd) systemd=yes ;;
    --package) debian_packages=yes ;;
    --metrics) metrics=yes ;;
    --etcd) etcd=yes ;;
    --arm64) arm64=yes ;;
    --required) required=yes ;;
    -h | --help)
      echo "usage: install_deps.sh [--lint] [--bench] [--python] [--systemd] [--package] [--metrics] [--etcd] [--arm64] [--required]"
      exit 0
      ;;
    *)
      echo "install_deps.sh: unknown option $argument" >&2
      exit 1
      ;;
  esac
done

if ! command -v apt-get >/dev/null; then
  echo "install_deps.sh: no apt-get here; install the packages that docs/CONTRIBUTING.md lists" >&2
  exit 1
fi

boost=libboost-dev
tidy=clang-tidy
# Debian 12's defaults are Boost 1.74 and clang-tidy 14, which takes three times as long as 22;
# newer versions are installed beside them.
# shellcheck source=/dev/null
if [ "$(. /etc/os-release && echo "${ID:-}${VERSION_ID:-}")" = debian12 ]; then
  boost=libboost1.81-dev
  tidy=clang-tidy-22
fi

packages=(g++ cmake ninja-build pkg-config "$boost" libprotobuf-dev protobuf-compiler libssl-dev libcli11-dev zlib1g-dev)
[ "$required" = no ] && packages+=(ccache libxxhash-dev libucx-dev libzmq3-dev cppzmq-dev liburing-dev catch2 libbenchmark-dev
  libhiredis-dev prometheus-cpp-dev python3 git binutils spin)
[ "$lint" = yes ] && packages+=(clang clang-format "$tidy" shellcheck systemd docker-compose doxygen abigail-tools)
[ "$bench" = yes ] && packages+=(redis-server)
[ "$systemd" = yes ] && packages+=(systemd-container mmdebstrap util-linux)
[ "$debian_packages" = yes ] && packages+=(dpkg-dev lintian help2man zsh fish)
[ "$metrics" = yes ] && packages+=(prometheus chromium fonts-dejavu-core)
[ "$etcd" = yes ] && packages+=(etcd-server)
[ "$arm64" = yes ] && packages+=(g++-aarch64-linux-gnu qemu-user-static mmdebstrap util-linux)
[ "$python" = yes ] && packages+=(python3-dev python3-venv libnuma1)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

run=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "install_deps.sh: needs root or sudo to install: ${missing[*]}" >&2
    exit 1
  }
  run=(sudo)
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt=("${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
"${apt[@]}" update </dev/null >/dev/null
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
