// The messages of etcd's JSON gateway that kvmd-mesh sends and takes, and the entry of a node.
//
//   key    PREFIX DOMAIN "/" NODE     the last two spelled as in proto/mesh/mesh_identity.h
//   value  {"node":"a","domain":"uid:1000","addresses":["192.0.2.1:7600"],"instance":"123"}
//
// In JSON, etcd writes bytes in base64 and 64-bit numbers as strings, and leaves out zeros. All of
// it comes from another process, and any client of etcd may have written an entry. Pure functions.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/mesh/membership/member.h"

namespace kvm::mesh {

std::string EncodeBase64(std::string_view bytes);
// kProtocol: not base64.
[[nodiscard]] Result<std::string> DecodeBase64(std::string_view text);

// What a node says of itself.
struct EtcdEntry {
  Member member;
  std::string domain;
  std::uint64_t instance = 0;  // random number of a process
};

// The beginning of all keys of a domain.
std::string EtcdDirectory(const std::string& prefix, const std::string& domain);
std::string EtcdKey(const std::string& prefix, const std::string& domain, const std::string& node);
std::string EncodeEtcdEntry(const EtcdEntry& entry);
// The first address that CheckReachable takes becomes the member's. kProtocol, with the reason: no
// such JSON, a name or an address that is not allowed, or no address.
[[nodiscard]] Result<EtcdEntry> ParseEtcdEntry(std::string_view value, bool any_machine);

// A key with its value, as a list or an event of a watch has it.
struct EtcdPair {
  std::string key, value;
  std::uint64_t modified = 0;  // revision
  bool deleted = false;        // without a value then
};

struct EtcdList {
  std::vector<EtcdPair> pairs;
  std::uint64_t revision = 0;
  std::uint64_t cluster = 0;
  bool more = false;  // than were asked for
};
[[nodiscard]] Result<EtcdList> ParseEtcdList(const boost::json::object& answer);

struct EtcdWatchMessage {
  std::vector<EtcdPair> events;
  std::uint64_t revision = 0;  // of the store, when it was sent; 0: not said
  std::uint64_t cluster = 0;
  bool created = false;
  bool canceled = false;
  std::uint64_t compacted = 0;  // canceled because what it asked for is not kept any more
  std::string reason;           // why it was canceled
};
[[nodiscard]] Result<EtcdWatchMessage> ParseEtcdWatchMessage(const boost::json::object& line);

// Puts the entry with the lease if the key does not exist, or still has the revision `modified`
// (not 0). The answer has the present pair if not.
boost::json::object EtcdPutRequest(const std::string& key, const std::string& value, std::uint64_t lease, std::uint64_t modified);
struct EtcdPutAnswer {
  bool put = false;
  std::optional<EtcdPair> present;
};
[[nodiscard]] Result<EtcdPutAnswer> ParseEtcdPutAnswer(const boost::json::object& answer);

boost::json::object EtcdListRequest(const std::string& directory, std::size_t limit);
boost::json::object EtcdWatchRequest(const std::string& directory, std::uint64_t from_revision);

// A 64-bit number in a field, spelled as a string or as a number; 0 if there is none.
[[nodiscard]] Result<std::uint64_t> EtcdNumber(const boost::json::object& object, std::string_view field);

}  // namespace kvm::mesh
