// Two processes share KV cache blocks in host memory: one publishes a prompt's blocks, the other
// finds, leases and imports them, and imports them again after the first process has ended.
//
//   kvmd --socket /tmp/kvmd.sock --host-cache 64M &
//   share /tmp/kvmd.sock
//
// Without --host-cache it runs as well: kvmd then keeps no copies, so there are no blocks to lease,
// and the blocks end with their publisher.
#include <kvclient/kvclient.h>
#include <sys/wait.h>
#include <unistd.h>

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
// Tokens × K/V × layers × KV heads × head size × bf16
constexpr std::uint64_t kBlockBytes = kBlockTokens * 2 * 32 * 8 * 128 * 2;

// Both processes must describe the model alike: everything that changes the bytes of a KV block
// goes into the keys.
kvm::ModelSpec Spec() {
  kvm::ModelSpec spec;
  spec.model_id = "example/8B";
  spec.kv_dtype = "bfloat16";
  spec.layout = "NHD";
  spec.num_layers = 32;
  spec.num_kv_heads = 8;
  spec.head_size = 128;
  spec.block_tokens = kBlockTokens;
  return spec;
}

// Returns the value, or ends the program with the error's text. Engines treat an error as a miss
// instead.
template <class T>
T Must(kvm::Result<T> result, const char* what) {
  if (result) return std::move(*result);
  std::cerr << what << ": " << result.error().ToString() << '\n';
  std::exit(1);
}

void Must(const kvm::Status& status, const char* what) {
  if (status) return;
  std::cerr << what << ": " << status.error().ToString() << '\n';
  std::exit(1);
}

// A client, a pool of kBlocks blocks, and the keys of one prompt.
struct Side {
  std::shared_ptr<kvm::Client> client;
  std::shared_ptr<kvm::Region> pool;
  kvm::BlockKey root;
  std::vector<kvm::BlockKey> keys;
};

Side Join(const std::string& socket, const std::string& name) {
  Side side;
  side.client = Must(kvm::Client::Connect({.socket_path = socket, .name = name}), "connect");
  const kvm::Model model = Must(side.client->DeclareModel(Spec(), kvm::After(5s)), "declare the model");
  kvm::RegionOptions options{.name = name, .geometry = kvm::Geometry::Contiguous(kBlocks, kBlockBytes)};
  side.pool = Must(side.client->AllocateRegion(model, std::move(options), kvm::After(5s)), "allocate a pool");
  std::vector<std::uint32_t> prompt(kBlocks * kBlockTokens);
  std::iota(prompt.begin(), prompt.end(), 1u);
  kvm::KeyChain chain(model.fingerprint, kvm::Shard{});
  side.root = chain.parent();
  chain.Extend(prompt, kBlockTokens, side.keys);
  return side;
}

std::vector<std::uint32_t> AllBlocks() {
  std::vector<std::uint32_t> blocks(kBlocks);
  std::iota(blocks.begin(), blocks.end(), 0u);
  return blocks;
}

// The bytes that the example's "prefill" computes for block i.
std::byte ContentOf(std::uint32_t i) { return static_cast<std::byte>(i + 1); }

// Publishes the prompt, says so by a byte on `published`, and ends once `finish` is closed.
int Publish(const std::string& socket, int published, int finish) {
  const Side side = Join(socket, "publisher");
  std::vector<kvm::PublishRequest> computed;
  for (std::uint32_t i = 0; i < kBlocks; ++i) {
    // Before the first byte changes: withdraws the block from all readers
    const kvm::BlockWrite write = side.pool->BeginWrite(i);
    std::fill_n(side.pool->BlockData(i), kBlockBytes, ContentOf(i));
    computed.push_back({side.keys[i], i == 0 ? side.root : side.keys[i - 1], i, write});
  }
  // The bytes are complete by now
  const kvm::PublishOutcome outcome = side.pool->Publish(computed);
  Must(side.pool->Flush(kvm::After(5s)), "publish");  // an engine does not wait
  std::cout << "publisher: " << outcome.readable << " blocks published\n";
  // A background thread copies published blocks to the host cache, if there is one. This waits for
  // the copies.
  const std::size_t cached = Must(side.pool->OffloadBeforeReuse(AllBlocks(), kvm::After(30s)), "offload");
  std::cout << "publisher: " << cached << " of them are in kvmd's host cache\n" << std::flush;

  char byte = 1;
  if (::write(published, &byte, 1) != 1) return 1;
  if (::read(finish, &byte, 1) < 0) return 1;  // returns when the importer closes its end
  return 0;                                    // the destructors withdraw the pool's blocks
}

// Imports a match into the pool; returns how many blocks have the publisher's bytes.
std::size_t Import(const Side& side, const kvm::Match& match) {
  const std::vector<std::uint32_t> blocks = AllBlocks();
  kvm::ImportTicket ticket = Must(side.client->Import(match, *side.pool, std::span(blocks).first(match.size())), "import");
  Must(ticket.Wait(kvm::After(5s)), "import");
  // Only the leading `valid` blocks passed the check of their generations. The others have to be
  // computed.
  std::size_t right = 0;
  for (std::uint32_t i = 0; i < ticket.result().valid; ++i) {
    const std::byte* data = side.pool->BlockData(i);
    right += std::all_of(data, data + kBlockBytes, [&](std::byte byte) { return byte == ContentOf(i); }) ? 1 : 0;
  }
  return right;
}

void FindAndImport(const std::string& socket, pid_t publisher, int finish) {
  const Side side = Join(socket, "importer");
  const kvm::Match match = side.client->Find(side.keys);  // shared memory only: no system call
  std::cout << "importer: " << match.size() << " blocks found, " << Import(side, match) << " imported as they were published\n";

  // A lease keeps kvmd from evicting its own copies. Blocks that only a living worker has can't be
  // promised.
  kvm::Result<kvm::Lease> lease = side.client->AcquireLease(match, 30s, kvm::After(5s));
  if (lease) {
    std::cout << "importer: " << lease->blocks() << " blocks leased\n";
  } else {
    std::cout << "importer: no lease: " << lease.error().ToString() << '\n';
  }

  ::close(finish);
  ::waitpid(publisher, nullptr, 0);
  const kvm::Match later = side.client->Find(side.keys);
  std::cout << "importer: the publisher has ended, " << later.size() << " blocks found, " << Import(side, later)
            << " imported as they were published\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::string socket = argc > 1 ? argv[1] : "/run/kvmd/kvmd.sock";
  int published[2], finish[2];
  if (::pipe(published) != 0 || ::pipe(finish) != 0) return 1;
  // Before a client is made: a forked child can't use its parent's client
  const pid_t publisher = ::fork();
  if (publisher < 0) return 1;
  if (publisher == 0) {
    ::close(published[0]);
    ::close(finish[1]);
    return Publish(socket, published[1], finish[0]);
  }
  ::close(published[1]);
  ::close(finish[0]);
  char byte = 0;
  if (::read(published[0], &byte, 1) != 1) return 1;  // the publisher has printed what went wrong
  FindAndImport(socket, publisher, finish[1]);
  return 0;
}
