// ModelTable: the models of a domain, the clients that have declared each, and the rows that show
// them to readers.
//
// A row is in use while a connected client has declared its model or a region holds blocks of it;
// then it is free.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string_view>
#include <vector>

#include "daemon/registry/registry_segment.h"
#include "kvm/model_spec.h"

namespace kvm::daemon {

using ClientId = std::uint64_t;

class ModelTable {
 public:
  ModelTable(RegistrySegment& segment, std::uint32_t rows) : segment_(segment), models_(rows) {}

  // Row of the model; declares it if it is new. `before`: this client has declared it before.
  // kInvalidArgument, kResourceExhausted.
  struct Declared {
    std::uint32_t row = 0;
    bool before = false;
  };
  [[nodiscard]] Result<Declared> Declare(ClientId client, const ModelSpec& spec);

  // Row of the model with this fingerprint; kNotFound.
  [[nodiscard]] Result<std::uint32_t> Find(std::string_view fingerprint) const;
  // Precondition: the row is in use
  const ModelSpec& spec(std::uint32_t row) const noexcept { return models_[row]->spec; }
  bool HasDeclared(ClientId client, std::uint32_t row) const noexcept;

  void ForgetClient(ClientId client) noexcept;
  void AddRegion(std::uint32_t row) noexcept { ++models_[row]->regions; }
  void RemoveRegion(std::uint32_t row) noexcept;

  std::uint32_t live() const noexcept { return live_; }

 private:
  struct Model {
    ModelSpec spec;
    Fingerprint fingerprint;
    std::set<ClientId> declared_by;
    std::uint32_t regions = 0;
  };

  void DropIfUnused(std::uint32_t row) noexcept;
  void WriteRow(std::uint32_t row) noexcept;

  RegistrySegment& segment_;
  std::vector<std::unique_ptr<Model>> models_;  // by row; null: free
  std::uint32_t live_ = 0;
};

}  // namespace kvm::daemon
