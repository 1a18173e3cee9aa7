// ModelTable: the models of a domain, the clients that have declared each, and the rows that show
// them to readers.
//
// A row is in use while a connected client has declared its model or a region holds blocks of it;
// then it is free. Each user may keep so many rows in use, so that none can fill the table for the
// others.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "daemon/registry/registry_segment.h"
#include "kvm/model_spec.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

using ClientId = std::uint64_t;

class ModelTable {
 public:
  ModelTable(RegistrySegment& segment, std::uint32_t rows, std::uint32_t rows_per_user)
      : segment_(segment), rows_per_user_(rows_per_user), models_(rows) {}

  // Row of the model; declares it if it is new. `before`: this client has declared it before.
  // kInvalidArgument. kResourceExhausted: the table is full, or the user has its part of it.
  struct Declared {
    std::uint32_t row = 0;
    bool before = false;
  };
  [[nodiscard]] Result<Declared> Declare(ClientId client, std::uint32_t uid, const ModelSpec& spec);

  // Row of the model with this fingerprint; kNotFound.
  [[nodiscard]] Result<std::uint32_t> Find(std::string_view fingerprint) const;
  // Precondition: the row is in use
  const ModelSpec& spec(std::uint32_t row) const noexcept { return models_[row]->spec; }
  const Fingerprint& fingerprint(std::uint32_t row) const noexcept { return models_[row]->fingerprint; }
  bool HasDeclared(ClientId client, std::uint32_t row) const noexcept;

  // Row of the model that the client has declared; none: it has declared none, or several.
  std::optional<std::uint32_t> OnlyModelOf(ClientId client) const noexcept;
  // What clients of this model alone have reported since the row is in use; the broker writes it.
  // Precondition: the row is in use
  kvmwire::StatsReport& totals(std::uint32_t row) noexcept { return models_[row]->totals; }

  // visit(row), for each row in use
  template <class Visit>
  void ForEach(Visit&& visit) const {
    for (std::uint32_t row = 0; row < models_.size(); ++row) {
      if (models_[row]) visit(row);
    }
  }

  void ForgetClient(ClientId client) noexcept;
  // `uid`: the owner's; none: kvmd's own.
  void AddRegion(std::uint32_t row, std::optional<std::uint32_t> uid);
  void RemoveRegion(std::uint32_t row, std::optional<std::uint32_t> uid) noexcept;

  std::uint32_t live() const noexcept { return live_; }

 private:
  struct Model {
    ModelSpec spec;
    Fingerprint fingerprint;
    std::map<ClientId, std::uint32_t> declared_by;  // and their users
    std::uint32_t regions = 0;
    std::map<std::uint32_t, std::uint32_t> users;  // declarations and regions of each
    kvmwire::StatsReport totals;
  };

  void AddUser(Model& model, std::uint32_t uid);
  void RemoveUser(Model& model, std::uint32_t uid) noexcept;
  void DropIfUnused(std::uint32_t row) noexcept;
  void WriteRow(std::uint32_t row) noexcept;

  RegistrySegment& segment_;
  const std::uint32_t rows_per_user_;
  std::vector<std::unique_ptr<Model>> models_;  // by row; null: free
  std::map<std::uint32_t, std::uint32_t> rows_of_user_;
  std::uint32_t live_ = 0;
};

}  // namespace kvm::daemon
