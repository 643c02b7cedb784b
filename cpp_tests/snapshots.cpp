// Snapshots and copies of sequences: what goes on unchanged, what is refused, and that a refused one changes nothing.
#include "support/rejections.hpp"

#include <algorithm>
#include <functional>
#include <utility>

namespace {

using host::Ints;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint32_t LAYERS = 2;

/** Steps of the next tokens of a sequence in both layers. */
host::Results steps(skc_cache *cache, std::size_t n, std::uint32_t seed, std::int32_t seq = 0) {
    host::Results all;
    for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
        all.add(host::step(cache, host::rows(n, seed + layer), layer, seq));
    }
    return all;
}

sinkcache::Config config(std::uint32_t n_seqs = 2) {
    return host::config(n_seqs, LAYERS);
}

TEST(Snapshots, ASequenceGoesOnWithTheSameBitsElsewhere) {
    sinkcache::HostTag tag{};
    tag[31] = 9;
    sinkcache::Cache cache(config());
    cache.reset({0}, {std::uint64_t{1} << 33});
    for (std::uint32_t i = 0; i < 5; i++) {
        steps(cache.handle(), 7, i);
        const Bytes snapshot = cache.save(0, tag);
        EXPECT_EQ(snapshot.size(), cache.snapshot_bytes(0));
        sinkcache::Cache twin(config());
        twin.load(1, snapshot, tag);
        for (std::uint32_t layer = 0; layer < LAYERS; layer++) {
            EXPECT_TRUE(host::operator==(host::info(twin.handle(), layer, 1), host::info(cache.handle(), layer, 0)));
        }
        EXPECT_EQ(twin.save(1, tag), snapshot);
        sinkcache::Cache other(config(1).threads(2));
        other.copy(0, twin, 1);
        twin.close();
        sinkcache::Cache here(config());
        here.copy(1, cache, 0);
        here.copy(0, here, 1);
        const host::Results want = steps(cache.handle(), 3, 50 + i);
        EXPECT_EQ(steps(other.handle(), 3, 50 + i), want);
        EXPECT_EQ(steps(here.handle(), 3, 50 + i), want);
        EXPECT_EQ(steps(here.handle(), 3, 50 + i, 1), want);
    }
}

TEST(Snapshots, NothingIsAttendableAfterALoad) {
    sinkcache::Cache cache(config());
    steps(cache.handle(), 5, 1);
    cache.load(0, cache.save(0));
    const Ints seq{0}, one{1};
    host::Results results = host::Results::of(1);
    const auto a = host::attend_args(0, seq, one, host::rows(1, 1), results);
    EXPECT_REJECTED(skc_attend(cache.handle(), &a), SKC_STATUS_OUT_OF_RANGE, "latest append allows 0");
}

TEST(Snapshots, MemoryOfTheCallers) {
    sinkcache::Cache cache(config());
    steps(cache.handle(), 20, 1);
    const Bytes snapshot = cache.save(0);
    // Longer than needed, and of any alignment.
    for (std::size_t at = 0; at < 9; at++) {
        Bytes memory(snapshot.size() + 40, 0xEE);
        EXPECT_EQ(cache.save_to(0, memory.data() + at, memory.size() - at), snapshot.size());
        const auto begin = memory.begin() + static_cast<std::ptrdiff_t>(at);
        EXPECT_TRUE(std::equal(snapshot.begin(), snapshot.end(), begin));
        EXPECT_EQ(memory[at + snapshot.size()], 0xEE) << "written behind the snapshot";
        sinkcache::Cache other(config());
        other.load(0, {memory.data() + at, snapshot.size()});
        EXPECT_EQ(other.save(0), snapshot);
    }
    Bytes memory(snapshot.size(), 0xEE);
    auto a = host::save_args(0, memory);
    a.n_bytes--;
    std::uint64_t n_written = 77;
    EXPECT_REJECTED(skc_save_sequence(cache.handle(), &a, &n_written), SKC_STATUS_OUT_OF_RANGE,
                    "the snapshot has " + std::to_string(snapshot.size()) + " bytes");
    EXPECT_EQ(n_written, 77u);
    EXPECT_EQ(memory, Bytes(snapshot.size(), 0xEE));
}

