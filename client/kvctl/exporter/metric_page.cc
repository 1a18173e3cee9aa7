#include "client/kvctl/exporter/metric_page.h"

#include <algorithm>
#include <cassert>
#include <sstream>
#include <string_view>

#include <prometheus/text_serializer.h>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {

MetricPage::MetricPage() {
  for (const MetricDescription& metric : kMetrics) {
    const auto type = metric.counter ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
    families_.push_back({std::string(metric.name), std::string(metric.help), type, {}});
  }
}

void MetricPage::Add(Metric metric, double value, std::initializer_list<std::string> labels) {
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
  (family.type == prometheus::MetricType::Counter ? found->counter.value : found->gauge.value) += value;
}

std::string MetricPage::Text() const {
  std::vector<prometheus::MetricFamily> used;
  std::copy_if(families_.begin(), families_.end(), std::back_inserter(used), [](const auto& family) { return !family.metric.empty(); });
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, used);
  return std::move(out).str();
}

}  // namespace kvm::ctl
