#include "text.hpp"

#include "engine.hpp"

#include <fstream>

namespace {

/** More than llama.cpp can tokenize. The limit is for devices, which have no end. */
constexpr std::size_t MAX_BYTES = std::size_t(1) << 31;

}  // namespace

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string text;
    char part[1 << 16];
    while (file && text.size() < MAX_BYTES) {
        file.read(part, sizeof part);
        text.append(part, static_cast<std::size_t>(file.gcount()));
    }
    if (text.size() >= MAX_BYTES) {
        throw UserError("--file '" + path + "' has 2^31 bytes or more");
    }
    if (text.empty() || !file.eof()) {
        throw UserError("--file '" + path + "' is empty or cannot be read");
    }
    return text;
}

std::vector<llama_token> first_tokens(const llama_vocab *vocab, const std::string &text, std::uint64_t n) {
    // The last word of a prefix may be tokenized differently from the whole text.
    const std::uint64_t enough = n + 1 + 256;
    for (std::uint64_t bytes = n == 0 ? text.size() : enough;; bytes *= 2) {
        const bool all = bytes >= text.size();
        std::vector<llama_token> tokens = tokenize(vocab, all ? text : text.substr(0, bytes), true, false);
        if (all || tokens.size() >= enough) {
            return tokens;
        }
    }
}
