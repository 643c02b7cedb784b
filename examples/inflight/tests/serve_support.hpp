// inflight-serve run as a process.
#pragma once

#include "support.hpp"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <filesystem>
#include <sstream>
#include <unistd.h>

namespace test {

using Json = nlohmann::json;

struct Output {
    int status;
    std::string text;
};

inline Output shell(const std::string &command) {
    Output out{-1, ""};
    FILE *pipe = popen(command.c_str(), "r");
    char buffer[4096];
    for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
        out.text.append(buffer, n);
    }
    out.status = pclose(pipe);
    return out;
}

class ServeTest : public testing::Test {
protected:
    const std::string requests = testing::TempDir() + "inflight-" + std::to_string(getpid()) + ".jsonl";
    const std::string metrics = requests + ".prom";
    const std::string engine = " --requests " + requests + " --budget 80 --chunk 16 --sink 4 --quiet";
    const std::string settings = engine + " --model " + MODEL + " --max-seqs 6 --window 32";

    void write(const std::string &lines) { std::ofstream(requests) << lines; }
    void TearDown() override {
        std::filesystem::remove(requests);
        std::filesystem::remove(metrics);
    }
    static std::map<std::string, Json> parse(const std::string &text) {
        std::map<std::string, Json> results;
        std::istringstream in(text);
        for (std::string line; std::getline(in, line);) {
            const Json json = Json::parse(line);
            results[json.contains("totals") ? "totals" : json["id"].get<std::string>()] = json;
        }
        return results;
    }
    /** Text of the bundled file. */
    static std::string prompt(std::size_t from, std::size_t n) {
        std::string prompt;
        for (Token t : text(from, n)) {
            prompt += static_cast<char>(t - LlamaConfig::byte_offset);
        }
        return prompt;
    }
    /**
     * The program on two ranks; empty without MPI. Open MPI needs options to run as root, and to run more ranks than
     * there are cores. It leaks memory itself.
     */
    static std::string serve_on_two_ranks() {
        const std::string mpiexec = MPIEXEC, serve = SERVE;
        const std::string allow = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ";
        return mpiexec.empty() ? ""
                               : "ASAN_OPTIONS=detect_leaks=0 " + allow + mpiexec + " --oversubscribe -n 2 " + serve;
    }
};

}  // namespace test
