// A worker that behaves like an engine: it publishes blocks whose bytes are a function of their
// key, finds and imports blocks of other workers, and compares every imported byte with the key's
// bytes.
//
// Prompts are written as "stream:blocks" joined by commas: "a:8,b:4" is eight blocks of token
// stream a, then four of stream b. Two prompts share exactly the blocks before the first
// difference.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvclient/kvclient.h"

namespace kvm::test {

struct WorkerOptions {
  std::string socket = {};
  std::string name = "worker";
  ModelSpec spec = {};  // block_tokens 0: SmallSpec()
  Shard shard = {};
  std::uint32_t blocks = 64;
  Geometry geometry = {};  // without blocks: contiguous, [blocks, block_bytes]
  std::uint64_t block_bytes = 4096;
  bool start_offline = false;
  bool map_payload = true;
  bool checksums = false;
  bool outlives_owner = true;
  // Adopt the region of a dead worker of this name, or allocate one if there is none
  bool adopt = false;
  OffloadMode offload = OffloadMode::kAuto;
  std::chrono::milliseconds timeout{5000};
  std::size_t max_queued_publishes = std::size_t{1} << 20;
  std::uint32_t verify_one_in = 0;
};

// A model with 4 tokens a block, so that prompts are short.
ModelSpec SmallSpec();

struct ImportCheck {
  std::size_t matched = 0;  // blocks found
  std::size_t valid = 0;    // blocks the import calls valid
  std::size_t wrong = 0;    // of these, blocks whose bytes are not those of their key: must be 0
  std::vector<FailedBlock> failed;
};

class Worker {
 public:
  static Result<std::unique_ptr<Worker>> Start(const WorkerOptions& options);

  Client& client() { return *client_; }
  const std::shared_ptr<Client>& shared_client() { return client_; }
  Region& region() { return *region_; }
  // The blocks of an adopted region; empty if the region was allocated.
  const std::vector<AdoptedBlock>& adopted() const { return adopted_; }
  bool has_region() const { return region_ != nullptr; }
  const Model& model() const { return model_; }
  void DropRegion() { region_.reset(); }
  void DropClient() {
    region_.reset();
    client_.reset();
  }

  std::vector<BlockKey> Keys(const std::string& prompt, std::span<const ExtraKey> extras = {}) const;

  // Computes and publishes the prompt's blocks [from, from + count) into region blocks first_block,
  // … (block i of the prompt into first_block + i - from).
  PublishOutcome Publish(const std::string& prompt, std::uint32_t first_block, std::span<const ExtraKey> extras = {}, std::size_t from = 0,
                         std::size_t count = static_cast<std::size_t>(-1));
  // The same for arbitrary keys: parents[i] is the key before keys[i].
  PublishOutcome PublishKeys(std::span<const BlockKey> keys, std::span<const BlockKey> parents, std::span<const std::uint32_t> blocks,
                             std::uint32_t first_depth);
  Status Flush(std::chrono::milliseconds timeout = std::chrono::seconds(10));

  Match Find(const std::string& prompt, std::span<const ExtraKey> extras = {}, const FindOptions& options = {}) const;
  // Imports `match`, the leading part of `keys`, into region blocks first_block, … and checks every
  // byte.
  ImportCheck Import(const Match& match, std::span<const BlockKey> keys, std::uint32_t first_block, const ImportOptions& options = {});
  ImportCheck FindAndImport(const std::string& prompt, std::uint32_t first_block, std::span<const ExtraKey> extras = {});

  // Writes the bytes of `key` into a block (between BeginWrite and Publish), and compares them.
  void Fill(std::uint32_t block, const BlockKey& key);
  bool Holds(std::uint32_t block, const BlockKey& key) const;

 private:
  std::shared_ptr<Client> client_;
  Model model_;
  std::shared_ptr<Region> region_;
  std::vector<AdoptedBlock> adopted_;
};

// Calls Worker::Start; the test ends if it fails.
std::unique_ptr<Worker> StartWorker(const WorkerOptions& options);

// The same at a running kvmd, anything with a socket(); sets the options' socket and name.
template <typename Kvmd>
std::unique_ptr<Worker> Start(const Kvmd& kvmd, const std::string& name, WorkerOptions options = {}) {
  options.socket = kvmd.socket();
  options.name = name;
  return StartWorker(options);
}

// Bytes [at, at + bytes) of the content of `key`'s block.
void FillContent(const BlockKey& key, std::uint64_t at, std::byte* to, std::uint64_t bytes);
bool HasContent(const BlockKey& key, std::uint64_t at, const std::byte* from, std::uint64_t bytes);

}  // namespace kvm::test
