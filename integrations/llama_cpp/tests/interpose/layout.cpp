// Structs and numbers of another llama.cpp are noticed, whichever they are.
#include "layout.hpp"

#include "model_tag.hpp"
#include "state_format.hpp"

#include <gtest/gtest.h>

#include <cstring>

using namespace sinkcache::interpose;

namespace {

template <class Function, class Other>
Function *as(Other *other) {
    return reinterpret_cast<Function *>(reinterpret_cast<void *>(other));
}

llama_context_params default_params() {
    llama_context_params p{};
    p.n_batch = 2048;
    p.n_ubatch = 512;
    p.n_seq_max = 1;
    p.n_outputs_max_per_seq = 1;
    p.n_threads = p.n_threads_batch = 4;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
    p.attention_type = LLAMA_ATTENTION_TYPE_UNSPECIFIED;
    p.yarn_attn_factor = p.defrag_thold = -1;
    p.type_k = p.type_v = GGML_TYPE_F16;
    p.offload_kqv = p.op_offload = p.swa_full = true;
    return p;
}

llama_model_params default_model_params() {
    llama_model_params p{};
    p.use_extra_bufts = true;
    return p;
}

const char *op_name(ggml_op op) {
    switch (op) {
    case GGML_OP_SCALE:
        return "SCALE";
    case GGML_OP_SET_ROWS:
        return "SET_ROWS";
    case GGML_OP_CONT:
        return "CONT";
    case GGML_OP_RESHAPE:
        return "RESHAPE";
    case GGML_OP_VIEW:
        return "VIEW";
    case GGML_OP_PERMUTE:
        return "PERMUTE";
    case GGML_OP_ROPE:
        return "ROPE";
    case GGML_OP_FLASH_ATTN_EXT:
        return "FLASH_ATTN_EXT";
    case GGML_OP_CUSTOM:
        return "CUSTOM";
    default:
        return "OTHER";
    }
}

const char *type_name(ggml_type type) {
    switch (type) {
    case GGML_TYPE_F32:
        return "f32";
    case GGML_TYPE_F16:
        return "f16";
    case GGML_TYPE_Q4_0:
        return "q4_0";
    case GGML_TYPE_Q8_0:
        return "q8_0";
    case GGML_TYPE_I32:
        return "i32";
    case GGML_TYPE_BF16:
        return "bf16";
    default:
        return "other";
    }
}

llama_batch new_batch(std::int32_t n, std::int32_t, std::int32_t) {
    static llama_token token;
    static llama_pos pos;
    static std::int32_t count;
    static llama_seq_id id;
    static llama_seq_id *ids[4];
    static std::int8_t output;
    ids[0] = ids[1] = ids[2] = &id;
    return {0, n == 3 ? &token : nullptr, nullptr, &pos, &count, ids, &output};
}

HostApi known_version() {
    HostApi calls;
    calls.llama_context_default_params = default_params;
    calls.llama_model_default_params = default_model_params;
    calls.llama_batch_init = new_batch;
    calls.llama_batch_free = [](llama_batch) {};
    calls.ggml_tensor_overhead = [] { return GGML_TENSOR_SIZE + 32; };
    calls.ggml_op_name = op_name;
    calls.ggml_type_name = type_name;
    return calls;
}

/** The same struct with a field of 8 bytes before `at`. */
template <class T>
struct Longer {
    std::byte bytes[sizeof(T) + 8];
};
template <class T>
Longer<T> longer(const T &t, std::size_t at) {
    Longer<T> l{};
    std::memcpy(l.bytes, &t, at);
    std::memcpy(l.bytes + at + 8, reinterpret_cast<const std::byte *>(&t) + at, sizeof t - at);
    return l;
}

}  // namespace

TEST(Layout, OfTheKnownVersionIsAccepted) { EXPECT_EQ(layout_problem(known_version()), ""); }

