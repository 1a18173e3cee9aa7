#include "client/mesh/membership/etcd_membership.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <random>

#include "client/mesh/log/event_log.h"
#include "client/mesh/threads/keep_running.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kDomainPause{100};
// A watch is opened anew after three times the time of a lease, within these bounds, so that a
// connection whose other end has gone without a word is noticed.
constexpr std::chrono::seconds kShortestWatch{10}, kLongestWatch{30};

std::uint64_t RandomInstance() {
  std::random_device source;
  std::uint64_t out = 0;
  while (out == 0) out = (std::uint64_t{source()} << 32) | source();
  return out;
}

}  // namespace

Result<std::unique_ptr<EtcdMembership>> EtcdMembership::Create(asio::io_context& io, const EtcdSettings& settings, Self self) {
  if (Status reachable = CheckReachable(self.address, self.any_machine); !reachable)
    return MakeError(Errc::kInvalidArgument, "--advertise: " + reachable.error().message);
  Result<EtcdAccess> access = EtcdAccess::Load(settings);
  if (!access) return access.error();
  return std::unique_ptr<EtcdMembership>(new EtcdMembership(io, settings, std::move(self), std::move(*access)));
}

EtcdMembership::EtcdMembership(asio::io_context& io, const EtcdSettings& settings, Self self, EtcdAccess access)
    : io_(io),
      settings_(settings),
      self_(std::move(self)),
      ttl_(settings.lease_ttl_s),
      access_(std::move(access)),
      link_(io, access_, "members", EtcdRegistration::LongestPause(ttl_)),
      departures_(io) {}

void EtcdMembership::Start(Changed changed) {
  changed_ = std::move(changed);
  KeepRunning::Start(io_, [this] { return Follow(); });
}

void EtcdMembership::Reload() {
  Result<EtcdAccess> access = EtcdAccess::Load(settings_);
  if (!access) {
    LogEvent(LogLevel::kError, "etcd_access_not_reloaded", {{"reason", access.error().ToString()}});
    return;
  }
  access_.tls = std::move(access->tls);
  access_.user = std::move(access->user);
  access_.password = std::move(access->password);
  LogEvent(LogLevel::kInfo, "etcd_access_reloaded", {});
}

