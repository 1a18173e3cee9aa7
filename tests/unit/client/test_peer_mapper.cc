// Regions that are announced with other descriptors than they say: they are left out with the
// reason, no mapping of them can end this process, and others are mapped.
#include "client/peers/peer_mapper.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "client/region/make_region.h"
#include "tests/catch.h"
#include "tests/support/data/segment_builder.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;

constexpr std::uint64_t kBlockBytes = 4096;

// A region of host memory in one segment, as another process would make it.
struct Owned {
  explicit Owned(std::uint32_t blocks, const std::string& name = "announced") {
    RegionOptions options;
    options.name = name;
    options.geometry = Geometry::Contiguous(blocks, kBlockBytes);
    Result<std::shared_ptr<Region::Impl>> made =
        MakeAllocated(Model{}, options, devices, DeviceSet::kHost, [](std::span<const std::uint64_t>) { return Fds(); });
    KVM_REQUIRE_OK(made);
    region = *made;
  }
  UniqueFd Table() const { return Again(region->generation_memory.fd()); }
  UniqueFd Payload() const { return Again(region->memory->handles()[0].fd.get()); }
  static UniqueFd Again(int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

  DeviceSet devices;
  std::shared_ptr<Region::Impl> region;
};

// A client's mapper, and the table in which it puts what it has mapped.
struct Importer {
  Importer() {
    Result<RegistryView> registry = segment.Open();
    KVM_REQUIRE_OK(registry);
    connection = peers.StartConnection(std::move(*registry));
  }
  void Announce(std::uint32_t row, const kvmwire::RegionDescriptor& descriptor, Fds fds) {
    kvmwire::RegionAnnounce announce;
    announce.set_region(row);
    announce.set_region_epoch(row + 1);
    announce.set_has_payload(true);
    *announce.mutable_descriptor_() = descriptor;
    mapper.Announce(connection, std::move(announce), std::move(fds));
    KVM_REQUIRE_OK(mapper.Drain(std::chrono::steady_clock::now() + 60s));
  }
  // Of the one region that is not mapped; empty: there is none.
  std::string Problem() const {
    const std::vector<UnmappedRegion> unmapped = mapper.Unmapped();
    return unmapped.empty() ? std::string() : unmapped[0].reason.ToString();
  }
  bool Mapped(std::uint32_t row) const { return peers.Knows(connection, row, row + 1); }

  test::SegmentBuilder segment{1, 8, 64};
  DeviceSet devices;
  PeerTable peers;
  PeerMapper mapper{devices, peers, 8, [] {}};
  std::uint64_t connection = 0;
};

Fds Pair(UniqueFd table, UniqueFd payload) {
  Fds fds;
  fds.push_back(std::move(table));
  fds.push_back(std::move(payload));
  return fds;
}

UniqueFd Memory(off_t bytes, int seals, bool allocated = true) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(fd.get(), bytes) == 0);
  if (allocated && bytes > 0) REQUIRE(::fallocate(fd.get(), 0, 0, bytes) == 0);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

// What is no memory of a region, whatever it is announced as.
std::vector<std::pair<std::string, std::function<UniqueFd()>>> Others() {
  constexpr int kSize = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  return {
      {"a directory", [] { return UniqueFd(::open("/proc/self", O_RDONLY | O_CLOEXEC)); }},
      {"a device", [] { return UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)); }},
      {"only a path", [] { return UniqueFd(::open("/dev/zero", O_PATH | O_CLOEXEC)); }},
      {"a socket", [] { return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)); }},
      {"an epoll", [] { return UniqueFd(::epoll_create1(EPOLL_CLOEXEC)); }},
      {"a process", [] { return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0))); }},
      {"memory that may shrink", [] { return Memory(1 << 20, F_SEAL_GROW | F_SEAL_SEAL); }},
      {"memory that may be resealed", [] { return Memory(1 << 20, F_SEAL_GROW | F_SEAL_SHRINK); }},
      {"memory that is not allocated", [] { return Memory(1 << 20, kSize, false); }},
      {"no memory", [] { return Memory(0, kSize); }},
  };
}

}  // namespace

// Where the number of blocks in a generation table's header is not compared, a larger region's is
// taken: seen.
TEST_CASE("Peers: a region that comes with another table or another memory than it says is left out, and others are mapped", "[unit]") {
  const Owned owned(8), smaller(4, "smaller"), larger(16, "larger"), good(8, "good");
  Importer importer;
  SECTION("another region's table, for fewer blocks") {
    importer.Announce(0, owned.region->Descriptor(), Pair(smaller.Table(), owned.Payload()));
  }
  SECTION("another region's table, for more blocks") {
    importer.Announce(0, owned.region->Descriptor(), Pair(larger.Table(), owned.Payload()));
  }
  SECTION("table and memory the other way round") {
    importer.Announce(0, owned.region->Descriptor(), Pair(owned.Payload(), owned.Table()));
  }
  SECTION("another region's memory, which is smaller") {
    importer.Announce(0, owned.region->Descriptor(), Pair(owned.Table(), smaller.Payload()));
  }
  SECTION("no memory") {
    Fds fds;
    fds.push_back(owned.Table());
    importer.Announce(0, owned.region->Descriptor(), std::move(fds));
  }
  SECTION("nothing") { importer.Announce(0, owned.region->Descriptor(), {}); }
  SECTION("blocks that lie outside of their segment") {
    kvmwire::RegionDescriptor descriptor = owned.region->Descriptor();
    descriptor.mutable_segments(0)->set_size_bytes(kBlockBytes);
    importer.Announce(0, descriptor, Pair(owned.Table(), owned.Payload()));
  }
  SECTION("a segment whose size has no end") {
    kvmwire::RegionDescriptor descriptor = owned.region->Descriptor();
    descriptor.mutable_segments(0)->set_size_bytes(~std::uint64_t{0});
    importer.Announce(0, descriptor, Pair(owned.Table(), owned.Payload()));
  }
  INFO(importer.Problem());
  CHECK_FALSE(importer.Problem().empty());
  importer.Announce(1, good.region->Descriptor(), Pair(good.Table(), good.Payload()));
  CHECK(importer.Mapped(1));
  CHECK(importer.mapper.Unmapped().size() == 1);
}

// Where CheckSealed looks at no seals, memory that may shrink becomes a segment: seen.
TEST_CASE("Peers: descriptors that are no region's memory are refused as its table and as its segment", "[unit]") {
  const Owned owned(8), good(8, "good");
  for (const auto& [what, make] : Others()) {
    for (const bool as_table : {true, false}) {
      INFO(what << (as_table ? ", as table" : ", as segment"));
      UniqueFd other = make();
      REQUIRE(other);
      Importer importer;
      importer.Announce(0, owned.region->Descriptor(),
                        as_table ? Pair(std::move(other), owned.Payload()) : Pair(owned.Table(), std::move(other)));
      CHECK_FALSE(importer.Problem().empty());
      importer.Announce(1, good.region->Descriptor(), Pair(good.Table(), good.Payload()));
      CHECK(importer.Mapped(1));
    }
  }
}
