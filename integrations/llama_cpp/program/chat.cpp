#include "chat.hpp"

#include "measure.hpp"
#include "template.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>

#ifdef __unix__
#include <unistd.h>
#endif

namespace {

struct FreeSampler {
    void operator()(llama_sampler *s) const { llama_sampler_free(s); }
};

std::unique_ptr<llama_sampler, FreeSampler> make_sampler(const ChatSetting &s) {
    std::unique_ptr<llama_sampler, FreeSampler> chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (s.temperature <= 0) {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    } else {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(0.05F, 1));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(s.temperature));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(s.seed));
    }
    return chain;
}

std::string piece(const llama_vocab *vocab, llama_token token) {
    char text[256];
    const std::int32_t n = llama_token_to_piece(vocab, token, text, sizeof text, 0, false);
    return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}

class Conversation {
public:
    Conversation(Engine &engine, const ChatSetting &s)
        : engine_(engine), setting_(s), sampler_(make_sampler(s)), template_(template_of(engine, s), s.system) {}

    /** Reads a prompt and prints the answer and its timings. */
    void round(const std::string &prompt);

private:
    static std::string template_of(const Engine &engine, const ChatSetting &s) {
        const char *text = s.raw ? nullptr : llama_model_chat_template(engine.model(), nullptr);
        return text ? text : "";
    }

    void read(const std::vector<llama_token> &tokens);

    Engine &engine_;
    const ChatSetting &setting_;
    std::unique_ptr<llama_sampler, FreeSampler> sampler_;
    ChatTemplate template_;
    /** The last token of an answer that was cut off: sampled and printed, not yet read by the model. */
    std::vector<llama_token> pending_;
    std::uint64_t rounds_ = 0;
    std::uint64_t processed_ = 0;
};

void Conversation::read(const std::vector<llama_token> &tokens) {
    for (std::size_t at = 0; at < tokens.size(); at += setting_.common.n_batch) {
        const auto end = std::min<std::size_t>(tokens.size(), at + setting_.common.n_batch);
        engine_.decode({tokens.begin() + std::ptrdiff_t(at), tokens.begin() + std::ptrdiff_t(end)}, false);
    }
    processed_ += tokens.size();
}

void Conversation::round(const std::string &prompt) {
    const llama_vocab *vocab = engine_.vocab();
    const Stopwatch watch;
    std::vector<llama_token> tokens = pending_;
    const auto fresh = tokenize(vocab, template_.next(prompt), rounds_ == 0, !template_.raw());
    tokens.insert(tokens.end(), fresh.begin(), fresh.end());
    pending_.clear();
    if (tokens.empty()) {
        throw UserError("round " + std::to_string(rounds_ + 1) + ": the prompt has no tokens");
    }
    read(tokens);

    std::string answer;
    std::uint32_t generated = 0;
    double first_ms = 0;
    while (generated < setting_.predict) {
        const llama_token token = llama_sampler_sample(sampler_.get(), engine_.context(), -1);
        if (generated == 0) {
            first_ms = watch.ms();
        }
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        const std::string text = piece(vocab, token);
        answer += text;
        ++generated;
        if (!setting_.json) {
            std::fwrite(text.data(), 1, text.size(), stdout);
            std::fflush(stdout);
        }
        if (generated == setting_.predict) {
            pending_ = {token};
        } else {
            read({token});
        }
    }
    const double ms = watch.ms();
    template_.answered(answer);
    ++rounds_;
    const double speed = generated > 1 && ms > first_ms ? (generated - 1) / (ms - first_ms) * 1e3 : 0;
    if (setting_.json) {
        const nlohmann::ordered_json record = {
            {"mode", engine_.mode()},       {"round", rounds_},           {"prompt_tokens", tokens.size()},
            {"generated_tokens", generated}, {"processed_tokens", processed_}, {"ms_to_first_token", first_ms},
            {"tokens_per_s", speed},        {"answer", answer}};
        using nlohmann::ordered_json;
        std::printf("%s\n", record.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
        std::fflush(stdout);
    } else {
        std::printf("\n");
        std::fflush(stdout);
        std::fprintf(stderr, "[round %llu: %zu tokens read, first token after %.1f ms, %u tokens at %.1f tokens/s, %llu in all]\n",
                     static_cast<unsigned long long>(rounds_), tokens.size(), first_ms, generated, speed,
                     static_cast<unsigned long long>(processed_));
    }
}

}  // namespace

void chat(const ChatSetting &setting) {
    std::ifstream file;
    if (!setting.file.empty()) {
        file.open(setting.file);
        if (!file) {
            throw UserError("--file '" + setting.file + "' cannot be read");
        }
    }
    std::istream &prompts = setting.file.empty() ? std::cin : file;
#ifdef __unix__
    const bool ask = setting.file.empty() && isatty(STDIN_FILENO) != 0;
#else
    const bool ask = false;
#endif
    const Model model = load_model(setting.common);
    const std::unique_ptr<Engine> engine = make_engine(model.get(), setting.common);
    Conversation conversation(*engine, setting);
    std::string prompt;
    for (;;) {
        if (ask) {
            std::fprintf(stderr, "> ");
        }
        if (!std::getline(prompts, prompt)) {
            break;
        }
        if (!prompt.empty()) {
            conversation.round(prompt);
        }
    }
}
