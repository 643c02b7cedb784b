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

/** The text of a token. */
std::string piece_of(const llama_vocab *vocab, llama_token token) {
    char text[256];
    const std::int32_t n = llama_token_to_piece(vocab, token, text, sizeof text, 0, false);
    return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}

struct Answer {
    std::string text;
    std::uint32_t n_tokens = 0;
    /** From the prompt to the first token, and to the last. */
    double first_ms = 0;
    double total_ms = 0;

    /** Speed after the first token. */
    double tokens_per_s() const {
        return n_tokens > 1 && total_ms > first_ms ? (n_tokens - 1) / (total_ms - first_ms) * 1e3 : 0;
    }
};

class Conversation {
public:
    Conversation(Engine &engine, const ChatSettings &s)
        : engine_(engine), settings_(s), sampler_(make_sampler(s)), template_(template_of(engine, s), s.system) {}

    /** Decodes a prompt, generates the answer, and prints it with its timings. */
    void round(const std::string &prompt);
    /** What a later conversation needs to go on. */
    SavedChat saved(const sinkcache::HostTag &tag) const {
        return {rounds_, processed_, pending_, template_.raw(), template_.state(), engine_.save(tag)};
    }
    /** Goes on with a saved conversation. */
    void resume(const SavedChat &chat, const sinkcache::HostTag &tag);

private:
    static std::string template_of(const Engine &engine, const ChatSettings &s) {
        const char *text = s.raw ? nullptr : llama_model_chat_template(engine.model(), nullptr);
        return text ? text : "";
    }

    void decode(const std::vector<llama_token> &tokens);
    void report(std::size_t n_prompt, const Answer &answer) const;

    Engine &engine_;
    const ChatSettings &settings_;
    llama_sampler_ptr sampler_;
    ChatTemplate template_;
    /** The last token of an answer that reached the limit: sampled and printed, not yet decoded. */
    std::vector<llama_token> pending_;
    std::uint64_t rounds_ = 0;
    std::uint64_t processed_ = 0;
};

void Conversation::decode(const std::vector<llama_token> &tokens) {
    for (std::size_t at = 0; at < tokens.size(); at += settings_.common.n_batch) {
        const auto end = std::min<std::size_t>(tokens.size(), at + settings_.common.n_batch);
        engine_.decode({tokens.begin() + std::ptrdiff_t(at), tokens.begin() + std::ptrdiff_t(end)}, false);
    }
    processed_ += tokens.size();
}

void Conversation::round(const std::string &prompt) {
    const llama_vocab *vocab = engine_.vocab();
    const Stopwatch watch;
    std::vector<llama_token> tokens = pending_;
    const auto prompt_tokens = tokenize(vocab, template_.next(prompt), rounds_ == 0, !template_.raw());
    tokens.insert(tokens.end(), prompt_tokens.begin(), prompt_tokens.end());
    pending_.clear();
    if (tokens.empty()) {
        throw UserError("round " + std::to_string(rounds_ + 1) + ": the prompt has no tokens");
    }
    decode(tokens);

    Answer answer;
    while (answer.n_tokens < settings_.predict) {
        const llama_token token = llama_sampler_sample(sampler_.get(), engine_.context(), -1);
        if (answer.n_tokens == 0) {
            answer.first_ms = watch.ms();
        }
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        const std::string text = piece_of(vocab, token);
        answer.text += text;
        ++answer.n_tokens;
        if (!settings_.json) {
            std::fwrite(text.data(), 1, text.size(), stdout);
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
    ++rounds_;
    report(tokens.size(), answer);
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
        const ordered_json record = {{"mode", engine_.mode()},
                                     {"round", rounds_},
                                     {"prompt_tokens", n_prompt},
                                     {"generated_tokens", answer.n_tokens},
                                     {"processed_tokens", processed_},
                                     {"ms_to_first_token", answer.first_ms},
                                     {"tokens_per_s", answer.tokens_per_s()},
                                     {"answer", answer.text}};
        std::printf("%s\n", record.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
        std::fflush(stdout);
    } else {
        std::printf("\n");
        std::fflush(stdout);
        std::fprintf(
            stderr,
            "[round %llu: prompt of %zu tokens, first token after %.1f ms, %u tokens at %.1f tokens/s, %llu in "
            "total]\n",
            static_cast<unsigned long long>(rounds_), n_prompt, answer.first_ms, answer.n_tokens, answer.tokens_per_s(),
            static_cast<unsigned long long>(processed_));
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
    const llama_model_ptr model = load_model(settings.common);
    const std::unique_ptr<Engine> engine = make_engine(model.get(), settings.common);
    Conversation conversation(*engine, settings);
    sinkcache::HostTag tag{};
    if (!settings.save.empty() || !settings.load.empty()) {
        tag = tag_of_model(settings.common.model);
    }
    if (!settings.load.empty()) {
        conversation.resume(load_chat(settings.load, tag), tag);
    }
    programs::LineReader lines(prompts);
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
            conversation.round(lines.text());
        }
    }
    if (!settings.save.empty()) {
        save_chat(settings.save, tag, conversation.saved(tag));
    }
}
