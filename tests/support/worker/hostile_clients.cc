#include "tests/support/worker/hostile_clients.h"

#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <thread>
#include <vector>

#include "tests/support/data/model_specs.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/child_main.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;

void Pause(std::uint64_t ms) { std::this_thread::sleep_for(milliseconds(ms)); }

std::string Bytes(Random& random, std::size_t count) {
  std::string out;
  while (out.size() < count) out.push_back(static_cast<char>(random.Next()));
  return out;
}

kvmwire::ClientMessage Ask(Random& random) {
  kvmwire::ClientMessage message;
  message.set_request_id(random.Next());
  switch (random.Below(4)) {
    case 0: message.mutable_status_query()->set_clients(true); break;
    case 1: message.mutable_declare_model()->set_spec(LlamaSpec().Canonical()); break;
    case 2:
      for (int i = 0; i < 4096; ++i)
        message.mutable_acquire_lease()->add_sources()->set_region(static_cast<std::uint32_t>(random.Below(64)));
      break;
    default: message.mutable_reclaim()->set_force(true); break;
  }
  return message;
}

void Noise(WireClient& client, Random& random) {
  std::string frame = Bytes(random, 64);
  if (random.OneIn(2)) frame = std::string("\x08\0\0\0\0\0\0\0", 8) + Bytes(random, 8);
  if (client.SendRaw(frame) < 0) client.Close();
  Pause(1);
}

void Flood(WireClient& client, Random&) {
  client.Close();
  Pause(1);
}

void ReadNothing(WireClient& client, Random& random) {
  kvmwire::ClientMessage query;
  query.set_request_id(random.Next());
  query.mutable_status_query()->set_clients(true);
  if (!client.Send(query)) client.Close();
}

void HoardDescriptors(WireClient& client, Random& random) {
  static std::deque<Received> hoard;
  Result<Received> reply = client.AllocateMemory(std::vector<std::uint64_t>(1 + random.Below(100), 4096));
  if (reply && hoard.size() < 5) hoard.push_back(std::move(*reply));
  if (random.OneIn(50)) hoard.clear();
  if (!reply) Pause(5);
}

void HoardMemory(WireClient& client, Random& random) {
  static std::deque<WireRegion> hoard;
  if (!client.DeclareModel(LlamaSpec())) return client.Close();
  hoard.emplace_back("hoard-" + std::to_string(random.Below(1000)), LlamaSpec(), 64, 4096);
  WireRegion& region = hoard.back();
  if (region.Register(client)) {
    std::vector<PublishRecord> records;
    for (std::uint32_t block = 0; block < 64; ++block) records.push_back(region.Write(block, {random.Next(), random.Next()}));
    if (!region.Publish(client, records)) Pause(1);
  }
  if (hoard.size() > 16) hoard.pop_front();
  Pause(5);
}

void HalfFrames(WireClient& client, Random& random) {
  if (client.SendRaw(std::string("\xFF\xFF\0\0\0\0\0\0", 8) + Bytes(random, random.Below(64))) < 0 || random.OneIn(20)) client.Close();
  Pause(20);
}

void AskEverything(WireClient& client, Random& random) {
  if (!client.Send(Ask(random))) return client.Close();
  static_cast<void>(client.Receive(milliseconds(100)));
}

int HostileMain(const std::vector<std::string>& arguments) {
  using Act = std::function<void(WireClient&, Random&)>;
  const std::map<std::string, Act> acts = {{"noise", Noise},
                                           {"flood", Flood},
                                           {"slow-reader", ReadNothing},
                                           {"descriptor-hoarder", HoardDescriptors},
                                           {"memory-hoarder", HoardMemory},
                                           {"half-frames", HalfFrames},
                                           {"asker", AskEverything}};
  const std::string& kind = arguments.at(1);
  const auto uid = static_cast<uid_t>(std::stoul(arguments.at(3)));
  if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) return 1;
  const Act& act = acts.at(kind);
  Random random(std::stoull(arguments.at(2)));
  std::optional<WireClient> client;
  for (;;) {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    if (::poll(&input, 1, 0) > 0) return 0;
    if (!client || client->fd() < 0) {
      client.reset();
      Result<WireClient> connected = WireClient::Connect(arguments.at(0));
      if (!connected) {
        Pause(10);
        continue;
      }
      client.emplace(std::move(*connected));
      const bool greets = kind != "half-frames" && !(kind == "noise" && random.OneIn(2));
      if (greets && !client->Hello(kind)) {
        client.reset();
        Pause(10);
        continue;
      }
    }
    act(*client, random);
    if (random.OneIn(200)) client->Close();
  }
}

const ChildMain kHostile("hostile", HostileMain);

}  // namespace

ChildProcess StartHostileClient(const std::string& socket, const std::string& kind, std::uint64_t seed, std::uint32_t uid) {
  return ChildProcess::Self("hostile", {socket, kind, std::to_string(seed), std::to_string(uid)});
}

}  // namespace kvm::test
