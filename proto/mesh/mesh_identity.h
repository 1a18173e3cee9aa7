// The name of a node in its certificate: a URI in subjectAltName. kvmd-mesh compares it, and kvctl
// writes it.
//
//   kvmd://DOMAIN/NODE      kvmd://uid:1000/rack3-node7
//
// Bytes of a node's name other than letters, digits and "-._~" are written as %XX, those of a
// domain likewise, except ':'. So there is one spelling for a name, and comparing bytes suffices.
#pragma once

#include <string>
#include <string_view>

namespace kvm::mesh {

inline constexpr std::string_view kIdentityScheme = "kvmd://";

inline std::string EncodeIdentityPart(std::string_view part, bool colon) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : part) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~").find(c) != std::string_view::npos || (colon && c == ':');
    if (plain) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

// The last part of an identity, as it is spelled there.
inline std::string IdentityNode(std::string_view node) { return EncodeIdentityPart(node, false); }

inline std::string MeshIdentity(std::string_view domain, std::string_view node) {
  return std::string(kIdentityScheme) + EncodeIdentityPart(domain, true) + '/' + IdentityNode(node);
}

}  // namespace kvm::mesh
