#include "daemon/broker/known_fields.h"

#include <string>

#include <google/protobuf/message_lite.h>

namespace kvm::daemon {
namespace {

// The lite runtime has no DiscardUnknownFields; a message's unknown fields are in a protected
// member.
struct Metadata : google::protobuf::MessageLite {
  static void Clear(google::protobuf::MessageLite& message) {
    auto& metadata = message.*(&Metadata::_internal_metadata_);
    // Frees their memory as well, since the message may be kept.
    if (metadata.have_unknown_fields()) std::string().swap(*metadata.mutable_unknown_fields<std::string>());
  }
};

// Each message says which of its fields are messages. A test reads wire.proto and tries every one.
void Drop(google::protobuf::MessageLite& message) { Metadata::Clear(message); }

template <class List>
void DropEach(List* list) {
  for (auto& message : *list) Drop(message);
}

void DropDescriptor(kvmwire::RegionDescriptor& descriptor) {
  Drop(descriptor);
  DropEach(descriptor.mutable_segments());
  DropEach(descriptor.mutable_parts());
}

}  // namespace

void DiscardUnknownFields(kvmwire::ClientMessage& message) {
  using Message = kvmwire::ClientMessage;
  Drop(message);
  switch (message.body_case()) {
    case Message::kHello: return Drop(*message.mutable_hello());
    case Message::kDeclareModel: return Drop(*message.mutable_declare_model());
    case Message::kRegisterRegion:
      Drop(*message.mutable_register_region());
      if (message.register_region().has_region()) DropDescriptor(*message.mutable_register_region()->mutable_region());
      return;
    case Message::kUnregisterRegion: return Drop(*message.mutable_unregister_region());
    case Message::kPublish: return Drop(*message.mutable_publish());
    case Message::kRetract: return Drop(*message.mutable_retract());
    case Message::kWithdrawAck: return Drop(*message.mutable_withdraw_ack());
    case Message::kStatsReport:
      Drop(*message.mutable_stats_report());
      if (message.stats_report().has_lookup_times()) Drop(*message.mutable_stats_report()->mutable_lookup_times());
      if (message.stats_report().has_import_times()) Drop(*message.mutable_stats_report()->mutable_import_times());
      DropEach(message.mutable_stats_report()->mutable_recent_misses());
      return DropEach(message.mutable_stats_report()->mutable_traffic());
    case Message::kStatusQuery: return Drop(*message.mutable_status_query());
    case Message::kPing: return Drop(*message.mutable_ping());
    case Message::kAllocateMemory:
      Drop(*message.mutable_allocate_memory());
      if (message.allocate_memory().has_for_region()) DropDescriptor(*message.mutable_allocate_memory()->mutable_for_region());
      return;
    case Message::kAdoptRegion:
      Drop(*message.mutable_adopt_region());
      if (message.adopt_region().has_expected()) DropDescriptor(*message.mutable_adopt_region()->mutable_expected());
      return;
    case Message::kReclaim: return Drop(*message.mutable_reclaim());
    case Message::kPrepareStore: return Drop(*message.mutable_prepare_store());
    case Message::kCompleteStore:
      Drop(*message.mutable_complete_store());
      return DropEach(message.mutable_complete_store()->mutable_outcomes());
    case Message::kHostCacheUse:
      Drop(*message.mutable_host_cache_use());
      DropEach(message.mutable_host_cache_use()->mutable_runs());
      return DropEach(message.mutable_host_cache_use()->mutable_imports());
    case Message::kAcquireLease:
      Drop(*message.mutable_acquire_lease());
      return DropEach(message.mutable_acquire_lease()->mutable_sources());
    case Message::kRenewLease: return Drop(*message.mutable_renew_lease());
    case Message::kReleaseLease: return Drop(*message.mutable_release_lease());
    case Message::kMarkComputing: return Drop(*message.mutable_mark_computing());
    case Message::kEndComputing: return Drop(*message.mutable_end_computing());
    case Message::kEvict: return Drop(*message.mutable_evict());
    case Message::BODY_NOT_SET: return;
  }
}

}  // namespace kvm::daemon
