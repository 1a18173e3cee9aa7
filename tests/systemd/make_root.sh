#!/usr/bin/env bash
# Makes the root of a small machine of this distribution with systemd, for tests/systemd/run.py,
# unless it is there already. Packages come from where this machine's own come from.
#
#   make_root.sh ROOT       77: it can't be made here; the reason is said
set -euo pipefail
export LC_ALL=C
root=${1:?"make_root.sh: which directory?"}
skip() {
  echo "SKIPPED: $*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "needs root, to make a root directory"
command -v mmdebstrap >/dev/null || skip "no mmdebstrap here (scripts/install_deps.sh --systemd)"
wanted=systemd,systemd-sysv
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9
if [ -f "$root.packages" ] && [ "$(cat "$root.packages")" = "$wanted" ]; then exit 0; fi
# mmdebstrap mounts the machine's /proc, /sys and parts of /dev there. They end with a mount
# namespace of its own, however this script ends, and nothing is removed through them.
rm -rf --one-file-system "$root" "$root.new" "$root.packages"

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
# shellcheck disable=SC2016 # apt's own placeholders
mirror=$(apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)' 2>/dev/null |
  awk -v codename="$codename" '$1 == "Packages" && $2 == codename && $3 == "main" { print $4; exit }')
[ -n "$mirror" ] || skip "apt has no source of packages for $codename"
apt-config shell proxy Acquire::http::Proxy >"$root.proxy"
proxy=""
# shellcheck source=/dev/null
. "$root.proxy"
rm -f "$root.proxy"
[ -z "$proxy" ] || export http_proxy=$proxy
if ! unshare --mount mmdebstrap --mode=root --variant=minbase "--include=$wanted" \
  '--dpkgopt=path-exclude=/usr/share/doc/*' '--dpkgopt=path-exclude=/usr/share/locale/*' '--dpkgopt=path-exclude=/usr/share/man/*' \
  "$codename" "$root.new" "$mirror" >"$root.log" 2>&1; then
  tail -5 "$root.log"
  rm -rf --one-file-system "$root.new"
  skip "no root could be made from $mirror"
fi
mv "$root.new" "$root"
echo "$wanted" >"$root.packages"
