#include "chat.hpp"

#include "line_reader.hpp"
#include "measure.hpp"
#include "saved_chat.hpp"
#include "template.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>

#ifdef __unix__
#include <unistd.h>
#endif

namespace {

llama_sampler_ptr make_sampler(const ChatSettings &s) {
    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (s.temperature <= 0) {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    } else {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(0.05F, 1));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(s.temperature));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(s.seed));
    }
    return chain;
}

/** The text of a token; that of special tokens if `special`, otherwise theirs is empty. */
std::string piece_of(const llama_vocab *vocab, llama_token token, bool special = false) {
    char text[256];
    const std::int32_t n = llama_token_to_piece(vocab, token, text, sizeof text, 0, special);
    return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}

/** The model's chat template, or none if it has none or none is wanted. @throws UserError */
ChatTemplate chat_template(const llama_model *model, const ChatSettings &s) {
    const char *text = s.raw ? nullptr : llama_model_chat_template(model, nullptr);
    if (!text) {
        return {"", s.system};
    }
    const llama_vocab *vocab = llama_model_get_vocab(model);
    const auto piece = [&](llama_token token) {
        return token == LLAMA_TOKEN_NULL ? std::string() : piece_of(vocab, token, true);
    };
    const EdgeTokens edges{piece(llama_vocab_bos(vocab)), piece(llama_vocab_eos(vocab)),
                           llama_vocab_get_add_bos(vocab)};
    return {text, s.system, JinjaTemplate::make(text, edges)};
}

/** How many of the first tokens of a conversation are those of the system message. */
std::size_t system_tokens(const llama_vocab *vocab, const ChatTemplate &chat, const std::string &text,
                          const std::string &prompt, const std::vector<llama_token> &tokens) {
    const std::size_t bytes = chat.system_bytes(text, prompt);
    if (bytes == 0) {
        return 0;
    }
    // A token at the border may have bytes of both: it is the prompt's.
    const auto system = tokenize(vocab, text.substr(0, bytes), true, !chat.raw());
    const auto [own, ignored] = std::mismatch(system.begin(), system.end(), tokens.begin(), tokens.end());
    return static_cast<std::size_t>(own - system.begin());
}

struct Answer {
    std::string text;
    std::uint32_t n_tokens = 0;
    /** Tokens that the round has pinned, and those of thoughts that it has dropped. */
    std::uint64_t pinned = 0, dropped = 0;
    /** From the prompt to the first token, and to the last. */
    double first_ms = 0;
    double total_ms = 0;

    /** Speed after the first token. */
    double tokens_per_s() const {
        return n_tokens > 1 && total_ms > first_ms ? (n_tokens - 1) / (total_ms - first_ms) * 1e3 : 0;
    }
};

std::string counted(std::uint64_t n, const char *what) {
    return n > 0 ? ", " + std::to_string(n) + what : std::string();
}

class Conversation {
public:
    Conversation(Engine &engine, const ChatSettings &s)
        : engine_(engine), settings_(s), sampler_(make_sampler(s)),
          template_(chat_template(engine.model(), s)) {}

    /** Decodes a prompt, generates the answer, and prints it with its timings. */
    void round(const std::string &prompt);
    /** What a later conversation needs to go on. */
    SavedChat saved(const sinkcache::HostTag &tag) const {
        return {rounds_, processed_, pending_, template_.raw(), template_.state(), engine_.save(tag)};
    }
    /** Goes on with a saved conversation. */
    void resume(const SavedChat &chat, const sinkcache::HostTag &tag);

private:
    void decode(const std::vector<llama_token> &tokens, std::size_t n_pinned = 0);
    std::uint64_t pin(std::uint64_t first, std::uint64_t end);
    std::uint64_t drop_thoughts(const std::vector<llama_token> &tokens, std::size_t answer);
    void note(const std::string &text) const;
    void note_first_round();
    void report(std::size_t n_prompt, const Answer &answer) const;

