// Transfer plans without a GPU: the kernel's table, executed item by item on the CPU, and the copy
// engine's copies move exactly the bytes of the wanted blocks; the choices follow runs and
// alignment.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "cuda/devices.h"
#include "cuda/host/checksum.h"
#include "cuda/plan/transfer_plan.h"
#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;

using Segments = std::vector<std::vector<std::byte>>;

Segments Make(const std::vector<std::uint64_t>& sizes, test::Random* random) {
  Segments out;
  for (const std::uint64_t bytes : sizes) {
    out.emplace_back(bytes + 16, std::byte{0xA5});
    if (random == nullptr) continue;
    for (std::byte& byte : out.back()) byte = static_cast<std::byte>(random->Next());
  }
  return out;
}

template <class Pointer>
std::vector<Pointer> Bases(Segments& segments) {
  std::vector<Pointer> out;
  for (auto& segment : segments) out.push_back(segment.data());
  return out;
}

// All bytes of a block in its order: the definition in kvm/geometry.h.
std::vector<std::byte> BlockBytes(const Geometry& geometry, const Segments& segments, std::uint32_t block) {
  std::vector<std::byte> out;
  for (const GeometryPart& part : geometry.parts) {
    for (std::uint32_t r = 0; r < part.count; ++r) {
      const std::byte* at = segments[part.segment].data() + part.offset + r * part.repeat_stride + block * part.block_stride;
      out.insert(out.end(), at, at + part.chunk_bytes);
    }
  }
  return out;
}

template <class T>
const T* At(const TransferPlan& plan, std::size_t offset) {
  return reinterpret_cast<const T*>(plan.table.data() + offset);
}

// What copy_kernels.cu does with the table.
void Execute(const TransferPlan& plan) {
  for (const EngineCopy& copy : plan.engine_copies) {
    std::memcpy(reinterpret_cast<void*>(copy.destination), reinterpret_cast<const void*>(copy.source), copy.bytes);
  }
  const auto* groups = At<GroupEntry>(plan, 0);
  const auto* pieces = At<PieceEntry>(plan, plan.group_count * sizeof(GroupEntry));
  const auto* pairs = At<PairEntry>(plan, plan.group_count * sizeof(GroupEntry) + plan.piece_count * sizeof(PieceEntry));
  std::uint32_t g = 0;
  for (std::uint32_t item = 0; item < plan.item_count; ++item) {
    while (g + 1 < plan.group_count && item >= groups[g + 1].item_first) ++g;
    const std::uint32_t local = item - groups[g].item_first, whole = local / groups[g].split;
    const PieceEntry& piece = pieces[groups[g].piece_first + whole % groups[g].piece_count];
    REQUIRE(whole / groups[g].piece_count < groups[g].copy_pairs);
    const PairEntry& pair = pairs[groups[g].pair_first + whole / groups[g].piece_count];
    const std::uint64_t offset = std::uint64_t{local % groups[g].split} * plan.kernel.unit_bytes;
    if (offset >= piece.bytes) continue;
    const std::uint64_t bytes = std::min<std::uint64_t>(piece.bytes - offset, plan.kernel.unit_bytes);
    const std::uint64_t from = piece.source + pair.source * piece.source_stride + offset;
    const std::uint64_t to = piece.destination + pair.destination * piece.destination_stride + offset;
    REQUIRE((from | to | bytes) % plan.kernel.word_bytes == 0);
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  }
}

std::vector<std::uint32_t> Shuffled(std::uint32_t count, test::Random& random) {
  std::vector<std::uint32_t> out(count);
  std::iota(out.begin(), out.end(), 0u);
  for (std::uint32_t i = count; i > 1; --i) std::swap(out[i - 1], out[random.Below(i)]);
  return out;
}

Result<TransferPlan> Plan(std::span<const TransferRun> runs, std::span<const ImportBlock> blocks, std::span<std::byte* const> destinations,
                          const CopyLimits& limits) {
  TransferPlan plan;
  // What an earlier import left there must not matter.
  plan.engine_copies.resize(3);
  plan.table.resize(100);
  plan.order.resize(7);
  if (Status planned = PlanTransfer(runs, blocks, destinations, limits, plan); !planned) return planned.error();
  return plan;
}

CopyLimits Hopper() {
  CopyLimits limits;
  limits.sm_count = 132;
  limits.bulk_shared_bytes = 223 << 10;
  return limits;
}

