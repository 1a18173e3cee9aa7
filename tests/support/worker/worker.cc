#include "tests/support/worker/worker.h"

#include <cstring>
#include <numeric>
#include <sstream>

#include "proto/base/sanitizers.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/data/random.h"

namespace kvm::test {
namespace {

// Visits every chunk of a block: visit(address, offset in the block, bytes).
template <class Visit>
void ForEachChunk(const Region& region, std::uint32_t block, Visit visit) {
  std::uint64_t at = 0;
  for (const GeometryPart& part : region.geometry().parts) {
    for (std::uint32_t repeat = 0; repeat < part.count; ++repeat) {
      visit(region.SegmentData(part.segment) + part.offset + repeat * part.repeat_stride + block * part.block_stride, at, part.chunk_bytes);
      at += part.chunk_bytes;
    }
  }
}

std::uint64_t Word(const BlockKey& key, std::uint64_t index) { return Random(key.lo ^ (key.hi + index * 0x2545f4914f6cdd1dULL)).Next(); }

// Tokens of one block of a stream; the same in every process.
std::vector<std::uint32_t> Tokens(const std::string& stream, std::uint64_t block, std::uint32_t count) {
  std::uint64_t seed = 14695981039346656037ULL;
  for (const char c : stream) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  Random random(seed + block * 1000003);
  std::vector<std::uint32_t> tokens(count);
  for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random.Below(128000));
  return tokens;
}

}  // namespace

ModelSpec SmallSpec() {
  ModelSpec spec = LlamaSpec();
  spec.block_tokens = 4;
  return spec;
}

// Content is compared while its owner may be rewriting it only where a test says so; see HostRegion
// for why that race is left out of ThreadSanitizer's view.
KVM_RACES_ON_PURPOSE void FillContent(const BlockKey& key, std::uint64_t at, std::byte* to, std::uint64_t bytes) {
  for (std::uint64_t i = 0; i < bytes;) {
    const std::uint64_t word = Word(key, (at + i) / 8), skip = (at + i) % 8;
    const std::uint64_t step = std::min(8 - skip, bytes - i);
    std::byte raw[8];
    std::memcpy(raw, &word, 8);
    for (std::uint64_t b = 0; b < step; ++b) to[i + b] = raw[skip + b];
    i += step;
  }
}

bool HasContent(const BlockKey& key, std::uint64_t at, const std::byte* from, std::uint64_t bytes) {
  std::vector<std::byte> expected(bytes);
  FillContent(key, at, expected.data(), bytes);
  return std::memcmp(expected.data(), from, bytes) == 0;
}

Result<std::unique_ptr<Worker>> Worker::Start(const WorkerOptions& options) {
  auto worker = std::make_unique<Worker>();
  ClientOptions client;
  client.socket_path = options.socket;
  client.name = options.name;
  client.timeout = options.timeout;
  client.start_offline = options.start_offline;
  client.map_payload = options.map_payload;
  client.reconnect_min = std::chrono::milliseconds(5);
  client.reconnect_max = std::chrono::milliseconds(50);
  client.max_queued_publishes = options.max_queued_publishes;
  client.verify_one_in = options.verify_one_in;
  Result<std::shared_ptr<Client>> connected = Client::Connect(client);
  if (!connected) return connected.error();
  worker->client_ = *connected;
  const Deadline deadline = After(std::chrono::seconds(10));
  Result<Model> model = worker->client_->DeclareModel(options.spec.block_tokens == 0 ? SmallSpec() : options.spec, deadline);
  if (!model) return model.error();
  worker->model_ = *model;
  if (options.blocks == 0) return worker;
  RegionOptions region;
  region.name = options.name;
  region.shard = options.shard;
  region.checksums = options.checksums;
  region.offload = options.offload;
  region.geometry = options.geometry.block_count != 0 ? options.geometry : Geometry::Contiguous(options.blocks, options.block_bytes);
  region.outlives_owner = options.outlives_owner;
  if (options.adopt) {
    Result<AdoptedRegion> adopted = worker->client_->AdoptRegion(worker->model_, region, deadline);
    if (adopted) {
      worker->region_ = std::move(adopted->region);
      worker->adopted_ = std::move(adopted->blocks);
      return worker;
    }
    if (adopted.error().code != Errc::kNotFound && adopted.error().code != Errc::kUnsupported) return adopted.error();
  }
  Result<std::shared_ptr<Region>> allocated = worker->client_->AllocateRegion(worker->model_, region, deadline);
  if (!allocated) return allocated.error();
  worker->region_ = *allocated;
  return worker;
}