TEST(Layout, AnotherSizeIsNoticed) {
    const auto expect = [](const HostApi &calls, const std::string &what, std::size_t found, std::size_t known) {
        EXPECT_EQ(layout_problem(calls),
                  "its " + what + " has " + std::to_string(found) + " bytes, not " + std::to_string(known));
    };
    constexpr std::size_t SIZE = sizeof(llama_context_params);
    HostApi calls = known_version();
    // As llama.cpp 0.7 does.
    calls.llama_context_default_params = as<llama_context_params()>(
        +[] { return longer(default_params(), offsetof(llama_context_params, abort_callback)); });
    expect(calls, "llama_context_params", SIZE + 8, SIZE);
    struct Shorter {
        std::byte bytes[SIZE - 8];
    };
    calls.llama_context_default_params = as<llama_context_params()>(+[] { return Shorter{}; });
    expect(calls, "llama_context_params", SIZE - 8, SIZE);

    calls = known_version();
    calls.llama_model_default_params =
        as<llama_model_params()>(+[] { return longer(default_model_params(), sizeof(llama_model_params)); });
    expect(calls, "llama_model_params", sizeof(llama_model_params) + 8, sizeof(llama_model_params));

    calls = known_version();
    calls.llama_batch_init = as<llama_batch(std::int32_t, std::int32_t, std::int32_t)>(
        +[](std::int32_t n, std::int32_t, std::int32_t) { return longer(new_batch(n, 0, 1), sizeof(llama_batch)); });
    expect(calls, "llama_batch", sizeof(llama_batch) + 8, sizeof(llama_batch));

    calls = known_version();
    calls.ggml_tensor_overhead = [] { return GGML_TENSOR_SIZE + 40; };
    expect(calls, "ggml_tensor", GGML_TENSOR_SIZE + 8, GGML_TENSOR_SIZE);
}

TEST(Layout, OtherFieldsAndNumbersAreNoticed) {
    HostApi calls = known_version();
    // Two fields have changed places.
    calls.llama_context_default_params = [] {
        llama_context_params p = default_params();
        std::swap(p.n_batch, p.n_ubatch);
        return p;
    };
    EXPECT_EQ(layout_problem(calls), "its llama_context_params has other fields or defaults");
    calls = known_version();
    calls.llama_model_default_params = [] { return llama_model_params{}; };
    EXPECT_EQ(layout_problem(calls), "its llama_model_params has other fields or defaults");
    calls = known_version();
    calls.llama_batch_init = [](std::int32_t, std::int32_t, std::int32_t) { return new_batch(0, 0, 0); };
    EXPECT_EQ(layout_problem(calls), "its llama_batch has other fields");
    calls = known_version();
    calls.ggml_op_name = [](ggml_op op) { return op_name(ggml_op(op + 1)); };
    EXPECT_EQ(layout_problem(calls).rfind("its ggml operation ", 0), 0U) << layout_problem(calls);
    calls = known_version();
    calls.ggml_type_name = [](ggml_type type) { return type == GGML_TYPE_BF16 ? nullptr : type_name(type); };
    EXPECT_EQ(layout_problem(calls), "its ggml type 30 is none, not bf16");
}

TEST(ModelFiles, OfASplitModelAreAllItsParts) {
    using Files = std::vector<std::string>;
    EXPECT_EQ(model_files("m.gguf"), Files{"m.gguf"});
    EXPECT_EQ(model_files("a/m-00001-of-00003.gguf"),
              (Files{"a/m-00001-of-00003.gguf", "a/m-00002-of-00003.gguf", "a/m-00003-of-00003.gguf"}));
    EXPECT_EQ(model_files("m-1-of-3.gguf"), Files{"m-1-of-3.gguf"});
}

TEST(StateHeader, IsCheckedFieldByField) {
    std::uint8_t bytes[STATE_HEADER_BYTES + 10] = {};
    StateHeader header;
    header.kind = StateKind::CONTEXT;
    header.n_seqs = 3;
    header.n_bytes = sizeof bytes;
    write_header(header, bytes);
    const StateHeader read = read_header(bytes, sizeof bytes);
    EXPECT_EQ(read.kind, StateKind::CONTEXT);
    EXPECT_EQ(read.n_seqs, 3U);
    EXPECT_EQ(read.n_bytes, sizeof bytes);
    const auto refused = [&](std::size_t at, std::uint8_t value, const std::string &reason) {
        std::uint8_t damaged[sizeof bytes];
        std::memcpy(damaged, bytes, sizeof bytes);
        damaged[at] = value;
        try {
            read_header(damaged, sizeof damaged);
            ADD_FAILURE() << reason;
        } catch (const sinkcache::Error &e) {
            EXPECT_EQ(e.status(), SKC_STATUS_INVALID_SNAPSHOT);
            EXPECT_NE(std::string(e.what()).find(reason), std::string::npos) << e.what();
        }
    };
    refused(0, 'X', "that sinkcache has not written");
    refused(8, 2, "version 2: this library reads version 1");
    refused(12, 0, "kind 0");
    refused(12, 4, "kind 4");
    refused(24, 1, "a state of 1 bytes");
    refused(24, 255, "a state of 255 bytes, of which there are 42");
    refused(31, 255, "of which there are 42");
}