TEST(Snapshots, LayersOutOfStepAreNotSaved) {
    sinkcache::Cache cache(config());
    steps(cache.handle(), 5, 1);
    host::step(cache.handle(), host::rows(1, 2), 0);
    Bytes none;
    const auto a = host::save_args(0, none);
    std::uint64_t bytes = 77;
    EXPECT_REJECTED(skc_snapshot_bytes(cache.handle(), &a, &bytes), SKC_STATUS_LAYERS_OUT_OF_STEP, "layer 1");
    EXPECT_EQ(bytes, 77u);
    sinkcache::Cache other(config());
    const auto copy = host::copy_args(cache.handle(), 0, 0);
    EXPECT_REJECTED(skc_copy_sequence(other.handle(), &copy), SKC_STATUS_LAYERS_OUT_OF_STEP, "layer 1");
    // It may be loaded over.
    other.load(0, other.save(0));
    EXPECT_OK(host::load(cache.handle(), other.save(0)));
    EXPECT_EQ(host::info(cache.handle()).length_max, 0u);
}

// A team's step that was given up has overwritten what the window needs.
TEST(Snapshots, ADamagedWindowIsNotSaved) {
    sinkcache::Cache cache(config().threads(2));
    steps(cache.handle(), 20, 1);
    const host::Rows rows = host::rows(20, 2);
    host::Results results = host::Results::of(20);
    const Ints seq{0}, twenty{20};
    const auto step = host::step_args(0, seq, twenty, rows, results);
    ASSERT_OK(skc_step_part(cache.handle(), &step, 0, 2));
    EXPECT_REJECTED(host::abort_step(cache.handle()), SKC_STATUS_TOKENS_GONE, "reset it");
    Bytes none;
    const auto a = host::save_args(0, none);
    std::uint64_t bytes = 0;
    EXPECT_REJECTED(skc_snapshot_bytes(cache.handle(), &a, &bytes), SKC_STATUS_TOKENS_GONE, "in layer 0; reset it");
    // A sequence that is loaded over it works.
    EXPECT_OK(host::load(cache.handle(), host::save(cache.handle(), 1)));
    EXPECT_TRUE(steps(cache.handle(), 5, 3).finite());
}

// A later rewind brings back what was saved, and what the loading cache's own max_rewind allows.
TEST(Snapshots, RewindsAfterALoad) {
    for (const std::uint32_t saved : {0u, 2u, 4u, 7u}) {
        for (const std::uint32_t loaded : {0u, 3u, 4u, 9u}) {
            sinkcache::Cache from(config().max_rewind(saved)), to(config().max_rewind(loaded));
            steps(from.handle(), 40, 1);
            to.load(0, from.save(0));
            const std::uint32_t most = std::min(saved, loaded);
            EXPECT_EQ(host::info(to.handle()).rewindable, most);
            const auto more = static_cast<std::int32_t>(most) + 1;
            EXPECT_REJECTED(host::edit(skc_rewind, to.handle(), more), SKC_STATUS_TOKENS_GONE, "at most");
            // New tokens are the loading cache's own.
            steps(to.handle(), 6, 3);
            EXPECT_EQ(host::info(to.handle()).rewindable, std::min(loaded, saved + 6));
            EXPECT_OK(host::edit(skc_rewind, to.handle(), static_cast<std::int32_t>(std::min(loaded, 6u))));
            EXPECT_TRUE(steps(to.handle(), 5, 4).finite());
        }
    }
}

