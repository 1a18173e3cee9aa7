#include "client/mesh/sources/source_choice.h"

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "client/mesh/sources/peer_rate.h"

namespace kvm::mesh {
namespace {

// What a disk that has not been measured counts as, beside memory.
constexpr std::uint64_t kUnmeasuredDisk = std::uint64_t{1} << 30;

std::string Text(Seconds time) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f ms", time.count() * 1e3);
  return text;
}

// What a candidate is worth: which one is asked, of those that are worth asking.
struct Worth {
  std::size_t depth = 0;
  bool hinted = false;
  double gain_s = 0;  // compared with computing; 0: the prefill rate is not known
  double bytes_per_s = 0;

  // With a prefill rate the time that is gained decides, without one the number of blocks.
  auto Rank() const { return std::tuple(hinted, gain_s, depth, bytes_per_s); }
};

// A rate at which blocks come, if so many requests share it.
double Shared(std::uint64_t bytes_per_s, std::size_t in_flight) {
  return static_cast<double>(std::max<std::uint64_t>(bytes_per_s, 1)) / static_cast<double>(in_flight + 1);
}

// Null, with the reason in `verdict`: it is not to be asked.
std::optional<Worth> WorthOf(const Candidate& candidate, const ChoiceTerms& terms, std::string& verdict) {
  verdict = [&]() -> std::string {
    if (candidate.asked) return "asked already";
    if (!candidate.refusal.empty()) return candidate.refusal;
    if (candidate.shunned) return "it sent something that was not asked for, and is not asked for a while";
    if (!candidate.fresh && !candidate.hinted) return "it does not answer";
    return {};
  }();
  if (!verdict.empty()) return std::nullopt;
  Worth out;
  // A hint says that the blocks are there; the peer's own answer decides.
  out.hinted = candidate.hinted;
  out.depth = candidate.hinted ? terms.keys : candidate.depth;
  if (out.depth <= terms.local) {
    verdict = "it seems to have no more blocks";
    return std::nullopt;
  }
  if (out.depth < terms.min_blocks) {
    verdict = "it seems to have " + std::to_string(out.depth) + " blocks, fewer than the " + std::to_string(terms.min_blocks) + " wanted";
    return std::nullopt;
  }
  const std::size_t blocks = out.depth - terms.local;
  const std::size_t on_disk = std::min(candidate.disk, blocks);
  const std::uint64_t disk_rate = on_disk == 0 ? 0 : std::min(candidate.disk_bytes_per_s, kUnmeasuredDisk);
  // A request in which the disk has a part is measured as a whole.
  out.bytes_per_s = Shared(on_disk > 0 ? disk_rate : candidate.bytes_per_s, candidate.in_flight);
  const bool measured = (on_disk > 0 ? candidate.disk_bytes_per_s : candidate.bytes_per_s) < PeerRate::kUnknown;
  const std::string from_disk = on_disk == 0 ? "" : " (" + std::to_string(on_disk) + " of them from its disk)";
  if (terms.prefill_blocks_per_s > 0) {
    const double bytes = static_cast<double>(blocks) * static_cast<double>(terms.block_bytes);
    const Seconds fetching = candidate.round_trip + Seconds(bytes / out.bytes_per_s);
    const Seconds computing(static_cast<double>(blocks) / terms.prefill_blocks_per_s);
    out.gain_s = (computing - fetching).count();
    const std::string times = "fetching " + std::to_string(blocks) + " blocks" + from_disk + " would take " + Text(fetching) +
                              ", computing them " + Text(computing);
    if (measured && out.gain_s <= 0) {
      verdict = times;
      return std::nullopt;
    }
    verdict = measured ? times : "not measured yet" + from_disk;
    return out;
  }
  verdict = "it seems to have " + std::to_string(blocks) + " more blocks" + from_disk;
  return out;
}

}  // namespace

Choice ChooseSource(std::span<const Candidate> candidates, const ChoiceTerms& terms) {
  Choice out;
  out.depth = terms.local;
  out.reason = "no peer seems to have more";
  Worth best;
  std::size_t deepest = terms.local;  // of those that were refused
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& candidate = candidates[i];
    const std::optional<Worth> worth = WorthOf(candidate, terms, out.verdicts.emplace_back());
    if (worth && (!out.chosen || worth->Rank() > best.Rank())) {
      best = *worth;
      out.chosen = i;
      out.depth = worth->depth;
    }
    const std::size_t reaches = candidate.hinted ? terms.keys : candidate.depth;
    if (!worth && !candidate.asked && reaches > deepest) {
      deepest = reaches;
      out.reason = candidate.node + ": " + out.verdicts.back();
    }
  }
  if (out.chosen) out.reason.clear();
  return out;
}

}  // namespace kvm::mesh
