// llama_state_ functions and files of served contexts.
#include "served.hpp"

#include "sinkcache_llama.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes state_of(llama_context *ctx, llama_seq_id seq_id = 0) {
    Bytes state(llama_state_seq_get_size(ctx, seq_id));
    EXPECT_GT(state.size(), 32U);
    EXPECT_EQ(llama_state_seq_get_data(ctx, state.data(), state.size(), seq_id), state.size());
    return state;
}

std::size_t set_state(llama_context *ctx, const Bytes &state, llama_seq_id seq_id = 0) {
    return llama_state_seq_set_data(ctx, state.data(), state.size(), seq_id);
}

class ServedStates : public ServedTest {
protected:
    llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 2));
    const std::string path = testing::TempDir() + "skc_state_" + std::to_string(std::random_device()());

    ~ServedStates() override { std::remove(path.c_str()); }

    /** Loading is refused with the text, and changes nothing: the sequence has `length` tokens and goes on. */
    void expect_refused(const Bytes &state, const std::string &reason, std::size_t length) {
        const std::string text = log_of([&] { EXPECT_EQ(set_state(ctx.get(), state), 0U); });
        EXPECT_NE(text.find(reason), std::string::npos) << text;
        EXPECT_EQ(next(ctx.get()), llama_pos(length));
    }
};

}  // namespace

TEST_F(ServedStates, ASequenceGoesOnInAnotherContextWithTheSameBits) {
    for (const std::size_t length : {0U, 1U, 50U, 200U}) {
        llama_memory_clear(llama_get_memory(ctx.get()), true);
        decode(ctx.get(), slice(tokens, 0, length), 20);
        const Bytes state = state_of(ctx.get());
        const Rows expected = decode(ctx.get(), slice(tokens, length, length + 60), 20);
        const llama_context_ptr other = serve(model.get(), served_params(64, 64, 2));
        decode(other.get(), slice(tokens, 100, 140), 20, 1);
        // More bytes than the state has are no error, as with llama.cpp.
        Bytes longer = state;
        longer.resize(state.size() + 100);
        EXPECT_EQ(set_state(other.get(), longer, 1), state.size());
        EXPECT_EQ(next(other.get(), 1), llama_pos(length));
        EXPECT_EQ(decode(other.get(), slice(tokens, length, length + 60), 20, 1, llama_pos(length)), expected);
        EXPECT_EQ(set_state(ctx.get(), state), state.size());
        EXPECT_EQ(decode(ctx.get(), slice(tokens, length, length + 60), 20), expected);
    }
}

// A part of a state, and one that stays on a device, are whole states here.
TEST_F(ServedStates, FlagsMakeNoDifference) {
    decode(ctx.get(), slice(tokens, 0, 100), 20);
    const Bytes state = state_of(ctx.get());
    for (const llama_state_seq_flags flags : {LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, LLAMA_STATE_SEQ_FLAGS_ON_DEVICE}) {
        Bytes other(llama_state_seq_get_size_ext(ctx.get(), 0, flags));
        EXPECT_EQ(llama_state_seq_get_data_ext(ctx.get(), other.data(), other.size(), 0, flags), state.size());
        EXPECT_EQ(other, state);
        EXPECT_EQ(llama_state_seq_set_data_ext(ctx.get(), other.data(), other.size(), 1, flags), state.size());
    }
    expect_continues(ctx.get(), 100, 1);
}

