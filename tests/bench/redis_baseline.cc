#include "tests/bench/redis_baseline.h"

#include <hiredis.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "client/kvctl/bench/bench_peer.h"

namespace kvm::bench {

namespace {

using ctl::BenchKey;

constexpr std::uint64_t kPipeline = 1000;
constexpr std::size_t kValueBytes = 40;

struct FreeReply {
  void operator()(redisReply* reply) const noexcept { freeReplyObject(reply); }
};
using ReplyPtr = std::unique_ptr<redisReply, FreeReply>;

const char* Bytes(const BlockKey& key) noexcept { return reinterpret_cast<const char*>(&key); }

}  // namespace

struct RedisBaseline::Connection {
  struct Free {
    void operator()(redisContext* owned) const noexcept { redisFree(owned); }
  };
  std::unique_ptr<redisContext, Free> context;

  Error Failure(const std::string& what) const {
    return MakeError(Errc::kUnavailable, "redis: " + what + (context->err != 0 ? std::string(": ") + context->errstr : ""));
  }
  Result<ReplyPtr> Next() {
    void* raw = nullptr;
    if (redisGetReply(context.get(), &raw) != REDIS_OK) return Failure("no reply");
    ReplyPtr reply(static_cast<redisReply*>(raw));
    if (reply->type == REDIS_REPLY_ERROR) return MakeError(Errc::kSystem, std::string("redis: ") + reply->str);
    return reply;
  }
  // Sends `command(n)` for all entries, a pipeline at a time, and counts the replies of which
  // `good` says no. The first error is returned once the rest of its pipeline has been read, so
  // that the connection can be used on.
  template <class Command, class Good>
  Result<std::uint64_t> Pipelined(std::uint64_t entries, Command command, Good good) {
    std::uint64_t bad = 0;
    for (std::uint64_t n = 0; n < entries;) {
      const std::uint64_t end = std::min(n + kPipeline, entries), count = end - n;
      for (; n < end; ++n) command(n);
      Status outcome;
      for (std::uint64_t i = 0; i < count && context->err == 0; ++i) {
        const Result<ReplyPtr> reply = Next();
        if (!reply && outcome) outcome = reply.error();
        if (reply && !good(**reply)) ++bad;
      }
      if (!outcome) return outcome.error();
    }
    return bad;
  }
};

Result<RedisBaseline> RedisBaseline::Connect(const std::string& socket) {
  RedisBaseline baseline;
  baseline.connection_->context.reset(redisConnectUnix(socket.c_str()));
  redisContext* context = baseline.connection_->context.get();
  if (context == nullptr || context->err != 0) {
    return MakeError(Errc::kUnavailable, "--against-redis " + socket + ": " + (context != nullptr ? context->errstr : "out of memory"));
  }
  return baseline;
}

Status RedisBaseline::Load(std::uint64_t run, std::uint64_t entries) {
  const std::array<char, kValueBytes> value{};
  const Result<std::uint64_t> bad = connection_->Pipelined(
      entries,
      [&](std::uint64_t n) {
        const BlockKey key = BenchKey(run, n);
        redisAppendCommand(connection_->context.get(), "SET %b %b", Bytes(key), sizeof(key), value.data(), value.size());
      },
      [](const redisReply& reply) { return reply.type == REDIS_REPLY_STATUS; });
  if (!bad) return bad.error();
  if (*bad > 0) return MakeError(Errc::kSystem, "redis: SET did not store " + std::to_string(*bad) + " of the keys");
  return {};
}

Status RedisBaseline::Unload(std::uint64_t run, std::uint64_t entries) {
  const Result<std::uint64_t> gone = connection_->Pipelined(
      entries,
      [&](std::uint64_t n) {
        const BlockKey key = BenchKey(run, n);
        redisAppendCommand(connection_->context.get(), "UNLINK %b", Bytes(key), sizeof(key));
      },
      [](const redisReply& reply) { return reply.type == REDIS_REPLY_INTEGER && reply.integer == 1; });
  if (!gone) return gone.error();
  if (*gone > 0) return MakeError(Errc::kSystem, "redis: " + std::to_string(*gone) + " of the stored keys had gone (maxmemory?)");
  return {};
}

Result<double> RedisBaseline::MultiGet(std::span<const BlockKey> keys) {
  std::vector<const char*> arguments{"MGET"};
  std::vector<std::size_t> lengths{4};
  for (const BlockKey& key : keys) {
    arguments.push_back(Bytes(key));
    lengths.push_back(sizeof(key));
  }
  const auto start = std::chrono::steady_clock::now();
  ReplyPtr reply(static_cast<redisReply*>(
      redisCommandArgv(connection_->context.get(), static_cast<int>(arguments.size()), arguments.data(), lengths.data())));
  const auto end = std::chrono::steady_clock::now();
  if (!reply) return connection_->Failure("MGET");
  if (reply->type != REDIS_REPLY_ARRAY || reply->elements != keys.size())
    return MakeError(Errc::kSystem, "redis: MGET gave something else than the values");
  for (std::size_t i = 0; i < reply->elements; ++i) {
    if (reply->element[i]->type != REDIS_REPLY_STRING)
      return MakeError(Errc::kSystem, "redis: a key that was stored is missing (maxmemory?)");
    if (reply->element[i]->len != kValueBytes) return MakeError(Errc::kSystem, "redis: MGET gave another value than was stored");
  }
  return std::chrono::duration<double, std::micro>(end - start).count();
}

RedisBaseline::RedisBaseline() : connection_(std::make_unique<Connection>()) {}
RedisBaseline::~RedisBaseline() = default;
RedisBaseline::RedisBaseline(RedisBaseline&&) noexcept = default;
RedisBaseline& RedisBaseline::operator=(RedisBaseline&&) noexcept = default;

}  // namespace kvm::bench