TEST_CASE("Transfer plan: the kernel's table moves exactly the wanted blocks, in every layout and kernel", "[unit]") {
  constexpr std::uint32_t kBlocks = 24;
  test::Random random(11);
  std::vector<KernelChoice> choices(3);
  choices[1].word_bytes = 1;
  choices[1].unit_bytes = 256;
  choices[2].kind = KernelKind::kBulk;
  choices[2].unit_bytes = 384;
  for (const test::NamedGeometry& from : test::EngineLayouts(kBlocks)) {
    for (const test::NamedGeometry& to : test::EngineLayouts(kBlocks)) {
      const Result<CopyPlan> plan = MakeCopyPlan(from.geometry, to.geometry);
      KVM_REQUIRE_OK(plan);
      for (const KernelChoice& choice : choices) {
        INFO(from.name << " to " << to.name << ", units of " << choice.unit_bytes);
        Segments source = Make(from.segment_bytes, &random), other = Make(from.segment_bytes, &random);
        Segments destination = Make(to.segment_bytes, nullptr);
        const auto source_bases = Bases<const std::byte*>(source), other_bases = Bases<const std::byte*>(other);
        const auto destination_bases = Bases<std::byte*>(destination);
        const std::vector<std::uint32_t> sources = Shuffled(kBlocks, random), destinations = Shuffled(kBlocks, random);
        std::vector<ImportBlock> blocks;
        for (std::uint32_t i = 0; i < 10; ++i) blocks.push_back({sources[i], destinations[i], 2});
        // Three runs, the first and the last from one source.
        std::vector<TransferRun> runs(3);
        runs[0] = {&*plan, source_bases, 0, 0, MemoryPath::kNvlink, &source, 0, 3};
        runs[1] = {&*plan, other_bases, 0, 0, MemoryPath::kNvlink, &other, 3, 4};
        runs[2] = {&*plan, source_bases, 0, 0, MemoryPath::kNvlink, &source, 7, 3};
        CopyLimits limits = Hopper();
        limits.forced = choice;
        Result<TransferPlan> transfer = Plan(runs, blocks, destination_bases, limits);
        KVM_REQUIRE_OK(transfer);
        CHECK(transfer->group_count == 2);
        CHECK(transfer->pair_count == 10);
        transfer->kernel.word_bytes = 1;
        Execute(*transfer);
        for (std::uint32_t block = 0; block < kBlocks; ++block) {
          const auto found =
              std::find_if(blocks.begin(), blocks.end(), [&](const ImportBlock& pair) { return pair.destination_block == block; });
          const std::vector<std::byte> got = BlockBytes(to.geometry, destination, block);
          if (found == blocks.end()) {
            CHECK(std::all_of(got.begin(), got.end(), [](std::byte byte) { return byte == std::byte{0xA5}; }));
          } else {
            const auto nth = found - blocks.begin();
            CHECK(got == BlockBytes(from.geometry, nth >= 3 && nth < 7 ? other : source, found->source_block));
          }
        }
      }
    }
  }
}

TEST_CASE("Transfer plan: the order maps every pair back to its block", "[unit]") {
  const CopyPlan plan{{0, 0, 0, 64, 0, 64, 64}};
  const std::byte *a = nullptr, *b = nullptr;
  std::byte* to = nullptr;
  std::vector<ImportBlock> blocks;
  for (std::uint32_t i = 0; i < 6; ++i) blocks.push_back({i * 2, i * 3, 2});
  std::vector<TransferRun> runs(3);
  runs[0] = {&plan, {&a, 1}, 0, 0, MemoryPath::kNvlink, &a, 0, 2};
  runs[1] = {&plan, {&b, 1}, 0, 0, MemoryPath::kNvlink, &b, 2, 2};
  runs[2] = {&plan, {&a, 1}, 0, 0, MemoryPath::kNvlink, &a, 4, 2};
  const Result<TransferPlan> transfer = Plan(runs, blocks, {&to, 1}, Hopper());
  KVM_REQUIRE_OK(transfer);
  CHECK(transfer->order == std::vector<BlockRange>{{0, 2}, {4, 2}, {2, 2}});
  std::vector<std::uint32_t> order;
  for (const BlockRange& range : transfer->order) {
    for (std::uint32_t i = 0; i < range.count; ++i) order.push_back(range.first + i);
  }
  const auto* pairs = At<PairEntry>(*transfer, 2 * sizeof(GroupEntry) + 2 * sizeof(PieceEntry));
  for (std::size_t k = 0; k < 6; ++k) CHECK(pairs[k].source == blocks[order[k]].source_block);
}

