#include "client/mesh/membership/etcd_messages.h"

#include <openssl/evp.h>

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <charconv>

#include "proto/mesh/mesh_identity.h"

namespace kvm::mesh {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxValueBytes = 4096, kMaxAddresses = 8, kMaxDomain = 255;

Error Wrong(const std::string& what) { return MakeError(Errc::kProtocol, "etcd: " + what); }

// Null: there is no such field, or it is something else.
const json::object* Object(const json::object& in, std::string_view field) {
  const json::value* const found = in.if_contains(field);
  return found == nullptr ? nullptr : found->if_object();
}

std::string_view Text(const json::object& in, std::string_view field) {
  const json::value* const found = in.if_contains(field);
  const json::string* const text = found == nullptr ? nullptr : found->if_string();
  return text == nullptr ? std::string_view() : std::string_view(text->data(), text->size());
}

bool Flag(const json::object& in, std::string_view field) {
  const json::value* const found = in.if_contains(field);
  return found != nullptr && found->is_bool() && found->get_bool();
}

// Numbers of the answer's header. kProtocol.
Status ReadHeader(const json::object& answer, std::uint64_t& revision, std::uint64_t& cluster) {
  const json::object* const header = Object(answer, "header");
  if (header == nullptr) return Wrong("an answer without a header");
  const Result<std::uint64_t> at = EtcdNumber(*header, "revision"), of = EtcdNumber(*header, "cluster_id");
  if (!at) return at.error();
  if (!of) return of.error();
  revision = *at;
  cluster = *of;
  return {};
}

Result<EtcdPair> ReadPair(const json::object& pair) {
  Result<std::string> key = DecodeBase64(Text(pair, "key"));
  if (!key) return key.error();
  if (key->empty()) return Wrong("an entry without a key");
  Result<std::string> value = DecodeBase64(Text(pair, "value"));
  if (!value) return value.error();
  const Result<std::uint64_t> modified = EtcdNumber(pair, "mod_revision");
  if (!modified) return modified.error();
  return EtcdPair{std::move(*key), std::move(*value), *modified, false};
}

// The array in a field; without the field there are none.
Result<const json::array*> ArrayIn(const json::object& in, std::string_view field) {
  static const json::array kNone;
  const json::value* const found = in.if_contains(field);
  if (found == nullptr) return &kNone;
  const json::array* const array = found->if_array();
  if (array == nullptr) return Wrong(std::string(field) + " is no array");
  return array;
}

// The first key behind those that begin with `directory`, which ends with '/'.
std::string EndOf(std::string directory) {
  directory.back() = static_cast<char>(directory.back() + 1);
  return directory;
}

}  // namespace

std::string EncodeBase64(std::string_view bytes) {
  std::string out(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()), reinterpret_cast<const unsigned char*>(bytes.data()),
                                   static_cast<int>(bytes.size()));
  out.resize(static_cast<std::size_t>(size));
  return out;
}

Result<std::string> DecodeBase64(std::string_view text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  // OpenSSL ignores white space, and counts padding as bytes.
  if (text.size() % 4 != 0 || text.substr(0, text.size() - padding).find_first_not_of(kAlphabet) != std::string_view::npos)
    return Wrong("not base64");
  std::string out(text.size() / 4 * 3, '\0');
  const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()), reinterpret_cast<const unsigned char*>(text.data()),
                                   static_cast<int>(text.size()));
  if (size != static_cast<int>(out.size())) return Wrong("not base64");
  out.resize(out.size() - padding);
  return out;
}

Result<std::uint64_t> EtcdNumber(const json::object& object, std::string_view field) {
  const json::value* const found = object.if_contains(field);
  if (found == nullptr) return std::uint64_t{0};
  if (found->is_int64() && found->get_int64() >= 0) return static_cast<std::uint64_t>(found->get_int64());
  if (found->is_uint64()) return found->get_uint64();
  const std::string_view text = Text(object, field);
  std::uint64_t number = 0;
  const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (wrong != std::errc() || end != text.data() + text.size()) return Wrong(std::string(field) + " is no number");
  return number;
}

std::string EtcdDirectory(const std::string& prefix, const std::string& domain) { return prefix + EncodeIdentityPart(domain, true) + '/'; }

std::string EtcdKey(const std::string& prefix, const std::string& domain, const std::string& node) {
  return EtcdDirectory(prefix, domain) + IdentityNode(node);
}

std::string EncodeEtcdEntry(const EtcdEntry& entry) {
  return json::serialize(json::object{{"node", entry.member.node},
                                      {"domain", entry.domain},
                                      {"addresses", json::array{json::string(entry.member.address)}},
                                      {"instance", std::to_string(entry.instance)}});
}

