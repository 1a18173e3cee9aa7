// Events for routers: from a list of what the node holds to a subscriber's socket, over TCP on the
// loopback. The feed and the sockets are kvmd-mesh's; kvmd and the scan of its registry are left
// out.
#include <CLI/CLI.hpp>

#include <ctime>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <iostream>
#include <random>
#include <string>
#include <vector>
#include <zmq.hpp>
#include <zmq_addon.hpp>

#include "client/kvctl/cli/exit_codes.h"
#include "client/mesh/events/event_feed.h"
#include "client/mesh/events/event_sequence.h"
#include "client/mesh/events/event_sockets.h"
#include "tests/bench/commands.h"

namespace kvm::bench {
namespace {

using mesh::EventFeed;
using mesh::EventSockets;
using mesh::HeldChanges;
using mesh::PublishedBatch;
using std::chrono::steady_clock;

struct EventOptions {
  std::uint32_t blocks = 1'000'000, prefix = 256, block_tokens = 16;
};

double SecondsSince(steady_clock::time_point begin) { return std::chrono::duration<double>(steady_clock::now() - begin).count(); }

// Time that this thread has had of a core: says more than a clock on a machine with other work.
double ThreadSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

std::uint64_t FromBigEndian(const zmq::message_t& message) {
  std::uint64_t out = 0;
  for (std::size_t i = 0; i < message.size(); ++i) out = out << 8 | static_cast<const unsigned char*>(message.data())[i];
  return out;
}

// Prefixes of random keys, and the tokens of all blocks.
HeldChanges MakeBlocks(const EventOptions& options, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  HeldChanges out{true, {{Fingerprint(), "model", options.block_tokens}}, {}};
  BlockKey before;
  for (std::uint32_t i = 0; i < options.blocks; ++i) {
    const BlockKey key{random(), random()};
    out.changes.push_back({{key, before.lo, i % options.prefix, 0, mesh::kCpuMedium}, true});
    before = key;
  }
  return out;
}

void DescribeAll(EventFeed& feed, const HeldChanges& held, const EventOptions& options) {
  mesh::BlockDescription description{Fingerprint(), options.block_tokens, {}, {}, {}};
  for (const mesh::HeldChange& change : held.changes) {
    const mesh::HeldBlock& block = change.block;
    description.keys.push_back(block.key);
    for (std::uint32_t i = 0; i < options.block_tokens; ++i)
      description.tokens.push_back(static_cast<std::uint32_t>((block.key.hi >> i) % 150'000));
  }
  feed.Describe(std::move(description));
}

struct Received {
  double seconds = 0;
  std::uint64_t messages = 0, bytes = 0;
};

// Reads until the message with this number has come.
Received ReadUntil(zmq::socket_t& subscriber, std::uint64_t sequence, steady_clock::time_point begin) {
  Received out;
  std::vector<zmq::message_t> parts;
  for (;;) {
    parts.clear();
    if (!zmq::recv_multipart(subscriber, std::back_inserter(parts)) || parts.size() != 3) return {};
    ++out.messages;
    out.bytes += parts[2].size();
    if (FromBigEndian(parts[1]) >= sequence) break;
  }
  out.seconds = SecondsSince(begin);
  return out;
}

int RunEvents(const EventOptions& options) {
  Result<std::unique_ptr<EventSockets>> bound = EventSockets::Bind("tcp://127.0.0.1:*", "tcp://127.0.0.1:*");
  if (!bound) return ctl::Fail(bound.error());
  EventSockets& sockets = **bound;
  mesh::FeedOptions settings;
  settings.node = "bench";
  settings.most_blocks = 2 * std::size_t{options.blocks};
  EventFeed feed(settings, mesh::FirstSequence(std::chrono::system_clock::now()));
  zmq::context_t context;
  zmq::socket_t subscriber(context, zmq::socket_type::sub), asker(context, zmq::socket_type::dealer);
  subscriber.set(zmq::sockopt::rcvhwm, 0);
  subscriber.set(zmq::sockopt::subscribe, "");
  subscriber.set(zmq::sockopt::rcvtimeo, 60'000);
  subscriber.connect(sockets.endpoint());
  asker.set(zmq::sockopt::rcvtimeo, 60'000);
  asker.set(zmq::sockopt::rcvhwm, 0);
  asker.connect(sockets.replay_endpoint());
  const auto send = [&](const PublishedBatch& batch) { sockets.Publish(batch); };
  // Until the subscription has arrived.
  feed.Use({true, {{Fingerprint(), "model", options.block_tokens}}, {}});
  feed.Pass(send);
  zmq::pollitem_t item{subscriber.handle(), 0, ZMQ_POLLIN, 0};
  while (zmq::poll(&item, 1, std::chrono::milliseconds(10)) == 0) feed.Heartbeat(send);

  const HeldChanges held = MakeBlocks(options, 1);
  const auto measure = [&](const char* what, const HeldChanges& now, std::uint64_t blocks) {
    const auto begin = steady_clock::now();
    const double core = ThreadSeconds();
    feed.Use(now);
    feed.Pass(send);
    const double pass = ThreadSeconds() - core;
    const Received received = ReadUntil(subscriber, feed.latest(), begin);
    std::printf(
        "%-24s %8.0f k blocks/s  (%llu blocks: a pass of %.3f s of a core, at the subscriber after %.3f s; %llu messages, %.1f bytes a "
        "block)\n",
        what, static_cast<double>(blocks) / received.seconds / 1e3, static_cast<unsigned long long>(blocks), pass, received.seconds,
        static_cast<unsigned long long>(received.messages), static_cast<double>(received.bytes) / static_cast<double>(blocks));
  };
  auto begin = steady_clock::now();
  DescribeAll(feed, held, options);
  feed.Use({true, {{Fingerprint(), "model", options.block_tokens}}, {}});
  feed.Pass(send);
  std::printf("%-24s %8.0f k blocks/s\n", "descriptions taken", options.blocks / SecondsSince(begin) / 1e3);
  measure("all stored", held, options.blocks);
  // A tenth of the prefixes leaves, and comes back.
  HeldChanges tenth{false, held.models, {}};
  for (std::size_t i = 0; i < held.changes.size(); i += 10 * std::size_t{options.prefix})
    for (std::size_t j = i; j < std::min(i + options.prefix, held.changes.size()); ++j)
      tenth.changes.push_back({held.changes[j].block, false});
  measure("a tenth removed", tenth, tenth.changes.size());
  for (mesh::HeldChange& change : tenth.changes) change.here = true;
  measure("a tenth stored", tenth, tenth.changes.size());
  // One block leaves and comes back, in the middle of a prefix.
  HeldChanges one{false, held.models, {{held.changes[options.prefix / 2].block, false}}};
  measure("one block removed", one, 1);
  one.changes[0].here = true;
  measure("one block stored", one, 1);
  const double core = ThreadSeconds();
  feed.Use(held);
  feed.Pass(send);
  std::printf("%-24s %8.3f s of a core\n", "all said again", ThreadSeconds() - core);

  const std::string from_the_start(8, '\0');
  begin = steady_clock::now();
  asker.send(zmq::message_t(), zmq::send_flags::sndmore);
  asker.send(zmq::buffer(from_the_start), zmq::send_flags::none);
  auto answer = std::async(std::launch::async, [&] {
    Received out;
    std::vector<zmq::message_t> parts;
    do {
      parts.clear();
      if (!zmq::recv_multipart(asker, std::back_inserter(parts)) || parts.size() != 4) return Received();
      ++out.messages;
      out.bytes += parts[3].size();
    } while (FromBigEndian(parts[2]) != ~std::uint64_t{0});
    out.seconds = SecondsSince(begin);
    return out;
  });
  while (answer.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    sockets.Wait(-1, std::chrono::milliseconds(10));
    sockets.AnswerReplays([&](std::uint64_t sequence) { return feed.Replay(sequence); });
  }
  const Received snapshot = answer.get();
  std::printf("%-24s %8.3f s  (%u blocks, %llu messages, %.1f MB)\n", "snapshot", snapshot.seconds, options.blocks,
              static_cast<unsigned long long>(snapshot.messages), static_cast<double>(snapshot.bytes) / 1e6);
  return snapshot.messages == 0 ? ctl::kUsage : ctl::kHealthy;
}

}  // namespace

void AddEventsCommand(CLI::App& app, ctl::Action& action) {
  auto options = std::make_shared<EventOptions>();
  CLI::App* command = app.add_subcommand("events", "Events for routers, to a subscriber in this process");
  command->add_option("--blocks", options->blocks, "Blocks that the node holds")->check(CLI::Range(1u, 1u << 26))->capture_default_str();
  command->add_option("--prefix", options->prefix, "Blocks of a prefix")->check(CLI::Range(1u, 1u << 20))->capture_default_str();
  command->add_option("--block-tokens", options->block_tokens, "Tokens of a block")->check(CLI::Range(1u, 4096u))->capture_default_str();
  command->callback([options, &action] { action = [options] { return RunEvents(*options); }; });
}

}  // namespace kvm::bench