TEST_F(ServedStates, WhatIsNoStateIsRefusedAndChangesNothing) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const Bytes state = state_of(ctx.get());
    decode(ctx.get(), slice(tokens, 150, 160), 20);

    expect_refused({}, "a state of 0 bytes", 160);
    expect_refused(Bytes(state.begin(), state.begin() + 20), "a state of 20 bytes", 160);
    expect_refused(Bytes(state.begin(), state.end() - 1), "bytes, of which there are", 160);
    for (std::size_t at = 0; at < state.size(); at += state.size() / 97) {
        Bytes damaged = state;
        damaged[at] ^= 0x10;
        expect_refused(damaged, "SKC_STATUS_INVALID_SNAPSHOT", 160);
    }
    // llama.cpp's own state of as many tokens.
    const llama_context_ptr plain = stock(model.get(), 256);
    run(plain.get(), slice(tokens, 0, 150), 50);
    expect_refused(state_of(plain.get()), "a state that sinkcache has not written", 160);
    // And the other way round.
    EXPECT_EQ(set_state(plain.get(), state), 0U);
    expect_continues(ctx.get(), 160);

    const std::string room = log_of([&] {
        Bytes small(state.size() - 1);
        EXPECT_EQ(llama_state_seq_get_data(ctx.get(), small.data(), small.size(), 0), 0U);
    });
    EXPECT_NE(room.find("there is room for " + std::to_string(state.size() - 1)), std::string::npos) << room;
    const std::string sequence = log_of([&] {
        EXPECT_EQ(set_state(ctx.get(), state, 2), 0U);
        EXPECT_EQ(llama_state_seq_get_size(ctx.get(), -1), 0U);
    });
    EXPECT_NE(sequence.find("sequence 2 does not exist"), std::string::npos) << sequence;
    EXPECT_NE(sequence.find("sequence -1 does not exist"), std::string::npos) << sequence;
}

TEST_F(ServedStates, OfAnotherModelOrSettingAreRefused) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const auto state_with = [&](llama_model *m, std::initializer_list<Variable> variables) {
        const Environment environment(variables);
        const llama_context_ptr other = serve(m, served_params());
        decode(other.get(), slice(tokens, 0, 150), 20);
        return state_of(other.get());
    };
    // The same shapes and metadata, with other weights.
    const RandomModel random = decoder("llama");
    random.write(path, 2);
    const llama_model_ptr alike = load(path);
    expect_refused(state_with(alike.get(), {}), "host_tag is ", 150);
    expect_refused(state_with(model.get(), {{"WINDOW", "61"}}), "window", 150);
    expect_refused(state_with(model.get(), {{"SINK", "3"}, {"WINDOW", "60"}}), "n_sink", 150);
    expect_refused(state_with(model.get(), {{"KV", "f16"}}), "storage type of K", 150);
    expect_continues(ctx.get(), 150);
}

TEST_F(ServedStates, AnUnusableSequenceIsSavedAsOne) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const llama_memory_t memory = llama_get_memory(ctx.get());
    log_of([&] { llama_memory_seq_add(memory, 0, 10, 20, -1); });
    Bytes state(llama_state_seq_get_size(ctx.get(), 0));
    EXPECT_EQ(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 0), state.size());
    decode(ctx.get(), slice(tokens, 0, 50), 20, 1);
    const std::string text = log_of([&] { EXPECT_EQ(set_state(ctx.get(), state, 1), state.size()); });
    EXPECT_NE(text.find("sequence 1 is unusable until it is cleared"), std::string::npos) << text;
    OwnBatch batch(slice(tokens, 0, 3), 1, 150);
    log_of([&] { EXPECT_EQ(llama_decode(ctx.get(), batch.get()), -1); });
    EXPECT_TRUE(llama_memory_seq_rm(memory, 1, -1, -1));
    expect_continues(ctx.get(), 0, 1);
}

TEST_F(ServedStates, OfAWholeContext) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    decode(ctx.get(), slice(tokens, 0, 70), 20, 1);
    Bytes state(llama_state_get_size(ctx.get()));
    EXPECT_EQ(llama_state_get_data(ctx.get(), state.data(), state.size()), state.size());
    const llama_context_ptr other = serve(model.get(), served_params(64, 64, 3));
    decode(other.get(), slice(tokens, 0, 30), 20, 2);
    EXPECT_EQ(llama_state_set_data(other.get(), state.data(), state.size()), state.size());
    expect_continues(other.get(), 150);
    expect_continues(other.get(), 70, 1);
    EXPECT_EQ(next(other.get(), 2), 0) << "a sequence that the state does not have";

    const llama_context_ptr fewer = serve(model.get(), served_params());
    decode(fewer.get(), slice(tokens, 0, 20), 20);
    const std::string text =
        log_of([&] { EXPECT_EQ(llama_state_set_data(fewer.get(), state.data(), state.size()), 0U); });
    EXPECT_NE(text.find("it has 2 sequences: the context has 1"), std::string::npos) << text;
    log_of([&] {
        EXPECT_EQ(set_state(fewer.get(), state), 0U) << "of a context, into a sequence";
        const Bytes one = state_of(ctx.get());
        EXPECT_EQ(llama_state_set_data(fewer.get(), one.data(), one.size()), 0U) << "of a sequence, into a context";
        EXPECT_EQ(llama_state_get_data(ctx.get(), state.data(), 31), 0U);
        EXPECT_EQ(llama_state_get_data(ctx.get(), state.data(), state.size() - 1), 0U);
    });
    expect_continues(fewer.get(), 20);
}

