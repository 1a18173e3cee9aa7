#include "client/region/adoption.h"

#include <algorithm>
#include <condition_variable>
#include <optional>
#include <utility>

#include "client/connection/wait.h"
#include "client/region/make_region.h"
#include "client/region/region_messages.h"
#include "client/region/region_options.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kAskAgainFirst{2}, kAskAgainLast{50};

// An adoption under way, between the caller and the link's thread.
struct Adoption {
  Mutex mutex;
  std::condition_variable changed;
  bool abandoned KVM_GUARDED_BY(mutex) = false;  // the caller has stopped waiting
  std::optional<Result<Answer>> reply KVM_GUARDED_BY(mutex);
  std::uint64_t connection KVM_GUARDED_BY(mutex) = 0;  // the connection on which the reply came
};

struct Given {
  Answer answer;
  std::uint64_t connection = 0;
};

RegionRow RowOf(const kvmwire::AdoptRegionReply& reply) { return {reply.region(), reply.region_epoch()}; }

// Sends one request. If the region arrives after the caller has stopped waiting, it is returned to
// kvmd.
Result<Given> AskOnce(Link& link, const Registrar& registrar, const std::string& name, const kvmwire::ClientMessage& message,
                      Deadline deadline) {
  auto adoption = std::make_shared<Adoption>();
  link.Request(message, {}, [&link, &registrar, adoption](Result<Answer> reply) {
    std::optional<RegionRow> unwanted;
    {
      MutexLock lock(adoption->mutex);
      if (adoption->abandoned && reply) unwanted = RowOf(reply->message.adopt_region_reply());
      if (reply) adoption->connection = registrar.connection();
      adoption->reply = std::move(reply);
      adoption->changed.notify_all();
    }
    if (unwanted) link.Post(Unregistration(*unwanted));
  });
  MutexLock lock(adoption->mutex);
  if (!WaitUntil(adoption->changed, lock, deadline, [&]() KVM_REQUIRES(adoption->mutex) { return adoption->reply.has_value(); })) {
    adoption->abandoned = true;
    return MakeError(Errc::kDeadlineExceeded, "kvmd did not give region " + name + " in time");
  }
  if (!*adoption->reply) return adoption->reply->error();
  return Given{std::move(**adoption->reply), adoption->connection};
}

Result<Given> Ask(Link& link, const Registrar& registrar, const std::string& name, const kvmwire::ClientMessage& message,
                  Deadline deadline) {
  for (std::chrono::milliseconds pause = kAskAgainFirst;; pause = std::min(2 * pause, kAskAgainLast)) {
    Result<Given> given = AskOnce(link, registrar, name, message, deadline);
    // kUnavailable: the previous owner's process is ending, or kvmd is restarting.
    if (given || given.error().code != Errc::kUnavailable || After(pause) >= deadline || !Sleep(pause)) return given;
  }
}

}  // namespace

Result<AdoptedRegion> AdoptRegion(Link& link, Registrar& registrar, const DeviceSet& devices, std::size_t device, const Model& model,
                                  RegionOptions region, Deadline deadline) {
  if (Status sound = Complete(region); !sound) return sound.error();
  // A second request tells kvmd that the reply to the first was lost, so a client must never ask
  // for a region that it has.
  if (registrar.Has(region.name)) return MakeError(Errc::kAlreadyExists, "adopt region " + region.name + ": this client has it");
  kvmwire::ClientMessage message;
  *message.mutable_adopt_region()->mutable_expected() = ExpectedDescriptor(model, region);
  Result<Given> given = Ask(link, registrar, region.name, message, deadline);
  if (!given) return given.error();
  KVM_FAULT_POINT(client_adoption_granted);
  const kvmwire::AdoptRegionReply& reply = given->answer.message.adopt_region_reply();
  const std::size_t needed = 2 + static_cast<std::size_t>(reply.descriptor_().segments_size());
  Result<std::shared_ptr<Region::Impl>> made = MakeError(Errc::kProtocol, "kvmd gave a region without its descriptors");
  if (given->answer.lost_fds) made = *given->answer.lost_fds;
  if (given->answer.fds.size() == needed)
    made = MakeAdopted(model, std::move(region), devices, device, reply, std::move(given->answer.fds));
  if (!made) {
    link.Post(Unregistration(RowOf(reply)));
    return made.error();
  }
  AdoptedRegion out;
  out.blocks = (*made)->Published();
  registrar.AddAdopted(*made, given->connection);
  KVM_FAULT_POINT(client_adopted);
  out.region = std::make_shared<Region>(std::move(*made));
  return out;
}

}  // namespace kvm
