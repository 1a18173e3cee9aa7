#!/usr/bin/env bash
# Makes the Debian packages of this tree, checks them with lintian, and runs deb.py on them, then
# deb_before.py where this history goes back to the version before.
#
#   deb.sh SOURCE_DIR PYTHON
set -euo pipefail
[ "${KVM_TEST_SYSTEMD:-}" = 1 ] || {
  echo "SKIPPED: boots a system of its own, so it runs only where KVM_TEST_SYSTEMD=1 is set"
  exit 77
}
cd "$1"
scripts/package.sh --out build/packages
"$2" tests/package/deb.py --root "$PWD/build/systemd-root/machine" --packages build/packages
status=0
before=$(tests/package/version_before.sh .) || status=$?
[ "$status" -ne 77 ] || exit 0
[ "$status" -eq 0 ] || exit "$status"
"$2" tests/package/deb_before.py --root "$PWD/build/systemd-root/machine" --packages build/packages --before "$before"
