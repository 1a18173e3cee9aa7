// kvctl verify: reads a sample of published blocks twice, as a worker does, and compares.
//
// Both readings are imports, which check the generation before and after the copy. If one block of
// one generation has two contents, its owner has written it without withdrawing it first, or memory
// or a link is faulty; either way importers may get wrong bytes.
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <tuple>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"
#include "kvclient/client.h"
#include "kvclient/import.h"

namespace kvm::ctl {
namespace {

// What one reading says of a block.
struct Reading {
  BlockSource source;
  std::uint32_t checksum = 0;  // CRC-32
};

struct SampledBlock {
  IndexEntry entry;
  std::optional<Reading> first, second;  // none: not read
  bool corrupt = false;                  // not what its publisher's checksum says
};

// Blocks that one region of ours can take: of one model and shard, and of one size.
using Kind = std::tuple<std::uint32_t, std::uint16_t, std::uint16_t, std::uint16_t, std::uint16_t, std::uint16_t, std::uint64_t>;

Kind KindOf(const RegionEntry& region) {
  const layout::RegionInfo& info = region.info;
  return {info.model, info.tp_rank, info.tp_size, info.pp_rank, info.pp_size, info.kv_group, info.block_bytes};
}

struct Sample {
  std::map<Kind, std::vector<SampledBlock>> blocks;
  std::uint64_t published = 0;  // that the sample was taken from
};

Result<Sample> TakeSample(const RegistryView& registry, const std::vector<RegionEntry>& regions, const std::vector<ModelEntry>& models,
                          const VerifyOptions& options) {
  std::optional<std::vector<std::uint32_t>> model_rows, region_rows;
  if (!options.model.empty()) {
    Result<std::vector<ModelEntry>> selected = SelectModels(models, options.model);
    if (!selected) return selected.error();
    model_rows.emplace();
    for (const ModelEntry& model : *selected) model_rows->push_back(model.row);
  }
  if (!options.region.empty()) {
    Result<std::vector<std::uint32_t>> selected = SelectRegions(regions, options.region);
    if (!selected) return selected.error();
    region_rows = std::move(*selected);
  }
  const auto names = [](const std::optional<std::vector<std::uint32_t>>& rows, std::uint32_t row) {
    return !rows || std::find(rows->begin(), rows->end(), row) != rows->end();
  };
  Sample sample;
  std::vector<IndexEntry> chosen;
  std::mt19937_64 random(std::random_device{}());
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < registry.index().slots(); ++slot) {
    if (!registry.index().ReadSlot(slot, entry) || !names(region_rows, entry.region)) continue;
    const RegionEntry* region = FindRegion(regions, entry);
    if (region == nullptr || !names(model_rows, region->info.model)) continue;
    // Each block is in the sample with the same probability, however many there are (reservoir).
    ++sample.published;
    if (chosen.size() < options.sample) {
      chosen.push_back(entry);
    } else if (const std::uint64_t at = random() % sample.published; at < options.sample) {
      chosen[at] = entry;
    }
  }
  for (const IndexEntry& each : chosen) sample.blocks[KindOf(*FindRegion(regions, each))].push_back({each, {}, {}, false});
  return sample;
}

class Verifier {
 public:
  Verifier(const CommonOptions& common, const VerifyOptions& options) : common_(common), options_(options) {}

  [[nodiscard]] Status Run() {
    Result<Observer> observer = Observer::Connect(common_.socket, common_.timeout());
    if (!observer) return observer.error();
    models_ = ReadModels(observer->registry());
    regions_ = ReadRegions(observer->registry());
    Result<Sample> sample = TakeSample(observer->registry(), regions_, models_, options_);
    if (!sample) return sample.error();
    sample_ = std::move(*sample);
    if (sample_.blocks.empty()) return {};
    Result<std::shared_ptr<Client>> client =
        Client::Connect({.socket_path = common_.socket, .name = "kvctl-verify", .timeout = common_.timeout()});
    if (!client) return client.error();
    client_ = std::move(*client);
    if (Status read = ReadAll(&SampledBlock::first); !read) return read;
    std::this_thread::sleep_for(std::chrono::milliseconds(options_.pause_ms));
    return ReadAll(&SampledBlock::second);
  }

  bool Sound() const {
    const Counts counts = Count();
    return counts.unstable + counts.corrupt == 0;
  }

  boost::json::object Json() const {
    const Counts counts = Count();
    boost::json::array wrong;
    ForEachWrong([&](const SampledBlock& block) {
      wrong.push_back({{"key", block.entry.key.ToHex()},
                       {"region", RegionName(block)},
                       {"block", block.first->source.block},
                       {"generation", block.first->source.generation},
                       {"first_checksum", block.first->checksum},
                       {"second_checksum", block.second ? boost::json::value(block.second->checksum) : boost::json::value(nullptr)},
                       {"corrupt", block.corrupt}});
    });
    return {{"sound", Sound()},
            {"published", sample_.published},
            {"sampled", counts.sampled},
            {"compared", counts.compared},
            {"unstable", counts.unstable},
            {"corrupt", counts.corrupt},
            {"changed", counts.changed},
            {"not_read", counts.not_read},
            {"wrong_blocks", std::move(wrong)}};
  }

