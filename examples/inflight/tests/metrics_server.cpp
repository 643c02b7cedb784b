// Counters over HTTP.
#include "metrics_server.hpp"
#include "serve_support.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <thread>

namespace {

using namespace test;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::uint16_t port_of(const std::string &url) {
    const std::size_t colon = url.rfind(':');
    return static_cast<std::uint16_t>(std::stoul(url.substr(colon + 1)));
}

/** A connection to a port of 127.0.0.1. */
class Client {
public:
    explicit Client(std::uint16_t port) : file_(socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in name{};
        name.sin_family = AF_INET;
        name.sin_port = htons(port);
        name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connected = connect(file_, reinterpret_cast<const sockaddr *>(&name), sizeof name) == 0;
    }
    ~Client() { close(file_); }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;

    bool connected;

    /** Whether all was sent: the server may close the connection before. */
    bool send(const std::string &text) const {
        return ::send(file_, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
    }
    /** Until the server closes the connection. */
    std::string receive() const {
        std::string all;
        char some[4096];
        for (ssize_t n; (n = recv(file_, some, sizeof some, 0)) > 0;) {
            all.append(some, static_cast<std::size_t>(n));
        }
        return all;
    }

private:
    int file_;
};

/** The whole answer to a request that ends its connection. */
std::string ask(std::uint16_t port, const std::string &line, const std::string &body = "") {
    const Client client(port);
    if (!client.connected) {
        return "";
    }
    client.send(line + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size()) +
                "\r\n\r\n" + body);
    return client.receive();
}

std::string body_of(const std::string &answer) {
    const std::size_t end = answer.find("\r\n\r\n");
    return end == std::string::npos ? "" : answer.substr(end + 4);
}

bool has_status(const std::string &answer, const std::string &status) {
    return answer.rfind("HTTP/1.1 " + status, 0) == 0;
}

Metrics with_tokens(std::uint64_t tokens) {
    Metrics metrics;
    metrics.counters.generated_tokens = tokens;
    metrics.parking = ParkingCounters();
    return metrics;
}

TEST(MetricsServer, AnswersWithWhatWasPublishedLast) {
    MetricsServer server("127.0.0.1", 0);
    const std::uint16_t port = port_of(server.url());
    EXPECT_EQ(server.url(), "http://127.0.0.1:" + std::to_string(port) + "/metrics");
    for (const std::uint64_t tokens : {7u, 8u}) {
        server.publish(with_tokens(tokens));
        const std::string answer = ask(port, "GET /metrics");
        EXPECT_TRUE(has_status(answer, "200")) << answer;
        EXPECT_NE(answer.find("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), std::string::npos);
        EXPECT_EQ(body_of(answer), prometheus_text(with_tokens(tokens)));
    }
    EXPECT_TRUE(has_status(ask(port, "GET /metrics?name[]=x"), "200"));
    const std::string head = ask(port, "HEAD /metrics");
    EXPECT_TRUE(has_status(head, "200")) << head;
    EXPECT_EQ(body_of(head), "");
}

TEST(MetricsServer, RefusesOtherRequests) {
    MetricsServer server("127.0.0.1", 0);
    const std::uint16_t port = port_of(server.url());
    for (const char *path : {"/", "/metrics/", "/../metrics", "/%00metrics", "/METRICS"}) {
        EXPECT_TRUE(has_status(ask(port, std::string("GET ") + path), "404")) << path;
    }
    for (const char *method : {"POST", "PUT", "DELETE", "OPTIONS", "STRANGE"}) {
        const std::string answer = ask(port, std::string(method) + " /metrics", std::string(5000, 'x'));
        EXPECT_TRUE(has_status(answer, "405")) << answer;
        EXPECT_NE(answer.find("Allow: GET, HEAD\r\n"), std::string::npos) << answer;
    }
    {
        const Client noise(port);
        noise.send(std::string(100000, '\xff'));
        noise.send("\r\n\r\n");
        noise.receive();
    }
    EXPECT_TRUE(has_status(ask(port, "GET /metrics"), "200"));
}

TEST(MetricsServer, WaitsUntilTheLastCountersAreRead) {
    MetricsServer server("127.0.0.1", 0);
    const std::uint16_t port = port_of(server.url());
    EXPECT_FALSE(server.wait_until_read(milliseconds(10)));
    ask(port, "GET /metrics");
    server.publish(with_tokens(1));
    EXPECT_FALSE(server.wait_until_read(milliseconds(10))) << "older counters were read";
    ask(port, "HEAD /metrics");
    ask(port, "GET /");
    EXPECT_FALSE(server.wait_until_read(milliseconds(10))) << "no counters were read";
    std::thread reader([&] { ask(port, "GET /metrics"); });
    EXPECT_TRUE(server.wait_until_read(seconds(60)));
    reader.join();
}

TEST(MetricsServer, ASilentClientHoldsUpNobody) {
    auto server = std::make_unique<MetricsServer>("127.0.0.1", 0);
    const std::uint16_t port = port_of(server->url());
    const Client silent(port), half(port);
    EXPECT_TRUE(half.send("GET /metrics HT"));
    EXPECT_TRUE(has_status(ask(port, "GET /metrics"), "200"));
    server.reset();
    EXPECT_EQ(silent.receive(), "") << "the connection ends with the server";
    EXPECT_FALSE(Client(port).connected);
}

TEST(MetricsServer, SaysWhereItCannotListen) {
    const auto error = [](const std::string &address, std::uint16_t port) -> std::string {
        try {
            MetricsServer server(address, port);
            return "";
        } catch (const std::runtime_error &e) {
            return e.what();
        }
    };
    const MetricsServer server("127.0.0.1", 0);
    const std::uint16_t taken = port_of(server.url());
    EXPECT_EQ(error("127.0.0.1", taken), "metrics: cannot listen on address '127.0.0.1', port " +
                                             std::to_string(taken) + ": Address already in use");
    for (const char *address : {"", "localhost", "127.0.0.1:80", "1.2.3.4.5", " 127.0.0.1"}) {
        EXPECT_NE(error(address, 0).find("an IPv4 or IPv6 address in digits is needed"), std::string::npos) << address;
    }
    EXPECT_NE(error("192.0.2.1", 0).find("Cannot assign requested address"), std::string::npos) << "of nobody";
}

class ServeMetrics : public ServeTest {};

TEST_F(ServeMetrics, TheEndWaitsForTheLastCounters) {
    write("{\"id\":\"a\",\"prompt\":\"It was a dark and\",\"max_tokens\":12}\n");
    const std::string log = requests + ".log";
    Output out{};
    std::thread program([&] {
        out = shell(std::string(SERVE) + " --requests " + requests + " --model " + MODEL +
                    " --json --metrics-port 0 --metrics-linger 60 2> " + log);
    });
    std::string read;
    for (int tries = 0; tries < 600 && read.find("outcome=\"done\"} 1\n") == std::string::npos; tries++) {
        std::this_thread::sleep_for(milliseconds(100));
        std::ifstream file(log);
        std::string label, url;
        if (file >> label >> url && label == "metrics:") {
            read = body_of(ask(port_of(url), "GET /metrics"));
        }
    }
    program.join();
    std::filesystem::remove(log);
    const auto results = parse(out.text);
    ASSERT_EQ(results.count("totals"), 1u) << out.text;
    const std::string generated = results.at("totals").at("totals").at("generated_tokens").dump();
    EXPECT_NE(read.find("sinkcache_inflight_generated_tokens_total " + generated + "\n"), std::string::npos) << read;
}

TEST_F(ServeMetrics, WrongAddressesAndPortsAreErrorsBeforeTheModelIsRead) {
    write("");
    const std::string serve = std::string(SERVE) + " --requests " + requests + " --model /nowhere ";
    for (const auto &[arguments, why] : std::map<std::string, std::string>{
             {"--metrics-port 65536", "--metrics-port"},
             {"--metrics-port -1", "--metrics-port"},
             {"--metrics-linger 5", "--metrics-linger requires --metrics-port"},
             {"--metrics-address 127.0.0.1", "--metrics-address requires --metrics-port"},
             {"--metrics-port 0 --metrics-address nowhere", "an IPv4 or IPv6 address in digits is needed"}}) {
        const auto out = shell(serve + arguments + " 2>&1");
        EXPECT_NE(out.status, 0) << arguments;
        EXPECT_NE(out.text.find(why), std::string::npos) << arguments << ": " << out.text;
        EXPECT_EQ(out.text.find("/nowhere"), std::string::npos) << out.text;
    }
}

}  // namespace