Result<EtcdEntry> ParseEtcdEntry(std::string_view value, bool any_machine) {
  if (value.size() > kMaxValueBytes) return Wrong("a value of " + std::to_string(value.size()) + " bytes");
  boost::system::error_code error;
  const json::value parsed = json::parse(json::string_view(value.data(), value.size()), error);
  const json::object* const object = error ? nullptr : parsed.if_object();
  if (object == nullptr) return Wrong("a value that is no JSON object");
  EtcdEntry out;
  out.member.node = Text(*object, "node");
  out.domain = Text(*object, "domain");
  if (!IsNodeName(out.member.node)) return Wrong("a node's name that is not allowed");
  if (out.domain.empty() || out.domain.size() > kMaxDomain) return Wrong("no domain");
  const Result<std::uint64_t> instance = EtcdNumber(*object, "instance");
  if (!instance) return instance.error();
  out.instance = *instance;
  const Result<const json::array*> addresses = ArrayIn(*object, "addresses");
  if (!addresses) return addresses.error();
  if ((*addresses)->size() > kMaxAddresses) return Wrong("more than " + std::to_string(kMaxAddresses) + " addresses");
  Error why = Wrong("no address");
  for (const json::value& each : **addresses) {
    const json::string* const address = each.if_string();
    constexpr std::size_t kMaxAddress = 64;
    if (address == nullptr || address->size() > kMaxAddress) continue;
    out.member.address.assign(address->data(), address->size());
    const Status reachable = CheckReachable(out.member.address, any_machine);
    if (reachable) return out;
    why = Wrong(reachable.error().message);
  }
  return why;
}

Result<EtcdList> ParseEtcdList(const json::object& answer) {
  EtcdList out;
  if (Status read = ReadHeader(answer, out.revision, out.cluster); !read) return read.error();
  if (out.revision == 0) return Wrong("a list without a revision");
  const Result<const json::array*> pairs = ArrayIn(answer, "kvs");
  if (!pairs) return pairs.error();
  for (const json::value& each : **pairs) {
    if (!each.is_object()) return Wrong("an entry that is no object");
    Result<EtcdPair> pair = ReadPair(each.get_object());
    if (!pair) return pair.error();
    out.pairs.push_back(std::move(*pair));
  }
  out.more = Flag(answer, "more");
  return out;
}

Result<EtcdWatchMessage> ParseEtcdWatchMessage(const json::object& line) {
  const json::object* const result = Object(line, "result");
  if (result == nullptr) {
    const json::object* const error = Object(line, "error");
    return MakeError(Errc::kUnavailable, "etcd: watch: " + std::string(error == nullptr ? "no result" : Text(*error, "message")));
  }
  EtcdWatchMessage out;
  if (Status read = ReadHeader(*result, out.revision, out.cluster); !read) return read.error();
  out.created = Flag(*result, "created");
  out.canceled = Flag(*result, "canceled");
  out.reason = Text(*result, "cancel_reason");
  const Result<std::uint64_t> compacted = EtcdNumber(*result, "compact_revision");
  if (!compacted) return compacted.error();
  out.compacted = *compacted;
  const Result<const json::array*> events = ArrayIn(*result, "events");
  if (!events) return events.error();
  for (const json::value& each : **events) {
    const json::object* const event = each.if_object();
    const json::object* const pair = event == nullptr ? nullptr : Object(*event, "kv");
    if (pair == nullptr) return Wrong("an event without an entry");
    Result<EtcdPair> read = ReadPair(*pair);
    if (!read) return read.error();
    read->deleted = Text(*event, "type") == "DELETE";
    out.events.push_back(std::move(*read));
  }
  return out;
}

json::object EtcdPutRequest(const std::string& key, const std::string& value, std::uint64_t lease, std::uint64_t modified) {
  const std::string at = EncodeBase64(key);
  json::object compare{{"key", at}, {"result", "EQUAL"}};
  if (modified == 0) {
    compare["target"] = "CREATE";
    compare["create_revision"] = "0";
  } else {
    compare["target"] = "MOD";
    compare["mod_revision"] = std::to_string(modified);
  }
  json::object put{{"request_put", json::object{{"key", at}, {"value", EncodeBase64(value)}, {"lease", std::to_string(lease)}}}};
  json::object look{{"request_range", json::object{{"key", at}}}};
  return {
      {"compare", json::array{std::move(compare)}}, {"success", json::array{std::move(put)}}, {"failure", json::array{std::move(look)}}};
}

Result<EtcdPutAnswer> ParseEtcdPutAnswer(const json::object& answer) {
  EtcdPutAnswer out;
  out.put = Flag(answer, "succeeded");
  if (out.put) return out;
  const Result<const json::array*> responses = ArrayIn(answer, "responses");
  if (!responses) return responses.error();
  if ((*responses)->size() != 1 || !(*responses)->front().is_object()) return Wrong("a transaction without an answer");
  const json::object* const range = Object((*responses)->front().get_object(), "response_range");
  if (range == nullptr) return Wrong("a transaction without an answer");
  const Result<const json::array*> pairs = ArrayIn(*range, "kvs");
  if (!pairs) return pairs.error();
  if ((*pairs)->empty()) return out;  // it has gone meanwhile
  if (!(*pairs)->front().is_object()) return Wrong("an entry that is no object");
  Result<EtcdPair> pair = ReadPair((*pairs)->front().get_object());
  if (!pair) return pair.error();
  out.present = std::move(*pair);
  return out;
}

json::object EtcdListRequest(const std::string& directory, std::size_t limit) {
  return {{"key", EncodeBase64(directory)}, {"range_end", EncodeBase64(EndOf(directory))}, {"limit", std::to_string(limit)}};
}

json::object EtcdWatchRequest(const std::string& directory, std::uint64_t from_revision) {
  return {{"create_request", json::object{{"key", EncodeBase64(directory)},
                                          {"range_end", EncodeBase64(EndOf(directory))},
                                          {"start_revision", std::to_string(from_revision)},
                                          {"progress_notify", true}}}};
}

}  // namespace kvm::mesh
