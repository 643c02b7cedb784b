// llama-stream: scores a text or holds a conversation of any length with a GGUF model, with sinkcache or stock
// llama.cpp.
#include "chat.hpp"
#include "command_line.hpp"
#include "compare.hpp"
#include "llama_log.hpp"
#include "score.hpp"
#include "storage_types.hpp"

#include <algorithm>
#include <exception>
#include <string>
#include <thread>

namespace {

void add_common_options(CLI::App &app, Settings &s, bool &json, bool &verbose) {
    app.add_option("-m,--model", s.model, "GGUF file of a model")->required()->check(CLI::ExistingFile);
    app.add_option("--sink", s.sink, "First tokens, which are never evicted")->capture_default_str();
    app.add_option("--window", s.window, "Most recent tokens")->capture_default_str();
    app.add_option("--kv-dtype", s.kv_dtype,
                   std::string("Type of K and V: ") + programs::STORAGE_TYPES_ALLOWED +
                       "; with --stock f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0")
        ->capture_default_str();
    app.add_option("-t,--threads", s.threads, "Threads")->capture_default_str()->check(CLI::Range(1, 1024));
    app.add_flag("--stock", s.stock, "Use llama.cpp's own cache of the same size, with context shift");
    app.add_option("--discard", s.discard,
                   "With --stock: tokens that a context shift discards; 0 = half of those after the sinks")
        ->capture_default_str();
    app.add_flag("!--no-flash", s.flash, "With --stock: without flash attention");
    app.add_flag("!--no-repack", s.repack,
                 "Do not repack weights: slower, but without AMX, which some virtual machines do not provide");
    app.add_flag("--json", json, "Print lines of JSON");
    app.add_flag("-v,--verbose", verbose, "Print llama.cpp's log");
}

/** The markers given, or the default ones. */
ThoughtMarkers markers_of(const std::vector<std::string> &given) {
    // Without values CLI11 stores one empty text.
    if (given.empty() || (given.size() == 1 && given[0].empty())) {
        return {};
    }
    if (given.size() != 2 || given[0].empty() || given[1].empty()) {
        throw UserError("--drop-thoughts takes two texts that are not empty, or none: <think> </think>");
    }
    return {given[0], given[1]};
}

}  // namespace

