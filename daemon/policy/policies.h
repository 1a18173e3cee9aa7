// All policies, by name.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string_view>

#include "daemon/policy/eviction_policy.h"

namespace kvm::policy {

enum class PolicyKind { kLru, kS3Fifo, kHitDensity };

inline constexpr std::array kAllPolicies{PolicyKind::kLru, PolicyKind::kS3Fifo, PolicyKind::kHitDensity};
inline constexpr std::uint32_t kMaxCapacity = 1u << 28;  // node indices are 32 bits

std::string_view PolicyName(PolicyKind kind) noexcept;
std::optional<PolicyKind> PolicyFromName(std::string_view name) noexcept;

// `capacity` in [1, kMaxCapacity].
std::unique_ptr<EvictionPolicy> MakePolicy(PolicyKind kind, std::uint32_t capacity);

}  // namespace kvm::policy
