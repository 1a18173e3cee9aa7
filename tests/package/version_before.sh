#!/usr/bin/env bash
# Builds the version before this one from this repository's history, once, and prints the folder:
# its sources, and what they install in `installed`.
#
#   version_before.sh SOURCE_DIR       77: it can't be built here; the reason is said
set -euo pipefail
cd "$1"
skip() {
  echo "SKIPPED: $*" >&2
  exit 77
}
version=$(sed -n 's/^project(kvmd VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
commit=$(git log -1 --format=%H -S"project(kvmd VERSION $version " -- CMakeLists.txt 2>/dev/null) || skip "no git repository here"
if [ -z "$commit" ] || ! git cat-file -e "$commit^" 2>/dev/null; then
  skip "this history does not go back to the version before $version"
fi

old=$PWD/build/skew/$(git rev-parse --short "$commit^")
mkdir -p build/skew
exec 9>"$old.lock"
flock 9
if [ ! -x "$old/installed/bin/kvctl" ]; then
  rm -rf "$old"
  mkdir -p "$old"
  git archive "$commit^" | tar -x -C "$old"
  launcher=()
  command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  cmake -S "$old" -B "$old/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVM_TESTS=OFF -DKVM_CUDA=OFF "${launcher[@]}" >/dev/null
  cmake --build "$old/build" --target kvmd kvctl kvclient >&2
  cmake --install "$old/build" --prefix "$old/installed" >/dev/null
fi
echo "$old"
