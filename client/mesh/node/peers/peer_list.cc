#include "client/mesh/node/peers/peer_list.h"

#include <algorithm>
#include <map>
#include <set>

#include "client/mesh/log/event_log.h"
#include "client/mesh/threads/keep_running.h"

namespace kvm::mesh {

std::vector<std::pair<Member, std::string>> PeerList::Merged() const {
  std::vector<std::pair<Member, std::string>> out;
  std::set<std::string> names{node_.config.node};
  for (const Source& source : sources_)
    for (const Member& member : source.members)
      if (names.insert(member.node).second) out.emplace_back(member, source.name);
  return out;
}

void PeerList::Update(std::size_t rank, const std::string& source, const std::vector<Member>& members) {
  if (sources_.size() <= rank) sources_.resize(rank + 1);
  sources_[rank] = {source, members};
  std::map<std::string, std::shared_ptr<Peer>> before;
  for (const std::shared_ptr<Peer>& peer : peers_) before.emplace(peer->name(), peer);
  peers_.clear();
  for (const auto& [member, from] : Merged()) {
    const auto known = before.find(member.node);
    if (known != before.end() && known->second->address() == member.address) {
      peers_.push_back(std::move(known->second));
      before.erase(known);
    } else {
      peers_.push_back(std::make_shared<Peer>(node_, *transfer_, member));
      LogEvent(LogLevel::kInfo, "peer_joined", {{"node", member.node}, {"address", member.address}, {"known_from", from}});
      KeepRunning::Start(node_.io, [peer = peers_.back()] { return peer->Pull(); });
    }
    peers_.back()->KnownFrom(from);
  }
  for (const auto& [name, peer] : before) {
    LogEvent(LogLevel::kInfo, "peer_left", {{"node", name}, {"address", peer->address()}});
    peer->Stop();
  }
}

}  // namespace kvm::mesh
