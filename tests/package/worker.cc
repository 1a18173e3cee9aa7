// A worker built against the installed packages: publishes a prompt's blocks, then answers each
// line of its standard input with how many of them a find has and how many an import copies as they
// were published. Ends with its input.
//
//   worker SOCKET [PREFIX]
//
// PREFIX: what the names of its pools begin with; two workers of one domain can't have equal ones.
#include <kvclient/kvclient.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kBlocks = 8;
constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint64_t kBlockBytes = 16 << 10;

// The value, or the end of the program with the error's text.
template <class T>
T Must(kvm::Result<T> result, const char* what) {
  if (result) return std::move(*result);
  std::cout << what << ": " << result.error().ToString() << std::endl;
  std::exit(1);
}

std::byte ContentOf(std::uint32_t i) { return static_cast<std::byte>(i + 1); }

// How many of the match's blocks `pool` holds after an import, byte for byte.
std::size_t Import(kvm::Client& client, kvm::Region& pool, const kvm::Match& match) {
  std::vector<std::uint32_t> blocks(match.size());
  std::iota(blocks.begin(), blocks.end(), 0u);
  kvm::ImportTicket ticket = Must(client.Import(match, pool, blocks), "import");
  if (!ticket.Wait(kvm::After(5s))) return 0;
  std::size_t right = 0;
  for (std::uint32_t i = 0; i < ticket.result().valid; ++i) {
    const std::byte* data = pool.BlockData(i);
    right += std::all_of(data, data + kBlockBytes, [&](std::byte byte) { return byte == ContentOf(i); }) ? 1 : 0;
  }
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) return 2;
  const std::string prefix = argc == 3 ? argv[2] : "";
  kvm::ModelSpec spec;
  spec.model_id = "packaged/model";
  spec.kv_dtype = "bfloat16";
  spec.layout = "NHD";
  spec.num_layers = 2;
  spec.num_kv_heads = 1;
  spec.head_size = 128;
  spec.block_tokens = kBlockTokens;
  const auto client = Must(kvm::Client::Connect({.socket_path = argv[1], .name = "packaged"}), "connect");
  const kvm::Model model = Must(client->DeclareModel(spec, kvm::After(5s)), "declare the model");
  const auto region = [&](const char* name) {
    kvm::RegionOptions options{.name = prefix + name, .geometry = kvm::Geometry::Contiguous(kBlocks, kBlockBytes)};
    return Must(client->AllocateRegion(model, std::move(options), kvm::After(5s)), "allocate a pool");
  };
  const auto pool = region("pool");
  const auto copies = region("copies");

  std::vector<std::uint32_t> prompt(kBlocks * kBlockTokens);
  std::iota(prompt.begin(), prompt.end(), 1u);
  kvm::KeyChain chain(model.fingerprint, kvm::Shard{});
  const kvm::BlockKey root = chain.parent();
  std::vector<kvm::BlockKey> keys;
  chain.Extend(prompt, kBlockTokens, keys);
  std::vector<kvm::PublishRequest> computed;
  for (std::uint32_t i = 0; i < kBlocks; ++i) {
    const kvm::BlockWrite write = pool->BeginWrite(i);
    std::fill_n(pool->BlockData(i), kBlockBytes, ContentOf(i));
    computed.push_back({keys[i], i == 0 ? root : keys[i - 1], i, write});
  }
  pool->Publish(computed);
  if (!pool->Flush(kvm::After(5s))) return 1;
  std::cout << "ok" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const kvm::Match match = client->Find(keys);
    const std::size_t found = match.size();
    std::cout << found << ' ' << Import(*client, *copies, match) << std::endl;
  }
}
