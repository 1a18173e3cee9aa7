#include "daemon/registry/model_table.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "daemon/registry/quota_error.h"

namespace kvm::daemon {

Result<ModelTable::Declared> ModelTable::Declare(ClientId client, std::uint32_t uid, const ModelSpec& spec) {
  if (Status valid = spec.Validate(); !valid) return valid.error();
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  const auto rows = rows_of_user_.find(uid);
  const bool has_its_part = rows != rows_of_user_.end() && rows->second >= rows_per_user_;
  const auto refuse = [&] { return Exhausted("too many models of user " + std::to_string(uid), rows_per_user_, "--max-models-per-user"); };
  auto free = models_.end();
  for (auto model = models_.begin(); model != models_.end(); ++model) {
    if (!*model) {
      if (free == models_.end()) free = model;
    } else if ((*model)->fingerprint == fingerprint) {
      if (has_its_part && !(*model)->users.contains(uid)) return refuse();
      const bool is_new = (*model)->declared_by.emplace(client, uid).second;
      if (is_new) AddUser(**model, uid);
      return Declared{static_cast<std::uint32_t>(model - models_.begin()), !is_new};
    }
  }
  if (has_its_part) return refuse();
  if (free == models_.end()) {
    return MakeError(Errc::kResourceExhausted, "model table is full: the limit is " + std::to_string(models_.size()) + " (--max-models)");
  }
  *free = std::make_unique<Model>(Model{spec, fingerprint, {{client, uid}}, 0, {}, {}});
  AddUser(**free, uid);
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

std::optional<std::uint32_t> ModelTable::OnlyModelOf(ClientId client) const noexcept {
  std::optional<std::uint32_t> only;
  for (std::uint32_t row = 0; row < models_.size(); ++row) {
    if (!HasDeclared(client, row)) continue;
    if (only) return std::nullopt;
    only = row;
  }
  return only;
}

void ModelTable::ForgetClient(ClientId client) noexcept {
  for (std::uint32_t row = 0; row < models_.size(); ++row) {
    if (!models_[row]) continue;
    const auto declared = models_[row]->declared_by.find(client);
    if (declared == models_[row]->declared_by.end()) continue;
    RemoveUser(*models_[row], declared->second);
    models_[row]->declared_by.erase(declared);
    DropIfUnused(row);
  }
}

void ModelTable::AddRegion(std::uint32_t row, std::optional<std::uint32_t> uid) {
  ++models_[row]->regions;
  if (uid) AddUser(*models_[row], *uid);
}

void ModelTable::RemoveRegion(std::uint32_t row, std::optional<std::uint32_t> uid) noexcept {
  --models_[row]->regions;
  if (uid) RemoveUser(*models_[row], *uid);
  DropIfUnused(row);
}

void ModelTable::AddUser(Model& model, std::uint32_t uid) {
  if (++model.users[uid] == 1) ++rows_of_user_[uid];
}

void ModelTable::RemoveUser(Model& model, std::uint32_t uid) noexcept {
  const auto user = model.users.find(uid);
  if (--user->second > 0) return;
  model.users.erase(user);
  const auto rows = rows_of_user_.find(uid);
  if (--rows->second == 0) rows_of_user_.erase(rows);
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
