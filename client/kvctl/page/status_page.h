// The exporter's page: one file of HTML with its style in it, which fetches nothing from elsewhere.
//
// All of it is text and tables, curves included, so it needs no script; a few lines of one draw it
// anew every few seconds, without losing the place that its reader has scrolled to. Strings that
// clients chose are escaped.
#pragma once

#include <string>
#include <string_view>

#include "client/kvctl/cli/status_history.h"
#include "client/kvctl/page/page_tables.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// `status`: with clients, memory, hot prefixes and details. Null: kvmd does not answer, for the
// reason `why`.
std::string StatusPage(const kvmwire::StatusReply* status, const std::string& why, const StatusHistory& history, StatusHistory::Time now,
                       Keys keys);

// The Content-Security-Policy that the page needs, and no more: no script but the page's own runs,
// whatever a client calls itself.
std::string StatusPagePolicy();

// Text as the content of an element or of a quoted attribute.
std::string EscapeHtml(std::string_view text);

}  // namespace kvm::ctl