TEST_F(ServedStates, InFilesOfSequences) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const std::size_t written = llama_state_seq_save_file(ctx.get(), path.c_str(), 0, tokens.data(), 150);
    EXPECT_EQ(written, 12 + 150 * sizeof(llama_token) + llama_state_seq_get_size(ctx.get(), 0));

    std::size_t n = 0;
    EXPECT_EQ(llama_state_seq_load_file(ctx.get(), path.c_str(), 1, nullptr, 0, &n), 12 + 150 * sizeof(llama_token));
    EXPECT_EQ(n, 150U);
    EXPECT_EQ(next(ctx.get(), 1), 0) << "tokens are counted only";
    Tokens read(200);
    EXPECT_EQ(llama_state_seq_load_file(ctx.get(), path.c_str(), 1, read.data(), read.size(), &n), written);
    EXPECT_EQ(n, 150U);
    EXPECT_EQ(slice(read, 0, n), slice(tokens, 0, 150));
    expect_continues(ctx.get(), 150, 1);

    const auto refused = [&](const std::string &file, std::size_t room, const std::string &reason) {
        const std::string text = log_of([&] {
            EXPECT_EQ(llama_state_seq_load_file(ctx.get(), file.c_str(), 0, read.data(), room, &n), 0U);
        });
        EXPECT_NE(text.find(reason), std::string::npos) << text;
    };
    refused(path, 149, "it has 150 tokens: there is room for 149");
    refused(path + ".none", 200, "No such file");
    std::ifstream in(path, std::ios::binary);
    const std::string whole((std::istreambuf_iterator<char>(in)), {});
    const auto write = [&](const std::string &bytes) { std::ofstream(path, std::ios::binary) << bytes; };
    write(whole.substr(0, 7));
    refused(path, 200, "it has 7 bytes");
    write(whole.substr(0, 100));
    refused(path, 200, "names 150 tokens");
    write("x" + whole.substr(1));
    refused(path, 200, "no file of this kind");
    write(whole.substr(0, whole.size() - 1));
    refused(path, 200, "of which there are");
    write(whole + "y");
    llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1);
    refused(path, 200, "it has 1 bytes behind its state");
    EXPECT_EQ(next(ctx.get()), 0) << "a state that is not loaded as a whole is not loaded at all";
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const std::string none = log_of([&] {
        EXPECT_EQ(llama_state_seq_save_file(ctx.get(), "/nonexistent/x", 0, tokens.data(), 150), 0U);
    });
    EXPECT_NE(none.find("saving file '/nonexistent/x': No such file"), std::string::npos) << none;
    expect_continues(ctx.get(), 150);
}

TEST_F(ServedStates, InFilesOfContexts) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    decode(ctx.get(), slice(tokens, 0, 70), 20, 1);
    ASSERT_TRUE(llama_state_save_file(ctx.get(), path.c_str(), tokens.data(), 150));
    const llama_context_ptr other = serve(model.get(), served_params(64, 64, 2));
    Tokens read(150);
    std::size_t n = 0;
    ASSERT_TRUE(llama_state_load_file(other.get(), path.c_str(), read.data(), read.size(), &n));
    EXPECT_EQ(n, 150U);
    EXPECT_EQ(read, slice(tokens, 0, 150));
    expect_continues(other.get(), 150);
    expect_continues(other.get(), 70, 1);
    // llama.cpp refuses it.
    const llama_context_ptr plain = stock(model.get(), 256);
    EXPECT_FALSE(llama_state_load_file(plain.get(), path.c_str(), read.data(), read.size(), &n));
    log_of([&] {
        EXPECT_FALSE(llama_state_load_file(other.get(), path.c_str(), read.data(), 149, &n));
        ASSERT_TRUE(llama_state_save_file(plain.get(), path.c_str(), tokens.data(), 10));
        EXPECT_FALSE(llama_state_load_file(other.get(), path.c_str(), read.data(), read.size(), &n));
        EXPECT_FALSE(llama_state_save_file(other.get(), "/dev/full", tokens.data(), 10));
    });
    EXPECT_EQ(next(other.get()), 300);
    ASSERT_TRUE(llama_state_save_file(ctx.get(), path.c_str(), tokens.data(), 150));
    std::ofstream(path, std::ios::binary | std::ios::app) << "yz";
    const std::string text = log_of([&] {
        EXPECT_FALSE(llama_state_load_file(other.get(), path.c_str(), read.data(), read.size(), &n));
    });
    EXPECT_NE(text.find("it has 2 bytes behind its state"), std::string::npos) << text;
    EXPECT_EQ(next(other.get()), 300) << "nothing has changed";
}

