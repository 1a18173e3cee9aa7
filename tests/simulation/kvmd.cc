#include "tests/simulation/kvmd.h"

#include <cstdlib>
#include <iterator>

namespace kvm::simulation {

void Kvmd::Start(bool stores) {
  const Plenty plenty(machine_);
  if (!stores) service_.Clear();
  ::setenv("NOTIFY_SOCKET", service_.address().c_str(), 1);
  ::setenv("FDSTORE", stores ? "512" : "0", 1);
  manager_ = std::make_unique<daemon::ServiceManager>(daemon::ServiceManager::FromEnvironment());
  ::unsetenv("NOTIFY_SOCKET");
  ::unsetenv("FDSTORE");
  store_ = std::make_unique<daemon::StateStore>(*manager_);
  broker_ = std::make_unique<daemon::Broker>(
      config_, [] {}, store_.get());
  std::vector<PassedFd> passed = service_.Pass();
  broker_->Restore(store_->Sort(std::move(passed)));
  quiet_ = false;
  changed_ = true;
  ++starts;
}

void Kvmd::Kill() {
  for (const auto& [id, connection] : connections_) {
    connection->kvmd_closed = true;
    connection->to_kvmd.clear();
  }
  connections_.clear();
  broker_.reset();
  store_.reset();
  manager_.reset();
}

std::shared_ptr<SimConnection> Kvmd::Connect(std::uint32_t uid, std::uint32_t pid, UniqueFd process) {
  if (!running()) return nullptr;
  auto connection = std::make_shared<SimConnection>(machine_);
  const daemon::ClientId id = broker_->Join(*connection, {pid, uid, uid}, std::move(process));
  connection->id = id;
  connection->disconnect = [this, id] { Leave(id, false); };
  connections_[id] = connection;
  quiet_ = false;
  return connection;
}

void Kvmd::Leave(daemon::ClientId id, bool died) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  const std::shared_ptr<SimConnection> connection = found->second;
  connections_.erase(found);
  connection->kvmd_closed = true;
  connection->to_kvmd.clear();
  broker_->Leave(id, died);
}

bool Kvmd::Serve(SimConnection& connection) {
  const daemon::ClientId id = connection.id;
  if (broker_->Busy(id)) {
    Measured([&] { broker_->GoOn(id); });
    Drop(id, broker_->Outcome(id));
    return true;
  }
  if (broker_->HasToTell(id) && connection.TakesAnnouncements()) Measured([&] { broker_->GoOnAnnouncing(id); });
  if (broker_->Behind(id)) return false;
  if (connection.to_kvmd.empty() || (connection.client_closed && connection.to_kvmd.front().pieces > 1)) {
    if (!connection.client_closed) return false;
    Measured([&] { Leave(id, connection.died); });
    return true;
  }
  if (--connection.to_kvmd.front().pieces > 0) return true;
  ToKvmd next = std::move(connection.to_kvmd.front());
  connection.to_kvmd.pop_front();
  Status handled;
  Measured([&] { handled = broker_->Handle(id, std::move(next.message), std::move(next.fds)); });
  Drop(id, handled);
  return true;
}

void Kvmd::Drop(daemon::ClientId id, const Status& outcome) {
  if (outcome || !connections_.contains(id)) return;
  ++dropped;
  Measured([&] { Leave(id, false); });
}

bool Kvmd::ServeOne(std::uint64_t choice) {
  if (!running() || connections_.empty()) return false;
  const std::shared_ptr<SimConnection> connection =
      std::next(connections_.begin(), static_cast<std::ptrdiff_t>(choice % connections_.size()))->second;
  return Serve(*connection);
}

void Kvmd::Tick() {
  if (running()) Measured([&] { broker_->Tick(machine_.now()); });
}

void Kvmd::Sweep() {
  if (running()) Measured([&] { broker_->Sweep(); });
}

bool Kvmd::Work() {
  if (!running()) return false;
  bool more = false;
  Measured([&] { more = broker_->Work(); });
  quiet_ = !more;
  return more;
}

void Kvmd::StoreSome(std::uint64_t most) {
  for (std::uint64_t i = 0; i < most && service_.ReadOne(); ++i) continue;
  if (running()) Measured([&] { manager_->queue().Feed(most); });
}

}  // namespace kvm::simulation
