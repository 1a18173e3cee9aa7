// What kvmd's answer to a status query says, as metrics.
#pragma once

#include <chrono>

#include "client/kvctl/exporter/metric_page.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// `status`: with clients and memory. `took`: the time that kvmd's answer took.
MetricPage MetricsOf(const kvmwire::StatusReply& status, std::chrono::nanoseconds took);
// kvmd does not answer.
MetricPage MetricsWithoutKvmd();

}  // namespace kvm::ctl
