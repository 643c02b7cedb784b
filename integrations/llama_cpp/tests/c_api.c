/* The adapter's C API, from C: streaming, edits, saved sequences, errors. */
#include <sinkcache_llama.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, skc_llama_last_error());    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define OK(call) CHECK((call) == SKC_STATUS_OK)

/** A call that fails with a status, and a text that contains a part. */
#define FAILS(call, status, part) CHECK((call) == (status) && strstr(skc_llama_last_error(), part))

enum { VOCAB_MAX = 1024, N = 400 };
typedef struct row {
    float logits[VOCAB_MAX];
} row;

static struct llama_model *model;
static llama_token tokens[N];

static void silent(enum ggml_log_level level, const char *text, void *user) {
    (void)level;
    (void)text;
    (void)user;
}

/** Decodes tokens[from] to tokens[to - 1] in chunks, and returns the logits of the last. */
static row decode(skc_llama *stream, llama_seq_id seq_id, int from, int to) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_init(20, 0, 1);
    while (from < to) {
        for (batch.n_tokens = 0; batch.n_tokens < 20 && from < to; batch.n_tokens++) {
            batch.token[batch.n_tokens] = tokens[from];
            batch.pos[batch.n_tokens] = from++;
            batch.n_seq_id[batch.n_tokens] = 1;
            batch.seq_id[batch.n_tokens][0] = seq_id;
            batch.logits[batch.n_tokens] = from == to;
        }
        OK(skc_llama_decode(stream, &batch));
    }
    llama_batch_free(batch);
    row last;
    memcpy(last.logits, llama_get_logits_ith(skc_llama_context(stream), -1), (size_t)n_vocab * sizeof(float));
    return last;
}

static int same(row a, row b) {
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    return memcmp(a.logits, b.logits, (size_t)n_vocab * sizeof(float)) == 0;
}

static uint64_t length(skc_llama *stream, llama_seq_id seq_id) {
    uint64_t n = 0;
    OK(skc_llama_length(stream, seq_id, &n));
    return n;
}

static skc_llama *create(uint32_t n_seqs, uint32_t window) {
    struct llama_context_params params = llama_context_default_params();
    params.n_batch = params.n_ubatch = 64;
    params.n_threads = params.n_threads_batch = 1;
    skc_llama_options options = SKC_LLAMA_OPTIONS_INIT;
    options.window = window;
    options.n_seqs = n_seqs;
    options.max_pinned = 16;
    options.max_segments = 4;
    skc_llama *stream = NULL;
    OK(skc_llama_create(model, &params, &options, &stream));
    return stream;
}

static void streams_and_edits(void) {
    skc_llama *stream = create(2, 60);
    uint64_t bytes = 0;
    OK(skc_llama_cache_bytes(stream, &bytes));
    CHECK(bytes > 10000);
    decode(stream, 0, 0, 200);
    CHECK(length(stream, 0) == 200 && length(stream, 1) == 0);

    /* A copy goes on as its source does. */
    OK(skc_llama_fork(stream, 0, 1));
    const row want = decode(stream, 0, 200, 220);
    CHECK(isfinite(want.logits[0]));
    CHECK(same(decode(stream, 1, 200, 220), want));
    /* As does one that has gone back. */
    OK(skc_llama_rewind(stream, 1, 20));
    CHECK(length(stream, 1) == 200);
    CHECK(same(decode(stream, 1, 200, 220), want));
    /* Another past gives other logits. */
    OK(skc_llama_clear(stream, 1, 0));
    CHECK(length(stream, 1) == 0);
    CHECK(!same(decode(stream, 1, 0, 20), want));

    OK(skc_llama_pin(stream, 0, 200, 8));
    OK(skc_llama_evict_range(stream, 0, 210, 4));
    CHECK(!same(decode(stream, 0, 220, 240), decode(stream, 1, 20, 40)));
    FAILS(skc_llama_pin(stream, 0, 220, 12), SKC_STATUS_NO_ROOM, "max_pinned");
    FAILS(skc_llama_evict_range(stream, 0, 1, 2), SKC_STATUS_OUT_OF_RANGE, "sink");
    FAILS(skc_llama_rewind(stream, 0, 241), SKC_STATUS_OUT_OF_RANGE, "rewind by 241: sequence 0 has 240 tokens");
    FAILS(skc_llama_fork(stream, 0, 2), SKC_STATUS_OUT_OF_RANGE, "sequence 2 does not exist");
    FAILS(skc_llama_clear(stream, -1, 0), SKC_STATUS_OUT_OF_RANGE, "sequence -1 does not exist");
    uint64_t untouched = 7;
    FAILS(skc_llama_length(stream, 2, &untouched), SKC_STATUS_OUT_OF_RANGE, "sequence 2 does not exist");
    CHECK(untouched == 7);
    llama_token token = 1;
    struct llama_batch batch = llama_batch_get_one(&token, 65);
    FAILS(skc_llama_decode(stream, &batch), SKC_STATUS_INVALID_ARGUMENT, "a batch of 65 tokens: allowed are 1 to");
    skc_llama_destroy(stream);
}

