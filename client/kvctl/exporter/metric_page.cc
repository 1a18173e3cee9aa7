#include "client/kvctl/exporter/metric_page.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <sstream>
#include <string_view>

#include <prometheus/text_serializer.h>

#include "client/kvctl/cli/text.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::ctl {
namespace {

prometheus::MetricType TypeOf(MetricKind kind) {
  switch (kind) {
    case MetricKind::kCounter: return prometheus::MetricType::Counter;
    case MetricKind::kGauge: return prometheus::MetricType::Gauge;
    case MetricKind::kHistogram: return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

}  // namespace

MetricPage::MetricPage() {
  for (const MetricDescription& metric : kMetrics) {
    families_.push_back({std::string(metric.name), std::string(metric.help), TypeOf(metric.kind), {}});
  }
}

prometheus::ClientMetric& MetricPage::Series(Metric metric, const std::vector<std::string>& labels) {
  prometheus::MetricFamily& family = families_[static_cast<std::size_t>(metric)];
  prometheus::ClientMetric added;
  std::string_view names = Describe(metric).labels;
  for (const std::string& label : labels) {
    assert(!names.empty());
    const std::size_t end = std::min(names.find(' '), names.size());
    added.label.push_back({std::string(names.substr(0, end)), Printable(label)});
    names.remove_prefix(std::min(end + 1, names.size()));
  }
  assert(names.empty());
  const auto same = [&](const prometheus::ClientMetric& other) { return other.label == added.label; };
  auto found = std::find_if(family.metric.begin(), family.metric.end(), same);
  if (found == family.metric.end()) found = family.metric.insert(found, std::move(added));
  return *found;
}

void MetricPage::Add(Metric metric, double value, const std::vector<std::string>& labels) {
  assert(Describe(metric).kind != MetricKind::kHistogram);
  prometheus::ClientMetric& series = Series(metric, labels);
  (Describe(metric).kind == MetricKind::kCounter ? series.counter.value : series.gauge.value) += value;
}

void MetricPage::AddTimes(Metric metric, std::span<const std::uint64_t> counts, double sum_seconds,
                          const std::vector<std::string>& labels) {
  assert(Describe(metric).kind == MetricKind::kHistogram);
  prometheus::ClientMetric::Histogram& histogram = Series(metric, labels).histogram;
  histogram.bucket.resize(kDurationBuckets);
  std::uint64_t so_far = 0;
  for (std::size_t i = 0; i < kDurationBuckets; ++i) {
    so_far += i < counts.size() ? counts[i] : 0;
    const bool last = i + 1 == kDurationBuckets;
    histogram.bucket[i].upper_bound = last ? std::numeric_limits<double>::infinity() : static_cast<double>(std::uint64_t{1} << i) / 1e6;
    histogram.bucket[i].cumulative_count += so_far;
  }
  histogram.sample_count += so_far;
  histogram.sample_sum += sum_seconds;
}

std::string MetricPage::Text() const {
  std::vector<prometheus::MetricFamily> used;
  std::copy_if(families_.begin(), families_.end(), std::back_inserter(used), [](const auto& family) { return !family.metric.empty(); });
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, used);
  return std::move(out).str();
}

}  // namespace kvm::ctl
