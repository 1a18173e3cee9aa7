// Models of a registry that are nearly one of this process's: the usual reason why two engines of
// one model share nothing.
#pragma once

#include <vector>

#include "kvclient/client.h"
#include "proto/shm/registry_view.h"

namespace kvm {

// Of the same name with another content, or of the same content under another name.
std::vector<NearMiss> NearMissesOf(const RegistryView& registry, const Model& model);

// Whether such a model of one of `models` has a live region, which would have been looked up if it
// had not differed.
bool NearMissServes(const RegistryView& registry, const std::vector<Model>& models);

}  // namespace kvm
