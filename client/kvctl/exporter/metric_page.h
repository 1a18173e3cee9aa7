// MetricPage: values of metrics of the table, and their text in Prometheus' format (version 0.0.4).
// Not thread-safe.
#pragma once

#include <initializer_list>
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
  void Add(Metric metric, double value, std::initializer_list<std::string> labels = {});

  // Metrics without a value are left out.
  std::string Text() const;
  const std::vector<prometheus::MetricFamily>& families() const noexcept { return families_; }

 private:
  std::vector<prometheus::MetricFamily> families_;  // in the order of the table
};

}  // namespace kvm::ctl
