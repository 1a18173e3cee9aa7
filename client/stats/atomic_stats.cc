#include "client/stats/atomic_stats.h"

namespace kvm {

ClientStats Load(const AtomicStats& stats) noexcept {
  ClientStats out;
#define KVM_LOAD(name, meaning) out.name = stats.name.load(std::memory_order_relaxed);
#define KVM_LEAVE(name, meaning)
  KVCLIENT_STATS(KVM_LOAD, KVM_LOAD, KVM_LEAVE)
#undef KVM_LOAD
#undef KVM_LEAVE
  return out;
}

kvmwire::StatsReport ReportOf(const ClientStats& stats) {
  kvmwire::StatsReport report;
#define KVM_SET(name, meaning) report.set_##name(stats.name);
#define KVM_LEAVE(name, meaning)
  KVCLIENT_STATS(KVM_SET, KVM_LEAVE, KVM_LEAVE)
#undef KVM_SET
#undef KVM_LEAVE
  return report;
}

void ReportTimes(const AtomicStats& stats, kvmwire::StatsReport& report) {
  stats.lookup_times.Report(*report.mutable_lookup_times());
  stats.import_times.Report(*report.mutable_import_times());
  stats.traffic.Report(report);
}

}  // namespace kvm
