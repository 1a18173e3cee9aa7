// MsgpackWriter: the few types of MessagePack that KV events are made of, appended to a string.
//
// Debian 12's package of a library for this needs a Boost that conflicts with the one used here.
// Source: the format's specification (msgpack/spec.md); the tests decode with vLLM's own classes.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace kvm::mesh {

class MsgpackWriter {
 public:
  void Nil() { Byte(0xc0); }
  void Unsigned(std::uint64_t value) {
    if (value < 0x80) {
      Byte(static_cast<std::uint8_t>(value));
    } else if (value <= 0xff) {
      Byte(0xcc), Big<1>(value);
    } else if (value <= 0xffff) {
      Byte(0xcd), Big<2>(value);
    } else if (value <= 0xffff'ffff) {
      Byte(0xce), Big<4>(value);
    } else {
      Byte(0xcf), Big<8>(value);
    }
  }
  void Real(double value) { Byte(0xcb), Big<8>(std::bit_cast<std::uint64_t>(value)); }
  // At most 2^32 - 1 bytes.
  void Text(std::string_view text) {
    if (text.size() < 32) {
      Byte(static_cast<std::uint8_t>(0xa0 | text.size()));
    } else if (text.size() <= 0xff) {
      Byte(0xd9), Big<1>(text.size());
    } else {
      Byte(0xdb), Big<4>(text.size());
    }
    out_.append(text);
  }
  // `count` values follow.
  void Array(std::uint32_t count) { Count(0x90, 0xdc, count); }
  // `count` pairs follow.
  void Map(std::uint32_t count) { Count(0x80, 0xde, count); }
  // What another writer has written.
  void Raw(std::string_view bytes) { out_.append(bytes); }

  const std::string& bytes() const noexcept { return out_; }
  void Reserve(std::size_t bytes) { out_.reserve(bytes); }
  void Clear() noexcept { out_.clear(); }
  std::string Take() { return std::exchange(out_, {}); }

 private:
  void Byte(std::uint8_t value) { out_.push_back(static_cast<char>(value)); }
  template <int kBytes>
  void Big(std::uint64_t value) {
    char bytes[kBytes];
    for (int i = 0; i < kBytes; ++i) bytes[i] = static_cast<char>(value >> (8 * (kBytes - 1 - i)));
    out_.append(bytes, kBytes);
  }
  void Count(std::uint8_t small, std::uint8_t large, std::uint32_t count) {
    if (count < 16) {
      Byte(static_cast<std::uint8_t>(small | count));
    } else if (count <= 0xffff) {
      Byte(large), Big<2>(count);
    } else {
      Byte(static_cast<std::uint8_t>(large + 1)), Big<4>(count);
    }
  }

  std::string out_;
};

}  // namespace kvm::mesh
