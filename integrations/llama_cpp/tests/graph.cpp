// read_graph on graphs built by hand: what it reads, and every kind of graph that it rejects.
#include "support/host.hpp"

#include "errors.hpp"
#include "graph.hpp"
#include "sequences.hpp"

#include <gtest/gtest.h>

#include <functional>

using namespace sinkcache::llama_cpp;

namespace {

constexpr std::int64_t DIM = 16, HEADS = 4, KV_HEADS = 2, TOKENS = 3, CELLS = 32;

/** A layer's attention as llama.cpp builds it, with options that make it unsupported. */
struct LayerOptions {
    float scale = 0.25F, softcap = 0, max_bias = 0;
    int q_mode = GGML_ROPE_TYPE_NEOX, k_mode = GGML_ROPE_TYPE_NEOX;
    bool in_place = false, no_k_rope = false, no_store = false, sinks = false, sparse = false, shared_kv = false;
    bool own_mask = false, q_norm = false, f16_v = false;
    /** Its K and V, or its K alone, are those of the layer before. */
    bool k_of_last = false, kv_of_last = false;
    float q_scale = 1, q_bias = 0, k_scale = 1, freq_base = 10000, q_freq_base = 10000;
};

class Graph : public testing::Test {
protected:
    ggml_context *ctx = ggml_init({16 << 20, nullptr, false});
    ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_tensor *positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, TOKENS);
    ggml_tensor *rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, TOKENS);
    ggml_tensor *mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, CELLS, TOKENS, 1, 1);
    ggml_tensor *q = nullptr, *k = nullptr, *v = nullptr;
    ggml_tensor *k_cache = nullptr, *v_cache = nullptr;

    ~Graph() override { ggml_free(ctx); }

    ggml_tensor *rope(ggml_tensor *x, int mode, float base, bool in_place) {
        const auto f = in_place ? ggml_rope_ext_inplace : ggml_rope_ext;
        return f(ctx, x, positions, nullptr, DIM, mode, 4096, base, 1, 0, 1, 32, 1);
    }

    void add_layer(const LayerOptions &o) {
        q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, DIM, HEADS, TOKENS);
        k = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, DIM, KV_HEADS, TOKENS);
        v = ggml_new_tensor_3d(ctx, o.f16_v ? GGML_TYPE_F16 : GGML_TYPE_F32, DIM, KV_HEADS, TOKENS);
        ggml_tensor *q_cur = rope(q, o.q_mode, o.q_freq_base, o.in_place);
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
        if (!o.k_of_last && !o.kv_of_last) {
            k_cache = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, DIM * KV_HEADS, CELLS);
        }
        if (!o.kv_of_last) {
            v_cache = o.shared_kv ? k_cache : ggml_new_tensor_2d(ctx, GGML_TYPE_F16, DIM * KV_HEADS, CELLS);
        }
        const auto store = [&](ggml_tensor *cache, ggml_tensor *x) {
            x = ggml_view_2d(ctx, x, DIM * KV_HEADS, TOKENS, x->nb[2], 0);
            ggml_build_forward_expand(graph, ggml_set_rows(ctx, cache, x, rows));
        };
        if (!o.no_store && !o.k_of_last && !o.kv_of_last) {
            store(k_cache, k_cur);
        }
        if (!o.shared_kv && !o.kv_of_last) {
            store(v_cache, v);
        }
        const auto heads = [&](ggml_tensor *cache) {
            const std::size_t row = ggml_row_size(GGML_TYPE_F16, DIM);
            ggml_tensor *t =
                ggml_view_4d(ctx, cache, DIM, KV_HEADS, CELLS, 1, row, row * KV_HEADS, row * KV_HEADS * CELLS, 0);
            return ggml_permute(ctx, t, 0, 2, 1, 3);
        };
        ggml_tensor *q_view =
            ggml_view_4d(ctx, q_cur, DIM, HEADS, TOKENS, 1, q_cur->nb[1], q_cur->nb[2], q_cur->nb[3], 0);
        ggml_tensor *own = o.own_mask ? ggml_new_tensor_4d(ctx, GGML_TYPE_F16, CELLS, TOKENS, 1, 1) : mask;
        ggml_tensor *out = ggml_flash_attn_ext(ctx, ggml_permute(ctx, q_view, 0, 2, 1, 3), heads(k_cache),
                                               heads(v_cache), own, o.scale, o.max_bias, o.softcap);
        if (o.sinks) {
            ggml_flash_attn_ext_add_sinks(out, ggml_new_tensor_1d(ctx, GGML_TYPE_F32, HEADS));
        }
        if (o.sparse) {
            out->op_params[4] = 64;
        }
        ggml_build_forward_expand(graph, out);
    }

    /** The error text of read_graph after one more layer. */
    std::string rejection(const LayerOptions &o, std::int32_t n_layers = 1) {
        add_layer(o);
        try {
            read_graph(graph, {n_layers});
        } catch (const NotSupported &e) {
            return e.what();
        }
        return "not rejected";
    }
};

}  // namespace

