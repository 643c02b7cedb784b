#include "layout.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

namespace sinkcache {
namespace interpose {
namespace {

/** What a function returned by value. */
template <class T>
struct Returned {
    /** Of two calls. */
    T values[2];
    /** Bytes up to the last one that was written, and the gap that may end the struct. */
    std::size_t size = 0;
};

// A struct of this size is returned in memory that the caller gives. The caller gives more than the struct needs, and
// calls twice, with different bytes in it before: those that stay were not written.
template <class T, class Function, class... Arguments>
Returned<T> call_for_struct(Function *function, Arguments... arguments) {
    using Large = Oversized<T>;
    const auto large = reinterpret_cast<Large (*)(Arguments...)>(reinterpret_cast<void *>(function));
    constexpr unsigned char PATTERNS[2] = {0x5A, 0xA5};
    alignas(Large) std::array<unsigned char, sizeof(Large)> bytes[2];
    for (int i = 0; i < 2; ++i) {
        void *memory = bytes[i].data();
        std::memset(memory, PATTERNS[i], sizeof(Large));
        // The compiler must neither drop the pattern nor know what comes back.
        asm volatile("" : : "r"(memory) : "memory");
        new (memory) Large(large(arguments...));
        asm volatile("" : : "r"(memory) : "memory");
    }
    Returned<T> returned;
    for (int i = 0; i < 2; ++i) {
        std::memcpy(static_cast<void *>(&returned.values[i]), bytes[i].data(), sizeof(T));
    }
    for (std::size_t i = 0; i < sizeof(Large); ++i) {
        if (bytes[0][i] != PATTERNS[0] || bytes[1][i] != PATTERNS[1]) {
            returned.size = i / alignof(T) * alignof(T) + alignof(T);
        }
    }
    return returned;
}

std::string size_problem(const char *name, std::size_t found, std::size_t known) {
    return found == known ? ""
                          : std::string("its ") + name + " has " + std::to_string(found) + " bytes, not " +
                                std::to_string(known);
}

std::string check_context_params(const HostApi &calls) {
    const auto returned = call_for_struct<llama_context_params>(calls.llama_context_default_params);
    const std::string problem = size_problem("llama_context_params", returned.size, sizeof(llama_context_params));
    if (!problem.empty()) {
        return problem;
    }
    const llama_context_params &p = returned.values[0];
    // Fields from the beginning to the end, with values that do not stand in each other's place.
    const bool known = p.n_batch == 2048 && p.n_ubatch == 512 && p.n_seq_max == 1 && p.n_outputs_max == 0 &&
                       p.n_outputs_max_per_seq == 1 && p.n_threads > 0 && p.n_threads == p.n_threads_batch &&
                       p.ctx_type == LLAMA_CONTEXT_TYPE_DEFAULT &&
                       p.attention_type == LLAMA_ATTENTION_TYPE_UNSPECIFIED &&
                       p.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_AUTO && p.yarn_attn_factor == -1 &&
                       p.defrag_thold == -1 && !p.cb_eval && p.type_k == GGML_TYPE_F16 && p.type_v == GGML_TYPE_F16 &&
                       !p.abort_callback && !p.embeddings && p.offload_kqv && p.op_offload && p.swa_full &&
                       !p.kv_unified && !p.samplers && p.n_samplers == 0 && !p.ctx_other;
    return known ? "" : "its llama_context_params has other fields or defaults";
}

std::string check_model_params(const HostApi &calls) {
    const auto returned = call_for_struct<llama_model_params>(calls.llama_model_default_params);
    const std::string problem = size_problem("llama_model_params", returned.size, sizeof(llama_model_params));
    if (!problem.empty()) {
        return problem;
    }
    const llama_model_params &p = returned.values[0];
    const bool known = !p.devices && !p.kv_overrides && !p.vocab_only && !p.check_tensors && p.use_extra_bufts &&
                       !p.no_host && !p.no_alloc;
    return known ? "" : "its llama_model_params has other fields or defaults";
}

std::string check_batch(const HostApi &calls) {
    // Room for 3 tokens: all arrays but embd are allocated.
    const auto returned = call_for_struct<llama_batch>(calls.llama_batch_init, 3, 0, 1);
    const std::string problem = size_problem("llama_batch", returned.size, sizeof(llama_batch));
    if (!problem.empty()) {
        return problem;
    }
    for (const llama_batch &batch : returned.values) {
        if (batch.n_tokens != 0 || !batch.token || batch.embd || !batch.pos || !batch.n_seq_id || !batch.seq_id ||
            !batch.seq_id[0] || !batch.seq_id[2] || batch.seq_id[3] || !batch.logits) {
            return "its llama_batch has other fields";
        }
        calls.llama_batch_free(batch);
    }
    return {};
}

std::string check_ggml(const HostApi &calls) {
    // An object of a ggml context has a header of 32 bytes.
    const std::string problem = size_problem("ggml_tensor", calls.ggml_tensor_overhead() - 32, GGML_TENSOR_SIZE);
    if (!problem.empty()) {
        return problem;
    }
    struct Name {
        int number;
        const char *name;
    };
    for (const Name &op :
         {Name{GGML_OP_SCALE, "SCALE"}, Name{GGML_OP_SET_ROWS, "SET_ROWS"}, Name{GGML_OP_CONT, "CONT"},
          Name{GGML_OP_RESHAPE, "RESHAPE"}, Name{GGML_OP_VIEW, "VIEW"}, Name{GGML_OP_PERMUTE, "PERMUTE"},
          Name{GGML_OP_ROPE, "ROPE"}, Name{GGML_OP_FLASH_ATTN_EXT, "FLASH_ATTN_EXT"},
          Name{GGML_OP_CUSTOM, "CUSTOM"}}) {
        const char *name = calls.ggml_op_name(static_cast<ggml_op>(op.number));
        if (std::strcmp(name, op.name) != 0) {
            return std::string("its ggml operation ") + std::to_string(op.number) + " is " + name + ", not " + op.name;
        }
    }
    for (const Name &type : {Name{GGML_TYPE_F32, "f32"}, Name{GGML_TYPE_F16, "f16"}, Name{GGML_TYPE_Q4_0, "q4_0"},
                             Name{GGML_TYPE_Q8_0, "q8_0"}, Name{GGML_TYPE_I32, "i32"}, Name{GGML_TYPE_BF16, "bf16"}}) {
        const char *name = calls.ggml_type_name(static_cast<ggml_type>(type.number));
        if (!name || std::strcmp(name, type.name) != 0) {
            return std::string("its ggml type ") + std::to_string(type.number) + " is " + (name ? name : "none") +
                   ", not " + type.name;
        }
    }
    return {};
}

}  // namespace

std::string layout_problem(const HostApi &calls) {
    std::string problem = check_context_params(calls);
    if (problem.empty()) {
        problem = check_model_params(calls);
    }
    if (problem.empty()) {
        problem = check_batch(calls);
    }
    return problem.empty() ? check_ggml(calls) : problem;
}

}  // namespace interpose
}  // namespace sinkcache
