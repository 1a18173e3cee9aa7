#include "client/kvctl/cli/machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>

namespace kvm::ctl {
namespace {

// Value of the first line "name<space>: value" of a /proc file.
std::string ProcValue(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t first = line.find_first_not_of(" \t", colon + 1);
    return first == std::string::npos ? std::string() : line.substr(first);
  }
  return {};
}

}  // namespace

MachineFacts ReadMachineFacts() {
  MachineFacts facts;
  facts.cpu = ProcValue("/proc/cpuinfo", "model name");
  if (facts.cpu.empty()) facts.cpu = "unknown";
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (::sched_getaffinity(0, sizeof(cpus), &cpus) == 0) facts.cores = static_cast<unsigned>(CPU_COUNT(&cpus));
  utsname names{};
  if (::uname(&names) == 0) facts.kernel = std::string(names.sysname) + " " + names.release + " " + names.machine;
  const long pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) facts.memory_bytes = static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page);
  return facts;
}

std::optional<std::uint64_t> ResidentBytes(pid_t pid) {
  const std::string value = ProcValue("/proc/" + std::to_string(pid) + "/status", "VmRSS");
  if (value.empty()) return std::nullopt;
  return std::strtoull(value.c_str(), nullptr, 10) * 1024;
}

}  // namespace kvm::ctl