/** Caches that a snapshot of config() must not be loaded into, and what the text names. */
std::vector<std::pair<sinkcache::Config, std::string>> strangers() {
    const auto layered = [](const std::function<void(sinkcache::Layer &)> &change) {
        auto c = config();
        std::vector<sinkcache::Layer> layers(LAYERS, sinkcache::Layer(host::SINKS, host::WINDOW));
        layers[1].window = host::WINDOW + 5;
        layers[1].rope_style = SKC_ROPE_INTERLEAVED;
        change(layers[1]);
        c.layers(layers);
        return c;
    };
    static const float numbers[host::DIM] = {0.5f, 0.25f};
    using Layer = sinkcache::Layer;
    return {
        {host::config(2, 3), "n_layers is 2 in the snapshot and 3 in this cache"},
        {config().heads(2, 2, host::DIM, host::DIM_V), "n_q_heads is 4"},
        {config().heads(4, 4, host::DIM, host::DIM_V), "n_kv_heads is 2"},
        {config().heads(4, 2, 24, host::DIM_V), "head_dim is 16"},
        {config().heads(4, 2, host::DIM, 16), "head_dim_v is 8"},
        {config().types(SKC_DTYPE_F32, SKC_DTYPE_BF16), "the storage type of K is 2"},
        {layered([](Layer &l) { l.n_sink++; }), "layer 1: n_sink is 3"},
        {layered([](Layer &l) { l.window--; }), "layer 1: window is 14"},
        {layered([](Layer &l) { l.position_mode = SKC_POSITION_NONE; }), "layer 1: position_mode is 1"},
        {layered([](Layer &l) { l.rope_style = SKC_ROPE_NEOX; }), "layer 1: rope_style is 2"},
        {layered([](Layer &l) { l.rope_dim = 8; }), "layer 1: the number of RoPE frequencies is 8"},
        {layered([](Layer &l) { l.rope_base = 10001; }), "layer 1: RoPE frequency 1 is"},
        {layered([](Layer &l) { l.rope_scale = 0.5; }), "layer 1: RoPE frequency 0 is 1.59154943"},
        {layered([](Layer &l) { l.rope_mscale = 1.1; }), "layer 1: rope_mscale has 1e0"},
        {layered([](Layer &l) { l.scale = 0.3; }), "layer 1: scale has 2.5e-1"},
        {layered([](Layer &l) { l.softcap = 3; }), "layer 1: softcap has 0e0 in the snapshot and 3e0"},
        {layered([](Layer &l) {
             l.sink_logits = numbers;
             l.n_sink_logits = host::Q_HEADS;
         }),
         "layer 1: n_sink_logits is 0"},
    };
}

TEST(Snapshots, OfAnotherShapeAreRefusedByName) {
    sinkcache::Cache cache(config());
    steps(cache.handle(), 30, 1);
    const Bytes snapshot = cache.save(0);
    for (const auto &[other, text] : strangers()) {
        SCOPED_TRACE(text);
        sinkcache::Cache stranger(other);
        EXPECT_REJECTED(host::load(stranger.handle(), snapshot), SKC_STATUS_INVALID_SNAPSHOT, text);
        EXPECT_EQ(host::info(stranger.handle()).length_max, 0u);
        const auto copy = host::copy_args(cache.handle(), 0, 0);
        EXPECT_REJECTED(skc_copy_sequence(stranger.handle(), &copy), SKC_STATUS_INVALID_ARGUMENT, "in the source's");
    }
}

// What is allowed to differ does: threads, sequences, chunks, rewinds, types of the tensors, an ulp of the frequencies.
TEST(Snapshots, OfOtherSizesAreLoaded) {
    sinkcache::Cache cache(config());
    steps(cache.handle(), 30, 1);
    const Bytes snapshot = cache.save(0);
    auto near = config();
    std::vector<sinkcache::Layer> layers(LAYERS, sinkcache::Layer(host::SINKS, host::WINDOW));
    layers[1].window = host::WINDOW + 5;
    layers[1].rope_style = SKC_ROPE_INTERLEAVED;
    layers[0].rope_base = std::nextafter(10000.0, 1e9);
    near.layers(layers);
    for (const auto &other :
         {near, config(7), config().threads(3), config().max_chunk(1).max_rewind(0), config().max_chunk(300)}) {
        sinkcache::Cache to(other);
        EXPECT_OK(host::load(to.handle(), snapshot));
        EXPECT_EQ(host::info(to.handle()).length_max, 30u);
        EXPECT_TRUE(steps(to.handle(), 20, 9).finite());
    }
}