static void saved_sequences(void) {
    skc_llama *stream = create(1, 60), *other = create(2, 60), *wider = create(1, 61);
    const uint8_t tag[SKC_HOST_TAG_BYTES] = {1, 2, 3};
    decode(stream, 0, 0, 200);
    uint64_t n = 0, written = 0;
    OK(skc_llama_saved_bytes(stream, 0, &n));
    void *saved = malloc((size_t)n);
    CHECK(saved);
    OK(skc_llama_save(stream, 0, tag, saved, n, &written));
    CHECK(written == n);
    OK(skc_llama_save(stream, 0, tag, saved, n, NULL));
    FAILS(skc_llama_save(stream, 0, tag, saved, n - 1, NULL), SKC_STATUS_OUT_OF_RANGE, "n_bytes");
    decode(other, 1, 0, 30);
    FAILS(skc_llama_load(other, 1, NULL, saved, n), SKC_STATUS_INVALID_SNAPSHOT, "host_tag");
    FAILS(skc_llama_load(wider, 0, tag, saved, n), SKC_STATUS_INVALID_SNAPSHOT, "window");
    FAILS(skc_llama_load(other, 2, tag, saved, n), SKC_STATUS_OUT_OF_RANGE, "sequence 2 does not exist");
    CHECK(length(other, 1) == 30);
    OK(skc_llama_load(other, 1, tag, saved, n));
    CHECK(length(other, 1) == 200);
    CHECK(same(decode(other, 1, 200, 240), decode(stream, 0, 200, 240)));
    free(saved);
    skc_llama_destroy(stream);
    skc_llama_destroy(other);
    skc_llama_destroy(wider);
}

static void invalid_arguments(void) {
    skc_llama *stream = NULL;
    skc_llama_options options = SKC_LLAMA_OPTIONS_INIT;
    FAILS(skc_llama_create(NULL, NULL, NULL, &stream), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_create(model, NULL, NULL, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    options.struct_size = 1;
    FAILS(skc_llama_create(model, NULL, &options, &stream), SKC_STATUS_INVALID_CONFIG, "struct_size of ");
    options.struct_size = sizeof options;
    options.window = 0;
    FAILS(skc_llama_create(model, NULL, &options, &stream), SKC_STATUS_INVALID_CONFIG, "window");
    options.window = 60;
    options.k_dtype = 99;
    FAILS(skc_llama_create(model, NULL, &options, &stream), SKC_STATUS_INVALID_CONFIG, "dtype");
    CHECK(stream == NULL);
    uint64_t n = 0;
    struct llama_batch batch = llama_batch_get_one(tokens, 1);
    FAILS(skc_llama_decode(NULL, &batch), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_rewind(NULL, 0, 0), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_clear(NULL, 0, 0), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_fork(NULL, 0, 1), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_pin(NULL, 0, 0, 1), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_evict_range(NULL, 0, 0, 1), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_length(NULL, 0, &n), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_cache_bytes(NULL, &n), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_saved_bytes(NULL, 0, &n), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_save(NULL, 0, NULL, &n, 8, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_load(NULL, 0, NULL, &n, 8), SKC_STATUS_NULL_POINTER, "NULL");
    CHECK(skc_llama_context(NULL) == NULL);
    skc_llama_destroy(NULL);

    /* All defaults. */
    OK(skc_llama_create(model, NULL, NULL, &stream));
    FAILS(skc_llama_decode(stream, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_length(stream, 0, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_cache_bytes(stream, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_saved_bytes(stream, 0, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_save(stream, 0, NULL, NULL, 8, NULL), SKC_STATUS_NULL_POINTER, "NULL");
    FAILS(skc_llama_load(stream, 0, NULL, NULL, 8), SKC_STATUS_NULL_POINTER, "NULL");
    OK(skc_llama_decode(stream, &batch));
    CHECK(length(stream, 0) == 1);
    skc_llama_destroy(stream);
}

int main(void) {
    llama_log_set(silent, NULL);
    llama_backend_init();
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    model = llama_model_load_from_file(DATA "/tiny-llama-bytes.gguf", params);
    CHECK(model && llama_vocab_n_tokens(llama_model_get_vocab(model)) <= VOCAB_MAX);
    for (int i = 0; i < N; i++) {
        tokens[i] = 3 + (i * 7919) % 250;
    }
    streams_and_edits();
    saved_sequences();
    invalid_arguments();
    llama_model_free(model);
    return 0;
}
