#include "metrics_server.hpp"

#include <microhttpd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <netdb.h>
#include <netinet/in.h>
#include <stdexcept>
#include <sys/socket.h>
#include <unistd.h>

namespace inflight {
namespace {

constexpr unsigned MOST_CONNECTIONS = 16, SILENT_SECONDS = 10;
constexpr int WAITING_CONNECTIONS = 16;

struct ListeningSocket {
    int file;
    std::uint16_t port;
};

[[noreturn]] void fail(const std::string &address, std::uint16_t port, const std::string &why) {
    throw std::runtime_error("metrics: cannot listen on address '" + address + "', port " + std::to_string(port) +
                             ": " + why);
}

std::uint16_t port_of(int file) {
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    if (getsockname(file, reinterpret_cast<sockaddr *>(&name), &size) != 0) {
        return 0;
    }
    return ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6 *>(&name)->sin6_port
                                            : reinterpret_cast<const sockaddr_in *>(&name)->sin_port);
}

/** A socket made here and not by the library, which would not say why it fails. */
ListeningSocket listen_on(const std::string &address, std::uint16_t port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
    hints.ai_socktype = SOCK_STREAM;
    // Without a name getaddrinfo would take any address.
    const int wrong = address.empty() ? EAI_NONAME
                                      : getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
    if (wrong != 0) {
        fail(address, port, "an IPv4 or IPv6 address in digits is needed, such as 127.0.0.1");
    }
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
    const int file = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, found->ai_protocol);
    if (file < 0) {
        fail(address, port, std::strerror(errno));
    }
    const int on = 1;
    setsockopt(file, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(file, found->ai_addr, found->ai_addrlen) != 0 || listen(file, WAITING_CONNECTIONS) != 0) {
        const std::string why = std::strerror(errno);
        close(file);
        fail(address, port, why);
    }
    return {file, port_of(file)};
}

/** Answers with this text; `allowed`: the methods that are allowed, where another was asked for. */
MHD_Result respond(MHD_Connection *connection, unsigned status, std::string text, const char *allowed = nullptr) {
    MHD_Response *response = MHD_create_response_from_buffer(text.size(), text.data(), MHD_RESPMEM_MUST_COPY);
    if (response == nullptr) {
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    if (allowed != nullptr) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allowed);
    }
    const MHD_Result queued = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return queued;
}

/** What belongs to a request, from its first line until it has been answered. */
struct Request {
    /** Of the counters that it was answered with; 0: none. */
    std::uint64_t publication = 0;
};

MHD_Result handle(void *server, MHD_Connection *connection, const char *url, const char *method, const char *,
                  const char *, size_t *body, void **of_request) try {
    if (*of_request == nullptr) {
        *of_request = new Request;
        return MHD_YES;
    }
    if (*body != 0) {
        // Read and forgotten.
        *body = 0;
        return MHD_YES;
    }
    const bool get = std::strcmp(method, MHD_HTTP_METHOD_GET) == 0;
    if (!get && std::strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        return respond(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n", "GET, HEAD");
    }
    if (std::strcmp(url, "/metrics") != 0) {
        return respond(connection, MHD_HTTP_NOT_FOUND, "only /metrics is here\n");
    }
    MetricsServer::Answer answer = static_cast<MetricsServer *>(server)->answer();
    if (get) {
        static_cast<Request *>(*of_request)->publication = answer.publication;
    }
    return respond(connection, MHD_HTTP_OK, std::move(answer.text));
} catch (const std::exception &) {
    // No memory: the library closes the connection.
    return MHD_NO;
}

void finish(void *server, MHD_Connection *, void **of_request, MHD_RequestTerminationCode how) {
    const std::unique_ptr<Request> request(static_cast<Request *>(*of_request));
    *of_request = nullptr;
    if (request && request->publication != 0 && how == MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        static_cast<MetricsServer *>(server)->sent(request->publication);
    }
}

}  // namespace

MetricsServer::MetricsServer(const std::string &address, std::uint16_t port) {
    const ListeningSocket socket = listen_on(address, port);
    const bool v6 = address.find(':') != std::string::npos;
    url_ = "http://" + (v6 ? "[" + address + "]" : address) + ":" + std::to_string(socket.port) + "/metrics";
    unsigned flags = MHD_USE_AUTO_INTERNAL_THREAD;
    if (v6) {
        flags |= MHD_USE_IPv6;
    }
    daemon_ = MHD_start_daemon(flags, socket.port, nullptr, nullptr, handle, this, MHD_OPTION_LISTEN_SOCKET,
                               socket.file, MHD_OPTION_CONNECTION_LIMIT, MOST_CONNECTIONS,
                               MHD_OPTION_CONNECTION_TIMEOUT, SILENT_SECONDS, MHD_OPTION_NOTIFY_COMPLETED, finish,
                               this, MHD_OPTION_END);
    if (daemon_ == nullptr) {
        close(socket.file);
        fail(address, port, "its thread cannot be started");
    }
}

MetricsServer::~MetricsServer() { MHD_stop_daemon(daemon_); }

void MetricsServer::publish(const Metrics &metrics) {
    const std::lock_guard<std::mutex> lock(mutex_);
    metrics_ = metrics;
    publication_++;
}

MetricsServer::Answer MetricsServer::answer() {
    std::unique_lock<std::mutex> lock(mutex_);
    const Metrics metrics = metrics_;
    const std::uint64_t publication = publication_;
    lock.unlock();
    return {prometheus_text(metrics), publication};
}

void MetricsServer::sent(std::uint64_t publication) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sent_ = std::max(sent_, publication);
    was_sent_.notify_all();
}

bool MetricsServer::wait_until_read(std::chrono::milliseconds most) {
    std::unique_lock<std::mutex> lock(mutex_);
    return was_sent_.wait_for(lock, most, [&] { return sent_ == publication_; });
}

}  // namespace inflight
