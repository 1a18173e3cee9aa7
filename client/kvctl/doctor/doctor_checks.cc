#include "client/kvctl/doctor/doctor_checks.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

// So many waits in vain are no finding.
constexpr std::uint64_t kFewWaits = 10;
// One in so many blocks that the host cache did not take is no finding.
constexpr std::uint64_t kFewOf = 10;

void CheckClient(const kvmwire::ClientStatus& client, std::vector<Check>& checks) {
  const std::string who = Printable(client.name()) + " (pid " + std::to_string(client.pid()) + ")";
  const kvmwire::StatsReport& stats = client.stats();
  const auto warn = [&](const std::string& what) { checks.push_back({"client", Verdict::kWarn, who + what}); };
  if (client.process_not_watched()) {
    warn(
        " is in another PID namespace, and the kernel (older than 6.5) gives kvmd no pidfd of it: kvmd notices its death only by the "
        "end of the connection, and no other worker can take over its memory");
  }
  constexpr std::uint64_t kSlowBytes = 8 << 20;
  if (client.queued_bytes() > kSlowBytes) warn(" does not read: " + HumanBytes(client.queued_bytes()) + " are queued for it");
  if (stats.publishes_deferred() > 0) {
    warn(" deferred " + HumanCount(stats.publishes_deferred()) + " publishes: kvmd was away or behind");
  }
  if (stats.offloads_dropped() > 0) {
    warn(" dropped " + HumanCount(stats.offloads_dropped()) + " blocks instead of copying them to the host cache, and copied " +
         HumanCount(stats.blocks_offloaded()) + ": it publishes faster than it can copy, or reuses blocks before they are copied");
  }
  if (stats.blocks_corrupt() > 0) {
    warn(" was given " + HumanCount(stats.blocks_corrupt()) + " wrong blocks by other workers, of " + HumanCount(stats.blocks_verified()) +
         " that it has compared with their checksums, and has not used them: memory is faulty, or an engine writes its blocks without "
         "withdrawing them. kvctl verify names regions whose blocks change; see the machine's log for memory errors (EDAC, Xid)");
  }
  if (stats.computing_waits_in_vain() > kFewWaits && stats.computing_waits_in_vain() > stats.computing_waits() / 2) {
    warn(" has waited " + HumanCount(stats.computing_waits()) + " times for blocks that other workers said to compute, " +
         HumanCount(stats.computing_waits_in_vain()) +
         " times in vain: its bound is too short, or a worker marks what it does not compute; "
         "kvctl clients --json has marked_keys");
  }
  if (stats.unmapped_regions() > 0) {
    warn(" can't import from " + HumanCount(stats.unmapped_regions()) + (stats.unmapped_regions() == 1 ? " region" : " regions") +
         " of its peers, so that their blocks are misses for it. " +
         (stats.unmapped_reason().empty() ? "It gave no reason" : "One of them, " + Printable(stats.unmapped_reason())) +
         ". Compare kvctl regions with the GPUs that the process sees, and kvctl topo with what they reach");
  }
}

std::string PairName(const Topology& topology, std::size_t importer, std::size_t owner) {
  return "GPU " + std::to_string(topology.devices[importer].ordinal) + " from GPU " + std::to_string(topology.devices[owner].ordinal);
}

// Writes one line for all pairs that have the same note.
void CheckPairs(const Topology& topology, std::vector<Check>& checks) {
  std::map<std::string, std::vector<std::string>> apart;
  std::size_t reached = 0;
  for (std::size_t importer = 0; importer < topology.devices.size(); ++importer) {
    for (std::size_t owner = 0; owner < topology.devices.size(); ++owner) {
      const LinkInfo& link = topology.Link(importer, owner);
      if (importer == owner) continue;
      if (link.reachable) {
        ++reached;
      } else {
        apart[link.note].push_back(PairName(topology, importer, owner));
      }
    }
  }
  for (const auto& [note, pairs] : apart) {
    checks.push_back({"peer access", Verdict::kWarn,
                      JoinWithCommas(pairs) + ": " + (note.empty() ? "not reachable" : Printable(note)) +
                          "; their workers can't import from each other"});
  }
  if (reached > 0) checks.push_back({"peer access", Verdict::kOk, std::to_string(reached) + " pairs of GPUs, see kvctl topo"});
}

// Fields that follow from an engine's options or release. Other weights alone are another model,
// which is no mistake.
bool IsSetting(const std::string& field) {
  constexpr std::array<std::string_view, 9> kSettings = {"revision",     "kv_dtype",       "kv_scales", "layout", "quantization",
                                                         "block_tokens", "sliding_window", "tp_size",   "pp_size"};
  return std::find(kSettings.begin(), kSettings.end(), field) != kSettings.end();
}

