// MetricPage: values of metrics of the table, and their text in Prometheus' format (version 0.0.4).
// Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

#include "client/kvctl/exporter/metric_table.h"

namespace kvm::ctl {

class MetricPage {
 public:
  MetricPage();

  // `labels`: a value for each label of the table, in its order; made safe to print. A second value
  // with the same labels is added to the first, since no page may have a series twice.
  void Add(Metric metric, double value, const std::vector<std::string>& labels = {});

  // A histogram's buckets: counts[i] calls of at most 2^i microseconds and more than 2^(i-1), the
  // last: all longer ones. A second one with the same labels is added to the first.
  void AddTimes(Metric metric, std::span<const std::uint64_t> counts, double sum_seconds, const std::vector<std::string>& labels);

  // Metrics without a value are left out.
  std::string Text() const;
  const std::vector<prometheus::MetricFamily>& families() const noexcept { return families_; }

 private:
  prometheus::ClientMetric& Series(Metric metric, const std::vector<std::string>& labels);

  std::vector<prometheus::MetricFamily> families_;  // in the order of the table
};

}  // namespace kvm::ctl
