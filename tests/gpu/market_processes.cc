#include "tests/gpu/market_processes.h"

#include <poll.h>
#include <unistd.h>

#include <charconv>
#include <iostream>
#include <numeric>
#include <thread>

#include "client/match_impl.h"
#include "client/region_impl.h"
#include "tests/support/child_main.h"

namespace kvm::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kImporterBlocks = 64;

bool InputClosed() {
  pollfd input{STDIN_FILENO, POLLIN, 0};
  return ::poll(&input, 1, 0) > 0;
}

std::string ExporterName(std::uint32_t number) { return "exporter-" + std::to_string(number); }

int RunExporterChild(const std::vector<std::string>& arguments) {
  GpuWorkerOptions options;
  options.socket = arguments.at(0);
  const auto number = static_cast<std::uint32_t>(std::stoul(arguments.at(1)));
  options.name = ExporterName(number);
  options.ordinal = std::stoi(arguments.at(2));
  options.kind = static_cast<layout::HandleKind>(std::stoi(arguments.at(3)));
  const auto blocks = static_cast<std::uint32_t>(std::stoul(arguments.at(4)));
  const std::uint64_t block_bytes = std::stoull(arguments.at(5));
  const bool rewrites = arguments.at(6) == "1";
  options.layout = {"pool", Geometry::Contiguous(blocks, block_bytes), {blocks * block_bytes}};
  Result<std::unique_ptr<GpuWorker>> worker = GpuWorker::Start(options);
  if (!worker) {
    std::cerr << options.name << ": " << worker.error().ToString() << std::endl;
    return 1;
  }
  Region& region = (*worker)->region();
  const auto rewrite = [&](std::uint32_t first, std::uint32_t count) {
    std::vector<PublishRequest> requests;
    std::vector<PatternBlock> pattern;
    for (std::uint32_t block = first; block < first + count; ++block) {
      const BlockWrite write = region.BeginWrite(block);
      const Content content = ExporterContent(number, block, write.generation + 1);
      requests.push_back({KeyOf(content), BlockKey{}, 0, write});
      pattern.push_back({block, content.tag, content.version});
    }
    (*worker)->pattern().Fill(pattern);
    static_cast<void>(region.Publish(requests));
  };
  for (std::uint32_t block = 0; block < blocks; block += 64) rewrite(block, std::min<std::uint32_t>(64, blocks - block));
  static_cast<void>(region.Flush(After(10s)));
  std::cout << "ready" << std::endl;
  Random random(number);
  std::uint64_t rewritten = 0;
  while (!InputClosed()) {
    if (!rewrites) {
      std::this_thread::sleep_for(1ms);
      continue;
    }
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, random.Between(1, 64)));
    rewrite(static_cast<std::uint32_t>(random.Below(blocks - count + 1)), count);
    rewritten += count;
    // Some quiet, or nothing would ever be valid.
    if (random.OneIn(4)) std::this_thread::sleep_for(20us);
  }
  std::cout << rewritten << std::endl;
  return 0;
}

int RunImporterChild(const std::vector<std::string>& arguments) {
  GpuWorkerOptions options;
  options.socket = arguments.at(0);
  options.name = "importer-" + arguments.at(1);
  options.ordinal = std::stoi(arguments.at(2));
  options.layout = {"pool", Geometry::Contiguous(kImporterBlocks, 64 << 10), {kImporterBlocks * (64 << 10)}};
  Result<std::unique_ptr<GpuWorker>> worker = GpuWorker::Start(options);
  if (!worker) {
    std::cerr << options.name << ": " << worker.error().ToString() << std::endl;
    return 1;
  }
  RandomImporter importer(**worker, std::stoull(arguments.at(1)));
  bool ready = false;
  while (!InputClosed()) {
    if (!importer.Round(kImporterBlocks, Validation::kBeforeAndAfter)) std::this_thread::sleep_for(1ms);
    if (importer.counts().wrong > 0) return kImporterFoundWrongBytes;
    if (!ready && importer.counts().validated > 0) std::cout << "ready" << std::endl;
    ready = ready || importer.counts().validated > 0;
  }
  return 0;
}

const ChildMain exporter_main("market_exporter", RunExporterChild);
const ChildMain importer_main("market_importer", RunImporterChild);

// The import that libkvclient would make, but without its checks.
std::unique_ptr<ImportJob> ImportUnchecked(GpuWorker& worker, const Match& match, std::span<const std::uint32_t> blocks,
                                           const ImportOptions& options, std::vector<std::shared_ptr<const void>>& keep) {
  Region::Impl& region = worker.region().impl();
  const Match::Impl& sources = *match.impl();
  ImportRequest request;
  request.destination = region.memory.get();
  request.validation = Validation::kNone;
  request.max_sms = options.max_sms;
  for (std::size_t i = 0; i < match.size(); ++i) {
    const std::size_t at = match.first() + i;
    const PeerMapping& mapping = *sources.mappings[sources.mapping_of[at]];
    if (request.runs.empty()) {
      const std::shared_ptr<const PeerPayload> payload = mapping.payload();
      const auto plan = mapping.PlanTo(region.options.geometry);
      if (!payload || !plan) return nullptr;
      request.runs.push_back({payload->memories[region.device].get(), &mapping.generations, plan->get(), 0, 0});
      keep.push_back(payload);
      keep.push_back(*plan);
    }
    request.runs.back().count++;
    request.blocks.push_back({match[i].block, blocks[i], match[i].generation});
    static_cast<void>(worker.region().BeginWrite(blocks[i]));
  }
  return region.backend->Import(std::move(request));
}

}  // namespace

