// A simulated client's process and its connection to kvmd: what it sends, what it waits for, and
// how both end.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/base/unique_fd.h"
#include "proto/wire/publish_record.h"
#include "tests/simulation/peers.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

// What a request asked for, until its answer comes.
struct Asked {
  enum class What { kHello, kModel, kMemory, kRegister, kAdopt, kOffer, kLease, kUnregister, kOther } what = What::kOther;
  std::vector<PublishRecord> offered{};
  RegionName region{};
};

class ClientLink {
 public:
  ClientLink(World& world, std::uint32_t uid, std::string name) : world_(world), uid_(uid), name_(std::move(name)) { BeginProcess(); }

  // Connects and says hello. False: kvmd is down.
  bool Connect();
  void Ask(Asked asked, kvmwire::ClientMessage message, const std::vector<int>& fds = {});
  void Send(kvmwire::ClientMessage message, const std::vector<int>& fds = {});
  // The next message of kvmd's, if one has arrived.
  std::optional<ToClient> Take();
  // What the message answers; nothing: it answers no request.
  std::optional<Asked> TakeAsked(const kvmwire::ServerMessage& answer);

  // Whether kvmd has ended the connection, and all that it sent before has been read.
  bool Lost() const { return connected() && connection_->kvmd_closed && connection_->to_client.empty(); }
  void Close();        // this end; what was sent completely still arrives
  void Die(bool cut);  // the process; another one begins. `cut`: what has not arrived does not

  bool connected() const noexcept { return connection_ != nullptr; }
  bool has_mail() const { return connected() && !connection_->to_client.empty(); }
  std::uint32_t pid() const noexcept { return pid_; }

 private:
  void BeginProcess();

  World& world_;
  const std::uint32_t uid_;
  const std::string name_;
  std::uint32_t pid_ = 0;
  std::uint64_t instance_ = 0;
  UniqueFd process_;  // stands for its pidfd: readable once it has ended
  std::shared_ptr<SimConnection> connection_;
  std::uint64_t next_request_ = 1;
  std::map<std::uint64_t, Asked> asked_;
};

}  // namespace kvm::simulation
