#include "proto/base/machine_memory.h"

#include <sys/sysinfo.h>

#include <algorithm>
#include <vector>

#include "proto/base/text_files.h"

namespace kvm {
namespace {

constexpr std::uint64_t kMostNodes = 4096;

// The numbers of a list such as "0-3,8"; empty if the text is no such list.
std::vector<std::uint64_t> NodeList(std::string_view text) {
  std::vector<std::uint64_t> nodes;
  for (const std::string_view range : SplitText(text, ',')) {
    const std::size_t dash = range.find('-');
    const auto first = ParseNumber(range.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : ParseNumber(range.substr(dash + 1));
    if (!first || !last || *last >= kMostNodes) return {};
    for (std::uint64_t node = *first; node <= *last; ++node) nodes.push_back(node);
  }
  return nodes;
}

// Computes what the kernel calls MemAvailable: free memory and file cache, where half of the cache
// that is used often counts as needed.
std::optional<InstalledMemory> NodeMemory(const std::string& root, std::uint64_t node) {
  const std::string name = std::to_string(node);
  const Result<std::string> text = ReadTextFile(root + "/sys/devices/system/node/node" + name + "/meminfo");
  if (!text) return std::nullopt;
  const auto of = [&](const std::string& field) { return NumberAfter(*text, "Node " + name + " " + field); };
  const auto total = of("MemTotal"), free = of("MemFree");
  if (!total || !free) return std::nullopt;
  const std::uint64_t cache = of("Inactive(file)").value_or(0) + of("Active(file)").value_or(0) / 2 + of("SReclaimable").value_or(0) / 2;
  const std::uint64_t unwritten = of("Dirty").value_or(0) + of("Writeback").value_or(0);
  return InstalledMemory{*total * 1024, (*free + (cache > unwritten ? cache - unwritten : 0)) * 1024};
}

// Sums over `nodes`; empty if one of them can't be read.
std::optional<InstalledMemory> MemoryOf(const std::string& root, const std::vector<std::uint64_t>& nodes) {
  InstalledMemory sum;
  for (const std::uint64_t node : nodes) {
    const auto memory = NodeMemory(root, node);
    if (!memory) return std::nullopt;
    sum.bytes += memory->bytes;
    sum.free_bytes += memory->free_bytes;
  }
  return nodes.empty() ? std::nullopt : std::optional(sum);
}

// Nodes with memory, and those of them that this process may use; both empty if unknown.
struct Nodes {
  std::vector<std::uint64_t> all, allowed;
};

Nodes ReadNodes(const std::string& root) {
  const Result<std::string> has_memory = ReadTextFile(root + "/sys/devices/system/node/has_memory");
  if (!has_memory) return {};
  Nodes nodes;
  nodes.all = NodeList(*has_memory);
  nodes.allowed = nodes.all;
  const Result<std::string> status = ReadTextFile(root + "/proc/self/status");
  if (!status) return nodes;
  constexpr std::string_view kField = "\nMems_allowed_list:";
  const std::size_t at = status->find(kField);
  if (at == std::string::npos) return nodes;
  const std::string_view rest = std::string_view(*status).substr(at + kField.size());
  const std::vector<std::uint64_t> allowed = NodeList(rest.substr(0, rest.find('\n')));
  std::erase_if(nodes.allowed, [&](std::uint64_t node) { return std::find(allowed.begin(), allowed.end(), node) == allowed.end(); });
  return nodes;
}

}  // namespace

Result<InstalledMemory> ReadInstalledMemory() {
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return SystemError("sysinfo");
  const std::uint64_t unit = info.mem_unit;
  return InstalledMemory{info.totalram * unit, (std::uint64_t{info.freeram} + info.bufferram) * unit};
}

MemoryLevel ReadMachineMemory(const InstalledMemory& installed, const std::string& root) {
  MemoryLevel machine{"this machine", installed.bytes, installed.free_bytes};
  const Nodes nodes = ReadNodes(root);
  const Result<std::string> meminfo = ReadTextFile(root + "/proc/meminfo");
  const auto available = meminfo ? NumberAfter(*meminfo, "MemAvailable") : std::nullopt;
  if (available) {
    machine.available_bytes = *available * 1024;
  } else if (const auto estimate = MemoryOf(root, nodes.all)) {
    machine.available_bytes = estimate->free_bytes;
  }
  if (nodes.allowed.size() == nodes.all.size()) return machine;
  const auto own = MemoryOf(root, nodes.allowed);
  if (!own || own->bytes >= machine.limit_bytes) return machine;
  return {"the NUMA nodes of this process's cpuset", own->bytes, std::min(machine.available_bytes, own->free_bytes)};
}

}  // namespace kvm
