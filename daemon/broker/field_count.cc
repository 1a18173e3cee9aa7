#include "daemon/broker/field_count.h"

#include <cstdint>

#include "proto/wire/wire.pb.h"

namespace kvm::daemon {
namespace {

// Of protobuf's encoding
constexpr std::uint32_t kVarint = 0, kEightBytes = 1, kLengthDelimited = 2, kFourBytes = 5;

// Reads one varint off the front; false: there is none.
bool TakeVarint(std::string_view& from, std::uint64_t& value) noexcept {
  value = 0;
  for (unsigned shift = 0; shift < 64 && !from.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(from.front());
    from.remove_prefix(1);
    value |= std::uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

// The field of the body that is a region's descriptor; 0: it has none.
std::uint64_t DescriptorIn(std::uint64_t body) noexcept {
  switch (body) {
    case kvmwire::ClientMessage::kRegisterRegionFieldNumber: return kvmwire::RegisterRegion::kRegionFieldNumber;
    case kvmwire::ClientMessage::kAllocateMemoryFieldNumber: return kvmwire::AllocateMemory::kForRegionFieldNumber;
    case kvmwire::ClientMessage::kAdoptRegionFieldNumber: return kvmwire::AdoptRegion::kExpectedFieldNumber;
    default: return 0;
  }
}

// Adds the fields of a message to `count`; `visit` is called with the number and the bytes of each
// that has bytes.
template <class Visit>
void Walk(std::string_view message, std::size_t& count, Visit&& visit) noexcept {
  while (!message.empty() && count <= kMaxFields) {
    std::uint64_t tag = 0, value = 0;
    if (!TakeVarint(message, tag)) return;
    ++count;
    switch (tag & 7) {
      case kVarint:
        if (!TakeVarint(message, value)) return;
        break;
      case kEightBytes:
      case kFourBytes:
        value = (tag & 7) == kEightBytes ? 8 : 4;
        if (message.size() < value) return;
        message.remove_prefix(value);
        break;
      case kLengthDelimited:
        if (!TakeVarint(message, value) || message.size() < value) return;
        visit(tag >> 3, message.substr(0, value));
        message.remove_prefix(value);
        break;
      default: break;  // the beginning or the end of a group, whose fields follow
    }
  }
}

}  // namespace

std::size_t CountFields(std::string_view message) noexcept {
  std::size_t count = 0;
  Walk(message, count, [&](std::uint64_t body, std::string_view of_body) {
    const std::uint64_t descriptor = DescriptorIn(body);
    Walk(of_body, count, [&](std::uint64_t field, std::string_view of_field) {
      if (field == descriptor) Walk(of_field, count, [](std::uint64_t, std::string_view) {});
    });
  });
  return count;
}

}  // namespace kvm::daemon
