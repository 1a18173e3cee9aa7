// kvctl reclaim: frees memory that dead workers have left.
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"
#include "kvm/device.h"

namespace kvm::ctl {

int RunReclaim(const CommonOptions& common, const ReclaimCommandOptions& options) {
  if (!options.all && options.region.empty() && options.device.empty() && options.older_than_s == 0)
    return Fail(MakeError(Errc::kInvalidArgument, "reclaim: say which regions: --region, --device, --older-than-s, or --all"));
  kvmwire::Reclaim request;
  request.set_name(options.region);
  request.set_min_age_s(options.older_than_s);
  request.set_force(options.force);
  request.set_ack_timeout_ms(common.timeout_ms - common.timeout_ms / 10);
  if (!options.device.empty()) {
    const Result<DeviceUuid> device = options.device == "host" ? Result<DeviceUuid>(kHostMemory) : ParseUuid(options.device);
    if (!device) return Fail(device.error());
    request.set_device_uuid(device->data(), device->size());
  }
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const Result<kvmwire::ReclaimReply> reply = observer->Reclaim(request);
  if (!reply) return Fail(reply.error());
  if (common.json) {
    PrintJson({{"regions", reply->regions()},
               {"blocks", reply->blocks()},
               {"bytes", reply->bytes()},
               {"still_mapped", reply->still_mapped()},
               {"leased", reply->leased()},
               {"leases_shrunk", reply->leases_shrunk()}});
  } else {
    std::cout << reply->regions() << (reply->regions() == 1 ? " region" : " regions")
              << " of dead workers reclaimed: " << HumanBytes(reply->bytes()) << ", " << HumanCount(reply->blocks())
              << " published blocks\n";
    if (reply->leases_shrunk() > 0)
      std::cout << reply->leases_shrunk() << (reply->leases_shrunk() == 1 ? " lease has" : " leases have") << " lost blocks of them\n";
    if (reply->leased() > 0)
      std::cout << reply->leased() << " more stay, since leases cover blocks of them (kvctl leases; --force reclaims them nevertheless)\n";
  }
  if (reply->still_mapped() == 0) return kHealthy;
  std::cerr << "kvctl: importers have not unmapped " << reply->still_mapped() << " of them in time; their memory is freed when they do\n";
  return kUnhealthy;
}

}  // namespace kvm::ctl