    Engine &engine_;
    const ChatSettings &settings_;
    llama_sampler_ptr sampler_;
    ChatTemplate template_;
    /** The last token of an answer that reached the limit: sampled and printed, not yet decoded. */
    std::vector<llama_token> pending_;
    std::uint64_t rounds_ = 0;
    /** Tokens decoded, which is the length of the sequence. */
    std::uint64_t processed_ = 0;
    /** Tokens that the round has pinned. */
    std::uint64_t pinned_ = 0;
    /** Tokens of the first round; 0 when it has been said that they have left the window. */
    std::uint64_t first_round_ = 0;
};

/** Pins the first `n_pinned` tokens batch by batch, before the window moves past them. */
void Conversation::decode(const std::vector<llama_token> &tokens, std::size_t n_pinned) {
    for (std::size_t at = 0; at < tokens.size(); at += settings_.common.n_batch) {
        const auto end = std::min<std::size_t>(tokens.size(), at + settings_.common.n_batch);
        engine_.decode({tokens.begin() + std::ptrdiff_t(at), tokens.begin() + std::ptrdiff_t(end)}, false);
        if (at < n_pinned) {
            pinned_ += pin(processed_ + at, processed_ + std::min(end, n_pinned));
        }
    }
    processed_ += tokens.size();
}

/** Pins tokens by their index. Returns how many; sinks need no pin. */
std::uint64_t Conversation::pin(std::uint64_t first, std::uint64_t end) {
    first = std::max<std::uint64_t>(first, settings_.common.sink);
    if (first >= end) {
        return 0;
    }
    try {
        engine_.pin(first, static_cast<std::uint32_t>(end - first));
    } catch (const sinkcache::Error &error) {
        if (error.status() != SKC_STATUS_NO_ROOM && error.status() != SKC_STATUS_TOKENS_GONE) {
            throw;
        }
        note(std::to_string(end - first) + " tokens of the system message are not pinned: " + error.what());
        return 0;
    }
    return end - first;
}

/**
 * Drops the thoughts of an answer from the cache: `tokens` are those of the prompt and from `answer` on the answer's,
 * the last of the sequence. Returns how many were dropped.
 */
std::uint64_t Conversation::drop_thoughts(const std::vector<llama_token> &tokens, std::size_t answer) {
    std::vector<std::string> pieces;
    for (const llama_token token : tokens) {
        pieces.push_back(piece_of(engine_.vocab(), token, true));
    }
    // A pending token is not in the cache.
    const std::uint64_t begin = processed_ + pending_.size() - tokens.size();
    std::uint64_t dropped = 0;
    for (const TokenSpan &thought : find_thoughts(pieces, answer, *settings_.drop_thoughts)) {
        const std::uint64_t first = std::max<std::uint64_t>(begin + thought.first, settings_.common.sink);
        const std::uint64_t end = std::min(begin + thought.end, processed_);
        try {
            if (first < end) {
                engine_.evict_range(first, static_cast<std::uint32_t>(end - first));
                dropped += end - first;
            }
            if (begin + thought.end > processed_) {
                pending_.clear();
            }
        } catch (const sinkcache::Error &error) {
            if (error.status() != SKC_STATUS_NO_ROOM) {
                throw;
            }
            note(std::to_string(end - first) + " tokens of thoughts stay in the cache: " + error.what());
        }
    }
    return dropped;
}

void Conversation::note(const std::string &text) const {
    std::fprintf(stderr, "[round %llu: %s]\n", static_cast<unsigned long long>(rounds_ + 1), text.c_str());
}

/** Once: that of the first round only sinks and pinned tokens are left. */
void Conversation::note_first_round() {
    if (settings_.common.stock || first_round_ == 0 || processed_ < first_round_ + settings_.common.window) {
        return;
    }
    note("the first round has left the window of " + std::to_string(settings_.common.window) + " tokens, but for " +
         std::to_string(settings_.common.sink) + " sinks" +
         (settings_.pin_system ? " and the pinned system message" : ""));
    first_round_ = 0;
}

