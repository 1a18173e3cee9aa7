// Exact percentiles of a bounded number of measurements. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace kvm::ctl {

class Samples {
 public:
  void Add(double value) {
    values_.push_back(value);
    sorted_ = false;
  }
  void Reserve(std::size_t count) { values_.reserve(count); }
  std::size_t count() const noexcept { return values_.size(); }
  bool empty() const noexcept { return values_.empty(); }

  // The smallest value that at least `fraction` of all values don't exceed (nearest rank); 0 of
  // nothing.
  double Percentile(double fraction) {
    if (values_.empty()) return 0;
    if (!sorted_) std::sort(values_.begin(), values_.end());
    sorted_ = true;
    const auto count = static_cast<double>(values_.size());
    const auto rank = static_cast<std::size_t>(std::max(1.0, std::min(count, fraction * count + 0.999999)));
    return values_[rank - 1];
  }
  double p50() { return Percentile(0.50); }
  double p99() { return Percentile(0.99); }
  double Mean() const {
    double sum = 0;
    for (const double value : values_) sum += value;
    return values_.empty() ? 0 : sum / static_cast<double>(values_.size());
  }

 private:
  std::vector<double> values_;
  bool sorted_ = false;
};

}  // namespace kvm::ctl
