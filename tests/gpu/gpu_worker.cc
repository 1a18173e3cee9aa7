#include "tests/gpu/gpu_worker.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "kvm/exportable_memory.h"
#include "tests/support/data/random.h"
#include "tests/support/worker/worker.h"

namespace kvm::test {
namespace {

using namespace std::chrono_literals;

// What Pattern::Fill writes on a GPU, into a contiguous block of host memory.
void FillOnHost(const PatternBlock& block, std::span<std::byte> bytes) {
  for (std::uint64_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const std::uint64_t word = PatternWord(block.tag, block.generation, i / 8);
    std::memcpy(bytes.data() + i, &word, 8);
  }
}

}  // namespace

GpuWorkerOptions PoolOptions(const std::string& socket, const std::string& name, std::uint32_t blocks, std::uint64_t block_bytes) {
  GpuWorkerOptions options;
  options.socket = socket;
  options.name = name;
  options.layout = {"pool", Geometry::Contiguous(blocks, block_bytes), {blocks * block_bytes}};
  return options;
}

BlockKey KeyOf(const Content& content) {
  Random random(std::uint64_t{content.tag} << 32 ^ content.version);
  const std::uint64_t lo = random.Next();
  return {lo, random.Next()};
}

std::vector<Content> Contents(std::uint32_t first, std::uint32_t count) {
  std::vector<Content> contents;
  for (std::uint32_t i = 0; i < count; ++i) contents.push_back({first + i, 2});
  return contents;
}

DeviceUuid UuidOfOrdinal(int ordinal) {
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  return devices && static_cast<std::size_t>(ordinal) < devices->size() ? (*devices)[static_cast<std::size_t>(ordinal)].uuid : DeviceUuid{};
}

Result<std::unique_ptr<GpuWorker>> GpuWorker::Start(GpuWorkerOptions options) {
  std::unique_ptr<GpuWorker> worker(new GpuWorker());
  MustSucceed(cudaSetDevice(options.ordinal), "cudaSetDevice");
  ClientOptions client_options;
  client_options.socket_path = options.socket;
  client_options.name = options.name;
  client_options.timeout = 10s;
  client_options.devices = {UuidOfOrdinal(options.ordinal)};
  Result<std::shared_ptr<Client>> client = Client::Connect(client_options);
  if (!client) return client.error();
  worker->client_ = std::move(*client);
  Result<Model> model = worker->client_->DeclareModel(SmallSpec(), After(30s));
  if (!model) return model.error();
  worker->model_ = std::move(*model);

  RegionOptions region;
  region.name = options.name;
  region.geometry = options.layout.geometry;
  region.checksums = options.checksums;
  Result<std::shared_ptr<Region>> made = MakeError(Errc::kUnsupported, "kind of memory");
  if (options.adopt) {
    region.device = UuidOfOrdinal(options.ordinal);
    region.segment_bytes = options.layout.segment_bytes;
    Result<AdoptedRegion> adopted = worker->client_->AdoptRegion(worker->model_, region, After(30s));
    if (!adopted) return adopted.error();
    worker->adopted_ = std::move(adopted->blocks);
    made = std::move(adopted->region);
  } else if (options.exportable || options.kind == layout::HandleKind::kCudaIpc) {
    std::vector<DeviceRange> segments;
    const std::vector<std::uint64_t>& sizes = options.layout.segment_bytes;
    std::byte* data = nullptr;
    if (options.one_allocation)
      data = worker->AllocateForRegistering(options, std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0}));
    for (const std::uint64_t bytes : sizes) {
      if (!options.one_allocation) data = worker->AllocateForRegistering(options, bytes);
      segments.push_back({data, bytes});
      if (options.one_allocation) data += bytes;
    }
    made = worker->client_->RegisterRegion(worker->model_, region, segments, After(30s));
  } else {
    if (options.kind == layout::HandleKind::kCudaVmmFd) region.device = UuidOfOrdinal(options.ordinal);
    region.segment_bytes = options.layout.segment_bytes;
    made = worker->client_->AllocateRegion(worker->model_, region, After(30s));
  }
  if (!made) return made.error();
  worker->region_ = std::move(*made);
  if (options.exportable || options.kind != layout::HandleKind::kHostMemfd) {
    std::vector<std::byte*> bases;
    for (std::size_t i = 0; i < options.layout.segment_bytes.size(); ++i) bases.push_back(worker->region_->SegmentData(i));
    worker->pattern_ = std::make_unique<Pattern>(options.layout.geometry, bases);
  }
  worker->options_ = std::move(options);
  return worker;
}

