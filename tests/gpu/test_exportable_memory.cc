// Memory of AllocateExportable: allocated, registered as cuda_vmm_fd regions, mapped at its offset,
// freed.
#include <algorithm>
#include <thread>

#include "cuda/memory/device_memory.h"
#include "kvm/exportable_memory.h"
#include "tests/gpu/gpu_worker.h"
#include "tests/gpu/local_region.h"
#include "tests/support/data/geometries.h"
#include "tests/support/kvmd/kvmd_process.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;
using layout::HandleKind;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

std::byte* Allocate(int ordinal, std::uint64_t bytes) {
  Result<void*> memory = AllocateExportable(UuidOfOrdinal(ordinal), bytes);
  KVM_REQUIRE_OK(memory);
  return static_cast<std::byte*>(*memory);
}

std::vector<std::byte> Read(const std::byte* from, std::uint64_t bytes) {
  std::vector<std::byte> out(bytes);
  MustSucceed(cudaMemcpy(out.data(), from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return out;
}

bool All(const std::vector<std::byte>& bytes, int value) {
  return std::all_of(bytes.begin(), bytes.end(), [&](std::byte each) { return each == static_cast<std::byte>(value); });
}

// What a peer would be sent.
std::vector<SegmentHandle> Copies(const LocalMemory& memory) {
  std::vector<SegmentHandle> out;
  for (const SegmentHandle& handle : memory.handles()) {
    out.emplace_back();
    out.back().size_bytes = handle.size_bytes;
    out.back().handle_offset = handle.handle_offset;
    out.back().allocation_bytes = handle.allocation_bytes;
    out.back().fd.Reset(::dup(handle.fd.get()));
  }
  return out;
}

std::size_t FreeBytes() {
  std::size_t free = 0, total = 0;
  MustSucceed(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

}  // namespace

TEST_CASE("Exportable memory: it is zeroed, usable by this GPU, and counted", "[gpu]") {
  KVM_NEED_GPUS(1);
  MustSucceed(cudaSetDevice(0), "cudaSetDevice");
  const ExportableUsage before = ExportableInUse();
  for (int round = 0; round < 2; ++round) {
    std::byte* memory = Allocate(0, 5 * kMiB + 1);
    CHECK(ExportableInUse().allocations == before.allocations + 1);
    CHECK(ExportableInUse().bytes == before.bytes + 5 * kMiB + 1);
    CHECK(All(Read(memory, 5 * kMiB + 1), 0));
    MustSucceed(cudaMemset(memory, 7, 5 * kMiB + 1), "cudaMemset");  // for the next round
    CHECK(All(Read(memory, 5 * kMiB + 1), 7));
    const Result<DeviceUuid> device = DeviceOf(memory + kMiB);
    KVM_REQUIRE_OK(device);
    CHECK(*device == UuidOfOrdinal(0));
    KVM_CHECK_ERROR(FreeExportable(memory + 1), Errc::kNotFound, "not the address");
    KVM_REQUIRE_OK(FreeExportable(memory));
    KVM_CHECK_ERROR(FreeExportable(memory), Errc::kNotFound, "freed already");
  }
  CHECK(ExportableInUse().allocations == before.allocations);
  KVM_CHECK_ERROR(AllocateExportable(UuidOfOrdinal(0), 0), Errc::kInvalidArgument, "0 bytes");
  KVM_CHECK_ERROR(AllocateExportable(UuidOfOrdinal(0), std::uint64_t{256} << 30), Errc::kResourceExhausted, "cuMemCreate");
}

TEST_CASE("Exportable memory: ranges of it are cuda_vmm_fd segments that peers map at their offset", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  std::byte* memory = Allocate(0, 8 * kMiB);
  std::byte* other = Allocate(0, 2 * kMiB);
  MustSucceed(cudaMemset(memory, 1, 8 * kMiB), "cudaMemset");
  MustSucceed(cudaMemset(memory + 3 * kMiB + 512, 2, kMiB), "cudaMemset");
  MustSucceed(cudaMemset(other, 3, 2 * kMiB), "cudaMemset");
  const std::vector<DeviceRange> ranges{{memory, kMiB}, {memory + 3 * kMiB + 512, kMiB}, {other, 2 * kMiB}};
  auto registered = backend->Register(ranges);
  KVM_REQUIRE_OK(registered);
  CHECK((*registered)->kind() == HandleKind::kCudaVmmFd);
  REQUIRE((*registered)->handles().size() == 3);
  CHECK((*registered)->handles()[1].handle_offset == 3 * kMiB + 512);
  CHECK((*registered)->SegmentData(1) == memory + 3 * kMiB + 512);

  // The engine has freed it and the region keeps it; then only the peer keeps it.
  KVM_REQUIRE_OK(FreeExportable(memory));
  KVM_REQUIRE_OK(FreeExportable(other));
  std::string why;
  for (int importer = 0; importer < std::min(UsableGpus(why), 2); ++importer) {
    INFO("importer on GPU " << importer);
    const auto peer = BackendOf(importer)->Map(Copies(**registered), {HandleKind::kCudaVmmFd, UuidOfOrdinal(0)});
    KVM_REQUIRE_OK(peer);
    MustSucceed(cudaSetDevice(importer), "cudaSetDevice");
    const auto bases = static_cast<const CudaPeerMemory&>(**peer).bases();
    if (importer == 1 || UsableGpus(why) == 1) registered->reset();
    CHECK(All(Read(bases[0], kMiB), 1));
    CHECK(All(Read(bases[1], kMiB), 2));
    CHECK(All(Read(bases[2], 2 * kMiB), 3));
  }
}

TEST_CASE("Exportable memory: freed memory stays until its region ends, and then the GPU has it again", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  constexpr std::uint64_t kBytes = 512 * kMiB;
  std::byte* memory = Allocate(0, kBytes);
  const std::size_t full = FreeBytes();
  const DeviceRange range{memory, kBytes};
  auto registered = backend->Register({&range, 1});
  KVM_REQUIRE_OK(registered);
  KVM_REQUIRE_OK(FreeExportable(memory));
  CHECK(FreeBytes() < full + kBytes / 2);
  MustSucceed(cudaMemset(memory, 9, kBytes), "cudaMemset of memory that only the region holds");
  CHECK(All(Read(memory + kBytes - kMiB, kMiB), 9));
  registered->reset();
  CHECK(FreeBytes() >= full + kBytes / 2);
}

TEST_CASE("Exportable memory: ranges that are no region of it are refused", "[gpu]") {
  KVM_NEED_GPUS(1);
  const auto backend = BackendOf(0);
  std::byte* memory = Allocate(0, 4 * kMiB);
  void* plain = nullptr;
  MustSucceed(cudaMalloc(&plain, kMiB), "cudaMalloc");
  const std::vector<DeviceRange> mixed{{memory, kMiB}, {plain, kMiB}};
  KVM_CHECK_ERROR(backend->Register(mixed), Errc::kInvalidArgument, "1 of 2 segments");
  const std::vector<DeviceRange> beyond{{memory + kMiB, 4 * kMiB}};
  KVM_CHECK_ERROR(backend->Register(beyond), Errc::kInvalidArgument, "leave their allocation");
  std::vector<DeviceRange> many;
  for (std::uint64_t i = 0; i < 128; ++i) many.push_back({memory + i * 4096, 4096});
  KVM_CHECK_ERROR(backend->Register(many), Errc::kBadGeometry, "127");
  std::string why;
  if (UsableGpus(why) > 1) {
    const DeviceRange here{memory, kMiB};
    KVM_CHECK_ERROR(BackendOf(1)->Register({&here, 1}), Errc::kInvalidArgument, "another GPU");
  }
  // An offset that is too large for the allocation behind the descriptor.
  const DeviceRange whole{memory, 4 * kMiB};
  const auto registered = backend->Register({&whole, 1});
  KVM_REQUIRE_OK(registered);
  for (const std::uint64_t offset : {2 * kMiB, std::uint64_t{1} << 40, UINT64_MAX - kMiB}) {
    std::vector<SegmentHandle> handles = Copies(**registered);
    handles[0].handle_offset = offset;
    CHECK_FALSE(backend->Map(std::move(handles), {HandleKind::kCudaVmmFd, UuidOfOrdinal(0)}));
  }
  KVM_REQUIRE_OK(FreeExportable(memory));
  cudaFree(plain);
}

TEST_CASE("Exportable memory: threads allocate and free at once", "[gpu]") {
  KVM_NEED_GPUS(1);
  const ExportableUsage before = ExportableInUse();
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        const Result<void*> memory = AllocateExportable(UuidOfOrdinal(0), 3 * kMiB);
        if (!memory || !FreeExportable(*memory)) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
  CHECK(ExportableInUse().allocations == before.allocations);
}

TEST_CASE("Exportable memory: engines' layouts in it are found and imported by another client", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 32;
  KvmdProcess kvmd;
  std::string why;
  std::uint32_t first = 0;
  for (int importer = 0; importer < std::min(UsableGpus(why), 2); ++importer) {
    GpuWorkerOptions options;
    options.socket = kvmd.socket();
    options.name = "reader-" + std::to_string(importer);
    options.ordinal = importer;
    options.layout = EngineLayouts(kBlocks)[4];
    Result<std::unique_ptr<GpuWorker>> reader = GpuWorker::Start(options);
    KVM_REQUIRE_OK(reader);
    for (const NamedGeometry& layout : EngineLayouts(kBlocks)) {
      for (const bool one_allocation : {false, true}) {
        INFO("importer on GPU " << importer << ", " << layout.name << (one_allocation ? ", one allocation" : ""));
        options.name = "owner";
        options.ordinal = 0;
        options.layout = layout;
        options.exportable = true;
        options.one_allocation = one_allocation;
        Result<std::unique_ptr<GpuWorker>> owner = GpuWorker::Start(options);
        KVM_REQUIRE_OK(owner);
        CHECK((*owner)->region().memory_kind() == MemoryKind::kCudaVmmFd);
        const std::vector<Content> contents = Contents(first += kBlocks, kBlocks);
        KVM_REQUIRE_OK((*owner)->Publish(contents, 0));
        REQUIRE(Eventually([&] { return (*reader)->Find(contents).size() == kBlocks; }));
        const GpuImportCheck check = (*reader)->Import((*reader)->Find(contents), contents, 0);
        CHECK(check.valid == kBlocks);
        CHECK(check.wrong == 0);
        CHECK((*reader)->client().UnmappedRegions().empty());
      }
    }
  }
  CHECK(ExportableInUse().allocations == 0);
}
