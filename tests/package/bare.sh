#!/usr/bin/env bash
# scripts/quickstart.sh on a machine of this distribution that has nothing installed: a root
# directory of its own, into which the sources are copied. Says how long it took.
#
#   bare.sh SOURCE_DIR       77: it can't run here; the reason is said
set -euo pipefail
export LC_ALL=C
cd "$1"
skip() {
  echo "SKIPPED: $*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || skip "needs root, to make a root directory"
for program in mmdebstrap unshare git; do
  command -v "$program" >/dev/null || skip "no $program here (scripts/install_deps.sh --systemd)"
done
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mkdir -p build
work=$(mktemp -d -p "$PWD/build" bare.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root
apt-config shell proxy Acquire::http::Proxy >"$work/proxy"
proxy=""
# shellcheck source=/dev/null
. "$work/proxy"
[ -z "$proxy" ] || export http_proxy=$proxy
unshare --mount mmdebstrap --mode=root --variant=minbase "$codename" "$root" >"$work/log" 2>&1 ||
  skip "no root directory could be made: $(tail -n 5 "$work/log")"
mkdir "$root/kvmd"
git ls-files -z | xargs -0 cp --parents -t "$root/kvmd"
cp /etc/resolv.conf "$root/etc/resolv.conf"

# What is mounted, and what runs, ends with namespaces of its own.
cat >"$work/inside.sh" <<'SCRIPT'
set -euo pipefail
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys" # kvmd reads limits of memory there
mount -t proc proc "$1/proc"
exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root ${http_proxy:+http_proxy="$http_proxy"} /kvmd/scripts/quickstart.sh
SCRIPT
begin=$SECONDS
time unshare --mount --pid --fork bash "$work/inside.sh" "$root" </dev/null | tee "$work/said"
grep -q '^The workers kept their blocks in: ' "$work/said"
grep -qE '^mismatched blocks +0$' "$work/said"
echo "from nothing to hits: $((SECONDS - begin)) s"
