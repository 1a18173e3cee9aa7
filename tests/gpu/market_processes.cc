#include "tests/gpu/market_processes.h"

#include <poll.h>
#include <unistd.h>

#include <charconv>
#include <iostream>
#include <numeric>
#include <thread>

#include "client/client_impl.h"
#include "client/find/match_impl.h"
#include "client/region/region_impl.h"
#include "tests/gpu/blocked_stream.h"
#include "tests/support/data/standing_generations.h"
#include "tests/support/process/child_main.h"

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
    if (!importer.Round(kImporterBlocks)) std::this_thread::sleep_for(1ms);
    if (importer.counts().wrong > 0) return kImporterFoundWrongBytes;
    if (!ready && importer.counts().validated > 0) std::cout << "ready" << std::endl;
    ready = ready || importer.counts().validated > 0;
  }
  return 0;
}

const ChildMain exporter_main("market_exporter", RunExporterChild);
const ChildMain importer_main("market_importer", RunImporterChild);

// The import that libkvclient would make, but checked against generations that stand still.
std::unique_ptr<ImportJob> ImportUnchecked(GpuWorker& worker, const Match& match, std::span<const std::uint32_t> blocks,
                                           StreamHandle stream) {
  struct Keep {
    std::shared_ptr<const PeerPayload> payload;
    std::shared_ptr<const CopyPlan> plan;
    std::optional<StandingGenerations> generations;
  };
  Region::Impl& region = worker.region().impl();
  const Match::Impl& sources = *match.impl();
  const PeerMapping& mapping = *sources.mappings[sources.mapping_of[match.first()]];
  auto keep = std::make_shared<Keep>();
  keep->payload = mapping.payload();
  const auto plan = mapping.PlanTo(region.options.geometry);
  if (!keep->payload || !plan) return nullptr;
  keep->plan = *plan;
  ImportRequest request;
  request.destination = region.memory.get();
  request.stream = stream;
  for (std::size_t i = 0; i < match.size(); ++i) {
    request.blocks.push_back({match[i].block, blocks[i], match[i].generation});
    static_cast<void>(worker.region().BeginWrite(blocks[i]));
  }
  keep->generations.emplace(mapping.geometry.block_count, request.blocks);
  request.runs.push_back(
      {keep->payload->memories[region.device].get(), &keep->generations->Get(), keep->plan.get(), 0, request.blocks.size()});
  request.keep = keep;
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

// What the exporter holds now is read from its generation table, as no user could: a test needs
// keys to ask for.
std::optional<RandomImporter::Wanted> RandomImporter::Choose(std::uint32_t batch) {
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
  if (exporters.empty()) return std::nullopt;
  const auto& [number, mapping] = random_.Pick(exporters);
  Wanted wanted{mapping, {}};
  for (std::uint32_t i = 0; i < batch; ++i) {
    const auto block = static_cast<std::uint32_t>(random_.Below(mapping->geometry.block_count));
    const Generation generation = mapping->generations.reader.Current(block);
    if (IsReadable(generation)) wanted.contents.push_back(ExporterContent(number, block, generation));
  }
  return wanted;
}

void RandomImporter::Count(const std::vector<std::size_t>& valid, const std::vector<std::size_t>& sizes,
                           const std::vector<PatternBlock>& expected) {
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
}

bool RandomImporter::Round(std::uint32_t batch, const ImportOptions& options) {
  const std::optional<Wanted> wanted = Choose(batch);
  if (!wanted) return false;
  // A match ends at the first block that has been rewritten: what is behind it is asked for again.
  std::vector<ImportTicket> tickets;
  std::vector<PatternBlock> expected;
  std::vector<std::size_t> sizes;
  const std::span<const Content> all(wanted->contents);
  for (std::size_t at = 0; at < all.size(); ++at) {
    const Match match = worker_.Find(all.subspan(at));
    if (match.empty()) continue;
    std::vector<std::uint32_t> blocks(match.size());
    std::iota(blocks.begin(), blocks.end(), static_cast<std::uint32_t>(at));
    Result<ImportTicket> ticket = worker_.client().Import(match, worker_.region(), blocks, options);
    if (!ticket) continue;
    tickets.push_back(std::move(*ticket));
    for (std::size_t i = 0; i < match.size(); ++i) expected.push_back({blocks[i], all[at + i].tag, all[at + i].version});
    sizes.push_back(match.size());
    at += match.size();
  }
  std::vector<std::size_t> valid;
  for (ImportTicket& ticket : tickets) valid.push_back(ticket.Wait(After(30s)) ? ticket.result().valid : 0);
  Count(valid, sizes, expected);
  return true;
}

// Nothing is allocated while the stream stands still: pinned memory may wait for the whole GPU.
bool RandomImporter::RoundAcrossRewrite(std::uint32_t batch, bool checked) {
  const std::optional<Wanted> wanted = Choose(batch);
  if (!wanted) return false;
  const std::span<const Content> all(wanted->contents);
  BlockedStream stream(60s);
  std::size_t first = 0;
  Match match;
  while (first < all.size() && match.empty()) match = worker_.Find(all.subspan(first++));
  if (match.empty()) return false;
  std::vector<std::uint32_t> blocks(match.size());
  std::iota(blocks.begin(), blocks.end(), 0u);
  ImportOptions options;
  options.stream = stream.handle();
  std::optional<ImportTicket> ticket;
  std::unique_ptr<ImportJob> job;
  if (checked) {
    Result<ImportTicket> started = worker_.client().Import(match, worker_.region(), blocks, options);
    if (!started || started->Done()) return false;
    ticket = std::move(*started);
  } else {
    job = ImportUnchecked(worker_, match, blocks, stream.handle());
    if (!job || job->Done()) return false;
  }
  // Even and another: complete under another key, whatever is written there from now on.
  const auto rewritten = [&] {
    const Generation now = wanted->source->generations.reader.Current(match[0].block);
    return IsReadable(now) && now != match[0].generation;
  };
  const Deadline deadline = After(30s);
  while (!rewritten() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  const bool in_time = rewritten();
  stream.Release();
  std::size_t valid = 0;
  if (ticket && ticket->Wait(After(30s))) valid = ticket->result().valid;
  if (job && job->Wait(After(30s))) {
    const std::span<const BlockStatus> statuses = job->statuses();
    while (valid < statuses.size() && statuses[valid] == BlockStatus::kValid) ++valid;
  }
  std::vector<PatternBlock> expected;
  for (std::size_t i = 0; i < match.size(); ++i) expected.push_back({blocks[i], all[first - 1 + i].tag, all[first - 1 + i].version});
  Count({valid}, {match.size()}, expected);
  return in_time;
}

}  // namespace kvm::test
