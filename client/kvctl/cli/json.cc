#include "client/kvctl/cli/json.h"

#include <boost/json/serialize.hpp>

#include <charconv>
#include <iostream>

#include "client/kvctl/cli/text.h"
#include "kvclient/stats.h"

namespace kvm::ctl {

// Strings come from clients and files, so they may contain any bytes.
void PrintJson(const boost::json::value& value) { std::cout << HarmlessJson(boost::json::serialize(value)) << std::endl; }

boost::json::object ToJson(const ModelSpec& spec) {
  // A field is numeric if it has a number in a default-constructed spec.
  const auto defaults = Fields(ModelSpec{});
  const auto fields = Fields(spec);
  boost::json::object object;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    std::uint64_t number = 0;
    const std::string& text = fields[i].second;
    const bool numeric = !defaults[i].second.empty() && std::from_chars(text.data(), text.data() + text.size(), number).ec == std::errc{};
    object[fields[i].first] = numeric ? boost::json::value(number) : boost::json::value(text);
  }
  return object;
}

boost::json::object ToJson(const Shard& shard) {
  return {{"tp_rank", shard.tp_rank},
          {"tp_size", shard.tp_size},
          {"pp_rank", shard.pp_rank},
          {"pp_size", shard.pp_size},
          {"kv_group", shard.kv_group}};
}

boost::json::object ToJson(const kvmwire::StatsReport& report) {
  boost::json::object object;
#define KVM_MEMBER(name, meaning) object[#name] = report.name();
#define KVM_LEAVE(name, meaning)
  KVCLIENT_STATS(KVM_MEMBER, KVM_LEAVE, KVM_LEAVE)
#undef KVM_MEMBER
#undef KVM_LEAVE
  return object;
}

boost::json::object Percentiles(Samples& samples) {
  return {{"p50", samples.p50()}, {"p99", samples.p99()}, {"mean", samples.Mean()}, {"count", samples.count()}};
}

}  // namespace kvm::ctl
