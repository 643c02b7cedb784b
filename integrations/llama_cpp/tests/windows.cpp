// Which layers have a sliding window, as llama.cpp's masks show it.
#include "support/host.hpp"

#include "errors.hpp"
#include "graph.hpp"
#include "windows.hpp"

#include <gtest/gtest.h>

#include <vector>

using namespace sinkcache::llama_cpp;

namespace {

/** A context whose attention nodes are ops that get their masks. */
class Probed {
public:
    explicit Probed(llama_model *model)
        : n_layers_(llama_model_n_layer(model)), attention(static_cast<std::size_t>(n_layers_)) {
        static llama_sampler_i iface = [] {
            llama_sampler_i i{};
            i.name = [](const llama_sampler *) { return "probe"; };
            i.apply = [](llama_sampler *, llama_token_data_array *) {};
            i.backend_init = [](llama_sampler *, ggml_backend_buffer_type_t, std::uint32_t) { return true; };
            i.backend_apply = [](llama_sampler *s, ggml_context *ctx, ggml_cgraph *graph, llama_sampler_data *data) {
                data->logits = nullptr;
                auto &self = *static_cast<Probed *>(s->ctx);
                if (ggml_graph_n_nodes(graph) > 0) {
                    self.attention.install(ctx, read_graph(graph, {self.n_layers_, true}), true);
                }
            };
            return i;
        }();
        chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        llama_sampler_chain_add(chain_.get(), llama_sampler_init(&iface, this));
        llama_sampler_seq_config config{1, chain_.get()};
        llama_context_params p = params(32);
        p.n_ctx = 64;
        p.n_seq_max = 2;
        p.kv_unified = true;
        p.swa_full = true;
        p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        p.samplers = &config;
        p.n_samplers = 1;
        ctx.reset(llama_init_from_model(model, p));
    }

private:
    std::int32_t n_layers_;
    llama_sampler_ptr chain_;

public:
    Attention attention;
    llama_context_ptr ctx;
};

using Windows = std::vector<std::uint32_t>;

Windows windows_of(const std::string &name, std::uint32_t n_swa) {
    const llama_model_ptr model = load(supported_models().at(name), name);
    Probed probed(model.get());
    Windows windows = probe_windows(probed.ctx.get(), probed.attention, n_swa, 1);
    const llama_memory_t memory = llama_get_memory(probed.ctx.get());
    EXPECT_EQ(llama_memory_seq_pos_max(memory, 0), -1);
    EXPECT_EQ(llama_memory_seq_pos_max(memory, 1), -1);
    return windows;
}

}  // namespace

TEST(Windows, AreThoseOfTheModel) {
    EXPECT_EQ(windows_of("gemma2_windows", 32), (Windows{32, 0, 32, 0}));
    EXPECT_EQ(windows_of("gemma3_windows", 32), (Windows{32, 32, 32, 32, 32, 0}));
    EXPECT_EQ(windows_of("cohere2_windows", 32), (Windows{32, 32, 32, 0}));
    EXPECT_EQ(windows_of("gptoss_windows", 32), (Windows{32, 0, 32, 0}));
    EXPECT_EQ(windows_of("smollm3_no_rope", 32), (Windows{0, 0, 0, 0}));
}

TEST(Windows, OfNoUseAreRefusedWithTheirSize) {
    for (const std::uint32_t n_swa : {1U, (1U << 30) + 1, 0x7FFFFFFFU}) {
        try {
            windows_of("gemma2_windows", n_swa);
            ADD_FAILURE() << n_swa;
        } catch (const NotSupported &e) {
            const std::string text = e.what();
            EXPECT_EQ(text, "a sliding window of " + std::to_string(n_swa) +
                                " tokens is not supported: allowed are 2 to 1073741824");
        }
    }
}

TEST(Windows, ThatHideMoreAreNotSupported) {
    try {
        windows_of("gemma2_windows", 40);
        ADD_FAILURE();
    } catch (const NotSupported &e) {
        const std::string text = e.what();
        EXPECT_EQ(text.rfind("layer 0: its mask shows 2 of 4 tokens, neither all nor those in a", 0), 0U) << text;
    }
}