int main(int argc, char **argv) {
    const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
    ScoreSettings scoring;
    ChatSettings chatting;
    CompareSettings comparing;
    scoring.common.threads = cores;
    chatting.common.threads = cores;
    comparing.common.threads = cores;
    bool verbose = false;

    CLI::App app(
        "llama-stream: scores a text of any length at constant memory and time per token.\n"
        "llama-stream chat: holds a conversation of any length.\n"
        "llama-stream compare: a token's time beside llama.cpp's ways to stay within a window.\n"
        "All run a GGUF model in an unmodified llama.cpp with sinkcache as its KV cache, or with --stock without it.");
    CLI::App chat_app(
        "llama-stream chat: a conversation of any number of rounds. Prompts are lines of standard input or "
        "of a file; the chat template of the model is used if it has one.");
    CLI::App compare_app(
        "llama-stream compare: milliseconds per token in windows of several sizes, sinks included. Of llama.cpp: "
        "recomputing the window for every token, its context shifted by one token or by half, and a cache that is "
        "full and does not shift. And of sinkcache. All take turns.");
    // Three apps instead of subcommands, since they share few options.
    const std::string chosen_name = argc > 1 ? argv[1] : "";
    const bool is_chat = chosen_name == "chat", is_compare = chosen_name == "compare";
    add_common_options(app, scoring.common, scoring.json, verbose);
    app.add_option("-f,--file", scoring.text, "Text to score")->required()->check(CLI::ExistingFile);
    app.add_option("-n,--tokens", scoring.tokens, "Tokens to stream; 0 = the whole text")
        ->capture_default_str()
        ->check(CLI::Range(std::uint64_t(0), std::uint64_t(1) << 40));
    app.add_option("--chunk", scoring.chunk, "Tokens per decode; 1 as in generation")
        ->capture_default_str()
        ->check(CLI::Range(1, 8192));
    app.add_option("--prefill", scoring.prefill,
                   "Tokens per decode until the window is full, excluded from the speed; 0 = as --chunk")
        ->capture_default_str()
        ->check(CLI::Range(0, 8192));
    app.add_option("--stride", scoring.stride, "Score every STRIDE-th token")
        ->capture_default_str()
        ->check(CLI::Range(std::uint64_t(1), std::uint64_t(1) << 40));
    add_common_options(chat_app, chatting.common, chatting.json, verbose);
    chat_app.add_option("-f,--file", chatting.file, "File of prompts, one per line; default standard input")
        ->check(CLI::ExistingFile);
    const CLI::Validator named([](std::string &text) { return text.empty() ? "the name is empty" : ""; }, "FILE");
    chat_app.add_option("--save", chatting.save, "File that the conversation is written to at its end")->check(named);
    chat_app.add_option("--load", chatting.load, "File of a saved conversation, which goes on and is not read again")
        ->check(named);
    chat_app.add_option("--system", chatting.system, "System message");
    chat_app.add_flag("--pin-system", chatting.pin_system, "Keep the system message in the cache permanently");
    std::vector<std::string> markers;
    CLI::Option *const drop_thoughts =
        chat_app
            .add_option("--drop-thoughts", markers,
                        "Drop a model's thoughts from the cache when their answer is complete: what stands between "
                        "two markers, default <think> </think>")
            ->expected(0, 2)
            ->type_name("[OPEN CLOSE]");
    CLI::Option *const max_pinned =
        chat_app
            .add_option("--max-pinned", chatting.common.max_pinned,
                        "Room for pinned tokens; default with --pin-system: those of the system message")
            ->check(CLI::Range(std::uint32_t(0), std::uint32_t(1) << 24));
    CLI::Option *const max_segments =
        chat_app
            .add_option("--max-segments", chatting.common.max_segments,
                        "Room for pinned runs and dropped ranges; default 64 with --pin-system, --drop-thoughts, "
                        "--load or --max-pinned, else 0")
            ->check(CLI::Range(std::uint32_t(0), std::uint32_t(1024)));
    chat_app.add_option("-n,--predict", chatting.predict, "Most tokens of an answer")
        ->capture_default_str()
        ->check(CLI::Range(std::uint32_t(1), std::uint32_t(1) << 30));
    chat_app.add_option("--temp", chatting.temperature, "Temperature; 0 = the most likely token")
        ->capture_default_str();
    chat_app.add_option("--seed", chatting.seed, "Seed of the sampler")->capture_default_str();
    chat_app.add_flag("--raw", chatting.raw, "No chat template");
    Settings &c = comparing.common;
    compare_app.add_option("-m,--model", c.model, "GGUF file of a model")->required()->check(CLI::ExistingFile);
    compare_app.add_option("-f,--file", comparing.text, "Text, repeated if it is short")
        ->required()
        ->check(CLI::ExistingFile);
    compare_app.add_option("--windows", comparing.windows, "Tokens held, sinks included")
        ->capture_default_str()
        ->delimiter(',');
    compare_app.add_option("--sink", c.sink, "First tokens, which are never evicted")->capture_default_str();
    compare_app.add_option("-n,--tokens", comparing.tokens, "Tokens one by one in a round, of each way")
        ->capture_default_str()
        ->check(CLI::Range(2, 1024));
    compare_app.add_option("--rounds", comparing.rounds, "Rounds")->capture_default_str()->check(CLI::Range(1, 1000));
    // llama.cpp cannot shift K in bf16 on the CPU.
    compare_app.add_option("--kv-dtype", c.kv_dtype, "Type of K and V: f32 or f16")
        ->capture_default_str()
        ->check(CLI::IsMember({"f32", "f16"}));
    compare_app.add_option("-t,--threads", c.threads, "Threads")->capture_default_str()->check(CLI::Range(1, 1024));
    compare_app.add_flag("!--no-flash", c.flash, "llama.cpp without flash attention");
    compare_app.add_flag("!--no-repack", c.repack, "Do not repack weights");
    compare_app.add_flag("--json", comparing.json, "Print lines of JSON");
    compare_app.add_flag("-v,--verbose", verbose, "Print llama.cpp's log");
    CLI::App &chosen = is_chat ? chat_app : is_compare ? compare_app : app;
    const bool named_app = is_chat || is_compare;
    if (const auto code = programs::parse(chosen, named_app ? argc - 1 : argc, named_app ? argv + 1 : argv)) {
        return *code;
    }
    try {
        if (drop_thoughts->count() > 0) {
            chatting.drop_thoughts = markers_of(markers);
        }
        chatting.measure_pinned = max_pinned->count() == 0;
        const bool edits = chatting.pin_system || chatting.drop_thoughts || chatting.common.max_pinned > 0;
        if (max_segments->count() == 0 && (edits || !chatting.load.empty())) {
            chatting.common.max_segments = 64;
        }
        if (!verbose) {
            keep_errors();
        }
        llama_backend_init();
        if (is_chat) {
            chatting.common.n_batch = std::min<std::uint32_t>(512, std::max<std::uint32_t>(1, chatting.common.window));
            chat(chatting);
        } else if (is_compare) {
            compare(comparing);
        } else {
            scoring.common.n_batch = std::max(scoring.chunk, scoring.prefill);
            score(scoring);
        }
    } catch (const std::exception &e) {
        return programs::fail(e.what());
    }
    print_kept_errors();
    return programs::finish_output();
}
