#include "tests/support/mesh/fake_etcd.h"

#include <poll.h>
#include <sys/socket.h>

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cstdio>
#include <cstring>

#include "client/mesh/membership/etcd_messages.h"
#include "tests/catch.h"
#include "tests/support/mesh/loopback.h"

namespace kvm::test {
namespace {

namespace json = boost::json;
using mesh::DecodeBase64;
using mesh::EncodeBase64;
using mesh::EtcdNumber;

std::string BytesIn(const json::object& object, const char* field) {
  const json::value* const found = object.if_contains(field);
  return found == nullptr ? "" : DecodeBase64(std::string(found->as_string())).value();
}

std::uint64_t NumberIn(const json::object& object, const char* field) { return EtcdNumber(object, field).value(); }

bool SendAll(int socket, const std::string& bytes) {
  return ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

// Empty: `stop`, or the other end has closed the connection.
bool ReceiveMore(int socket, std::string& into, const std::atomic<bool>& stop) {
  while (!stop) {
    pollfd waiting{socket, POLLIN, 0};
    if (::poll(&waiting, 1, 5) <= 0) continue;
    char bytes[4096];
    // Does not wait: poll has said that something is there, or the end.
    const ssize_t got = ::recv(socket, bytes, sizeof(bytes), 0);  // NOLINT(clang-analyzer-unix.BlockInCriticalSection)
    if (got <= 0) return false;
    into.append(bytes, static_cast<std::size_t>(got));
    return true;
  }
  return false;
}

std::string HeaderField(const std::string& header, const std::string& name) {
  const std::size_t at = header.find("\r\n" + name + ": ");
  if (at == std::string::npos) return {};
  const std::size_t begin = at + name.size() + 4;
  return header.substr(begin, header.find("\r\n", begin) - begin);
}

std::string Refused(int code, const std::string& message, const std::string& status) {
  return FakeEtcd::Answer(json::serialize(json::object{{"error", message}, {"message", message}, {"code", code}}), status);
}

}  // namespace

FakeEtcd::FakeEtcd() : listener_(ListenOnLoopback()), port_(PortOf(listener_)) {
  acceptor_ = std::jthread([this] { Accept(); });
}

FakeEtcd::~FakeEtcd() {
  stop_ = true;
  acceptor_.join();
}

void FakeEtcd::Accept() {
  while (!stop_) {
    pollfd waiting{listener_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 5) <= 0) continue;
    const int socket = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (socket >= 0) threads_.emplace_back([this, socket] { Serve(socket); });
  }
}

void FakeEtcd::Next(const std::string& path, Trick trick) {
  const std::lock_guard lock(mutex_);
  tricks_[path].push_back(std::move(trick));
}

bool FakeEtcd::Used(const std::string& path) {
  const std::lock_guard lock(mutex_);
  return tricks_[path].empty();
}

int FakeEtcd::Requests(const std::string& path) {
  const std::lock_guard lock(mutex_);
  return requests_[path];
}

void FakeEtcd::WantCredentials(const std::string& user, const std::string& password) {
  const std::lock_guard lock(mutex_);
  user_ = user;
  password_ = password;
  token_ = "none yet";
}

void FakeEtcd::ForgetTokens() {
  const std::lock_guard lock(mutex_);
  token_ = "forgotten";
}

void FakeEtcd::Put(const std::string& key, const std::string& value) {
  const std::lock_guard lock(mutex_);
  Change(key, value, 0, false);
}

void FakeEtcd::Delete(const std::string& key) {
  const std::lock_guard lock(mutex_);
  Change(key, "", 0, true);
}

std::map<std::string, std::string> FakeEtcd::Entries() {
  const std::lock_guard lock(mutex_);
  std::map<std::string, std::string> out;
  for (const auto& [key, entry] : entries_) out[key] = entry.value;
  return out;
}

void FakeEtcd::EndLeases() {
  const std::lock_guard lock(mutex_);
  while (!leases_.empty()) EndLease(leases_.begin()->first);
}

void FakeEtcd::Compact() {
  const std::lock_guard lock(mutex_);
  compacted_ = revision_;
}

void FakeEtcd::Replace() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
  leases_.clear();
  events_.clear();
  revision_ = 1;
  compacted_ = 0;
  ++cluster_;
  ++watches_cut_;
}

void FakeEtcd::CutWatches() {
  const std::lock_guard lock(mutex_);
  ++watches_cut_;
}

