#!/usr/bin/env bash
# Runs the soak: replay over four workers, kills and stops of workers, importers and kvmd, seven
# hostile clients, a small host cache (tests/fault/test_soak.cc). Prints what was counted, and fails
# if a byte was wrong, a block was lost or something is left. As root, the hostile clients are of
# other users.
#
# --mesh-blocks N: instead, the soak of two nodes that bring each other's blocks, until N of these
# have been compared byte for byte (tests/fault/test_mesh_soak.cc).
#
#   scripts/soak.sh [--minutes N | --mesh-blocks N] [BUILD_DIR]     default 30 minutes, build/ci
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=30
mesh_blocks=
case "${1:-}" in
  --minutes) minutes=$2 && shift 2 ;;
  --mesh-blocks) mesh_blocks=$2 && shift 2 ;;
esac
build=${1:-build/ci}
if [ -n "$mesh_blocks" ]; then
  cmake --build "$build" --target mesh_soak_tests kvmd kvmd-mesh
  KVM_MESH_SOAK_BLOCKS=$mesh_blocks exec "$build/bin/mesh_soak_tests" "[nightly]"
fi
cmake --build "$build" --target soak_tests kvmd kvctl
KVM_SOAK_MINUTES=$minutes exec "$build/bin/soak_tests" "Soak*"