TEST_F(Graph, IsReadBackwardsFromAttention) {
    LayerOptions o;
    o.softcap = 30;
    o.q_scale = 0.5F;
    o.k_scale = 3;
    add_layer(o);
    const auto layers = read_graph(graph, {1});
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
    EXPECT_TRUE(l.shape.rope.is_linear());
}

TEST_F(Graph, UnsupportedNodesAreRejectedWithAReason) {
    const std::vector<std::pair<std::function<void(LayerOptions &)>, std::string>> cases = {
        {[](LayerOptions &o) { o.no_store = true; }, "layer 0: no SET_ROWS node writes the K"},
        {[](LayerOptions &o) { o.no_k_rope = true; }, "K does not come from RoPE: between it and attention lies DUP"},
        {[](LayerOptions &o) { o.q_norm = true; }, "Q does not come from RoPE: between it and attention lies RMS_NORM"},
        {[](LayerOptions &o) { o.q_bias = 1; }, "Q does not come from RoPE: between it and attention lies SCALE"},
        {[](LayerOptions &o) { o.in_place = true; }, "in-place RoPE"},
        {[](LayerOptions &o) { o.sparse = true; }, "sparse attention"},
        {[](LayerOptions &o) { o.max_bias = 8; }, "ALiBi"},
        {[](LayerOptions &o) { o.shared_kv = true; }, "MLA"},
        {[](LayerOptions &o) { o.k_mode = GGML_ROPE_TYPE_NORMAL; }, "Q and K have RoPE of different kinds"},
        {[](LayerOptions &o) { o.freq_base = 5000; }, "Q and K have RoPE of different kinds"},
        {[](LayerOptions &o) { o.f16_v = true; }, "V ("},
    };
    for (const auto &[change, want] : cases) {
        ggml_graph_clear(graph);
        LayerOptions o;
        change(o);
        const std::string text = rejection(o);
        EXPECT_NE(text.find(want), std::string::npos) << text << ", not " << want;
    }
}

TEST_F(Graph, ALayerMayReadTheKAndVOfAnother) {
    LayerOptions o;
    o.k_scale = 3;
    add_layer(o);
    add_layer(LayerOptions());
    o.kv_of_last = true;
    o.k_scale = 1;
    add_layer(o);
    const auto layers = read_graph(graph, {3});
    EXPECT_EQ(layers[0].shape.kv_of, -1);
    EXPECT_EQ(layers[1].shape.kv_of, -1);
    EXPECT_EQ(layers[2].shape.kv_of, 1);
    EXPECT_EQ(layers[2].q, q);
    EXPECT_EQ(layers[2].k, nullptr);
    EXPECT_EQ(layers[2].v, nullptr);
    EXPECT_FALSE(layers[2].shape == layers[1].shape);
}

TEST_F(Graph, AFactorOnSharedKeysIsAPartOfTheScale) {
    LayerOptions o;
    o.k_scale = 3;
    add_layer(o);
    o.kv_of_last = true;
    o.k_scale = 1;
    add_layer(o);
    const auto layers = read_graph(graph, {2});
    EXPECT_DOUBLE_EQ(layers[1].shape.scale, 0.25 * 3);
}

TEST_F(Graph, SharedKAndVMustBeUsedInTheSameWay) {
    const std::vector<std::pair<std::function<void(LayerOptions &)>, std::string>> cases = {
        {[](LayerOptions &o) { o.scale = 0.5F; }, "with other heads, RoPE, scale"},
        {[](LayerOptions &o) { o.softcap = 30; }, "with other heads, RoPE, scale"},
        {[](LayerOptions &o) { o.sinks = true; }, "with other heads, RoPE, scale"},
        {[](LayerOptions &o) { o.q_freq_base = 5000; }, "with other heads, RoPE, scale"},
        {[](LayerOptions &o) { o.q_mode = GGML_ROPE_TYPE_NORMAL; }, "with other heads, RoPE, scale"},
        {[](LayerOptions &o) {
             o.kv_of_last = false;
             o.k_of_last = true;
         },
         "layer 1: it reads the K of layer 0 and another V"},
    };
    for (const auto &[change, want] : cases) {
        ggml_graph_clear(graph);
        add_layer(LayerOptions());
        LayerOptions o;
        o.kv_of_last = true;
        change(o);
        const std::string text = rejection(o, 2);
        EXPECT_EQ(text.rfind("layer 1: ", 0), 0U) << text;
        EXPECT_NE(text.find(want), std::string::npos) << text << ", not " << want;
    }
}

TEST_F(Graph, NeedsOneNodePerLayerAndOneMask) {
    add_layer(LayerOptions());
    EXPECT_NE(rejection(LayerOptions(), 3).find("2 FLASH_ATTN_EXT nodes for 3 layers"), std::string::npos);
    LayerOptions o;
    o.own_mask = true;
    EXPECT_NE(rejection(o, 3).find("layer 2: its mask is not that of layer 0"), std::string::npos);
}