  void Print() const {
    const Counts counts = Count();
    std::cout << HumanCount(counts.compared) << " of " << HumanCount(counts.sampled) << " sampled blocks were read twice and compared ("
              << HumanCount(sample_.published) << " are published)\n";
    FieldList fields;
    fields.Add("unstable", HumanCount(counts.unstable) + ": two contents of one generation");
    fields.Add("corrupt", HumanCount(counts.corrupt) + ": not what the publisher's checksum says");
    fields.Add("changed", HumanCount(counts.changed) + ": rewritten or gone between the readings, as they may be");
    fields.Add("not read", HumanCount(counts.not_read) + ": gone before, or in memory that this process can't import from");
    fields.Print(std::cout);
    if (Sound()) return;
    std::cout << '\n';
    Table table({"key", "region", ">block", ">generation", "what"});
    ForEachWrong([&](const SampledBlock& block) {
      table.Add({block.entry.key.ToHex(), RegionName(block), std::to_string(block.first->source.block),
                 std::to_string(block.first->source.generation), block.corrupt ? "corrupt" : "unstable"});
    });
    table.Print(std::cout);
  }

 private:
  struct Counts {
    std::uint64_t sampled = 0, compared = 0, unstable = 0, corrupt = 0, changed = 0, not_read = 0;
  };

  static bool SameSource(const SampledBlock& block) {
    const BlockSource &a = block.first->source, &b = block.second->source;
    return a.region == b.region && a.region_epoch == b.region_epoch && a.block == b.block && a.generation == b.generation;
  }
  static bool Unstable(const SampledBlock& block) {
    return block.first && block.second && SameSource(block) && block.first->checksum != block.second->checksum;
  }
  template <class Visit>
  void ForEachWrong(Visit&& visit) const {
    for (const auto& [kind, blocks] : sample_.blocks) {
      for (const SampledBlock& block : blocks) {
        if (block.first && (block.corrupt || Unstable(block))) visit(block);
      }
    }
  }

  Counts Count() const {
    Counts counts;
    for (const auto& [kind, blocks] : sample_.blocks) {
      for (const SampledBlock& block : blocks) {
        ++counts.sampled;
        counts.corrupt += block.corrupt;
        if (!block.first) {
          counts.not_read += !block.corrupt;
        } else if (!block.second || !SameSource(block)) {
          counts.changed += !block.corrupt;
        } else {
          ++counts.compared;
          counts.unstable += Unstable(block);
        }
      }
    }
    return counts;
  }

  std::string RegionName(const SampledBlock& block) const {
    const auto same = [&](const RegionEntry& region) {
      return region.row == block.first->source.region && region.info.region_epoch == block.first->source.region_epoch;
    };
    const auto found = std::find_if(regions_.begin(), regions_.end(), same);
    return found == regions_.end() ? "row " + std::to_string(block.first->source.region) : found->name();
  }

  [[nodiscard]] Status ReadAll(std::optional<Reading> SampledBlock::*reading) {
    for (auto& [kind, blocks] : sample_.blocks) {
      if (!regions_of_ours_.contains(kind)) {
        if (Status made = MakeRegion(kind); !made) return made;
      }
      for (SampledBlock& block : blocks) {
        if (reading == &SampledBlock::first || block.first) ReadBlock(*regions_of_ours_[kind], block, block.*reading);
      }
    }
    return {};
  }

  // Room for one block: they are read one after the other.
  [[nodiscard]] Status MakeRegion(const Kind& kind) {
    const auto& [row, tp_rank, tp_size, pp_rank, pp_size, kv_group, block_bytes] = kind;
    const ModelEntry* model = FindModel(models_, row);
    if (model == nullptr) return MakeError(Errc::kNotFound, "verify: a model has gone meanwhile");
    const Deadline deadline = After(common_.timeout());
    Result<Model> declared = client_->DeclareModel(model->spec, deadline);
    if (!declared) return declared.error();
    RegionOptions options;
    options.name = "kvctl-verify-" + std::to_string(::getpid()) + "-" + std::to_string(regions_of_ours_.size());
    options.shard = {tp_rank, tp_size, pp_rank, pp_size, kv_group};
    options.geometry = Geometry::Contiguous(1, block_bytes);
    options.offload = OffloadMode::kNever;
    options.outlives_owner = false;
    Result<std::shared_ptr<Region>> region = client_->AllocateRegion(*declared, std::move(options), deadline);
    if (!region) return region.error();
    regions_of_ours_[kind] = std::move(*region);
    return {};
  }

  void ReadBlock(Region& region, SampledBlock& block, std::optional<Reading>& out) {
    const Match match = client_->Find(std::span(&block.entry.key, 1), {.destination = &region, .include_own = false});
    if (match.empty()) return;
    const std::uint32_t destination = 0;
    ImportOptions options;
    options.deadline = After(common_.timeout());
    options.verify = true;
    Result<ImportTicket> ticket = client_->Import(match, region, std::span(&destination, 1), options);
    if (!ticket || !ticket->Wait(options.deadline)) return;
    const ImportResult& result = ticket->result();
    for (const FailedBlock& failed : result.failed) block.corrupt |= failed.reason == ImportFailure::kCorrupt;
    if (result.valid == 0 && !block.corrupt) return;
    const auto* bytes = reinterpret_cast<const Bytef*>(region.SegmentData());
    out = Reading{match[0], static_cast<std::uint32_t>(::crc32_z(0, bytes, region.block_bytes()))};
  }

  const CommonOptions& common_;
  const VerifyOptions& options_;
  std::vector<ModelEntry> models_;
  std::vector<RegionEntry> regions_;
  Sample sample_;
  std::shared_ptr<Client> client_;
  std::map<Kind, std::shared_ptr<Region>> regions_of_ours_;
};

}  // namespace

int RunVerify(const CommonOptions& common, const VerifyOptions& options) {
  Verifier verifier(common, options);
  if (Status done = verifier.Run(); !done) return Fail(done.error());
  if (common.json) {
    PrintJson(verifier.Json());
  } else {
    verifier.Print();
  }
  return verifier.Sound() ? kHealthy : kUnhealthy;
}

}  // namespace kvm::ctl
