#include "learned_vocabulary.hpp"

#include <ggml-cpp.h>

#include <cstdio>
#include <cstdint>
#include <fstream>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

namespace test {
namespace {

using Pair = std::pair<std::string, std::string>;
constexpr std::size_t MERGES = 400, BYTES_TO_LEARN_FROM = 60000;
/** Types of tokens as llama.cpp numbers them. */
enum : std::int32_t { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6 };

/** Words of the text, each with the space before it, and how often they come. */
std::map<std::vector<std::string>, std::size_t> words() {
    std::ifstream file(DATA "/stream.txt", std::ios::binary);
    std::string text(BYTES_TO_LEARN_FROM, '\0');
    file.seekg(100000);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    std::map<std::vector<std::string>, std::size_t> words;
    std::vector<std::string> word;
    for (const char c : text) {
        const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!is_letter && !word.empty()) {
            words[std::exchange(word, {})]++;
        }
        if (is_letter || c == ' ') {
            word.emplace_back(1, c);
        }
    }
    return words;
}

/** The pairs of tokens that come most often, merged one after the other. */
std::vector<Pair> learn_merges() {
    auto all = words();
    std::vector<Pair> merges;
    while (merges.size() < MERGES) {
        std::map<Pair, std::size_t> counts;
        for (const auto &[word, count] : all) {
            for (std::size_t i = 0; i + 1 < word.size(); i++) {
                counts[{word[i], word[i + 1]}] += count;
            }
        }
        Pair best;
        std::size_t most = 0;
        for (const auto &[pair, count] : counts) {
            if (count > most) {
                best = pair;
                most = count;
            }
        }
        std::map<std::vector<std::string>, std::size_t> merged;
        for (const auto &[word, count] : all) {
            std::vector<std::string> shorter;
            for (std::size_t i = 0; i < word.size(); i++) {
                const bool is_pair = i + 1 < word.size() && word[i] == best.first && word[i + 1] == best.second;
                shorter.push_back(is_pair ? word[i] + word[i + 1] : word[i]);
                i += is_pair;
            }
            merged[shorter] += count;
        }
        all = std::move(merged);
        merges.push_back(best);
    }
    return merges;
}

std::string utf8(unsigned code) {
    if (code < 0x80) {
        return std::string(1, static_cast<char>(code));
    }
    return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

/** GPT-2's name of a byte: itself if it can be printed, else a character from U+0100 on. */
std::string name_of(unsigned char byte) {
    const auto printed = [](unsigned b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
    unsigned code = byte;
    if (!printed(byte)) {
        code = 256;
        for (unsigned b = 0; b < byte; b++) {
            code += !printed(b);
        }
    }
    return utf8(code);
}

std::string names_of(const std::string &bytes) {
    std::string names;
    for (const char c : bytes) {
        names += name_of(static_cast<unsigned char>(c));
    }
    return names;
}

/** SentencePiece writes a space as U+2581. */
std::string piece_of(const std::string &text) {
    std::string piece;
    for (const char c : text) {
        piece += c == ' ' ? "\xE2\x96\x81" : std::string(1, c);
    }
    return piece;
}

struct Tokens {
    std::vector<std::string> texts;
    std::vector<float> scores;
    std::vector<std::int32_t> types;

    std::uint32_t add(const std::string &text, std::int32_t type, float score = 0) {
        texts.push_back(text);
        scores.push_back(score);
        types.push_back(type);
        return static_cast<std::uint32_t>(texts.size() - 1);
    }
};

void set_texts(gguf_context *gguf, const char *key, const std::vector<std::string> &texts) {
    std::vector<const char *> pointers;
    for (const std::string &text : texts) {
        pointers.push_back(text.c_str());
    }
    gguf_set_arr_str(gguf, key, pointers.data(), pointers.size());
}

Tokens sentence_pieces(const std::vector<Pair> &merges) {
    Tokens tokens;
    tokens.add("<unk>", UNKNOWN);
    tokens.add("<s>", CONTROL);
    tokens.add("</s>", CONTROL);
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", byte);
        tokens.add(name, BYTE);
    }
    // Single letters, then what they are merged to: SentencePiece merges by the scores of the results.
    for (const char *range : {"az", "AZ", "  "}) {
        for (char c = range[0]; c <= range[1]; c++) {
            tokens.add(piece_of(std::string(1, c)), NORMAL, -1000);
        }
    }
    std::map<std::string, bool> known;
    for (std::size_t i = 0; i < merges.size(); i++) {
        const std::string piece = piece_of(merges[i].first + merges[i].second);
        if (!std::exchange(known[piece], true)) {
            tokens.add(piece, NORMAL, -static_cast<float>(i));
        }
    }
    return tokens;
}

Tokens byte_pairs(const std::vector<Pair> &merges) {
    Tokens tokens;
    for (unsigned byte = 0; byte < 256; byte++) {
        tokens.add(name_of(static_cast<unsigned char>(byte)), NORMAL);
    }
    std::map<std::string, bool> known;
    for (const auto &[left, right] : merges) {
        const std::string name = names_of(left + right);
        if (!std::exchange(known[name], true)) {
            tokens.add(name, NORMAL);
        }
    }
    return tokens;
}

}  // namespace

void write_vocabulary(const std::string &path, VocabularyKind kind) {
    static const auto merges = learn_merges();
    const bool pairs = kind == VocabularyKind::byte_pairs;
    Tokens tokens = pairs ? byte_pairs(merges) : sentence_pieces(merges);
    const std::uint32_t first = tokens.add("<|im_start|>", CONTROL), end = tokens.add("<|im_end|>", CONTROL);
    const gguf_context_ptr gguf(gguf_init_empty());
    gguf_context *const to = gguf.get();
    gguf_set_val_str(to, "general.architecture", "llama");
    gguf_set_val_str(to, "tokenizer.ggml.model", pairs ? "gpt2" : "llama");
    gguf_set_val_str(to, "tokenizer.ggml.pre", pairs ? "gpt-2" : "default");
    set_texts(to, "tokenizer.ggml.tokens", tokens.texts);
    gguf_set_arr_data(to, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, tokens.types.data(), tokens.types.size());
    gguf_set_val_u32(to, "tokenizer.ggml.bos_token_id", pairs ? first : 1);
    gguf_set_val_u32(to, "tokenizer.ggml.eos_token_id", end);
    gguf_set_val_str(to, "tokenizer.chat_template",
                     "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                     "<|im_start|>assistant\n");
    if (pairs) {
        std::vector<std::string> lines;
        for (const auto &[left, right] : merges) {
            lines.push_back(names_of(left) + " " + names_of(right));
        }
        set_texts(to, "tokenizer.ggml.merges", lines);
    } else {
        gguf_set_arr_data(to, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, tokens.scores.data(), tokens.scores.size());
    }
    if (!gguf_write_to_file(to, path.c_str(), false)) {
        throw std::runtime_error("cannot write " + path);
    }
}

}  // namespace test
