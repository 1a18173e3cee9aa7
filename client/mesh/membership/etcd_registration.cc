#include "client/mesh/membership/etcd_registration.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kMaxPutTries = 3;  // of a round: the entry changes in between at most so often

}  // namespace

milliseconds EtcdRegistration::RequestTimeout(std::chrono::seconds ttl) noexcept {
  return std::clamp<milliseconds>(milliseconds(ttl) / 3, milliseconds(500), milliseconds(5000));
}

milliseconds EtcdRegistration::LongestPause(std::chrono::seconds ttl) noexcept {
  return std::clamp<milliseconds>(milliseconds(ttl) / 4, milliseconds(250), milliseconds(5000));
}

EtcdRegistration::EtcdRegistration(asio::io_context& io, const EtcdAccess& access, std::string key, EtcdEntry own, std::chrono::seconds ttl)
    : io_(io),
      access_(access),
      key_(std::move(key)),
      own_(std::move(own)),
      ttl_(ttl),
      link_(io, access, "own_entry", LongestPause(ttl)),
      pause_(io) {}

Awaitable<void> EtcdRegistration::Run() {
  while (!leaving_) {
    Status good = co_await Round();
    if (leaving_) co_return;
    if (!good) {
      co_await link_.Failed(good.error());
      continue;
    }
    link_.Worked();
    pause_.expires_after(milliseconds(ttl_) / 3);
    boost::system::error_code ignored;
    co_await pause_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

Awaitable<Status> EtcdRegistration::Round() {
  Status good;
  if (lease_ != 0) good = co_await Renew();
  if (good && lease_ == 0) good = co_await Grant();
  if (good && state_ != State::kRegistered) good = co_await Put();
  co_return good;
}

Awaitable<Result<json::object>> EtcdRegistration::Ask(std::string path, json::object request) {
  if (leaving_) co_return MakeError(Errc::kCancelled, "this node leaves");
  co_return co_await link_.Call(std::move(path), std::move(request), steady_clock::now() + RequestTimeout(ttl_));
}

Awaitable<Status> EtcdRegistration::Renew() {
  const Time sent = steady_clock::now();
  json::object request{{"ID", lease_}};
  Result<json::object> answer = co_await Ask("/v3/lease/keepalive", std::move(request));
  const bool unknown = !answer && answer.error().code == Errc::kNotFound;
  if (!answer && !unknown) co_return answer.error();
  std::uint64_t left = 0;
  if (answer) {
    const json::value* const result = answer->if_contains("result");
    if (result == nullptr || !result->is_object()) co_return MakeError(Errc::kUnavailable, "etcd: keepalive: no result");
    const Result<std::uint64_t> ttl = EtcdNumber(result->get_object(), "TTL");
    if (!ttl) co_return ttl.error();
    left = *ttl;
  }
  if (left > 0) {
    renewed_ = sent;
    co_return Status();
  }
  LogEvent(LogLevel::kWarn, "etcd_lease_lost", {{"key", key_}, {"lease", lease_}});
  lease_ = 0;
  state_ = State::kNotRegistered;
  co_return Status();
}

Awaitable<Status> EtcdRegistration::Grant() {
  const Time sent = steady_clock::now();
  json::object request{{"TTL", std::to_string(ttl_.count())}};
  Result<json::object> answer = co_await Ask("/v3/lease/grant", std::move(request));
  if (!answer) co_return answer.error();
  const Result<std::uint64_t> id = EtcdNumber(*answer, "ID");
  if (!id || *id == 0) co_return MakeError(Errc::kProtocol, "etcd: a lease without an ID");
  lease_ = *id;
  renewed_ = sent;
  co_return Status();
}

Awaitable<Status> EtcdRegistration::Put() {
  const std::string value = EncodeEtcdEntry(own_);
  std::uint64_t modified = 0;
  for (int tries = 0; tries < kMaxPutTries; ++tries) {
    json::object request = EtcdPutRequest(key_, value, lease_, modified);
    Result<json::object> answer = co_await Ask("/v3/kv/txn", std::move(request));
    if (!answer && answer.error().code == Errc::kNotFound) {
      lease_ = 0;  // it has ended since it was renewed
      co_return MakeError(Errc::kUnavailable, answer.error().message);
    }
    if (!answer) co_return answer.error();
    Result<EtcdPutAnswer> put = ParseEtcdPutAnswer(*answer);
    if (!put) co_return put.error();
    if (put->put) {
      state_ = State::kRegistered;
      ever_registered_ = true;
      taken_by_ = 0;
      LogEvent(LogLevel::kInfo, "etcd_registered",
               {{"key", key_}, {"address", own_.member.address}, {"lease_ttl_s", std::to_string(ttl_.count())}});
      co_return Status();
    }
    modified = put->present ? put->present->modified : 0;
    if (!put->present) continue;
    const Result<EtcdEntry> present = ParseEtcdEntry(put->present->value, true);
    // What is no entry keeps no node away.
    if (!present || present->instance == own_.instance) continue;
    const bool predecessor = !ever_registered_ && present->member.address == own_.member.address;
    if (predecessor) continue;
    TakenBy(*present);
    co_return Status();
  }
  co_return MakeError(Errc::kUnavailable, "etcd: " + key_ + " changes too often");
}

void EtcdRegistration::TakenBy(const EtcdEntry& other) {
  state_ = State::kNameTaken;
  if (taken_by_ == other.instance) return;
  taken_by_ = other.instance;
  LogEvent(LogLevel::kError, "etcd_name_taken", {{"key", key_}, {"by", other.member.address}});
}

void EtcdRegistration::Seen(const EtcdPair* pair) {
  if (leaving_) return;
  if (pair != nullptr) {
    const Result<EtcdEntry> entry = ParseEtcdEntry(pair->value, true);
    if (entry && entry->instance == own_.instance) return;
    if (state_ == State::kNameTaken) return;
  }
  if (state_ == State::kRegistered) state_ = State::kNotRegistered;
  pause_.cancel();
}

Awaitable<void> EtcdRegistration::Leave(Time deadline) {
  leaving_ = true;
  pause_.cancel();
  link_.Interrupt();
  if (lease_ == 0) co_return;
  EtcdLink last(io_, access_, "leaving", milliseconds(100));
  while (steady_clock::now() < deadline) {
    json::object request{{"ID", lease_}};
    const Time by = std::min(deadline, steady_clock::now() + RequestTimeout(ttl_));
    Result<json::object> answer = co_await last.Call("/v3/lease/revoke", std::move(request), by);
    if (answer || answer.error().code == Errc::kNotFound) {
      LogEvent(LogLevel::kInfo, "etcd_left", {{"key", key_}});
      co_return;
    }
    co_await last.Failed(answer.error());
  }
  LogEvent(LogLevel::kWarn, "etcd_not_left", {{"key", key_}, {"reason", "etcd does not answer; the entry ends with its lease"}});
}

}  // namespace kvm::mesh