GpuWorker::~GpuWorker() {
  pattern_.reset();
  region_.reset();
  client_.reset();
}

std::byte* GpuWorker::AllocateForRegistering(const GpuWorkerOptions& options, std::uint64_t bytes) {
  void* data = nullptr;
  if (options.exportable) {
    Result<void*> memory = AllocateExportable(UuidOfOrdinal(options.ordinal), bytes);
    if (!memory) throw std::runtime_error(memory.error().ToString());
    allocations_.emplace_back(data = *memory, [](void* address) { static_cast<void>(FreeExportable(address)); });
  } else {
    MustSucceed(cudaMalloc(&data, bytes), "cudaMalloc");
    allocations_.emplace_back(data, [](void* address) { cudaFree(address); });
  }
  return static_cast<std::byte*>(data);
}

std::vector<PublishRequest> GpuWorker::Write(std::span<const Content> contents, std::span<const std::uint32_t> blocks) {
  std::vector<PublishRequest> requests;
  std::vector<PatternBlock> pattern;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    const BlockKey parent = i == 0 ? BlockKey{} : KeyOf(contents[i - 1]);
    requests.push_back({KeyOf(contents[i]), parent, static_cast<std::uint32_t>(i), region_->BeginWrite(blocks[i])});
    pattern.push_back({blocks[i], contents[i].tag, contents[i].version});
  }
  if (pattern_) {
    pattern_->Fill(pattern);
  } else {
    for (const PatternBlock& block : pattern) FillOnHost(block, {region_->BlockData(block.block), region_->block_bytes()});
  }
  return requests;
}

Status GpuWorker::Publish(std::span<const Content> contents, std::uint32_t first_block) {
  std::vector<std::uint32_t> blocks(contents.size());
  std::iota(blocks.begin(), blocks.end(), first_block);
  if (region_->Publish(Write(contents, blocks)).readable != contents.size())
    return MakeError(Errc::kCancelled, "another write got between");
  return region_->Flush(After(10s));
}

Match GpuWorker::Find(std::span<const Content> contents) {
  std::vector<BlockKey> keys;
  for (const Content& content : contents) keys.push_back(KeyOf(content));
  FindOptions options;
  options.destination = region_.get();
  return client_->Find(keys, options);
}

GpuImportCheck GpuWorker::Import(const Match& match, std::span<const Content> contents, std::uint32_t first_block,
                                 const ImportOptions& options) {
  GpuImportCheck check;
  check.matched = match.size();
  std::vector<std::uint32_t> blocks(match.size());
  std::iota(blocks.begin(), blocks.end(), first_block);
  Result<ImportTicket> ticket = client_->Import(match, *region_, blocks, options);
  if (!ticket || !ticket->Wait(After(30s))) {
    check.wrong = match.size() + 1;  // no test expects that
    return check;
  }
  check.valid = ticket->result().valid;
  check.failed = ticket->result().failed;
  check.wrong = CountWrong(contents.first(check.valid), first_block);
  return check;
}

std::size_t GpuWorker::CountWrong(std::span<const Content> contents, std::uint32_t first_block) {
  std::vector<PatternBlock> expected;
  for (std::size_t i = 0; i < contents.size(); ++i)
    expected.push_back({first_block + static_cast<std::uint32_t>(i), contents[i].tag, contents[i].version});
  const std::vector<bool> wrong = pattern_->Wrong(expected);
  return static_cast<std::size_t>(std::count(wrong.begin(), wrong.end(), true));
}

}  // namespace kvm::test