TEST_CASE("Transfer plan: long adjacent runs go to the copy engine, and scattered blocks do not", "[unit]") {
  const std::uint64_t block_bytes = 1 << 20;
  const std::uint64_t adjacent = EngineRunBytes(MemoryPath::kNvlink, Hopper()) / block_bytes;
  REQUIRE(adjacent > 1);
  const CopyPlan plan{{0, 0, 0, block_bytes, 0, block_bytes, block_bytes}};
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::vector<ImportBlock> blocks;
  for (std::uint32_t i = 0; i < adjacent; ++i) blocks.push_back({100 + i, 7 + i, 2});
  for (std::uint32_t i = 0; i < 5; ++i) blocks.push_back({i * 2, 2000 + i, 2});
  TransferRun run{&plan, {&from, 1}, 0, 0, MemoryPath::kNvlink, &from, 0, blocks.size()};
  const Result<TransferPlan> transfer = Plan({&run, 1}, blocks, {&to, 1}, Hopper());
  KVM_REQUIRE_OK(transfer);
  REQUIRE(transfer->engine_copies.size() == 1);
  CHECK(transfer->engine_copies[0] == EngineCopy{100 * block_bytes, 7 * block_bytes, adjacent * block_bytes});
  CHECK(transfer->kernel_bytes == 5 * block_bytes);
  // All of them are validated nevertheless.
  CHECK(transfer->pair_count == blocks.size());
  CHECK(At<GroupEntry>(*transfer, 0)->copy_pairs == 5);
}

TEST_CASE("Transfer plan: with gaps between blocks on either side the copy engine is not used", "[unit]") {
  const std::uint64_t bytes = 64 << 20;
  for (const CopyPiece& piece : {CopyPiece{0, 0, 0, bytes + 16, 0, bytes, bytes}, CopyPiece{0, 0, 0, bytes, 0, bytes + 16, bytes}}) {
    const CopyPlan plan{piece};
    const std::byte* from = nullptr;
    std::byte* to = nullptr;
    const std::vector<ImportBlock> blocks{{0, 0, 2}, {1, 1, 2}};
    TransferRun run{&plan, {&from, 1}, 0, 0, MemoryPath::kNvlink, &from, 0, 2};
    const Result<TransferPlan> transfer = Plan({&run, 1}, blocks, {&to, 1}, Hopper());
    KVM_REQUIRE_OK(transfer);
    CHECK(transfer->engine_copies.empty());
  }
}

TEST_CASE("Transfer plan: words are as wide as every address, stride and size allows", "[unit]") {
  const auto word = [](std::uint64_t offset, std::uint64_t stride, std::uint64_t bytes) {
    const CopyPlan plan{{0, 0, offset, stride, 0, 4096, bytes}};
    const std::byte* from = nullptr;
    std::byte* to = nullptr;
    const std::vector<ImportBlock> blocks{{0, 0, 2}, {5, 2, 2}};
    TransferRun run{&plan, {&from, 1}, 0, 0, MemoryPath::kNvlink, &from, 0, 2};
    return Plan({&run, 1}, blocks, {&to, 1}, Hopper())->kernel.word_bytes;
  };
  CHECK(word(0, 4096, 4096) == 16);
  CHECK(word(8, 4096, 4096) == 8);
  CHECK(word(0, 4100, 4096) == 4);
  CHECK(word(0, 4096, 4094) == 1);
  CHECK(word(1, 4096, 4096) == 1);
}

TEST_CASE("Transfer plan: the bound on multiprocessors bounds the grid", "[unit]") {
  const CopyPlan plan{{0, 0, 0, 65536, 0, 65536, 65536}};
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::vector<ImportBlock> blocks;
  for (std::uint32_t i = 0; i < 4096; ++i) blocks.push_back({(i * 7919) % 8192, i, 2});
  for (const MemoryPath path : {MemoryPath::kSameDevice, MemoryPath::kNvlink}) {
    for (const unsigned max_sms : {1u, 16u, 32u, 1000u}) {
      TransferRun run{&plan, {&from, 1}, 0, 0, path, &from, 0, blocks.size()};
      CopyLimits limits = Hopper();
      limits.max_sms = max_sms;
      const Result<TransferPlan> transfer = Plan({&run, 1}, blocks, {&to, 1}, limits);
      KVM_REQUIRE_OK(transfer);
      CHECK(transfer->kernel.blocks <= std::min(max_sms, 132u));
      CHECK(transfer->kernel.blocks >= 1);
    }
  }
}

TEST_CASE("Transfer plan: a plan that names an unmapped segment is refused", "[unit]") {
  const CopyPlan plan{{1, 0, 0, 64, 0, 64, 64}};
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  const std::vector<ImportBlock> blocks{{0, 0, 2}};
  TransferRun run{&plan, {&from, 1}, 0, 0, MemoryPath::kNvlink, &from, 0, 1};
  KVM_CHECK_ERROR(Plan({&run, 1}, blocks, {&to, 1}, Hopper()), Errc::kInvalidArgument, "segment");
}

