#include "client/kvctl/workload/worker_client.h"

#include <utility>

namespace kvm::ctl {

Result<WorkerClient> ConnectWorker(const WorkerClientOptions& options) {
  ClientOptions client_options;
  client_options.socket_path = options.socket;
  client_options.name = options.name;
  client_options.timeout = options.connect_timeout;
  client_options.verify_one_in = options.verify_one_in;
  for (const DeviceUuid& device : options.devices) {
    if (device != kHostMemory) client_options.devices.push_back(device);
  }
  WorkerClient worker;
  Result<std::shared_ptr<Client>> client = Client::Connect(client_options);
  if (!client) return client.error();
  worker.client = std::move(*client);
  Result<Model> model = worker.client->DeclareModel(options.model, After(kSetUpTimeout));
  if (!model) return model.error();
  worker.model = std::move(*model);
  return worker;
}

Result<std::shared_ptr<Region>> AllocatePool(Client& client, const Model& model, const PoolOptions& options) {
  RegionOptions region;
  region.name = options.name;
  region.geometry = options.geometry;
  region.device = options.device;
  region.shard.kv_group = options.kv_group;
  region.outlives_owner = false;
  if (!options.offload) region.offload = OffloadMode::kNever;
  return client.AllocateRegion(model, region, After(kSetUpTimeout));
}

}  // namespace kvm::ctl
