#include "client/mesh/memory/checksum.h"

// The library chooses between SSE2, AVX2 and AVX-512 when it runs. Elsewhere the header is what the
// compiler's target makes of it, NEON on 64-bit Arm.
#if defined(KVM_HAVE_XXH_DISPATCH)
#include <xxhash.h>
// Behind xxhash.h
#include <xxh_x86dispatch.h>
#else
#define XXH_INLINE_ALL
#include <xxhash.h>
#endif

#include <new>

namespace kvm::mesh {

std::uint64_t BlockChecksum(std::span<const std::byte> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

// XXH3_state_t is aligned to a cache line; its own allocation sees to that.
struct RunningChecksum::State {
  State() : xxh(XXH3_createState()) {
    if (xxh == nullptr) throw std::bad_alloc();
    XXH3_64bits_reset(xxh);
  }
  ~State() { XXH3_freeState(xxh); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  XXH3_state_t* const xxh;
};

RunningChecksum::RunningChecksum() : state_(std::make_unique<State>()) {}
RunningChecksum::~RunningChecksum() = default;

void RunningChecksum::Add(std::span<const std::byte> bytes) noexcept { XXH3_64bits_update(state_->xxh, bytes.data(), bytes.size()); }

std::uint64_t RunningChecksum::Take() noexcept {
  const std::uint64_t value = XXH3_64bits_digest(state_->xxh);
  XXH3_64bits_reset(state_->xxh);
  return value;
}

}  // namespace kvm::mesh
