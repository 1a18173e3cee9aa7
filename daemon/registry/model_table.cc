#include "daemon/registry/model_table.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace kvm::daemon {

Result<ModelTable::Declared> ModelTable::Declare(ClientId client, const ModelSpec& spec) {
  if (Status valid = spec.Validate(); !valid) return valid.error();
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  auto free = models_.end();
  for (auto model = models_.begin(); model != models_.end(); ++model) {
    if (!*model) {
      if (free == models_.end()) free = model;
    } else if ((*model)->fingerprint == fingerprint) {
      const bool is_new = (*model)->declared_by.insert(client).second;
      return Declared{static_cast<std::uint32_t>(model - models_.begin()), !is_new};
    }
  }
  if (free == models_.end()) {
    return MakeError(Errc::kResourceExhausted, "model table is full: the limit is " + std::to_string(models_.size()) + " (--max-models)");
  }
  *free = std::make_unique<Model>(Model{spec, fingerprint, {client}, 0});
  ++live_;
  const auto row = static_cast<std::uint32_t>(free - models_.begin());
  WriteRow(row);
  return Declared{row, false};
}

Result<std::uint32_t> ModelTable::Find(std::string_view fingerprint) const {
  for (std::uint32_t row = 0; row < models_.size(); ++row) {
    if (!models_[row]) continue;
    const auto& bytes = models_[row]->fingerprint.bytes;
    if (fingerprint.size() == bytes.size() && std::memcmp(fingerprint.data(), bytes.data(), bytes.size()) == 0) return row;
  }
  return MakeError(Errc::kNotFound, "region: its model has not been declared");
}

bool ModelTable::HasDeclared(ClientId client, std::uint32_t row) const noexcept {
  return row < models_.size() && models_[row] && models_[row]->declared_by.contains(client);
}

void ModelTable::ForgetClient(ClientId client) noexcept {
  for (std::uint32_t row = 0; row < models_.size(); ++row) {
    if (models_[row] && models_[row]->declared_by.erase(client) > 0) DropIfUnused(row);
  }
}

void ModelTable::RemoveRegion(std::uint32_t row) noexcept {
  --models_[row]->regions;
  DropIfUnused(row);
}

void ModelTable::DropIfUnused(std::uint32_t row) noexcept {
  if (models_[row]->regions > 0 || !models_[row]->declared_by.empty()) return;
  models_[row].reset();
  --live_;
  WriteRow(row);
}

void ModelTable::WriteRow(std::uint32_t row) noexcept {
  layout::ModelInfo info{};
  if (const Model* model = models_[row].get()) {
    const std::string canonical = model->spec.Canonical();
    info.state = 1;
    info.fingerprint = model->fingerprint;
    info.spec_bytes = static_cast<std::uint32_t>(std::min(canonical.size(), sizeof(info.spec)));
    std::memcpy(info.spec, canonical.data(), info.spec_bytes);
  }
  segment_.models()[row].Write(info);
  segment_.header().live_models.store(live_, std::memory_order_relaxed);
}

}  // namespace kvm::daemon