// Whether two specs may be of one model: with another type or release its weights have another
// digest, too.
bool MayBeOneModel(const ModelSpec& a, const ModelSpec& b) {
  const bool same_shape =
      a.model_id == b.model_id && a.num_layers == b.num_layers && a.num_kv_heads == b.num_kv_heads && a.head_size == b.head_size;
  const bool same_numbers = a.kv_dtype == b.kv_dtype && a.quantization == b.quantization && a.revision == b.revision;
  return same_shape && (a.weights_digest == b.weights_digest || !same_numbers);
}

// "block_tokens ("16", "32") and layout (…)", of the fields that are settings; "" if none is.
std::string SettingsThatDiffer(const ModelSpec& a, const ModelSpec& b) {
  std::vector<std::string> fields;
  for (const ModelFieldDifference& each : Difference(a, b)) {
    if (IsSetting(each.field)) fields.push_back(each.field + " (" + Printable(each.ours) + " and " + Printable(each.theirs) + ")");
  }
  return JoinWithCommas(fields);
}

constexpr const char* kHowToReclaim =
    ". kvctl reclaim --region NAME or --all gives it back at once, --orphan-ttl-s sets how long it is kept";

struct OrphanMemory {
  std::uint64_t bytes = 0;
  std::string named;  // the first ones of them; empty: there is none
};

// Of dead workers, on the host or on GPUs.
OrphanMemory MemoryOf(const kvmwire::StatusReply& status, bool host) {
  constexpr std::size_t kNamed = 4;
  OrphanMemory out;
  std::size_t count = 0;
  for (const kvmwire::OrphanStatus& orphan : status.orphan_list()) {
    if (orphan.host_memory() != host || orphan.owner_runs()) continue;
    out.bytes += orphan.bytes();
    if (++count > kNamed) continue;
    out.named += (count > 1 ? ", " : "") + Printable(orphan.region()) + " (" + HumanBytes(orphan.bytes()) + ", of process " +
                 std::to_string(orphan.owner_pid()) + " of user " + std::to_string(orphan.owner_uid()) + ", ";
    out.named += orphan.leased() ? "kept while leases hold it)" : HumanSeconds((orphan.left_ms() + 999) / 1000) + " left)";
  }
  if (count > kNamed) out.named += " and " + std::to_string(count - kNamed) + " more";
  return out;
}

// What engines never offer is never stored.
std::vector<Check> CheckReuse(const kvmwire::StatusReply& status, std::uint64_t stored) {
  if (status.host_cache().admission() != "reuse") return {};
  if (stored > 0) return {{"host cache", Verdict::kOk, "admission reuse: " + HumanCount(stored) + " blocks came"}};
  return {{"host cache", Verdict::kWarn,
           "admission reuse takes only what engines offer before they overwrite it (OffloadBeforeReuse), and nothing has come. kvmd's "
           "vLLM connector and Transformers cache never offer: --host-cache-admission publish or second-hit is for them"}};
}

bool OnGpu(const RegionEntry& region) { return region.device() != kHostMemory; }

}  // namespace

std::string_view VerdictName(Verdict verdict) noexcept {
  switch (verdict) {
    case Verdict::kOk: return "ok";
    case Verdict::kWarn: return "warn";
    case Verdict::kFail: return "fail";
  }
  return "fail";
}

std::vector<Check> CheckClientList(const kvmwire::StatusReply& status) {
  std::vector<Check> checks;
  for (const auto& client : status.client_list()) CheckClient(client, checks);
  if (const std::string note = CutListNote(status); !note.empty()) checks.push_back({"client", Verdict::kWarn, note});
  return checks;
}

std::vector<Check> CheckHostCache(const kvmwire::StatusReply& status) {
  if (!status.has_host_cache()) return {};
  std::uint64_t stored = 0, refused = 0, expired = 0;
  for (const auto& domain : status.domains()) {
    stored += domain.host_cache().stored();
    refused += domain.host_cache().refused();
    expired += domain.host_cache().expired();
  }
  std::vector<Check> checks;
  if (refused > stored / kFewOf) {
    const kvmwire::HostCacheStatus& cache = status.host_cache();
    checks.push_back(
        {"host cache", Verdict::kWarn,
         HumanCount(refused) + " blocks were offered and found no room, and " + HumanCount(stored) + " were stored; " +
             HumanBytes(cache.bytes()) + " of " + HumanBytes(cache.max_bytes()) + " are allocated: " +
             (cache.bytes() + cache.slab_bytes() <= cache.max_bytes()
                  ? "if kvmd's log has host_cache_not_grown, its reason says what is missing"
                  : "more workers write than there are slabs (--host-cache-slab), or leases cover the blocks (kvctl leases)")});
  }
  if (expired > stored / kFewOf) {
    checks.push_back({"host cache", Verdict::kWarn,
                      HumanCount(expired) + " blocks were not copied within --offload-timeout-ms, and " + HumanCount(stored) +
                          " were: workers lack processor time or PCIe bandwidth, or have been stopped"});
  }
  const std::vector<Check> reuse = CheckReuse(status, stored);
  checks.insert(checks.end(), reuse.begin(), reuse.end());
  return checks;
}

