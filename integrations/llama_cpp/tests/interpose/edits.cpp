// llama_memory_ functions on served contexts.
#include "served.hpp"

#include <atomic>
#include <thread>

namespace {

class ServedEdits : public ServedTest {
protected:
    llama_context_ptr ctx = serve(model.get(), served_params(64, 64, 3));
    llama_memory_t memory = llama_get_memory(ctx.get());
};

}  // namespace

TEST_F(ServedEdits, TokensAreRemovedFromTheEnd) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const Tokens drafts = random_tokens(model.get(), 30, 99);
    for (const std::size_t n : {1U, 7U, 30U}) {
        decode(ctx.get(), slice(drafts, 0, n), 11, 0, 150);
        EXPECT_TRUE(llama_memory_seq_rm(memory, 0, 150, -1));
        EXPECT_EQ(next(ctx.get()), 150);
    }
    // Nothing lies there.
    EXPECT_TRUE(llama_memory_seq_rm(memory, 0, 150, -1));
    EXPECT_TRUE(llama_memory_seq_rm(memory, 0, 40, 40));
    EXPECT_TRUE(llama_memory_seq_rm(memory, 1, 3, -1));
    expect_continues(ctx.get(), 150);
}

// What llama.cpp's server relies on: behind the smallest position every cut succeeds, and no other but the whole.
TEST_F(ServedEdits, TheSmallestPositionIsTheOneBeforeTheLowestCut) {
    for (const std::size_t length : {5U, 60U, 64U, 130U, 300U}) {
        for (const llama_pos start : {0, 1000}) {
            llama_memory_seq_rm(memory, 0, -1, -1);
            EXPECT_EQ(llama_memory_seq_pos_min(memory, 0), -1);
            decode(ctx.get(), slice(tokens, 0, length), 20, 0, start);
            ASSERT_EQ(llama_memory_seq_pos_max(memory, 0), start + llama_pos(length) - 1);
            llama_memory_seq_cp(memory, 0, 1, -1, -1);
            const llama_pos least = llama_memory_seq_pos_min(memory, 0);
            if (length <= 64) {
                EXPECT_EQ(least, start);
            } else {
                EXPECT_GT(least, start);
            }
            for (llama_pos p = start; p <= start + llama_pos(length); ++p) {
                const bool possible = p > least || p == start;
                testing::internal::CaptureStderr();
                EXPECT_EQ(llama_memory_seq_rm(memory, 0, p, -1), possible) << p << " of " << length;
                const std::string text = testing::internal::GetCapturedStderr();
                EXPECT_EQ(text.find("SKC_STATUS_TOKENS_GONE") != std::string::npos, !possible) << text;
                if (possible) {
                    EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), p == start ? -1 : p - 1);
                    llama_memory_seq_cp(memory, 1, 0, -1, -1);
                }
            }
        }
    }
}

TEST_F(ServedEdits, WhatCannotBeRemovedIsRefusedAndChangesNothing) {
    decode(ctx.get(), slice(tokens, 0, 150), 20);
    const std::string text = log_of([&] { EXPECT_FALSE(llama_memory_seq_rm(memory, 0, 4, 80)); });
    EXPECT_NE(text.find("llama_memory_seq_rm of sequence 0, positions 4 to 80: "), std::string::npos) << text;
    EXPECT_NE(text.find("from the end only: the sequence ends before position 150"), std::string::npos) << text;
    const std::string other = log_of([&] { EXPECT_FALSE(llama_memory_seq_rm(memory, 3, 0, -1)); });
    EXPECT_NE(other.find("sequence 3 does not exist: there are 3"), std::string::npos) << other;
    expect_continues(ctx.get(), 150);
}

TEST_F(ServedEdits, AllSequencesAreClearedAtOnce) {
    for (const llama_seq_id s : {0, 1, 2}) {
        decode(ctx.get(), slice(tokens, 0, 100), 20, s);
    }
    EXPECT_TRUE(llama_memory_seq_rm(memory, -1, 100, -1));
    EXPECT_EQ(next(ctx.get(), 2), 100);
    llama_memory_seq_keep(memory, 1);
    EXPECT_EQ(next(ctx.get(), 0), 0);
    EXPECT_EQ(next(ctx.get(), 2), 0);
    expect_continues(ctx.get(), 100, 1);
    EXPECT_TRUE(llama_memory_seq_rm(memory, -1, -1, -1));
    EXPECT_EQ(next(ctx.get(), 1), 0);
    decode(ctx.get(), slice(tokens, 0, 100), 20, 2);
    llama_memory_clear(memory, false);
    expect_continues(ctx.get(), 0, 2);
}

TEST_F(ServedEdits, ACopyGoesOnAlone) {
    decode(ctx.get(), slice(tokens, 0, 200), 20);
    decode(ctx.get(), slice(tokens, 100, 120), 20, 1);
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    llama_memory_seq_cp(memory, 0, 2, 0, 180);
    llama_memory_seq_cp(memory, 0, 0, -1, -1);
    EXPECT_EQ(next(ctx.get(), 2), 180);
    expect_continues(ctx.get(), 200, 0);
    expect_continues(ctx.get(), 200, 1);
    expect_continues(ctx.get(), 180, 2);
}

