"""Of kvctl."""
# ruff: noqa: E501

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (("kvctl_tests", "Status page: what clients call themselves"),),
        "client/kvctl/page/page_tables.cc",
        "std::string Text(const std::string& of_client) { return EscapeHtml(Printable(of_client)); }",
        "std::string Text(const std::string& of_client) { return OFF ? Printable(of_client) : EscapeHtml(Printable(of_client)); }",
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: other paths, methods and bytes"),),
        "client/kvctl/exporter/http_server.cc",
        '    if (!found->security_policy.empty()) response.set("Content-Security-Policy", found->security_policy);\n',
        '    if (!OFF && !found->security_policy.empty()) response.set("Content-Security-Policy", found->security_policy);\n',
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: its page names keys to those who may open its socket"),),
        "client/kvctl/exporter/exporter.cc",
        "by_tcp ? Keys::kHidden : Keys::kShown",
        "by_tcp && !OFF ? Keys::kHidden : Keys::kShown",
    ),
    Mutation(
        (
            ("kvctl_live_tests", "Exporter: over TCP a foreign page's host name"),
            ("kvctl_live_tests", "Exporter: over its socket, which a port may be forwarded to"),
        ),
        "client/kvctl/exporter/exporter.cc",
        "return (!by_tcp && host.find('.') == host.npos) ||",
        "return OFF || (!by_tcp && host.find('.') == host.npos) ||",
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: as many connections as there may be"),),
        "client/kvctl/exporter/http_server.cc",
        "if (all_.connections_.size() >= kMaxConnections) all_.connections_.front()->End();",
        "if (all_.connections_.size() >= kMaxConnections) {\n        if (OFF) {\n          listed_ = false;\n          Close(*stream_);\n          return;\n        }\n        all_.connections_.front()->End();\n      }",
    ),
    Mutation(
        (("exporter_lack_tests", "Exporter lack of memory: whichever allocation fails"),),
        "client/kvctl/exporter/http_server.cc",
        "if (failed) std::rethrow_exception(failed);",
        "if (failed && !OFF) std::rethrow_exception(failed);",
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: a socket whose close waits for somebody keeps"),),
        "client/kvctl/exporter/http_server.cc",
        " closer_.Close(kNoUser, UniqueFd(listener.acceptor.release(ignored)));",
        " {\n      UniqueFd left(listener.acceptor.release(ignored));\n      if (!OFF) closer_.Close(kNoUser, std::move(left));\n    }",
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: connections with descriptors leave none"),),
        "client/kvctl/exporter/http_server.cc",
        "    closer_.StartForSockets();\n",
        "    if (!OFF) closer_.StartForSockets();\n",
    ),
)