TEST_F(Graph, OfAHybridHasAttentionInSomeLayers) {
    const auto hybrid = [&](std::int32_t n_layers) -> std::string {
        try {
            return std::to_string(read_graph(graph, {n_layers, false, true}).size());
        } catch (const NotSupported &e) {
            return e.what();
        }
    };
    EXPECT_EQ(hybrid(5), "the graph has 0 FLASH_ATTN_EXT nodes for 5 layers");
    add_layer(LayerOptions());
    add_layer(LayerOptions());
    EXPECT_EQ(hybrid(5), "2");
    EXPECT_EQ(hybrid(2), "2");
    EXPECT_EQ(hybrid(1), "the graph has 2 FLASH_ATTN_EXT nodes for 1 layers");
    // A write into what the graph computes, as for batches of tokens and embeddings, and a cache that no node reads.
    ggml_tensor *source = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, DIM, TOKENS);
    ggml_tensor *cache = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, DIM, CELLS);
    ggml_build_forward_expand(graph, ggml_set_rows(ctx, ggml_dup(ctx, cache), source, rows));
    EXPECT_EQ(hybrid(5), "2");
    ggml_set_name(cache, "other");
    ggml_build_forward_expand(graph, ggml_set_rows(ctx, cache, source, rows));
    EXPECT_EQ(hybrid(5), "no FLASH_ATTN_EXT node reads NONE 'other', which is written");
}

TEST_F(Graph, OtherKindsOfRopeAreRejected) {
    add_layer(LayerOptions());
    ggml_tensor *node = read_graph(graph, {1})[0].attention->src[0]->src[0]->src[0];
    ASSERT_EQ(node->op, GGML_OP_ROPE);
    const auto expect_rejected = [&](std::size_t i, std::int32_t value, const std::string &want) {
        const std::int32_t before = node->op_params[i];
        node->op_params[i] = value;
        try {
            read_rope(node);
            ADD_FAILURE() << want;
        } catch (const NotSupported &e) {
            EXPECT_NE(std::string(e.what()).find(want), std::string::npos) << e.what();
        }
        node->op_params[i] = before;
    };
    // A node of ggml_rope_ext has no sections.
    expect_rejected(2, GGML_ROPE_TYPE_MROPE, "M-RoPE without sections");
    expect_rejected(2, GGML_ROPE_TYPE_IMROPE, "M-RoPE without sections");
    expect_rejected(2, GGML_ROPE_TYPE_VISION, "RoPE mode 24");
    expect_rejected(2, 4, "RoPE mode 4");
    expect_rejected(15, 8, "from 8 on");
    expect_rejected(5, 0, "base 0");
    expect_rejected(1, 7, "7 dims");
}

// llama.cpp's positions restart at 0 before they reach max_pos: 100 here, by default 2^30.
TEST(Positions, NeverRunOut) {
    const llama_model_ptr model = load(decoder("llama"), "positions");
    const llama_context_ptr ctx = stock(model.get(), 256);
    Sequences sequences(ctx.get(), 1, Numbering::OF_THE_STREAM, 100);
    const Tokens tokens = random_tokens(model.get(), 20);
    for (int i = 0; i < 200; ++i) {
        const std::int32_t n = 1 + i * 7 % 20;
        BatchPlan plan;
        plan.entries = {{0, n, 0, 0}};
        sequences.assign_positions(plan);
        ASSERT_EQ(plan.positions.size(), std::size_t(n));
        EXPECT_GE(plan.positions.front(), 0);
        EXPECT_LE(plan.positions.back(), 100);
        OwnBatch batch(Tokens(tokens.begin(), tokens.begin() + n));
        llama_batch b = batch.get();
        b.pos = plan.positions.data();
        ASSERT_EQ(llama_decode(ctx.get(), b), 0) << i;
        EXPECT_EQ(sequences.uncommitted(0), n);
        sequences.commit(0, n);
        sequences.check_unmodified();
        if (i % 5 == 0) {
            sequences.drop(0);
            sequences.check_unmodified();
        }
    }
}

// A state of recurrent layers would be lost with its position.
TEST(Positions, OfAHybridEnd) {
    const llama_model_ptr model = load(decoder("llama"), "positions");
    const llama_context_ptr ctx = stock(model.get(), 256);
    Sequences sequences(ctx.get(), 1, Numbering::OF_THE_STREAM, 100, true);
    const auto next = [&](std::int32_t n) {
        BatchPlan plan;
        plan.entries = {{0, n, 0, 0}};
        sequences.assign_positions(plan);
        sequences.commit(0, n);
        return plan.positions.front();
    };
    const llama_pos first = next(1);
    EXPECT_LT(first, 50);
    EXPECT_EQ(next(99 - first), first + 1);
    try {
        next(1);
        ADD_FAILURE() << "position 100";
    } catch (const sinkcache::Error &e) {
        EXPECT_EQ(e.status(), SKC_STATUS_OUT_OF_RANGE);
        EXPECT_NE(std::string(e.what()).find("would reach llama.cpp's position 100"), std::string::npos) << e.what();
    }
    sequences.clear(0);
    EXPECT_LT(next(1), 50);
}