void Conversation::round(const std::string &prompt) {
    const llama_vocab *vocab = engine_.vocab();
    const Stopwatch watch;
    std::vector<llama_token> tokens = pending_;
    const std::string text = template_.next(prompt);
    const auto prompt_tokens = tokenize(vocab, text, rounds_ == 0, !template_.raw());
    tokens.insert(tokens.end(), prompt_tokens.begin(), prompt_tokens.end());
    pending_.clear();
    if (tokens.empty()) {
        throw UserError("round " + std::to_string(rounds_ + 1) + ": the prompt has no tokens");
    }
    pinned_ = 0;
    const bool pins = settings_.pin_system && rounds_ == 0;
    decode(tokens, pins ? system_tokens(vocab, template_, text, prompt, tokens) : 0);

    Answer answer;
    const std::size_t n_prompt = tokens.size();
    while (answer.n_tokens < settings_.predict) {
        const llama_token token = llama_sampler_sample(sampler_.get(), engine_.context(), -1);
        if (answer.n_tokens == 0) {
            answer.first_ms = watch.ms();
        }
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        const std::string piece = piece_of(vocab, token);
        answer.text += piece;
        ++answer.n_tokens;
        tokens.push_back(token);
        if (!settings_.json) {
            std::fwrite(piece.data(), 1, piece.size(), stdout);
            std::fflush(stdout);
        }
        if (answer.n_tokens == settings_.predict) {
            pending_ = {token};
        } else {
            decode({token});
        }
    }
    answer.total_ms = watch.ms();
    template_.answered(answer.text);
    if (settings_.drop_thoughts) {
        answer.dropped = drop_thoughts(tokens, n_prompt);
    }
    answer.pinned = pinned_;
    if (rounds_ == 0) {
        first_round_ = processed_;
    }
    note_first_round();
    ++rounds_;
    report(n_prompt, answer);
}

void Conversation::resume(const SavedChat &chat, const sinkcache::HostTag &tag) {
    if (chat.raw != template_.raw()) {
        throw UserError("--load '" + settings_.load + "' was saved " + (chat.raw ? "with" : "without") +
                        " --raw, or with a model that has " + (chat.raw ? "no" : "a") + " chat template");
    }
    const std::int32_t vocabulary = llama_vocab_n_tokens(engine_.vocab());
    if (std::any_of(chat.pending.begin(), chat.pending.end(), [&](auto t) { return t < 0 || t >= vocabulary; })) {
        throw UserError("--load '" + settings_.load + "' has a token that the model has not");
    }
    engine_.load(chat.sequence, tag);
    rounds_ = chat.rounds;
    processed_ = chat.processed;
    pending_ = chat.pending;
    template_.resume(chat.text);
}