std::vector<Check> CheckOrphans(const kvmwire::StatusReply& status) {
  std::vector<Check> checks;
  if (const OrphanMemory host = MemoryOf(status, true); !host.named.empty()) {
    checks.push_back({"memory of dead workers", Verdict::kWarn,
                      HumanBytes(host.bytes) +
                          " of host memory are kept for the next owner and still count against the dead one's pod or unit: " + host.named +
                          kHowToReclaim});
  }
  if (const OrphanMemory gpu = MemoryOf(status, false); !gpu.named.empty()) {
    checks.push_back({"memory of dead workers", Verdict::kWarn,
                      HumanBytes(gpu.bytes) +
                          " of GPU memory are kept for the next owner, so that nvidia-smi shows them in use by no process: " + gpu.named +
                          kHowToReclaim});
  }
  return checks;
}

std::vector<Check> CheckModels(const std::vector<ModelEntry>& models, const std::vector<RegionEntry>& regions) {
  constexpr std::size_t kNamed = 4;
  std::vector<const ModelEntry*> used;
  for (const ModelEntry& model : models) {
    const auto serves = [&](const RegionEntry& region) {
      return region.info.model == model.row && region.state() == layout::RegionState::kLive;
    };
    if (std::any_of(regions.begin(), regions.end(), serves)) used.push_back(&model);
  }
  std::vector<Check> checks;
  for (std::size_t i = 0; i < used.size() && checks.size() < kNamed; ++i) {
    for (std::size_t j = i + 1; j < used.size() && checks.size() < kNamed; ++j) {
      if (!MayBeOneModel(used[i]->spec, used[j]->spec)) continue;
      const std::string differ = SettingsThatDiffer(used[i]->spec, used[j]->spec);
      if (differ.empty()) continue;
      checks.push_back({"models", Verdict::kWarn,
                        "two models in use are named " + Printable(used[i]->spec.model_id) + " (" + ShortFingerprint(used[i]->fingerprint) +
                            " and " + ShortFingerprint(used[j]->fingerprint) + ") and differ in " + differ +
                            ": their engines share nothing with each other. If they are to share, start them with the same options"});
    }
  }
  return checks;
}

std::vector<Check> CheckGpus(const std::string& toolkit, const Result<Topology>& topology) {
  std::vector<Check> checks;
  if (toolkit.empty()) {
    checks.push_back({"cuda", Verdict::kOk, "this kvctl is built without CUDA: workers of this build use host memory only"});
    return checks;
  }
  const std::string built = "built with CUDA " + toolkit + "; ";
  if (!topology) {
    const bool none = topology.error().code == Errc::kUnsupported;
    checks.push_back({"cuda", none ? Verdict::kOk : Verdict::kWarn, built + Printable(topology.error().message)});
    return checks;
  }
  checks.push_back({"cuda", Verdict::kOk,
                    built + std::to_string(topology->devices.size()) + (topology->devices.size() == 1 ? " GPU" : " GPUs") + " visible"});
  for (const DeviceInfo& device : topology->devices) {
    if (device.unusable.empty()) continue;
    checks.push_back({"cuda", Verdict::kWarn, "GPU " + std::to_string(device.ordinal) + " is not used: " + Printable(device.unusable)});
  }
  CheckPairs(*topology, checks);
  return checks;
}

std::vector<Check> CheckGpuRegions(const std::vector<RegionEntry>& regions, const Result<Topology>& topology) {
  std::set<DeviceUuid> unseen, used;
  for (const RegionEntry& region : regions) {
    if (OnGpu(region)) used.insert(region.device());
  }
  if (used.empty()) return {};
  for (const DeviceUuid& device : used) {
    const auto same = [&](const DeviceInfo& seen) { return seen.uuid == device; };
    if (!topology || std::none_of(topology->devices.begin(), topology->devices.end(), same)) unseen.insert(device);
  }
  const auto count = std::count_if(regions.begin(), regions.end(), OnGpu);
  std::string detail = std::to_string(count) + " on " + std::to_string(used.size()) + (used.size() == 1 ? " GPU" : " GPUs");
  if (!unseen.empty()) {
    std::vector<std::string> names;
    for (const DeviceUuid& device : unseen) names.push_back(FormatUuid(device));
    detail += "; this kvctl does not see " + JoinWithCommas(names) + ", its workers' processes may";
  }
  return {{"gpu regions", Verdict::kOk, std::move(detail)}};
}

}  // namespace kvm::ctl