class RefusedSnapshots : public RejectedCalls {
protected:
    const sinkcache::HostTag tag{1, 2, 3};

    Bytes saved(std::int32_t seq = 0) { return host::save(cache(), seq, tag.data()); }

    void refused(const Bytes &bytes, const std::string &text) {
        EXPECT_REJECTED(host::load(cache(), bytes, 0, tag.data()), SKC_STATUS_INVALID_SNAPSHOT, text);
    }
};

TEST_F(RefusedSnapshots, OfAnotherHost) {
    const Bytes snapshot = saved();
    auto other = tag;
    other[0] = 0xAB;
    EXPECT_REJECTED(host::load(cache(), snapshot, 0, other.data()), SKC_STATUS_INVALID_SNAPSHOT,
                    "host_tag is ab0203000000");
    EXPECT_REJECTED(host::load(cache(), snapshot), SKC_STATUS_INVALID_SNAPSHOT, "the snapshot has 01020300");
}

// Every byte flipped, in each of its bits, and every length that is not the snapshot's.
TEST_F(RefusedSnapshots, Damaged) {
    const Bytes snapshot = saved(1);
    ASSERT_LT(snapshot.size(), 8192u);
    for (std::size_t at = 0; at < snapshot.size(); at++) {
        for (const unsigned change : {0x01u, 0x80u, 0xFFu}) {
            Bytes broken = snapshot;
            broken[at] = static_cast<std::uint8_t>(broken[at] ^ change);
            ASSERT_EQ(host::load(cache(), broken, 1, tag.data()), SKC_STATUS_INVALID_SNAPSHOT) << "byte " << at;
            ASSERT_GT(std::string(skc_last_error()).size(), 20u);
        }
    }
    for (std::size_t n = 0; n < snapshot.size(); n++) {
        ASSERT_EQ(host::load(cache(), Bytes(snapshot.begin(), snapshot.begin() + static_cast<std::ptrdiff_t>(n)), 1,
                             tag.data()),
                  SKC_STATUS_INVALID_SNAPSHOT)
            << n << " bytes";
    }
    Bytes longer = snapshot;
    longer.push_back(0);
    refused(longer, "n_bytes is " + std::to_string(longer.size()));
    refused(Bytes(100, 0), "this is no snapshot");
    refused({}, "n_bytes is 0");
}

TEST_F(RefusedSnapshots, Arguments) {
    Bytes snapshot = saved();
    auto save = host::save_args(3, snapshot);
    std::uint64_t bytes = 77;
    EXPECT_REJECTED(skc_snapshot_bytes(cache(), &save, &bytes), SKC_STATUS_OUT_OF_RANGE, "seq_id is 3");
    save.seq_id = SKC_PADDING;
    EXPECT_REJECTED(skc_snapshot_bytes(cache(), &save, &bytes), SKC_STATUS_OUT_OF_RANGE, "seq_id is -1");
    save = host::save_args(0, snapshot);
    EXPECT_REJECTED(skc_snapshot_bytes(cache(), &save, nullptr), SKC_STATUS_NULL_POINTER, "n_bytes is NULL");
    EXPECT_REJECTED(skc_snapshot_bytes(cache(), nullptr, &bytes), SKC_STATUS_NULL_POINTER, "skc_save_sequence_args");
    save.data = nullptr;
    EXPECT_REJECTED(skc_save_sequence(cache(), &save, nullptr), SKC_STATUS_NULL_POINTER, "data is NULL");
    save.data = snapshot.data();
    save.n_bytes = UINT64_MAX;
    EXPECT_REJECTED(skc_save_sequence(cache(), &save, nullptr), SKC_STATUS_INVALID_ARGUMENT, "address space");
    save.n_bytes = snapshot.size();
    save.stream = &save;
    EXPECT_REJECTED(skc_save_sequence(cache(), &save, nullptr), SKC_STATUS_INVALID_ARGUMENT, "a CPU cache has none");
    save.stream = nullptr;
    auto *const misaligned = reinterpret_cast<std::uint64_t *>(reinterpret_cast<std::uintptr_t>(&bytes) + 1);
    EXPECT_REJECTED(skc_save_sequence(cache(), &save, misaligned), SKC_STATUS_INVALID_ARGUMENT, "n_written");
    EXPECT_EQ(bytes, 77u);

    auto load = host::load_args(3, snapshot, tag.data());
    EXPECT_REJECTED(skc_load_sequence(cache(), &load), SKC_STATUS_OUT_OF_RANGE, "seq_id is 3");
    load = host::load_args(0, snapshot, tag.data());
    load.data = nullptr;
    EXPECT_REJECTED(skc_load_sequence(cache(), &load), SKC_STATUS_NULL_POINTER, "data is NULL");
    load.data = snapshot.data();
    load.n_bytes = UINT64_MAX / 2 + 1;
    EXPECT_REJECTED(skc_load_sequence(cache(), &load), SKC_STATUS_INVALID_ARGUMENT, "address space");
    load.n_bytes = snapshot.size();
    load.stream = &load;
    EXPECT_REJECTED(skc_load_sequence(cache(), &load), SKC_STATUS_INVALID_ARGUMENT, "a CPU cache has none");
}