std::string FakeEtcd::Answer(const std::string& body, const std::string& status) {
  return "HTTP/1.1 " + status + "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::string FakeEtcd::StreamHeader() { return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"; }

std::string FakeEtcd::Chunk(const std::string& text) {
  char size[24];
  std::snprintf(size, sizeof(size), "%zx\r\n", text.size());
  return size + text + "\r\n";
}

void FakeEtcd::Change(const std::string& key, const std::string& value, std::uint64_t lease, bool deleted) {
  ++revision_;
  events_.push_back({revision_, key, value, deleted});
  if (deleted) {
    entries_.erase(key);
    return;
  }
  Entry& entry = entries_[key];
  if (entry.created == 0) entry.created = revision_;
  entry.value = value;
  entry.modified = revision_;
  entry.lease = lease;
}

void FakeEtcd::EndLease(std::uint64_t id) {
  leases_.erase(id);
  std::vector<std::string> keys;
  for (const auto& [key, entry] : entries_)
    if (entry.lease == id) keys.push_back(key);
  for (const std::string& key : keys) Change(key, "", 0, true);
}

json::object FakeEtcd::Header() const {
  return {{"cluster_id", std::to_string(cluster_)}, {"member_id", "1"}, {"revision", std::to_string(revision_)}, {"raft_term", "2"}};
}

json::object FakeEtcd::Range(const std::string& begin, const std::string& end, std::uint64_t limit) const {
  json::array pairs;
  bool more = false;
  for (const auto& [key, entry] : entries_) {
    if (end.empty() ? key != begin : key < begin || key >= end) continue;
    more = limit != 0 && pairs.size() == limit;
    if (more) break;
    pairs.push_back(json::object{{"key", EncodeBase64(key)},
                                 {"create_revision", std::to_string(entry.created)},
                                 {"mod_revision", std::to_string(entry.modified)},
                                 {"value", EncodeBase64(entry.value)}});
  }
  json::object out{{"header", Header()}};
  if (!pairs.empty()) out["kvs"] = std::move(pairs);
  if (more) out["more"] = true;
  return out;
}

json::object FakeEtcd::Transaction(const json::object& request) {
  const json::object& compare = request.at("compare").as_array().at(0).as_object();
  const auto found = entries_.find(BytesIn(compare, "key"));
  const bool creates = compare.at("target").as_string() == "CREATE";
  const std::uint64_t wanted = NumberIn(compare, creates ? "create_revision" : "mod_revision");
  const std::uint64_t present = found == entries_.end() ? 0 : creates ? found->second.created : found->second.modified;
  json::object out{{"header", Header()}};
  if (wanted == present) {
    const json::object& put = request.at("success").as_array().at(0).as_object().at("request_put").as_object();
    Change(BytesIn(put, "key"), BytesIn(put, "value"), NumberIn(put, "lease"), false);
    out["succeeded"] = true;
    out["responses"] = json::array{json::object{{"response_put", json::object{{"header", Header()}}}}};
  } else {
    out["responses"] = json::array{json::object{{"response_range", Range(BytesIn(compare, "key"), "", 0)}}};
  }
  return out;
}

std::string FakeEtcd::Reply(const std::string& path, const json::object& request, const std::string& token) {
  if (path == "/v3/auth/authenticate") {
    if (request.at("name").as_string() != user_ || request.at("password").as_string() != password_)
      return Refused(3, "etcdserver: authentication failed, invalid user ID or password", "400 Bad Request");
    token_ = "token." + std::to_string(++tokens_);
    return Answer(json::serialize(json::object{{"header", Header()}, {"token", token_}}));
  }
  if (!user_.empty() && token != token_) return Refused(16, "etcdserver: invalid auth token", "401 Unauthorized");
  if (path == "/v3/lease/grant") {
    const std::uint64_t id = next_lease_++;
    leases_[id] = NumberIn(request, "TTL");
    return Answer(json::serialize(json::object{{"header", Header()}, {"ID", std::to_string(id)}, {"TTL", std::to_string(leases_[id])}}));
  }
  if (path == "/v3/lease/keepalive") {
    const auto found = leases_.find(NumberIn(request, "ID"));
    json::object result{{"header", Header()}, {"ID", request.at("ID")}};
    if (found != leases_.end()) result["TTL"] = std::to_string(found->second);
    return StreamHeader() + Chunk(json::serialize(json::object{{"result", std::move(result)}}) + "\n") + "0\r\n\r\n";
  }
  if (path == "/v3/lease/revoke") {
    if (!leases_.contains(NumberIn(request, "ID"))) return Refused(5, "etcdserver: requested lease not found", "404 Not Found");
    EndLease(NumberIn(request, "ID"));
    return Answer(json::serialize(json::object{{"header", Header()}}));
  }
  if (path == "/v3/kv/range")
    return Answer(json::serialize(Range(BytesIn(request, "key"), BytesIn(request, "range_end"), NumberIn(request, "limit"))));
  if (path == "/v3/kv/txn") {
    const json::object& put = request.at("success").as_array().at(0).as_object().at("request_put").as_object();
    if (!leases_.contains(NumberIn(put, "lease"))) return Refused(5, "etcdserver: requested lease not found", "404 Not Found");
    return Answer(json::serialize(Transaction(request)));
  }
  return Answer("Not Found", "404 Not Found");
}