void Conversation::report(std::size_t n_prompt, const Answer &answer) const {
    if (settings_.json) {
        using nlohmann::ordered_json;
        ordered_json record = {{"mode", engine_.mode()},
                                     {"round", rounds_},
                                     {"prompt_tokens", n_prompt},
                                     {"generated_tokens", answer.n_tokens},
                                     {"processed_tokens", processed_},
                                     {"ms_to_first_token", answer.first_ms},
                                     {"tokens_per_s", answer.tokens_per_s()},
                                     {"answer", answer.text}};
        if (answer.pinned > 0) {
            record["pinned_tokens"] = answer.pinned;
        }
        if (settings_.drop_thoughts) {
            record["dropped_tokens"] = answer.dropped;
        }
        std::printf("%s\n", record.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
        std::fflush(stdout);
    } else {
        std::printf("\n");
        std::fflush(stdout);
        std::fprintf(
            stderr,
            "[round %llu: prompt of %zu tokens, first token after %.1f ms, %u tokens at %.1f tokens/s, %llu in "
            "total%s%s]\n",
            static_cast<unsigned long long>(rounds_), n_prompt, answer.first_ms, answer.n_tokens, answer.tokens_per_s(),
            static_cast<unsigned long long>(processed_), counted(answer.pinned, " pinned").c_str(),
            counted(answer.dropped, " dropped").c_str());
    }
}

/** What is wrong with --save and --load must not show at the end of a conversation. */
void check_files(const ChatSettings &settings) {
    const bool any = !settings.save.empty() || !settings.load.empty();
    if (any && settings.common.stock) {
        throw UserError("--save and --load need sinkcache: not --stock");
    }
    if (!settings.load.empty() && !settings.system.empty()) {
        throw UserError("--system with --load: the saved conversation has begun already");
    }
    if (!settings.save.empty()) {
        check_writable(settings.save);
    }
}

void check_edits(const ChatSettings &settings) {
    if (settings.pin_system && settings.system.empty()) {
        throw UserError("--pin-system needs --system");
    }
    if (settings.common.stock && (settings.pin_system || settings.drop_thoughts)) {
        throw UserError("--pin-system and --drop-thoughts need sinkcache: not --stock");
    }
    if (settings.pin_system && !settings.measure_pinned && settings.common.max_pinned == 0) {
        throw UserError("--pin-system with --max-pinned 0: there is no room for the system message");
    }
    const char *needs_segments = settings.pin_system              ? "--pin-system"
                                 : settings.drop_thoughts         ? "--drop-thoughts"
                                 : settings.common.max_pinned > 0 ? "--max-pinned"
                                                                 : nullptr;
    if (needs_segments && settings.common.max_segments == 0) {
        throw UserError(std::string(needs_segments) + " with --max-segments 0: a pinned run or a dropped range is a " +
                        "segment, at least 1 is needed");
    }
}

/** Room for the pins of a system message. The first prompt is not known yet, and matters little. */
std::uint32_t pinned_room(const llama_model *model, const ChatSettings &settings) {
    const llama_vocab *vocab = llama_model_get_vocab(model);
    ChatTemplate chat = chat_template(model, settings);
    const std::string prompt = "a", text = chat.next(prompt);
    const auto tokens = tokenize(vocab, text, true, !chat.raw());
    // The token at the border may become one of the system message's.
    return static_cast<std::uint32_t>(system_tokens(vocab, chat, text, prompt, tokens) + 1);
}

/** Positions beyond those that a model was trained with cost quality. */
void warn_of_context(const llama_model *model, const Settings &settings) {
    const auto trained = static_cast<std::uint64_t>(std::max(0, llama_model_n_ctx_train(model)));
    const std::uint64_t reached = std::uint64_t{settings.sink} + settings.max_pinned + settings.window;
    if (!settings.stock && trained > 0 && reached > trained) {
        std::fprintf(stderr,
                     "[--sink, pinned tokens and --window reach %llu positions: the model was trained with %llu]\n",
                     static_cast<unsigned long long>(reached), static_cast<unsigned long long>(trained));
    }
}

}  // namespace

void chat(const ChatSettings &settings) {
    std::ifstream file;
    if (!settings.file.empty()) {
        file.open(settings.file);
        if (!file) {
            throw UserError("--file '" + settings.file + "' cannot be read");
        }
    }
    std::istream &prompts = settings.file.empty() ? std::cin : file;
#ifdef __unix__
    const bool interactive = settings.file.empty() && isatty(STDIN_FILENO) != 0;
#else
    const bool interactive = false;
#endif
    if (!std::isfinite(settings.temperature)) {
        throw UserError("--temp " + std::to_string(settings.temperature) + ": it must be finite");
    }
    check_files(settings);
    check_edits(settings);
    const llama_model_ptr model = load_model(settings.common);
    Settings common = settings.common;
    if (settings.pin_system && settings.measure_pinned) {
        common.max_pinned = pinned_room(model.get(), settings);
    }
    const std::unique_ptr<Engine> engine = make_engine(model.get(), common);
    Conversation conversation(*engine, settings);
    sinkcache::HostTag tag{};
    if (!settings.save.empty() || !settings.load.empty()) {
        tag = tag_of_model(settings.common.model);
    }
    if (!settings.load.empty()) {
        conversation.resume(load_chat(settings.load, tag), tag);
    }
    programs::LineReader lines(prompts);
    bool warned = false;
    for (;;) {
        if (interactive) {
            std::fprintf(stderr, "> ");
        }
        if (!lines.next()) {
            break;
        }
        if (lines.cut()) {
            throw UserError("line " + std::to_string(lines.number()) + " of the prompts has more than " +
                            std::to_string(lines.max_bytes()) + " bytes");
        }
        if (!lines.text().empty()) {
            if (!warned) {
                warn_of_context(model.get(), common);
                warned = true;
            }
            conversation.round(lines.text());
        }
    }
    if (!settings.save.empty()) {
        save_chat(settings.save, tag, conversation.saved(tag));
    }
}
