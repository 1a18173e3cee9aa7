// Counts the fields of a client's message before it is parsed.
//
// A field of two bytes can make protobuf allocate an object, so a frame costs up to seventy times
// as much to parse as its bytes tell, at once. No message that kvmd takes has nearly as many fields
// as its frame has room for.
#pragma once

#include <cstddef>
#include <string_view>

namespace kvm::daemon {

// Twice those of the message that may have most, a lease of kMaxLeaseBatch blocks.
inline constexpr std::size_t kMaxFields = 16'384;

// Fields of the ClientMessage, of its body, and of the region's descriptor in it; no further than
// kMaxFields + 1. What can't be read counts nothing: protobuf refuses it.
std::size_t CountFields(std::string_view message) noexcept;

}  // namespace kvm::daemon
