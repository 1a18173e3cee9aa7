// What etcd sends: answers of its JSON gateway, lines of a watch, and the entries of nodes in them,
// which any client of etcd may have written. Arbitrary text.
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "client/mesh/membership/etcd_messages.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {
namespace {

void TakeEntry(const std::string& value) {
  for (const bool any_machine : {false, true}) {
    const Result<mesh::EtcdEntry> entry = mesh::ParseEtcdEntry(value, any_machine);
    if (!entry) continue;
    if (entry->member.node.empty() || entry->member.address.empty()) Broken("an entry that is taken names a node and its address");
    const Result<mesh::EtcdEntry> again = mesh::ParseEtcdEntry(mesh::EncodeEtcdEntry(*entry), any_machine);
    if (!again || again->member.node != entry->member.node || again->member.address != entry->member.address ||
        again->domain != entry->domain || again->instance != entry->instance)
      Broken("an entry that is taken is the same when it is written and read again");
  }
}

void TakePairs(const std::vector<mesh::EtcdPair>& pairs) {
  for (const mesh::EtcdPair& pair : pairs) {
    const Result<std::string> key = mesh::DecodeBase64(mesh::EncodeBase64(pair.key));
    if (!key || *key != pair.key) Broken("base64 gives back what was written");
    TakeEntry(pair.value);
  }
}

}  // namespace

void EtcdMessagesTarget(Bytes input) {
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  TakeEntry(std::string(text));
  static_cast<void>(mesh::DecodeBase64(text));
  boost::system::error_code error;
  const boost::json::value parsed = boost::json::parse(boost::json::string_view(text.data(), text.size()), error);
  const boost::json::object* const object = error ? nullptr : parsed.if_object();
  if (object == nullptr) return;
  if (const auto list = mesh::ParseEtcdList(*object)) TakePairs(list->pairs);
  if (const auto message = mesh::ParseEtcdWatchMessage(*object)) TakePairs(message->events);
  if (const auto put = mesh::ParseEtcdPutAnswer(*object); put && put->present) TakePairs({*put->present});
  for (const char* field : {"ID", "TTL", "revision"}) static_cast<void>(mesh::EtcdNumber(*object, field));
}

std::vector<std::string> EtcdMessagesSeeds() {
  mesh::EtcdEntry entry;
  entry.member.node = "a";
  entry.member.address = "127.0.0.1:7600";
  entry.domain = "uid:1000";
  entry.instance = 123;
  const std::string value = mesh::EncodeEtcdEntry(entry);
  const std::string key = mesh::EtcdKey("/kvmd-mesh/", entry.domain, "a");
  const boost::json::object pair{{"key", mesh::EncodeBase64(key)}, {"value", mesh::EncodeBase64(value)}, {"mod_revision", "7"}};
  const boost::json::object header{{"cluster_id", "14841639068965178418"}, {"revision", "9"}};
  const boost::json::object gone{{"type", "DELETE"}, {"kv", {{"key", mesh::EncodeBase64(key)}, {"mod_revision", "8"}}}};
  const boost::json::object list{{"header", header}, {"kvs", {pair}}, {"more", true}, {"count", "2"}};
  const boost::json::object events{{"result", {{"header", header}, {"events", {{{"kv", pair}}, gone}}}}};
  const boost::json::object canceled{
      {"result", {{"header", header}, {"canceled", true}, {"compact_revision", "5"}, {"cancel_reason", "compacted"}}}};
  const boost::json::object created{{"result", {{"header", header}, {"created", true}}}};
  const boost::json::object put{{"header", header}, {"responses", {{{"response_range", {{"kvs", {pair}}}}}}}};
  std::vector<std::string> out{value};
  for (const boost::json::object* each : {&list, &events, &canceled, &created, &put}) out.push_back(boost::json::serialize(*each));
  return out;
}

}  // namespace kvm::fuzz
