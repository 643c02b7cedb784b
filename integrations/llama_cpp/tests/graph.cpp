// Graphs made by hand: what is read out of them, and every way in which one can be no attention that the cache knows.
#include "support/host.hpp"

#include "graph.hpp"
#include "sequences.hpp"

#include <gtest/gtest.h>

#include <functional>

using namespace sinkcache::llama_cpp;

namespace {

constexpr std::int64_t DIM = 16, HEADS = 4, KV_HEADS = 2, TOKENS = 3, CELLS = 32;

/** The attention of a layer as llama.cpp builds it, with one thing wrong at a time. */
struct Knobs {
    float scale = 0.25F, softcap = 0, max_bias = 0;
    int q_mode = GGML_ROPE_TYPE_NEOX, k_mode = GGML_ROPE_TYPE_NEOX;
    bool in_place = false, no_k_rope = false, no_store = false, sinks = false, sparse = false, shared_kv = false;
    bool own_mask = false, q_norm = false, half_v = false;
    float q_scale = 1, q_bias = 0, k_scale = 1, freq_base = 10000;
};

class Graph : public testing::Test {
protected:
    ggml_context *ctx = ggml_init({16 << 20, nullptr, false});
    ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_tensor *positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, TOKENS);
    ggml_tensor *rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, TOKENS);
    ggml_tensor *mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, CELLS, TOKENS, 1, 1);
    ggml_tensor *q = nullptr, *k = nullptr, *v = nullptr;

    ~Graph() override { ggml_free(ctx); }

    ggml_tensor *rope(ggml_tensor *x, int mode, float base, bool in_place) {
        const auto f = in_place ? ggml_rope_ext_inplace : ggml_rope_ext;
        return f(ctx, x, positions, nullptr, DIM, mode, 4096, base, 1, 0, 1, 32, 1);
    }

    void add_layer(const Knobs &o) {
        q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, DIM, HEADS, TOKENS);
        k = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, DIM, KV_HEADS, TOKENS);
        v = ggml_new_tensor_3d(ctx, o.half_v ? GGML_TYPE_F16 : GGML_TYPE_F32, DIM, KV_HEADS, TOKENS);
        ggml_tensor *q_cur = rope(q, o.q_mode, 10000, o.in_place);
        ggml_tensor *k_cur = o.no_k_rope ? ggml_dup(ctx, k) : rope(k, o.k_mode, o.freq_base, o.in_place);
        if (o.q_scale != 1 || o.q_bias != 0) {
            q_cur = ggml_scale_bias(ctx, q_cur, o.q_scale, o.q_bias);
        }
        if (o.k_scale != 1) {
            k_cur = ggml_scale(ctx, k_cur, o.k_scale);
        }
        if (o.q_norm) {
            q_cur = ggml_rms_norm(ctx, q_cur, 1e-5F);
        }
        ggml_tensor *k_cache = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, DIM * KV_HEADS, CELLS);
        ggml_tensor *v_cache = o.shared_kv ? k_cache : ggml_new_tensor_2d(ctx, GGML_TYPE_F16, DIM * KV_HEADS, CELLS);
        const auto store = [&](ggml_tensor *cache, ggml_tensor *x) {
            x = ggml_view_2d(ctx, x, DIM * KV_HEADS, TOKENS, x->nb[2], 0);
            ggml_build_forward_expand(graph, ggml_set_rows(ctx, cache, x, rows));
        };
        if (!o.no_store) {
            store(k_cache, k_cur);
        }
        if (!o.shared_kv) {
            store(v_cache, v);
        }
        const auto heads = [&](ggml_tensor *cache) {
            const std::size_t row = ggml_row_size(GGML_TYPE_F16, DIM);
            ggml_tensor *t = ggml_view_4d(ctx, cache, DIM, KV_HEADS, CELLS, 1, row, row * KV_HEADS, row * KV_HEADS * CELLS, 0);
            return ggml_permute(ctx, t, 0, 2, 1, 3);
        };
        ggml_tensor *q_view = ggml_view_4d(ctx, q_cur, DIM, HEADS, TOKENS, 1, q_cur->nb[1], q_cur->nb[2], q_cur->nb[3], 0);
        ggml_tensor *own = o.own_mask ? ggml_new_tensor_4d(ctx, GGML_TYPE_F16, CELLS, TOKENS, 1, 1) : mask;
        ggml_tensor *out = ggml_flash_attn_ext(ctx, ggml_permute(ctx, q_view, 0, 2, 1, 3), heads(k_cache), heads(v_cache), own,
                                               o.scale, o.max_bias, o.softcap);
        if (o.sinks) {
            ggml_flash_attn_ext_add_sinks(out, ggml_new_tensor_1d(ctx, GGML_TYPE_F32, HEADS));
        }
        if (o.sparse) {
            out->op_params[4] = 64;
        }
        ggml_build_forward_expand(graph, out);
    }

    std::string refusal(const Knobs &o, std::int32_t n_layers = 1) {
        add_layer(o);
        try {
            read_graph(graph, n_layers);
        } catch (const Refusal &r) {
            return r.what();
        }
        return "not refused";
    }
};

}  // namespace

