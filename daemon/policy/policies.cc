#include "daemon/policy/policies.h"

#include "daemon/policy/hit_density.h"
#include "daemon/policy/lru.h"
#include "daemon/policy/s3_fifo.h"

namespace kvm::policy {

std::string_view PolicyName(PolicyKind kind) noexcept {
  switch (kind) {
    case PolicyKind::kLru: return "lru";
    case PolicyKind::kS3Fifo: return "s3-fifo";
    case PolicyKind::kHitDensity: return "hit-density";
  }
  return "?";
}

std::optional<PolicyKind> PolicyFromName(std::string_view name) noexcept {
  for (const PolicyKind kind : kAllPolicies) {
    if (PolicyName(kind) == name) return kind;
  }
  return std::nullopt;
}

std::unique_ptr<EvictionPolicy> MakePolicy(PolicyKind kind, std::uint32_t capacity) {
  switch (kind) {
    case PolicyKind::kLru: return std::make_unique<LruPolicy>(capacity);
    case PolicyKind::kS3Fifo: return std::make_unique<S3FifoPolicy>(capacity);
    case PolicyKind::kHitDensity: return std::make_unique<HitDensityPolicy>(capacity);
  }
  return nullptr;
}

}  // namespace kvm::policy