TEST_F(ServedStates, OfContextsWithDamagedHeadersChangeNothing) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    decode(ctx.get(), slice(tokens, 0, 70), 20, 1);
    Bytes state(llama_state_get_size(ctx.get()));
    ASSERT_EQ(llama_state_get_data(ctx.get(), state.data(), state.size()), state.size());
    const std::size_t second = 32 + llama_state_seq_get_size(ctx.get(), 0);
    const llama_context_ptr other = serve(model.get(), served_params(64, 64, 2));
    const auto expect_refused = [&](std::size_t at, int value, const std::string &reason) {
        Bytes damaged = state;
        damaged[at] = static_cast<std::uint8_t>(value);
        const std::string text = log_of([&] {
            EXPECT_EQ(llama_state_set_data(other.get(), damaged.data(), damaged.size()), 0U);
        });
        EXPECT_NE(text.find(reason), std::string::npos) << text;
        EXPECT_EQ(next(other.get()), 0) << reason;
    };
    expect_refused(second, 'x', "a state that sinkcache has not written");
    expect_refused(second + 12, 3, "the state of sequence 1 is that of a context");
    expect_refused(16, 1, "its sequences have " + std::to_string(second) + " of its " + std::to_string(state.size()));
}

// The C API has positions of 64 bits, and a state that it saved can be put into the form of llama_state_.
TEST_F(ServedStates, OfPositionsBeyondAHostsCanBeClearedAgain) {
    decode(ctx.get(), slice(tokens, 0, 20), 20);
    const Bytes own = state_of(ctx.get());
    skc_llama_options options = SKC_LLAMA_OPTIONS_INIT;
    options.window = 60;
    options.k_dtype = options.v_dtype = SKC_DTYPE_F32;
    const llama_context_params p = served_params();
    for (const std::uint64_t start : {std::uint64_t{1} << 32, (std::uint64_t{1} << 63) + 5, UINT64_MAX - 100}) {
        skc_llama *stream = nullptr;
        ASSERT_EQ(skc_llama_create(model.get(), &p, &options, &stream), SKC_STATUS_OK) << skc_llama_last_error();
        ASSERT_EQ(skc_llama_clear(stream, 0, start), SKC_STATUS_OK);
        OwnBatch batch(slice(tokens, 0, 20));
        const llama_batch b = batch.get();
        ASSERT_EQ(skc_llama_decode(stream, &b), SKC_STATUS_OK) << skc_llama_last_error();
        std::uint64_t n = 0;
        ASSERT_EQ(skc_llama_saved_bytes(stream, 0, &n), SKC_STATUS_OK);
        Bytes state(32 + n);
        std::memcpy(state.data(), own.data(), 24);
        const std::uint64_t n_bytes = state.size();
        std::memcpy(&state[24], &n_bytes, sizeof n_bytes);
        ASSERT_EQ(skc_llama_save(stream, 0, &own[32 + 24], &state[32], n, nullptr), SKC_STATUS_OK);
        skc_llama_destroy(stream);

        ASSERT_EQ(set_state(ctx.get(), state), state.size());
        EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(ctx.get()), 0), 0x7FFFFFFF);
        EXPECT_TRUE(llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, -1, -1));
        EXPECT_EQ(next(ctx.get()), 0) << start;
        expect_continues(ctx.get(), 0);
    }
}
