// Lines of requests, any bytes: each is a request within its limits, or an error of one line that is not long.
#include "requests_file.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace {

void expect(bool holds, const char *what) {
    if (!holds) {
        std::fprintf(stderr, "failed: %s\n", what);
        std::abort();
    }
}

/** A model whose vocabulary is bytes. */
inflight::LlamaConfig model() {
    inflight::LlamaConfig config{};
    config.vocabulary = 259;
    config.bos = 1;
    config.add_bos = true;
    config.bytes = true;
    return config;
}

void check(const inflight::Request &r, const inflight::LlamaConfig &config) {
    const std::size_t most = inflight::RequestReader::MAX_NAME;
    expect(!r.id.empty() && r.id.size() <= most, "an id has 1 to 256 bytes");
    expect(r.conversation.size() <= most && r.source.size() <= most, "a name has at most 256 bytes");
    expect((r.start == inflight::Start::empty) == r.source.empty(), "what continues or forks has a source");
    expect(!r.prompt.empty(), "a prompt has tokens");
    const auto is_token = [&](inflight::Token t) { return t >= 0 && std::size_t(t) < config.vocabulary; };
    expect(std::all_of(r.prompt.begin(), r.prompt.end(), is_token), "tokens are of the vocabulary");
    expect(r.pin_prompt <= r.prompt.size(), "pinned tokens are of the prompt");
    expect(r.drop.size() <= inflight::RequestReader::MAX_RANGES, "not too many ranges");
    expect(r.drop.empty() || r.start != inflight::Start::empty, "an empty sequence has nothing to drop");
    // Iterations are added to others.
    expect(r.arrival <= UINT64_MAX / 4 && r.cancel_after.value_or(0) <= UINT64_MAX / 4, "iterations can be added");
    if (r.drop_thoughts) {
        expect(is_token(r.drop_thoughts->open) && is_token(r.drop_thoughts->close), "markers are tokens");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    static inflight::LlamaConfig config = model();
    static const auto vocabulary = inflight::make_vocabulary("", config);
    std::istringstream in(std::string(reinterpret_cast<const char *>(data), size));
    inflight::RequestReader reader(in, config, *vocabulary);
    while (const auto line = reader.next()) {
        expect(line->request.has_value() == line->error.empty(), "a line is a request or an error");
        if (line->request) {
            check(*line->request, config);
        } else {
            expect(line->error.size() < 2000, "an error text is short");
            expect(line->error.find('\n') == std::string::npos, "an error text is one line");
        }
    }
    return 0;
}
