#!/usr/bin/env bash
# Runs the soak: replay over four workers, kills and stops of workers, importers and kvmd, seven
# hostile clients, a small host cache (tests/fault/test_soak.cc). Prints what was counted, and fails
# if a byte was wrong, a block was lost or something is left. As root, the hostile clients are of
# other users.
#
#   scripts/soak.sh [--minutes N] [BUILD_DIR]     default 30 minutes, build/ci
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=30
if [ "${1:-}" = --minutes ]; then
  minutes=$2
  shift 2
fi
build=${1:-build/ci}
cmake --build "$build" --target soak_tests kvmd kvctl
KVM_SOAK_MINUTES=$minutes exec "$build/bin/soak_tests" "Soak*"
