// How an importer and its exporter process talk: plain data in frames (proto/wire/frame.h), waiting
// for each.
#pragma once

#include <poll.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "proto/wire/frame.h"

namespace kvm::test {

enum class Op : std::uint32_t { kOpen, kStart, kStop, kRewrite, kReallocate, kGemm };

// Appends and takes plain data; a short message ends the test.
class Writer {
 public:
  template <class T>
  Writer& Put(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Writer& PutText(const std::string& text) {
    Put(static_cast<std::uint64_t>(text.size()));
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}
  template <class T>
  T Take() {
    T value;
    Need(sizeof(T));
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string TakeText() {
    const auto size = Take<std::uint64_t>();
    Need(size);
    std::string text = bytes_.substr(at_, size);
    at_ += size;
    return text;
  }

 private:
  void Need(std::size_t bytes) const {
    if (bytes_.size() - at_ >= bytes) return;
    std::cerr << "exporter: a message is too short" << std::endl;
    std::abort();
  }
  const std::string& bytes_;
  std::size_t at_ = 0;
};

inline bool Send(int socket, const std::string& payload, const std::vector<int>& fds) {
  FrameWriter writer;
  if (!writer.Append(payload, fds)) return false;
  for (;;) {
    const Result<bool> done = writer.Drain(socket);
    if (!done) return false;
    if (*done) return true;
    pollfd wait{socket, POLLOUT, 0};
    ::poll(&wait, 1, -1);
  }
}

inline std::optional<Frame> Receive(int socket, FrameReader& reader) {
  for (;;) {
    Result<std::optional<Frame>> frame = reader.Next();
    if (!frame) return std::nullopt;
    if (*frame) return std::move(**frame);
    pollfd wait{socket, POLLIN, 0};
    ::poll(&wait, 1, -1);
    const Result<ReadOutcome> outcome = reader.Fill(socket);
    if (!outcome || *outcome == ReadOutcome::kEnd) return std::nullopt;
  }
}

}  // namespace kvm::test