Content ExporterContent(std::uint32_t number, std::uint32_t block, std::uint64_t generation) { return {number << 20 | block, generation}; }

ChildProcess StartExporter(const ExporterOptions& options) {
  return ChildProcess::Self("market_exporter", {options.socket, std::to_string(options.number), std::to_string(options.ordinal),
                                                std::to_string(static_cast<int>(options.kind)), std::to_string(options.blocks),
                                                std::to_string(options.block_bytes), options.rewrites ? "1" : "0"});
}

ChildProcess StartImporter(const std::string& socket, std::uint32_t number, int ordinal) {
  return ChildProcess::Self("market_importer", {socket, std::to_string(number), std::to_string(ordinal)});
}

// What the exporter holds now is read from its generation table, as no user could: a test needs keys to ask for.
bool RandomImporter::Round(std::uint32_t batch, Validation validation, const ImportOptions& options) {
  const std::shared_ptr<const PeerSnapshot> snapshot = worker_.client().impl().peers.Get().current;
  std::vector<std::pair<std::uint32_t, std::shared_ptr<PeerMapping>>> exporters;
  for (std::uint32_t row = 0; snapshot && row < snapshot->by_row.size(); ++row) {
    layout::RegionInfo info;
    const std::shared_ptr<PeerMapping>& mapping = snapshot->by_row[row].mapping;
    if (!mapping || mapping->own || !snapshot->registry.ReadRegion(row, info)) continue;
    const std::string_view name = info.name;
    std::uint32_t number = 0;
    constexpr std::string_view kPrefix = "exporter-";
    if (!name.starts_with(kPrefix) || std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), number).ec != std::errc())
      continue;
    exporters.emplace_back(number, mapping);
  }
  if (exporters.empty()) return false;
  const auto& [number, mapping] = random_.Pick(exporters);
  std::vector<Content> contents;
  for (std::uint32_t i = 0; i < batch; ++i) {
    const auto block = static_cast<std::uint32_t>(random_.Below(mapping->geometry.block_count));
    const Generation generation = mapping->generations.reader.Current(block);
    if (IsReadable(generation)) contents.push_back(ExporterContent(number, block, generation));
  }
  // A match ends at the first block that has been rewritten: what is behind it is asked for again.
  std::vector<ImportTicket> tickets;
  std::vector<std::unique_ptr<ImportJob>> jobs;
  std::vector<std::shared_ptr<const void>> keep;
  std::vector<PatternBlock> expected;
  std::vector<std::size_t> sizes;
  const std::span<const Content> all(contents);
  for (std::size_t at = 0; at < all.size(); ++at) {
    const Match match = worker_.Find(all.subspan(at));
    if (match.empty()) continue;
    std::vector<std::uint32_t> blocks(match.size());
    std::iota(blocks.begin(), blocks.end(), static_cast<std::uint32_t>(at));
    if (validation == Validation::kBeforeAndAfter) {
      Result<ImportTicket> ticket = worker_.client().Import(match, worker_.region(), blocks, options);
      if (!ticket) continue;
      tickets.push_back(std::move(*ticket));
    } else {
      std::unique_ptr<ImportJob> job = ImportUnchecked(worker_, match, blocks, options, keep);
      if (!job) continue;
      jobs.push_back(std::move(job));
    }
    for (std::size_t i = 0; i < match.size(); ++i) expected.push_back({blocks[i], all[at + i].tag, all[at + i].version});
    sizes.push_back(match.size());
    at += match.size();
  }
  std::vector<std::size_t> valid;
  for (ImportTicket& ticket : tickets) valid.push_back(ticket.Wait(After(30s)) ? ticket.result().valid : 0);
  for (std::size_t i = 0; i < jobs.size(); ++i) valid.push_back(jobs[i]->Wait(After(30s)) ? sizes[i] : 0);
  const std::vector<bool> wrong = worker_.pattern().Wrong(expected);
  std::size_t at = 0;
  for (std::size_t t = 0; t < valid.size(); ++t) {
    for (std::size_t i = 0; i < sizes[t]; ++i, ++at) {
      const bool is_valid = i < valid[t];
      counts_.validated += is_valid;
      counts_.wrong += is_valid && wrong[at];
      counts_.rejected += !is_valid;
      counts_.caught += !is_valid && wrong[at];
    }
  }
  return true;
}

}  // namespace kvm::test