TEST_F(Graph, IsReadFromAttentionBackwards) {
    Knobs o;
    o.softcap = 30;
    o.q_scale = 0.5F;
    o.k_scale = 3;
    add_layer(o);
    const auto layers = read_graph(graph, 1);
    ASSERT_EQ(layers.size(), 1U);
    const LayerNodes &l = layers[0];
    EXPECT_EQ(l.q, q);
    EXPECT_EQ(l.k, k);
    EXPECT_EQ(l.v->view_src, v);
    EXPECT_EQ(l.positions, positions);
    EXPECT_EQ(l.shape.head_dim, DIM);
    EXPECT_EQ(l.shape.head_dim_v, DIM);
    EXPECT_EQ(l.shape.n_q_heads, HEADS);
    EXPECT_EQ(l.shape.n_kv_heads, KV_HEADS);
    EXPECT_DOUBLE_EQ(l.shape.scale, 0.25 * 0.5 * 3);
    EXPECT_EQ(l.shape.softcap, 30);
    EXPECT_EQ(l.shape.rope.n_dims, DIM);
    EXPECT_EQ(l.shape.rope.mode, GGML_ROPE_TYPE_NEOX);
    EXPECT_TRUE(l.shape.rope.plain());
}

TEST_F(Graph, SaysWhatItDoesNotKnow) {
    const std::vector<std::pair<std::function<void(Knobs &)>, std::string>> cases = {
        {[](Knobs &o) { o.no_store = true; }, "layer 0: no SET_ROWS node writes the K"},
        {[](Knobs &o) { o.no_k_rope = true; }, "K does not come from RoPE: between it and attention lies DUP"},
        {[](Knobs &o) { o.q_norm = true; }, "Q does not come from RoPE: between it and attention lies RMS_NORM"},
        {[](Knobs &o) { o.q_bias = 1; }, "Q does not come from RoPE: between it and attention lies SCALE"},
        {[](Knobs &o) { o.in_place = true; }, "in place"},
        {[](Knobs &o) { o.sinks = true; }, "learned sink logits"},
        {[](Knobs &o) { o.sparse = true; }, "sparse attention"},
        {[](Knobs &o) { o.max_bias = 8; }, "ALiBi"},
        {[](Knobs &o) { o.shared_kv = true; }, "MLA"},
        {[](Knobs &o) { o.k_mode = GGML_ROPE_TYPE_NORMAL; }, "Q and K have RoPE of different kinds"},
        {[](Knobs &o) { o.freq_base = 5000; }, "Q and K have RoPE of different kinds"},
        {[](Knobs &o) { o.half_v = true; }, "V ("},
    };
    for (const auto &[change, want] : cases) {
        ggml_graph_clear(graph);
        Knobs o;
        change(o);
        const std::string text = refusal(o);
        EXPECT_NE(text.find(want), std::string::npos) << text << ", not " << want;
    }
}

TEST_F(Graph, WantsOneNodePerLayerAndOneMask) {
    add_layer(Knobs());
    EXPECT_NE(refusal(Knobs(), 3).find("2 FLASH_ATTN_EXT nodes for 3 layers"), std::string::npos);
    Knobs o;
    o.own_mask = true;
    EXPECT_NE(refusal(o, 3).find("layer 2: its mask is not that of layer 0"), std::string::npos);
}

TEST_F(Graph, KnowsNoOtherRope) {
    add_layer(Knobs());
    ggml_tensor *node = read_graph(graph, 1)[0].attention->src[0]->src[0]->src[0];
    ASSERT_EQ(node->op, GGML_OP_ROPE);
    const auto says = [&](std::size_t i, std::int32_t value, const std::string &want) {
        const std::int32_t before = node->op_params[i];
        node->op_params[i] = value;
        try {
            read_rope(node);
            ADD_FAILURE() << want;
        } catch (const Refusal &r) {
            EXPECT_NE(std::string(r.what()).find(want), std::string::npos) << r.what();
        }
        node->op_params[i] = before;
    };
    says(2, GGML_ROPE_TYPE_MROPE, "M-RoPE");
    says(2, GGML_ROPE_TYPE_IMROPE, "M-RoPE");
    says(2, 4, "RoPE mode 4");
    says(15, 8, "from 8 on");
    says(5, 0, "base 0");
    says(1, 7, "7 dims");
}

// llama.cpp's positions start again before they run out: here at 100, not at 2^30.
TEST(Positions, NeverRunOut) {
    const Model model = load(decoder("llama"), "positions");
    const Stock ctx = stock(model.get(), 256);
    Sequences sequences(ctx.get(), 1, 100);
    const Tokens tokens = random_tokens(model.get(), 20);
    for (int i = 0; i < 200; ++i) {
        const std::int32_t n = 1 + i * 7 % 20;
        Job job;
        job.runs = {{0, n, 0}};
        sequences.place(job);
        ASSERT_EQ(job.positions.size(), std::size_t(n));
        EXPECT_GE(job.positions.front(), 0);
        EXPECT_LE(job.positions.back(), 100);
        OwnBatch batch(Tokens(tokens.begin(), tokens.begin() + n));
        llama_batch b = batch.get();
        b.pos = job.positions.data();
        ASSERT_EQ(llama_decode(ctx.get(), b), 0) << i;
        EXPECT_EQ(sequences.held(0), n);
        sequences.advance(0, n);
        sequences.check_untouched();
        if (i % 5 == 0) {
            sequences.forget(0);
            sequences.check_untouched();
        }
    }
}
