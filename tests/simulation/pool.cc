#include "tests/simulation/pool.h"

#include <cstring>

#include "tests/support/data/model_specs.h"

namespace kvm::simulation {

const ModelSpec& SpecOf(std::uint32_t model) {
  static const ModelSpec specs[2] = {test::LlamaSpec(), [] {
                                       ModelSpec other = test::LlamaSpec();
                                       other.revision = "another";
                                       return other;
                                     }()};
  return specs[model];
}

kvmwire::RegionDescriptor Pool::Describe(const std::string& name, std::uint32_t model) {
  static const Fingerprint fingerprints[2] = {SpecOf(0).ComputeFingerprint(), SpecOf(1).ComputeFingerprint()};
  kvmwire::RegionDescriptor descriptor;
  descriptor.set_name(name);
  descriptor.set_fingerprint(fingerprints[model].bytes.data(), fingerprints[model].bytes.size());
  for (const std::uint32_t part : {0u, 1u, 0u, 1u, 0u}) descriptor.add_shard(part);
  descriptor.set_handle_kind(static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd));
  descriptor.set_block_count(kPoolBlocks);
  descriptor.add_segments()->set_size_bytes(kPoolBlocks * kBlockBytes);
  descriptor.set_outlives_owner(true);
  kvmwire::GeometryPart& part = *descriptor.add_parts();
  part.set_chunk_bytes(kBlockBytes);
  part.set_block_stride(kBlockBytes);
  part.set_count(1);
  return descriptor;
}

std::unique_ptr<Pool> Pool::Make(World& world, std::uint32_t domain, const std::string& name, std::uint32_t model,
                                 std::vector<UniqueFd> granted) {
  std::unique_ptr<Pool> pool(new Pool(world, domain));
  constexpr std::size_t kTable = GenerationTableBytes(kPoolBlocks), kPayload = kPoolBlocks * kBlockBytes;
  const bool own = granted.size() != 2;
  Result<OwnedMemory> table = own ? OwnedMemory::Create("simulated", kTable) : OwnedMemory::Take(std::move(granted[0]), kTable);
  if (!table) return nullptr;
  Result<OwnedMemory> payload = own ? OwnedMemory::Create("simulated", kPayload) : OwnedMemory::Take(std::move(granted[1]), kPayload);
  if (!payload) return nullptr;
  pool->generation_memory = std::move(*table);
  pool->payload = std::move(*payload);
  pool->generations = GenerationWriter::Format({pool->generation_memory.data(), pool->generation_memory.size()}, kPoolBlocks);
  pool->descriptor = Describe(name, model);
  pool->model = model;
  pool->Track();
  return pool;
}

std::unique_ptr<Pool> Pool::Adopt(World& world, std::uint32_t domain, const kvmwire::AdoptRegionReply& reply, std::vector<UniqueFd>& fds) {
  std::unique_ptr<Pool> pool(new Pool(world, domain));
  if (fds.size() != 3 || !fds[0] || !fds[1] || !fds[2]) return nullptr;
  Result<OwnedMemory> table = OwnedMemory::Take(std::move(fds[0]), GenerationTableBytes(kPoolBlocks));
  if (!table) return nullptr;
  Result<OwnedMemory> payload = OwnedMemory::Take(std::move(fds[1]), kPoolBlocks * kBlockBytes);
  if (!payload) return nullptr;
  const Result<MappedMemory> list = MappedMemory::Attach(fds[2].get());
  if (!list) return nullptr;
  pool->generation_memory = std::move(*table);
  pool->payload = std::move(*payload);
  Result<GenerationWriter> generations =
      GenerationWriter::Open({pool->generation_memory.data(), pool->generation_memory.size()}, kPoolBlocks);
  if (!generations) world.Fail("adoption: the table is none");
  pool->generations = *generations;
  pool->generations.TakeUpAll();
  pool->descriptor = reply.descriptor_();
  pool->model = pool->descriptor.fingerprint() == Describe("", 1).fingerprint() ? 1 : 0;
  pool->row = reply.region();
  pool->region_epoch = reply.region_epoch();
  pool->registered = true;
  pool->Track();
  for (std::uint64_t i = 0; i < reply.records(); ++i) {
    PublishRecord record;
    std::memcpy(&record, list->data() + i * sizeof(record), sizeof(record));
    if (record.block >= kPoolBlocks) world.Fail("adoption: a record names no block");
    Block& block = pool->blocks[record.block];
    block.record = record;
    block.number = NumberOf(record.key);
    block.published = true;
    if (!pool->generations.StillValid(record.block, record.generation)) world.Fail("adoption: a record names a block that was rewritten");
    if (IsHonest(record.key) && !Holds(pool->At(record.block), domain, record.key))
      world.Fail("adoption: a block holds other bytes than its key's");
  }
  return pool;
}

void Pool::Track() {
  std::shared_ptr<Table>& table = world_.tables[FileIdOf(generation_memory.fd())];
  table = std::make_shared<Table>();
  table->generations.resize(kPoolBlocks);
  table_ = table;
  for (std::uint32_t block = 0; block < kPoolBlocks; ++block) Seen(block);
}

void Pool::Begin(std::uint32_t block, std::uint32_t number) {
  Block& at = blocks[block];
  at.number = number;
  at.words = 0;
  at.published = false;
  if (world_.defect == Defect::kOwnerDoesNotWithdraw) {
    at.write = 1;
    return;
  }
  at.write = generations.BeginWrite(block);
  Seen(block);
}

bool Pool::GoOn(std::uint32_t block) {
  Block& at = blocks[block];
  if (at.write == 0) return false;
  const std::uint32_t end = std::min(kWords, at.words + kWords / 2);
  const BlockKey key = KeyOf(at.number);
  Fill(payload.data() + block * kBlockBytes, domain_, key, at.words, end);
  at.words = end;
  if (end < kWords) return false;
  if (world_.defect == Defect::kOwnerDoesNotWithdraw) at.write = generations.BeginWrite(block);
  const bool readable = generations.FinishWrite(block, at.write);
  Seen(block);
  at.record = {key, ParentOf(at.number), at.write + 1, block, DepthOf(at.number)};
  at.published = readable;
  at.write = 0;
  return readable;
}

void Pool::Withdraw(std::uint32_t block) {
  blocks[block].published = false;
  blocks[block].write = 0;
  generations.BeginWrite(block);
  Seen(block);
}

void Pool::EndAll() {
  if (world_.defect != Defect::kEndNotWritten) generations.EndAll();
  for (std::uint32_t block = 0; block < kPoolBlocks; ++block) {
    Seen(block);
    blocks[block].published = false;
    blocks[block].write = 0;
  }
  table_->ended = true;
}

std::vector<PublishRecord> Pool::Published() const {
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < kPoolBlocks; ++block) {
    if (Readable(block)) records.push_back(blocks[block].record);
  }
  return records;
}

}  // namespace kvm::simulation
