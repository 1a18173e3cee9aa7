// RedisBaseline: the same lookup by a redis-server on its Unix socket, to which kvmd is compared.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "kvm/block_key.h"
#include "kvm/error.h"

namespace kvm::bench {

class RedisBaseline {
 public:
  // kUnavailable: no redis-server on `socket`.
  [[nodiscard]] static Result<RedisBaseline> Connect(const std::string& socket);
  ~RedisBaseline();
  RedisBaseline(RedisBaseline&&) noexcept;
  RedisBaseline& operator=(RedisBaseline&&) noexcept;

  // Stores entries [0, entries) of a run, pipelined: the key's 16 bytes, with a value of 40 (a
  // location).
  [[nodiscard]] Status Load(std::uint64_t run, std::uint64_t entries);
  // Removes them. kSystem: some were not there any more, so another process removed them during the
  // measurement.
  [[nodiscard]] Status Unload(std::uint64_t run, std::uint64_t entries);

  // Microseconds of one MGET of these keys. kSystem: a key was missing, or its value is not the one
  // that was stored.
  [[nodiscard]] Result<double> MultiGet(std::span<const BlockKey> keys);

 private:
  struct Connection;
  RedisBaseline();
  std::unique_ptr<Connection> connection_;
};

}  // namespace kvm::bench
