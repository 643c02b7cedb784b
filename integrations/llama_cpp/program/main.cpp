// llama-stream: a text or a conversation of any length through a GGUF, with sinkcache or with stock llama.cpp.
#include "chat.hpp"
#include "score.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>

namespace {

void quiet_llama(bool verbose) {
    if (!verbose) {
        llama_log_set(
            [](ggml_log_level level, const char *text, void *) {
                if (level == GGML_LOG_LEVEL_ERROR) {
                    std::fputs(text, stderr);
                }
            },
            nullptr);
    }
    llama_backend_init();
}

void common_options(CLI::App &app, Setting &s, bool &json, bool &verbose) {
    app.add_option("-m,--model", s.model, "GGUF file of a model")->required()->check(CLI::ExistingFile);
    app.add_option("--sink", s.sink, "Pinned first tokens")->capture_default_str();
    app.add_option("--window", s.window, "Most recent tokens")->capture_default_str();
    app.add_option("--kv-dtype", s.kv_dtype, "Type of K and V: f32, f16, bf16; with --stock also q8_0, q5_1, q5_0, q4_1, q4_0")
        ->capture_default_str();
    app.add_option("-t,--threads", s.threads, "Threads")->capture_default_str()->check(CLI::Range(1, 1024));
    app.add_flag("--stock", s.stock, "llama.cpp's own cache of the same size, and its context shift");
    app.add_option("--discard", s.discard, "With --stock: tokens dropped at the limit; 0 = half of what is no sink")
        ->capture_default_str();
    app.add_flag("!--no-flash", s.flash, "With --stock: without flash attention");
    app.add_flag("!--no-repack", s.repack, "Weights as they lie in the file: slower, but without AMX, which not every virtual machine grants");
    app.add_flag("--json", json, "Lines of JSON");
    app.add_flag("-v,--verbose", verbose, "llama.cpp's log");
}

}  // namespace

int main(int argc, char **argv) {
    const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
    ScoreSetting scoring;
    ChatSetting chatting;
    scoring.common.threads = chatting.common.threads = cores;
    bool verbose = false;

    CLI::App app("llama-stream: scores a text of any length at constant memory and time per token.\n"
                 "llama-stream chat: holds a conversation of any length.\nBoth through a GGUF, with sinkcache inside an "
                 "unmodified llama.cpp, or with --stock without it.");
    CLI::App chat_app("llama-stream chat: a conversation of any number of rounds. Prompts are lines of standard input or "
                          "of a file; the GGUF's chat template is used where it has one.");
    // Two programs under one name: options of the one are not options of the other.
    const bool is_chat = argc > 1 && std::string(argv[1]) == "chat";
    common_options(app, scoring.common, scoring.json, verbose);
    app.add_option("-f,--file", scoring.text, "Text to score")->required()->check(CLI::ExistingFile);
    app.add_option("-n,--tokens", scoring.tokens, "Tokens to stream; 0 = the whole text")
        ->capture_default_str()
        ->check(CLI::Range(std::uint64_t(0), std::uint64_t(1) << 40));
    app.add_option("--chunk", scoring.chunk, "Tokens at a time; 1 as in generation")
        ->capture_default_str()
        ->check(CLI::Range(1, 8192));
    app.add_option("--prefill", scoring.prefill, "Tokens at a time until the window is full, left out of the speed; 0 = as --chunk")
        ->capture_default_str()
        ->check(CLI::Range(0, 8192));
    app.add_option("--stride", scoring.stride, "Score every STRIDE-th token")->capture_default_str()->check(CLI::PositiveNumber);
    common_options(chat_app, chatting.common, chatting.json, verbose);
    chat_app.add_option("-f,--file", chatting.file, "Prompts, one a line; default standard input")->check(CLI::ExistingFile);
    chat_app.add_option("--system", chatting.system, "System message");
    chat_app.add_option("-n,--predict", chatting.predict, "Most tokens of an answer")->capture_default_str()->check(CLI::PositiveNumber);
    chat_app.add_option("--temp", chatting.temperature, "Temperature; 0 = the most likely token")->capture_default_str();
    chat_app.add_option("--seed", chatting.seed, "Seed of the sampler")->capture_default_str();
    chat_app.add_flag("--raw", chatting.raw, "Prompts as they are, without a chat template");
    CLI::App &chosen = is_chat ? chat_app : app;
    try {
        chosen.parse(is_chat ? argc - 1 : argc, is_chat ? argv + 1 : argv);
    } catch (const CLI::ParseError &e) {
        return chosen.exit(e);
    }
    try {
        quiet_llama(verbose);
        if (is_chat) {
            chatting.common.n_batch = std::min<std::uint32_t>(512, std::max<std::uint32_t>(1, chatting.common.window));
            chat(chatting);
        } else {
            scoring.common.n_batch = std::max(scoring.chunk, scoring.prefill);
            score(scoring);
        }
    } catch (const std::exception &e) {
        std::fprintf(stderr, "llama-stream: %s\n", e.what());
        return 1;
    }
    return 0;
}