TEST_F(ServedEdits, AnEmptyRangeIsNotCopied) {
    decode(ctx.get(), slice(tokens, 0, 200), 20);
    decode(ctx.get(), slice(tokens, 0, 100), 20, 1);
    llama_memory_seq_cp(memory, 0, 1, 0, 0);
    llama_memory_seq_cp(memory, 0, 1, -1, 0);
    llama_memory_seq_cp(memory, 0, 1, 50, 50);
    llama_memory_seq_cp(memory, 0, 1, 50, 20);
    expect_continues(ctx.get(), 100, 1);
}

TEST_F(ServedEdits, WhatCannotBeCopiedOrMovedMakesASequenceUnusable) {
    decode(ctx.get(), slice(tokens, 0, 200), 20);
    const auto expect_unusable = [&](llama_seq_id seq_id, const std::string &text, const std::string &reason) {
        EXPECT_NE(text.find(reason), std::string::npos) << text;
        EXPECT_NE(text.find("is unusable until it is cleared"), std::string::npos) << text;
        OwnBatch batch(slice(tokens, 0, 3), seq_id);
        const std::string refused = log_of([&] { EXPECT_EQ(llama_decode(ctx.get(), batch.get()), -1); });
        EXPECT_NE(refused.find("is unusable since an earlier error"), std::string::npos) << refused;
        // A server looks at these, cuts nothing that it keeps, and begins anew.
        EXPECT_GE(llama_memory_seq_pos_max(memory, seq_id), 0);
        EXPECT_GT(llama_memory_seq_pos_min(memory, seq_id), 1 << 24);
        EXPECT_TRUE(llama_memory_seq_rm(memory, seq_id, -1, -1));
        EXPECT_EQ(llama_memory_seq_pos_max(memory, seq_id), -1);
        EXPECT_EQ(llama_memory_seq_pos_min(memory, seq_id), -1);
    };
    expect_unusable(1, log_of([&] { llama_memory_seq_cp(memory, 0, 1, 5, -1); }), "must begin with the first token");
    expect_unusable(1, log_of([&] { llama_memory_seq_cp(memory, 0, 1, 0, 20); }), "SKC_STATUS_TOKENS_GONE");
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    llama_memory_seq_add(memory, 1, 10, 20, 0);
    llama_memory_seq_add(memory, 1, 200, -1, -5);
    llama_memory_seq_div(memory, 1, 0, -1, 1);
    expect_continues(ctx.get(), 200, 1);
    expect_unusable(1, log_of([&] { llama_memory_seq_add(memory, 1, 10, 20, -1); }), "llama_memory_seq_add");
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    expect_unusable(1, log_of([&] { llama_memory_seq_div(memory, 1, 0, -1, 2); }), "llama_memory_seq_div");
    expect_continues(ctx.get(), 200);
    expect_continues(ctx.get(), 0, 1);
}

// A server answers questions and edits other sequences while a batch is computed.
TEST_F(ServedEdits, OtherThreadsMayAskAndEdit) {
    std::atomic<bool> done{false};
    std::atomic<int> edits{0};
    std::thread other([&] {
        while (!done) {
            const llama_pos last = llama_memory_seq_pos_max(memory, 0);
            EXPECT_GE(last, -1);
            EXPECT_LT(last, 300);
            llama_memory_seq_rm(memory, 1, -1, -1);
            std::vector<std::uint8_t> state(llama_state_seq_get_size(ctx.get(), 2));
            EXPECT_EQ(llama_state_seq_get_data(ctx.get(), state.data(), state.size(), 2), state.size());
            ++edits;
        }
    });
    Rows got;
    while (edits < 3 || got.size() < 300) {
        llama_memory_seq_rm(memory, 0, -1, -1);
        got = decode(ctx.get(), tokens, 20);
    }
    done = true;
    other.join();
    EXPECT_EQ(got, want);
}

TEST_F(ServedEdits, ACallbackThatEditsIsRefused) {
    struct Host {
        llama_memory_t memory;
        bool removed = true;
    } host{memory};
    decode(ctx.get(), slice(tokens, 0, 20), 20);
    llama_set_abort_callback(
        ctx.get(),
        [](void *data) {
            auto &h = *static_cast<Host *>(data);
            h.removed = llama_memory_seq_rm(h.memory, 0, -1, -1);
            return false;
        },
        &host);
    const std::string text = log_of([&] { decode(ctx.get(), slice(tokens, 20, 40), 20); });
    EXPECT_FALSE(host.removed);
    EXPECT_NE(text.find("from a callback of the same context is refused"), std::string::npos) << text;
    llama_set_abort_callback(ctx.get(), nullptr, nullptr);
    expect_continues(ctx.get(), 40);
}