std::unique_ptr<Worker> StartWorker(const WorkerOptions& options) {
  Result<std::unique_ptr<Worker>> worker = Worker::Start(options);
  KVM_REQUIRE_OK(worker);
  return std::move(*worker);
}

std::vector<BlockKey> Worker::Keys(const std::string& prompt, std::span<const ExtraKey> extras) const {
  std::vector<BlockKey> keys;
  KeyChain chain(model_.fingerprint, region_ ? region_->shard() : Shard{}, extras);
  std::istringstream parts(prompt);
  for (std::string part; std::getline(parts, part, ',');) {
    const std::size_t colon = part.find(':');
    const std::uint64_t count = std::stoull(part.substr(colon + 1));
    for (std::uint64_t block = 0; block < count; ++block) {
      keys.push_back(chain.Next(Tokens(part.substr(0, colon), block, model_.spec.block_tokens)));
    }
  }
  return keys;
}

PublishOutcome Worker::Publish(const std::string& prompt, std::uint32_t first_block, std::span<const ExtraKey> extras, std::size_t from,
                               std::size_t count) {
  const std::vector<BlockKey> all = Keys(prompt, extras);
  std::vector<BlockKey> parents{KeyChain(model_.fingerprint, region_->shard(), extras).parent()};
  parents.insert(parents.end(), all.begin(), all.end());
  count = std::min(count, all.size() - from);
  std::vector<std::uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), first_block);
  return PublishKeys(std::span(all).subspan(from, count), std::span(parents).subspan(from, count), blocks,
                     static_cast<std::uint32_t>(from));
}

PublishOutcome Worker::PublishKeys(std::span<const BlockKey> keys, std::span<const BlockKey> parents, std::span<const std::uint32_t> blocks,
                                   std::uint32_t first_depth) {
  std::vector<PublishRequest> requests;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const BlockWrite write = region_->BeginWrite(blocks[i]);
    Fill(blocks[i], keys[i]);
    requests.push_back({keys[i], parents[i], first_depth + static_cast<std::uint32_t>(i), write});
  }
  return region_->Publish(requests);
}

Status Worker::Flush(std::chrono::milliseconds timeout) { return region_->Flush(After(timeout)); }

Match Worker::Find(const std::string& prompt, std::span<const ExtraKey> extras, const FindOptions& options) const {
  return client_->Find(Keys(prompt, extras), options);
}

ImportCheck Worker::Import(const Match& match, std::span<const BlockKey> keys, std::uint32_t first_block, const ImportOptions& options) {
  ImportCheck check;
  check.matched = match.size();
  std::vector<std::uint32_t> blocks(match.size());
  std::iota(blocks.begin(), blocks.end(), first_block);
  Result<ImportTicket> ticket = client_->Import(match, *region_, blocks, options);
  if (!ticket || !ticket->Wait(After(std::chrono::seconds(30)))) return check;
  check.valid = ticket->result().valid;
  check.failed = ticket->result().failed;
  for (std::size_t i = 0; i < check.valid; ++i) check.wrong += !Holds(blocks[i], keys[i]);
  return check;
}

ImportCheck Worker::FindAndImport(const std::string& prompt, std::uint32_t first_block, std::span<const ExtraKey> extras) {
  const std::vector<BlockKey> keys = Keys(prompt, extras);
  return Import(client_->Find(keys), keys, first_block);
}

void Worker::Fill(std::uint32_t block, const BlockKey& key) {
  ForEachChunk(*region_, block, [&](std::byte* to, std::uint64_t at, std::uint64_t bytes) { FillContent(key, at, to, bytes); });
}

bool Worker::Holds(std::uint32_t block, const BlockKey& key) const {
  bool same = true;
  ForEachChunk(*region_, block,
               [&](const std::byte* from, std::uint64_t at, std::uint64_t bytes) { same = same && HasContent(key, at, from, bytes); });
  return same;
}

}  // namespace kvm::test
