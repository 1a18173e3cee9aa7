// Blocks that leave the host cache of a domain with zero-on-free: their bytes are gone from the
// slab before another block is copied there.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

Config CacheThatZeroes(bool zeroes) {
  Config config = CacheOf(1);
  daemon::DomainRule rule;
  rule.name = "team";
  rule.uids = {1000};
  rule.zero_on_free = zeroes;
  config.domains = {rule};
  return config;
}

// The slab as its writer has it.
class Mapped {
 public:
  explicit Mapped(const UniqueFd& fd)
      : memory_(static_cast<char*>(::mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0))) {
    REQUIRE(memory_ != MAP_FAILED);
  }
  ~Mapped() { ::munmap(memory_, kSlab); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  void Fill(std::uint32_t slot, char with) { std::memset(memory_ + slot * kBlockBytes, with, kBlockBytes); }
  bool Holds(std::uint32_t slot, char byte) const {
    const char* const begin = memory_ + slot * kBlockBytes;
    return std::all_of(begin, begin + kBlockBytes, [&](char each) { return each == byte; });
  }

 private:
  char* const memory_;
};

struct Filled {
  explicit Filled(bool zeroes) : node(CacheThatZeroes(zeroes)), writer(node, "writer") {
    const kvmwire::PrepareStoreReply reply = writer.Offer(writer.Write(0, kSlots));
    REQUIRE(reply.grants_size() == static_cast<int>(kSlots));
    slab.emplace(writer.connection.Take(Body::kSlabGrant).fds.at(0));
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) slab->Fill(slot, 'b');
    writer.Done(reply);
  }
  Node node;
  OffloadingWorker writer;
  std::optional<Mapped> slab;
};

}  // namespace

TEST_CASE("Zero on free: an evicted block's bytes are gone before its slot is written again", "[unit]") {
  Filled filled(true);
  const kvmwire::PrepareStoreReply reply = filled.writer.Offer(filled.writer.Write(0, 3, 2));
  REQUIRE(reply.grants_size() == 3);
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
    const bool evicted =
        std::any_of(reply.grants().begin(), reply.grants().end(), [&](const kvmwire::StoreGrant& grant) { return grant.slot() == slot; });
    CHECK(filled.slab->Holds(slot, evicted ? 0 : 'b'));
  }
}

TEST_CASE("Zero on free: what was copied for a store that its worker gave back is gone", "[unit]") {
  Filled filled(true);
  const kvmwire::PrepareStoreReply reply = filled.writer.Offer(filled.writer.Write(0, 2, 2));
  REQUIRE(reply.grants_size() == 2);
  for (const kvmwire::StoreGrant& grant : reply.grants()) filled.slab->Fill(grant.slot(), 'c');
  filled.writer.Done(reply, /*stored=*/false);
  for (const kvmwire::StoreGrant& grant : reply.grants()) CHECK(filled.slab->Holds(grant.slot(), 0));
}

TEST_CASE("Zero on free: without it, an evicted block's bytes stay until its slot is written again", "[unit]") {
  Filled filled(false);
  REQUIRE(filled.writer.Offer(filled.writer.Write(0, 3, 2)).grants_size() == 3);
  for (std::uint32_t slot = 0; slot < kSlots; ++slot) CHECK(filled.slab->Holds(slot, 'b'));
}

}  // namespace kvm::test