Awaitable<void> EtcdMembership::KnowDomain() {
  asio::steady_timer pause(io_);
  while (self_.domain().empty() && !leaving_) {
    pause.expires_after(kDomainPause);
    boost::system::error_code ignored;
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

Awaitable<void> EtcdMembership::Follow() {
  co_await KnowDomain();
  if (leaving_) co_return;
  if (!members_) {
    const std::string domain = self_.domain();
    members_.emplace(settings_.prefix, domain, self_.node, self_.any_machine);
    EtcdEntry own{{self_.node, self_.address}, domain, RandomInstance()};
    registration_.emplace(io_, access_, members_->own_key(), std::move(own), ttl_);
    KeepRunning::Start(io_, [this] { return registration_->Run(); });
  }
  while (!leaving_) {
    Status good;
    if (revision_ == 0) {
      good = co_await List();
    } else {
      good = co_await Watch();
    }
    if (leaving_) co_return;
    if (!good) co_await link_.Failed(good.error());
  }
}

Awaitable<Status> EtcdMembership::List() {
  const Time by = steady_clock::now() + EtcdRegistration::RequestTimeout(ttl_);
  json::object request = EtcdListRequest(members_->directory(), EtcdMembers::kMaxMembers + 1);
  Result<json::object> answer = co_await link_.Call("/v3/kv/range", std::move(request), by);
  if (!answer) co_return answer.error();
  const Result<EtcdList> list = ParseEtcdList(*answer);
  if (!list) co_return list.error();
  if (cluster_ != 0 && cluster_ != list->cluster) Forgive();
  Worked();
  ForgiveIfLeaseIsOld();
  ++lists_;
  revision_ = list->revision;
  cluster_ = list->cluster;
  const auto own =
      std::find_if(list->pairs.begin(), list->pairs.end(), [&](const EtcdPair& pair) { return pair.key == members_->own_key(); });
  registration_->Seen(own == list->pairs.end() ? nullptr : &*own);
  const bool changed = members_->Replace(list->pairs, list->more, steady_clock::now());
  Report(changed || lists_ == 1);
  co_return Status();
}

Awaitable<Status> EtcdMembership::Watch() {
  Time by = steady_clock::now() + EtcdRegistration::RequestTimeout(ttl_);
  json::object request = EtcdWatchRequest(members_->directory(), revision_ + 1);
  Status sent = co_await link_.Begin("/v3/watch", std::move(request), by);
  if (!sent) co_return sent.error();
  for (bool begun = false; !leaving_;) {
    Result<json::object> line = co_await link_.Next(by);
    if (!line && begun && line.error().code == Errc::kDeadlineExceeded) {
      // Of those that were left out some may have room now.
      if (members_->left_out()) revision_ = 0;
      co_return Status();
    }
    if (!line) co_return line.error();
    const Result<EtcdWatchMessage> message = ParseEtcdWatchMessage(*line);
    if (!message) co_return message.error();
    if (!begun) {
      Status good = Begun(*message);
      if (!good) co_return good.error();
      begun = true;
      by = steady_clock::now() + std::clamp(3 * ttl_, kShortestWatch, kLongestWatch);
    }
    if (message->canceled) {
      link_.Close();
      if (message->compacted == 0) co_return MakeError(Errc::kUnavailable, "etcd has ended the watch: " + message->reason);
      LogEvent(LogLevel::kInfo, "etcd_compacted", {{"seen", revision_}, {"compacted", message->compacted}});
      revision_ = 0;
      co_return Status();
    }
    for (const EtcdPair& event : message->events) Take(event);
    // A message without events says that there have been none up to its revision.
    if (message->events.empty() && !message->created) revision_ = std::max(revision_, message->revision);
  }
  co_return Status();
}

Status EtcdMembership::Begun(const EtcdWatchMessage& message) {
  if (!message.created) return MakeError(Errc::kProtocol, "etcd: a watch that was not begun");
  if (message.cluster == cluster_ && message.revision >= revision_) {
    Worked();
    return {};
  }
  revision_ = 0;
  return MakeError(Errc::kUnavailable, link_.endpoint() + ": another etcd, or one that is behind");
}

void EtcdMembership::Take(const EtcdPair& event) {
  revision_ = std::max(revision_, event.modified);
  if (event.key == members_->own_key()) {
    registration_->Seen(event.deleted ? nullptr : &event);
    return;
  }
  ForgiveIfLeaseIsOld();
  Report(members_->Apply(event, steady_clock::now()));
}

void EtcdMembership::Worked() {
  if (!link_.works() && lists_ > 0) Forgive();
  link_.Worked();
}

void EtcdMembership::Forgive() { members_->KeepUntil(steady_clock::now() + ttl_); }

void EtcdMembership::ForgiveIfLeaseIsOld() {
  if (!registration_->RenewedLately(steady_clock::now())) Forgive();
}

void EtcdMembership::Report(bool changed) {
  if (changed) changed_(members_->list());
  WaitForDepartures();
}

void EtcdMembership::WaitForDepartures() {
  const std::optional<Time> next = members_->NextDeparture();
  if (!next) return;
  // While etcd is away no member leaves.
  departures_.expires_at(link_.works() ? *next : std::max(*next, steady_clock::now() + ttl_));
  departures_.async_wait([this](boost::system::error_code error) {
    if (error || leaving_) return;
    Report(link_.works() && members_->Depart(steady_clock::now()));
  });
}

Awaitable<void> EtcdMembership::Leave(Time deadline) {
  leaving_ = true;
  departures_.cancel();
  link_.Interrupt();
  if (registration_) co_await registration_->Leave(deadline);
}

void EtcdMembership::Describe(kvmmesh::Status& out) const {
  kvmmesh::EtcdStatus& etcd = *out.mutable_etcd();
  etcd.set_endpoint(link_.endpoint());
  etcd.set_connected(link_.works());
  etcd.set_last_error(link_.last_error().empty() && registration_ ? registration_->last_error() : link_.last_error());
  etcd.set_lease_ttl_s(settings_.lease_ttl_s);
  etcd.set_advertised(self_.address);
  etcd.set_entry(kvmmesh::EtcdStatus::NOT_REGISTERED);
  if (!members_ || !registration_) return;
  if (registration_->state() == EtcdRegistration::State::kRegistered) etcd.set_entry(kvmmesh::EtcdStatus::REGISTERED);
  if (registration_->state() == EtcdRegistration::State::kNameTaken) etcd.set_entry(kvmmesh::EtcdStatus::NAME_TAKEN);
  etcd.set_members(static_cast<std::uint32_t>(members_->list().size()));
  etcd.set_leaving(static_cast<std::uint32_t>(members_->leaving()));
  etcd.set_revision(revision_);
}

}  // namespace kvm::mesh
