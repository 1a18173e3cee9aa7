// JSON output of kvctl: one value on stdout; members have their unit in their name.
#pragma once

#include <boost/json/value.hpp>

#include "client/kvctl/cli/samples.h"
#include "kvm/model_spec.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

void PrintJson(const boost::json::value& value);

boost::json::object ToJson(const ModelSpec& spec);  // numeric fields are JSON numbers
boost::json::object ToJson(const Shard& shard);
// The counters that a client reports, by the names that kvclient/stats.h gives them.
boost::json::object ToJson(const kvmwire::StatsReport& report);
// {"p50": …, "p99": …, "mean": …, "count": …} of values in the unit that the key's name says.
boost::json::object Percentiles(Samples& samples);

}  // namespace kvm::ctl