TEST_F(RefusedSnapshots, Copies) {
    sinkcache::Cache other(host::config(3, 2));
    skc_cache *const c = other.handle();
    const auto refuse = [&](const skc_copy_sequence_args &a, skc_status status, const char *text) {
        EXPECT_REJECTED(skc_copy_sequence(cache(), &a), status, text);
    };
    refuse(host::copy_args(c, 3, 0), SKC_STATUS_OUT_OF_RANGE, "seq_id is 3");
    refuse(host::copy_args(c, 0, 3), SKC_STATUS_OUT_OF_RANGE, "seq_id is 3");
    refuse(host::copy_args(c, -1, 0), SKC_STATUS_OUT_OF_RANGE, "seq_id is -1");
    refuse(host::copy_args(cache(), 0, -1), SKC_STATUS_OUT_OF_RANGE, "seq_id is -1");
    refuse(host::copy_args(cache(), 0, 0), SKC_STATUS_INVALID_ARGUMENT, "src_seq_id and dst_seq_id are both 0");
    auto within = host::copy_args(cache(), 0, 1);
    within.src_stream = &within;
    refuse(within, SKC_STATUS_INVALID_ARGUMENT, "src_stream is 0x");
    refuse(host::copy_args(nullptr, 0, 0), SKC_STATUS_INVALID_HANDLE, "src_cache");
    auto a = host::copy_args(c, 0, 0);
    a.src_stream = &a;
    refuse(a, SKC_STATUS_INVALID_ARGUMENT, "src_stream is 0x");
    EXPECT_REJECTED(skc_copy_sequence(cache(), nullptr), SKC_STATUS_NULL_POINTER, "skc_copy_sequence_args");
    other.close();
    refuse(host::copy_args(c, 0, 0), SKC_STATUS_INVALID_HANDLE, "src_cache");
}

// The source is in use: by a team of threads, whose step is open.
TEST(Snapshots, CopiesOfACacheInUseAreRefused) {
    sinkcache::Cache source(config().threads(2)), cache(config());
    const host::Rows rows = host::rows(1, 1);
    host::Results results = host::Results::of(1);
    const Ints seq{0}, one{1};
    const auto step = host::step_args(0, seq, one, rows, results);
    ASSERT_OK(skc_step_part(source.handle(), &step, 0, 2));
    const auto a = host::copy_args(source.handle(), 0, 0);
    EXPECT_REJECTED(skc_copy_sequence(cache.handle(), &a), SKC_STATUS_BUSY, "skc_step_part");
    ASSERT_OK(skc_step_part(source.handle(), &step, 1, 2));
    ASSERT_OK(host::abort_step(source.handle()));
    EXPECT_OK(skc_copy_sequence(cache.handle(), &a));
}

}  // namespace
