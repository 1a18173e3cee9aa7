// Two processes share KV cache blocks in GPU memory: one registers a pool that it allocated and
// publishes blocks of it behind a CUDA stream, the other imports them into a pool of its own, from
// GPU to GPU.
//
//   kvmd --socket /tmp/kvmd.sock &
//   gpu_pool /tmp/kvmd.sock
//
// The publisher uses the first GPU, the importer the second one, or the same one if there is only
// one. Without a GPU, the example prints why and exits with 0.
#include <kvclient/kvclient.h>
#include <kvm/exportable_memory.h>
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

constexpr std::uint32_t kBlocks = 64;
constexpr std::uint32_t kBlockTokens = 16;
// Tokens × K/V × layers × KV heads × head size × bf16
constexpr std::uint64_t kBlockBytes = kBlockTokens * 2 * 32 * 8 * 128 * 2;
// A cudaStream_t; an engine passes its compute stream
constexpr kvm::StreamHandle kDefaultStream{0};

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

// A client, a pool on one GPU, and the keys of one prompt.
struct Side {
  std::shared_ptr<kvm::Client> client;
  std::shared_ptr<kvm::Region> pool;
  kvm::BlockKey root;
  std::vector<kvm::BlockKey> keys;
};

// The pool is memory of AllocateExportable, as an engine's own allocator would use it: other
// processes map it read-only. Memory of cudaMalloc works as well; CUDA has no read-only form of
// that.
Side Join(const std::string& socket, const std::string& name, const kvm::DeviceUuid& device) {
  Side side;
  // With the GPU named here, peers' memory is mapped for it as soon as it is announced, so no
  // import waits for that.
  side.client = Must(kvm::Client::Connect({.socket_path = socket, .name = name, .timeout = 10s, .devices = {device}}), "connect");
  const kvm::Model model = Must(side.client->DeclareModel(Spec(), kvm::After(30s)), "declare the model");
  const kvm::DeviceRange memory{Must(kvm::AllocateExportable(device, kBlocks * kBlockBytes), "allocate a pool"), kBlocks * kBlockBytes};
  kvm::RegionOptions options{.name = name, .geometry = kvm::Geometry::Contiguous(kBlocks, kBlockBytes), .outlives_owner = false};
  side.pool = Must(side.client->RegisterRegion(model, std::move(options), std::span(&memory, 1), kvm::After(30s)), "register the pool");
  // The region keeps the memory until it has been unregistered
  Must(kvm::FreeExportable(memory.data), "hand the pool over");
  std::vector<std::uint32_t> prompt(kBlocks * kBlockTokens);
  std::iota(prompt.begin(), prompt.end(), 1u);
  kvm::KeyChain chain(model.fingerprint, kvm::Shard{});
  side.root = chain.parent();
  chain.Extend(prompt, kBlockTokens, side.keys);
  return side;
}

std::byte ContentOf(std::uint32_t i) { return static_cast<std::byte>(i + 1); }

// Publishes the prompt, says so by a byte on `published`, and ends once `finish` is closed.
int Publish(const std::string& socket, const kvm::DeviceUuid& device, int published, int finish) {
  const Side side = Join(socket, "gpu-publisher", device);
  std::vector<kvm::PublishRequest> computed;
  for (std::uint32_t i = 0; i < kBlocks; ++i) {
    // Before the kernels that write the block are queued
    const kvm::BlockWrite write = side.pool->BeginWrite(i);
    const std::vector<std::byte> bytes(kBlockBytes, ContentOf(i));
    // Stands for an engine's kernels
    Must(side.pool->WriteBytes(0, i * kBlockBytes, bytes), "write");
    computed.push_back({side.keys[i], i == 0 ? side.root : side.keys[i - 1], i, write});
  }
  // Neither the stream nor this thread waits: the blocks become readable once all work that is
  // queued on the stream has completed.
  Must(side.pool->PublishOnStream(computed, kDefaultStream), "publish");
  Must(side.pool->Flush(kvm::After(30s)), "publish");  // an engine does not wait
  std::cout << "publisher: " << kBlocks << " blocks published in " << kvm::MemoryKindName(side.pool->memory_kind()) << " memory of "
            << kvm::FormatUuid(device) << '\n'
            << std::flush;
  char byte = 1;
  if (::write(published, &byte, 1) != 1) return 1;
  if (::read(finish, &byte, 1) < 0) return 1;  // returns when the importer closes its end
  return 0;
}

int Import(const std::string& socket, const kvm::DeviceUuid& device) {
  const Side side = Join(socket, "gpu-importer", device);
  // With a destination, Find chooses the nearest source that this GPU can reach: the same GPU, then
  // NVLink, then PCIe.
  const kvm::Match match = side.client->Find(side.keys, {.destination = side.pool.get()});
  std::vector<std::uint32_t> blocks(match.size());
  std::iota(blocks.begin(), blocks.end(), 0u);
  // max_sms bounds what the copy takes from the engine's own kernels.
  kvm::ImportTicket ticket = Must(side.client->Import(match, *side.pool, blocks, {.stream = kDefaultStream, .max_sms = 16}), "import");
  Must(ticket.Wait(kvm::After(30s)), "import");
  std::size_t right = 0;
  std::vector<std::byte> bytes(kBlockBytes);
  for (std::uint32_t i = 0; i < ticket.result().valid; ++i) {
    Must(side.pool->ReadBytes(0, i * kBlockBytes, bytes), "read");
    right += std::all_of(bytes.begin(), bytes.end(), [&](std::byte byte) { return byte == ContentOf(i); }) ? 1 : 0;
  }
  std::cout << "importer: " << match.size() << " blocks found, " << right << " imported as they were published to "
            << kvm::FormatUuid(device) << '\n';
  for (const kvm::UnmappedRegion& region : side.client->UnmappedRegions())
    std::cout << "importer: can't reach " << region.name << ": " << region.reason.ToString() << '\n';
  return right == kBlocks ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string socket = argc > 1 ? argv[1] : "/run/kvmd/kvmd.sock";
  int published[2], finish[2];
  if (::pipe(published) != 0 || ::pipe(finish) != 0) return 1;
  const pid_t publisher = ::fork();  // before CUDA or a client is used: neither survives a fork
  if (publisher < 0) return 1;
  const kvm::Result<std::vector<kvm::DeviceInfo>> devices = kvm::ListDevices();
  if (!devices || devices->empty()) {
    if (publisher == 0) return 0;
    ::waitpid(publisher, nullptr, 0);
    std::cout << "skipped: " << (devices ? std::string("no visible GPU") : devices.error().ToString()) << '\n';
    return 0;
  }
  if (publisher == 0) {
    ::close(published[0]);
    ::close(finish[1]);
    return Publish(socket, devices->front().uuid, published[1], finish[0]);
  }
  ::close(published[1]);
  ::close(finish[0]);
  char byte = 0;
  if (::read(published[0], &byte, 1) != 1) return 1;  // the publisher has printed what went wrong
  const int result = Import(socket, devices->back().uuid);
  ::close(finish[1]);
  ::waitpid(publisher, nullptr, 0);
  return result;
}