void FakeEtcd::Serve(int socket) {
  const UniqueFd closes(socket);
  std::string unread;
  for (;;) {
    std::size_t end = 0;
    while ((end = unread.find("\r\n\r\n")) == std::string::npos)
      if (!ReceiveMore(socket, unread, stop_)) return;
    const std::string header = unread.substr(0, end);
    const std::size_t body_bytes = std::stoul(HeaderField(header, "Content-Length"));
    while (unread.size() < end + 4 + body_bytes)
      if (!ReceiveMore(socket, unread, stop_)) return;
    const std::string body = unread.substr(end + 4, body_bytes);
    unread.erase(0, end + 4 + body_bytes);
    const std::size_t space = header.find(' ');
    const std::string path = header.substr(space + 1, header.find(' ', space + 1) - space - 1);
    const json::value request = json::parse(body);
    std::string reply;
    {
      std::unique_lock lock(mutex_);
      ++requests_[path];
      std::deque<Trick>& tricks = tricks_[path];
      if (!tricks.empty()) {
        const Trick trick = tricks.front();
        tricks.pop_front();
        lock.unlock();
        SendAll(socket, trick.bytes);
        std::string ignored;
        while (trick.hang && ReceiveMore(socket, ignored, stop_)) {
        }
        return;
      }
      if (path != "/v3/watch") reply = Reply(path, request.as_object(), HeaderField(header, "Authorization"));
    }
    if (path == "/v3/watch") return Watch(socket, request.as_object().at("create_request").as_object());
    if (!SendAll(socket, reply)) return;
  }
}

void FakeEtcd::Watch(int socket, const json::object& request) {
  const std::string begin = BytesIn(request, "key"), end = BytesIn(request, "range_end");
  std::uint64_t next = NumberIn(request, "start_revision");
  int cut = 0;
  std::string out = StreamHeader();
  bool compacted = false;
  {
    const std::lock_guard lock(mutex_);
    cut = watches_cut_;
    out += Chunk(json::serialize(json::object{{"result", json::object{{"header", Header()}, {"created", true}}}}) + "\n");
    compacted = next <= compacted_;
    if (compacted) {
      out += Chunk(json::serialize(json::object{{"result", json::object{{"header", json::object{{"cluster_id", std::to_string(cluster_)}}},
                                                                        {"canceled", true},
                                                                        {"compact_revision", std::to_string(compacted_)}}}}) +
                   "\n");
    }
  }
  for (;;) {
    if (!SendAll(socket, out)) return;
    out.clear();
    pollfd waiting{socket, POLLIN, 0};
    char byte = 0;
    if (::poll(&waiting, 1, 2) > 0 && ::recv(socket, &byte, 1, MSG_PEEK) <= 0) return;
    if (stop_ || compacted) return;
    const std::lock_guard lock(mutex_);
    if (cut != watches_cut_) return;
    for (const Event& event : events_) {
      if (event.revision < next || event.key < begin || event.key >= end) continue;
      json::object pair{{"key", EncodeBase64(event.key)}, {"mod_revision", std::to_string(event.revision)}};
      json::object each{{"kv", nullptr}};
      if (event.deleted) {
        each["type"] = "DELETE";
      } else {
        pair["value"] = EncodeBase64(event.value);
      }
      each["kv"] = std::move(pair);
      out += Chunk(json::serialize(json::object{{"result", json::object{{"header", Header()}, {"events", json::array{each}}}}}) + "\n");
    }
    next = std::max(next, revision_ + 1);
  }
}

}  // namespace kvm::test
