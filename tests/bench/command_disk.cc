#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/exit_codes.h"
#include "client/mesh/disk/disk_cache.h"
#include "client/mesh/memory/checksum.h"
#include "proto/base/random.h"
#include "tests/bench/commands.h"

namespace kvm::bench {
namespace {

using std::chrono::steady_clock;

constexpr const char* kDomain = "kvm_bench";

struct DiskBenchOptions {
  std::string path, io = "auto";
  std::uint64_t block_bytes = std::uint64_t{2} << 20;
  std::uint32_t blocks = 64, rounds = 16;
};

// Blocks that are written, or read, together.
struct Batch {
  explicit Batch(const DiskBenchOptions& options) : memory(mesh::WholePages(options.block_bytes) * options.blocks) {
    shape.block_bytes = options.block_bytes;
    std::mt19937_64 random(std::random_device{}());
    for (std::uint64_t at = 0; at < memory.size(); at += sizeof(std::uint64_t)) {
      const std::uint64_t word = random();
      std::memcpy(memory.data() + at, &word, sizeof(word));
    }
  }

  // Other keys, and other bytes, each round.
  std::vector<mesh::NewDiskBlock> Round(std::uint32_t round, std::uint32_t blocks) {
    std::vector<mesh::NewDiskBlock> out;
    for (std::uint32_t i = 0; i < blocks; ++i) {
      std::byte* const bytes = memory.data() + mesh::WholePages(shape.block_bytes) * i;
      const BlockKey key{Mix(round, i), Mix(i, round)};
      std::memcpy(bytes, &key, std::min<std::uint64_t>(sizeof(key), shape.block_bytes));
      out.push_back({key, i == 0 ? 0 : out.back().key.lo, i, shape, bytes, mesh::BlockChecksum({bytes, shape.block_bytes})});
    }
    return out;
  }

  mesh::BlockShape shape;
  mesh::AlignedBuffer memory;
};

double SecondsSince(steady_clock::time_point begin) { return std::chrono::duration<double>(steady_clock::now() - begin).count(); }

Status Measure(const DiskBenchOptions& options, double& written, double& read, std::string& io) {
  mesh::DiskOptions disk;
  disk.path = options.path;
  // As much again is free, so that nothing leaves.
  disk.limit_bytes =
      std::max<std::uint64_t>(std::uint64_t{64} << 20, mesh::RecordBytes(options.block_bytes) * options.blocks * options.rounds * 2);
  disk.write_bytes_per_s = 0;
  disk.io = *mesh::IoKindFromName(options.io);
  Result<std::unique_ptr<mesh::DiskCache>> cache = mesh::DiskCache::Open(disk);
  if (!cache) return cache.error();
  if (Status recovered = (*cache)->Recover(kDomain); !recovered) return recovered;
  io = (*cache)->io_name();
  Batch batch(options);
  for (std::uint32_t round = 0; round < options.rounds; ++round) {
    const std::vector<mesh::NewDiskBlock> blocks = batch.Round(round, options.blocks);
    const auto begin = steady_clock::now();
    if (Status appended = (*cache)->Append(blocks); !appended) return appended;
    written += SecondsSince(begin);
  }
  for (std::uint32_t round = 0; round < options.rounds; ++round) {
    std::vector<mesh::DiskRead> reads;
    for (std::uint32_t i = 0; i < options.blocks; ++i)
      reads.push_back({{Mix(round, i), Mix(i, round)}, batch.memory.data() + mesh::WholePages(options.block_bytes) * i});
    const auto begin = steady_clock::now();
    (*cache)->Read(batch.shape, reads);
    read += SecondsSince(begin);
    for (const mesh::DiskRead& each : reads)
      if (each.end != mesh::DiskReadEnd::kGood) return MakeError(Errc::kStale, "a block could not be read");
  }
  return {};
}

int Run(const DiskBenchOptions& options) {
  // Only what this makes is removed.
  if (std::filesystem::exists(options.path)) return ctl::Fail(MakeError(Errc::kAlreadyExists, options.path + " exists"));
  double written = 0, read = 0;
  std::string io;
  const Status measured = Measure(options, written, read, io);
  std::error_code ignored;
  std::filesystem::remove_all(options.path, ignored);
  if (!measured) return ctl::Fail(measured.error());
  const double gigabytes = static_cast<double>(options.block_bytes) * options.blocks * options.rounds / 1e9;
  std::printf("%u batches of %u blocks of %llu bytes, %s: written %.3f GB/s, read and compared %.3f GB/s\n", options.rounds, options.blocks,
              static_cast<unsigned long long>(options.block_bytes), io.c_str(), gigabytes / written, gigabytes / read);
  return ctl::kHealthy;
}

}  // namespace

void AddDiskCommand(CLI::App& app, ctl::Action& action) {
  auto options = std::make_shared<DiskBenchOptions>();
  CLI::App* command = app.add_subcommand("disk", "The disk cache of kvmd-mesh: batches that are written, and read again");
  command->add_option("--path", options->path, "Directory for it, which must not exist yet")->required();
  command->add_option("--block-bytes", options->block_bytes, "Bytes of a block")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 26))
      ->capture_default_str();
  command->add_option("--blocks", options->blocks, "Blocks of a batch")->check(CLI::Range(1u, 65536u))->capture_default_str();
  command->add_option("--rounds", options->rounds, "Batches")->check(CLI::Range(1u, 65536u))->capture_default_str();
  command->add_option("--disk-io", options->io, "How it reads and writes")
      ->check(CLI::IsMember({"auto", "io_uring", "pread"}))
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace kvm::bench
