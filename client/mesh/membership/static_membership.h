// StaticMembership: the nodes that the configuration lists (--peers).
#pragma once

#include "client/mesh/membership/membership.h"

namespace kvm::mesh {

class StaticMembership final : public Membership {
 public:
  // Reads the configuration again. An error is logged, and the list stays.
  using Read = std::function<Result<std::vector<Member>>()>;

  // `read` may be empty: the list does not change.
  StaticMembership(std::vector<Member> members, Read read) : members_(std::move(members)), read_(std::move(read)) {}

  std::string_view name() const noexcept override { return "static"; }
  void Start(Changed changed) override;
  void Reload() override;
  Awaitable<void> Leave(Time deadline) override;
  void Describe(kvmmesh::Status&) const override {}

 private:
  std::vector<Member> members_;
  Read read_;
  Changed changed_;
};

}  // namespace kvm::mesh
