#include "tests/support/mesh/etcd_process.h"

#include <sys/socket.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <filesystem>

#include "client/mesh/membership/etcd_messages.h"
#include "proto/base/unique_fd.h"
#include "tests/catch.h"
#include "tests/support/mesh/loopback.h"
#include "tests/support/process/eventually.h"

namespace kvm::test {
namespace {

constexpr const char* kBinary = "/usr/bin/etcd";

// One that is free now; etcd binds it a moment later.
unsigned FreePort() { return PortOf(ListenOnLoopback()); }

}  // namespace

bool EtcdProcess::Available() { return std::filesystem::exists(kBinary); }

EtcdProcess::EtcdProcess(std::vector<std::string> tls) : tls_(std::move(tls)), port_(FreePort()), peer_port_(FreePort()) { Start(); }

void EtcdProcess::Start() {
  const std::string peers = "http://127.0.0.1:" + std::to_string(peer_port_);
  std::vector<std::string> arguments{kBinary,
                                     "--data-dir",
                                     dir_ / "data",
                                     "--listen-client-urls",
                                     url(),
                                     "--advertise-client-urls",
                                     url(),
                                     "--listen-peer-urls",
                                     peers,
                                     "--initial-advertise-peer-urls",
                                     peers,
                                     "--initial-cluster",
                                     "default=" + peers};
  arguments.insert(arguments.end(), tls_.begin(), tls_.end());
  process_ = ChildProcess(arguments, dir_ / "etcd.log");
  const auto answers = [&] {
    return tls_.empty() ? Ask("/v3/kv/range", {{"key", mesh::EncodeBase64("x")}}).has_value() : static_cast<bool>(ConnectToLoopback(port_));
  };
  REQUIRE(Eventually(answers, std::chrono::seconds(60)));
}

void EtcdProcess::LoseData() { std::filesystem::remove_all(dir_ / "data"); }

std::optional<boost::json::object> EtcdProcess::Ask(const std::string& path, const boost::json::object& request) const {
  const UniqueFd socket = ConnectToLoopback(port_);
  if (!socket) return std::nullopt;
  const std::string body = boost::json::serialize(request);
  const std::string text = "POST " + path + " HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  if (::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) return std::nullopt;
  std::string answer;
  char bytes[4096];
  for (ssize_t got = 0; (got = ::recv(socket.get(), bytes, sizeof(bytes), 0)) > 0;) answer.append(bytes, static_cast<std::size_t>(got));
  const std::size_t end = answer.find("\r\n\r\n");
  if (end == std::string::npos || answer.find(" 200 ") > answer.find("\r\n")) return std::nullopt;
  boost::system::error_code error;
  boost::json::value parsed = boost::json::parse(answer.substr(end + 4), error);
  if (error || !parsed.is_object()) return std::nullopt;
  return parsed.get_object();
}

std::vector<std::pair<std::string, std::string>> EtcdProcess::List(const std::string& prefix) const {
  std::vector<std::pair<std::string, std::string>> out;
  const auto answer = Ask("/v3/kv/range", mesh::EtcdListRequest(prefix, 1000));
  if (!answer) return out;
  const auto list = mesh::ParseEtcdList(*answer);
  KVM_REQUIRE_OK(list);
  for (const mesh::EtcdPair& pair : list->pairs) out.emplace_back(pair.key, pair.value);
  return out;
}

void EtcdProcess::Put(const std::string& key, const std::string& value) const {
  REQUIRE(Ask("/v3/kv/put", {{"key", mesh::EncodeBase64(key)}, {"value", mesh::EncodeBase64(value)}}));
}

void EtcdProcess::Delete(const std::string& key) const { REQUIRE(Ask("/v3/kv/deleterange", {{"key", mesh::EncodeBase64(key)}})); }

void EtcdProcess::Compact() const {
  const auto now = Ask("/v3/kv/range", mesh::EtcdListRequest("/", 1));
  REQUIRE(now);
  const auto list = mesh::ParseEtcdList(*now);
  KVM_REQUIRE_OK(list);
  REQUIRE(Ask("/v3/kv/compaction", {{"revision", std::to_string(list->revision)}, {"physical", true}}));
}

}  // namespace kvm::test