TEST_CASE("Checksum: the same for every layout of the same bytes, different for moved words", "[unit]") {
  constexpr std::uint32_t kBlocks = 5;
  test::Random random(3);
  const std::vector<test::NamedGeometry> layouts = test::EngineLayouts(kBlocks);
  Segments first = Make(layouts[0].segment_bytes, &random);
  for (std::uint32_t block = 0; block < kBlocks; ++block) {
    const std::uint64_t expected = ChecksumBlock(layouts[0].geometry, Bases<const std::byte*>(first), block);
    const std::vector<std::byte> bytes = BlockBytes(layouts[0].geometry, first, block);
    for (const test::NamedGeometry& layout : layouts) {
      Segments segments = Make(layout.segment_bytes, nullptr);
      const std::byte* from = bytes.data();
      for (const GeometryPart& part : layout.geometry.parts) {
        for (std::uint32_t r = 0; r < part.count; ++r) {
          std::memcpy(segments[part.segment].data() + part.offset + r * part.repeat_stride + block * part.block_stride, from,
                      part.chunk_bytes);
          from += part.chunk_bytes;
        }
      }
      INFO(layout.name);
      CHECK(ChecksumBlock(layout.geometry, Bases<const std::byte*>(segments), block) == expected);
    }
  }
  std::vector<std::byte> swapped = BlockBytes(layouts[0].geometry, first, 0);
  std::swap_ranges(swapped.begin(), swapped.begin() + 8, swapped.begin() + 8);
  const std::byte* base = swapped.data();
  CHECK(ChecksumBlock(layouts[0].geometry, {&base, 1}, 0) != ChecksumBlock(layouts[0].geometry, Bases<const std::byte*>(first), 0));
}

TEST_CASE("Host backend: bytes go in and out within their segment, actions run at once", "[unit]") {
  const auto backend = MakeHostBackend();
  const std::uint64_t bytes = 4096;
  const auto memory = backend->Allocate("test", {&bytes, 1});
  KVM_REQUIRE_OK(memory);
  CHECK((*memory)->kind() == layout::HandleKind::kHostMemfd);
  const std::vector<std::byte> written(100, std::byte{7});
  KVM_REQUIRE_OK(backend->WriteBytes(**memory, 0, 3996, written));
  std::vector<std::byte> read(100);
  KVM_REQUIRE_OK(backend->ReadBytes(**memory, 0, 3996, read));
  CHECK(read == written);
  KVM_CHECK_ERROR(backend->WriteBytes(**memory, 0, 3997, written), Errc::kInvalidArgument, "leave segment 0");
  KVM_CHECK_ERROR(backend->ReadBytes(**memory, 0, UINT64_MAX, read), Errc::kInvalidArgument, "leave segment 0");
  KVM_CHECK_ERROR(backend->ReadBytes(**memory, 1, 0, read), Errc::kInvalidArgument, "does not exist");
  const Geometry geometry = Geometry::Contiguous(4, 1024);
  const std::byte* base = (*memory)->SegmentData(0);
  const std::vector<std::uint32_t> blocks{3, 0};
  const auto sums = backend->Checksum(**memory, geometry, blocks);
  KVM_REQUIRE_OK(sums);
  CHECK(*sums == std::vector<std::uint64_t>{ChecksumBlock(geometry, {&base, 1}, 3), ChecksumBlock(geometry, {&base, 1}, 0)});
  CHECK_FALSE(backend->Checksum(**memory, geometry, std::vector<std::uint32_t>{4}));
  bool ran = false;
  KVM_REQUIRE_OK(backend->RunAfter({}, [&] { ran = true; }));
  CHECK(ran);
  KVM_CHECK_ERROR(backend->Register({}), Errc::kUnsupported, "host memory");
  KVM_CHECK_ERROR(backend->Map({}, {layout::HandleKind::kCudaVmmFd, {}}), Errc::kUnsupported, "GPU memory");
}

TEST_CASE("Devices: a machine without a usable GPU is told apart from a failure", "[unit]") {
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  if (devices) {
    CHECK_FALSE(devices->empty());
    KVM_CHECK_ERROR(MakeCudaBackend(DeviceUuid{1, 2, 3}), Errc::kNotFound, "not visible");
  } else {
    CHECK(devices.error().code == Errc::kUnsupported);
    CHECK_FALSE(devices.error().message.empty());
    CHECK(MakeCudaBackend(DeviceUuid{}).error().code == Errc::kUnsupported);
  }
}

}  // namespace
