// Streams random tokens past a window through koffi, and checks every row of the output against a plain softmax over
// the tokens held.
//
//     npm install --prefix examples/node --no-package-lock --ignore-scripts
//     LD_LIBRARY_PATH=$PWD/target/release node examples/node/stream.js
'use strict';
const koffi = require('koffi');

const Q_HEADS = 8, KV_HEADS = 2, DIM = 64, SINKS = 4, WINDOW = 60, PROMPT = 100, TOKENS = 1000, TOLERANCE = 1e-5;
const Q_ROW = Q_HEADS * DIM, KV_ROW = KV_HEADS * DIM;
// SKC_ABI_VERSION of the header that the structs below follow.
const ABI_VERSION = 0;

// A struct of the header. Each starts with struct_size and flags.
function struct(name, ...fields) {
    const members = { struct_size: 'uint32_t', flags: 'uint32_t' };
    for (const [type, names] of fields) {
        for (const field of names.split(' ')) members[field] = type;
    }
    return koffi.struct(name, members);
}

// Tensors and arrays are `void *`. koffi passes a typed array as the address of its elements, so the library writes
// into it, and refuses a plain array. As `float *` it would copy a plain array, and what the library writes would be
// lost.
const LayerConfig = struct('skc_layer_config',
    ['uint32_t', 'n_sink window position_mode rope_style rope_dim n_inv_freq'],
    ['double', 'rope_base rope_scale rope_mscale scale softcap'],
    ['void *', 'inv_freq alibi_slopes sink_logits'],
    ['uint32_t', 'n_alibi_slopes n_sink_logits max_pinned max_segments']);
const CacheConfig = struct('skc_cache_config',
    ['uint32_t', 'backend n_layers n_seqs n_q_heads n_kv_heads head_dim head_dim_v in_dtype out_dtype kv_dtype ' +
        'max_chunk max_rewind n_threads n_layer_configs'],
    ['skc_layer_config *', 'layers'], ['uint64_t', 'layer_stride'],
    ['void *', 'alloc free memory_user parallel_for parallel_for_user log log_user'],
    ['uint32_t', 'cuda_device reserved'], ['void *', 'cuda_context device_alloc device_free device_memory_user'],
    ['uint32_t', 'k_dtype v_dtype']);
const StepArgs = struct('skc_step_args',
    ['uint32_t', 'layer n_entries'], ['void *', 'seq_ids n_tokens k v q out lse'],
    ['int64_t', 'k_token_stride k_head_stride v_token_stride v_head_stride q_token_stride q_head_stride ' +
        'out_token_stride out_head_stride lse_token_stride lse_head_stride'],
    ['void *', 'stream'], ['uint64_t', 'n_rows'], ['uint32_t', 'max_tokens reserved']);
const SequenceInfo = struct('skc_sequence_info',
    ['uint64_t', 'length_min length_max start_position cached_tokens evicted_tokens room rewindable pinned_tokens ' +
        'segments counted_segments']);
koffi.pointer('skc_cache_handle', koffi.opaque());

const library = koffi.load('libsinkcache.so.0');
const lib = {};
for (const [name, result, parameters] of [
    ['skc_abi_version', 'uint32_t', ''],
    ['skc_status_name', 'const char *', 'int32_t status'],
    ['skc_last_error', 'const char *', ''],
    ['skc_constant', 'int32_t', 'const char *name, _Out_ int64_t *value'],
    ['skc_layer_config_init', 'int32_t', '_Out_ skc_layer_config *config, uint32_t size'],
    ['skc_cache_config_init', 'int32_t', '_Out_ skc_cache_config *config, uint32_t size'],
    ['skc_cache_bytes', 'int32_t', 'const skc_cache_config *config, _Out_ uint64_t *host, _Out_ uint64_t *device'],
    ['skc_create_cache', 'int32_t', 'const skc_cache_config *config, _Out_ skc_cache_handle *cache'],
    ['skc_destroy_cache', 'int32_t', 'skc_cache_handle cache'],
    ['skc_step', 'int32_t', 'skc_cache_handle cache, const skc_step_args *args'],
    ['skc_seq_info', 'int32_t',
        'skc_cache_handle cache, uint32_t layer, int32_t seq_id, _Inout_ skc_sequence_info *info'],
]) {
    lib[name] = library.func(`${result} ${name}(${parameters})`);
}

class SinkcacheError extends Error {
    constructor(status) {
        super(`${lib.skc_status_name(status)}: ${lib.skc_last_error()}`);
        this.status = status;
    }
}

// Throws unless the status is SKC_STATUS_OK.
//
// The library keeps the text of an error for the thread. koffi runs `function.async` on a thread of its own, whose text
// cannot be asked for from here: of a call that was made that way only the status says what is wrong.
function check(status) {
    if (status !== 0) throw new SinkcacheError(status);
}

// Value of a constant of the header, by its name.
function constant(name) {
    const value = [null];
    check(lib.skc_constant(name, value));
    return Number(value[0]);
}

// One layer for one sequence, in f32 and without RoPE. close() frees it: the garbage collector does not know of it.
class Cache {
    constructor() {
        const layer = {}, config = {}, host = [null], device = [null], handle = [null];
        check(lib.skc_layer_config_init(layer, koffi.sizeof(LayerConfig)));
        check(lib.skc_cache_config_init(config, koffi.sizeof(CacheConfig)));
        Object.assign(layer, { n_sink: SINKS, window: WINDOW, position_mode: constant('SKC_POSITION_NONE') });
        Object.assign(config, { n_q_heads: Q_HEADS, n_kv_heads: KV_HEADS, head_dim: DIM,
            kv_dtype: constant('SKC_DTYPE_F32'), n_layer_configs: 1, layers: layer });
        check(lib.skc_cache_bytes(config, host, device));
        check(lib.skc_create_cache(config, handle));
        this.bytes = host[0];
        this.handle = handle[0];
    }

    // Appends n tokens and attends with their queries. q, k, v and out are Float32Arrays, or views of them: subarray()
    // shares the memory, slice() copies it.
    //
    // A synchronous call is safe, as nothing else of JavaScript runs until it returns. With `skc_step.async` the
    // arrays must be referenced and not be transferred to a worker until its callback is called, and a second call on
    // the cache in the meantime is SKC_STATUS_BUSY.
    step(layer, n, q, k, v, out) {
        check(lib.skc_step(this.handle, {
            struct_size: koffi.sizeof(StepArgs), flags: 0, layer, n_entries: 1,
            seq_ids: new Int32Array([0]), n_tokens: new Int32Array([n]), k, v, q, out, lse: null,
            k_token_stride: 0, k_head_stride: 0, v_token_stride: 0, v_head_stride: 0, q_token_stride: 0,
            q_head_stride: 0, out_token_stride: 0, out_head_stride: 0, lse_token_stride: 0, lse_head_stride: 0,
            stream: null, n_rows: 0, max_tokens: 0, reserved: 0,
        }));
    }

    info() {
        const info = { struct_size: koffi.sizeof(SequenceInfo) };
        check(lib.skc_seq_info(this.handle, 0, 0, info));
        return info;
    }

    close() {
        check(lib.skc_destroy_cache(this.handle));
    }
}

let state = 1;
// n numbers, uniform in [-1, 1), in place of the q, k and v of a model.
function random(n) {
    return Float32Array.from({ length: n }, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return (state >>> 8) / 8388608 - 1;
    });
}

// The largest difference of row t of the output from a plain softmax over sinks and window, relative to the largest
// value.
function difference(t, q, k, v, out) {
    let worst = 0, largest = 0;
    for (let h = 0; h < Q_HEADS; h++) {
        const kv = Math.floor(h / (Q_HEADS / KV_HEADS)) * DIM;
        const want = new Float64Array(DIM);
        let sum = 0;
        for (let i = 0; i <= t; i++) {
            if (i >= SINKS && i + WINDOW <= t) continue;
            let score = 0;
            for (let d = 0; d < DIM; d++) score += q[t * Q_ROW + h * DIM + d] * k[i * KV_ROW + kv + d];
            const p = Math.exp(score / Math.sqrt(DIM));
            sum += p;
            for (let d = 0; d < DIM; d++) want[d] += p * v[i * KV_ROW + kv + d];
        }
        for (let d = 0; d < DIM; d++) {
            // Math.max returns NaN if either is NaN.
            worst = Math.max(worst, Math.abs(out[h * DIM + d] - want[d] / sum));
            largest = Math.max(largest, Math.abs(want[d] / sum));
        }
    }
    return worst / largest;
}

function ensure(holds, otherwise) {
    if (!holds) throw new Error(otherwise);
}

function stream(cache) {
    const q = random(TOKENS * Q_ROW), k = random(TOKENS * KV_ROW), v = random(TOKENS * KV_ROW);
    const out = new Float32Array(PROMPT * Q_ROW);
    let worst = 0;
    // A prompt that is longer than the window, then token by token.
    for (let t = 0, n = PROMPT; t < TOKENS; t += n, n = 1) {
        cache.step(0, n, q.subarray(t * Q_ROW), k.subarray(t * KV_ROW), v.subarray(t * KV_ROW), out);
        for (let i = 0; i < n; i++) worst = Math.max(worst, difference(t + i, q, k, v, out.subarray(i * Q_ROW)));
    }
    ensure(worst <= TOLERANCE, `differs from the plain softmax by ${worst} of the largest value`);

    let refused = null;
    try {
        cache.step(7, 1, q, k, v, out);
    } catch (error) {
        refused = error;
    }
    ensure(refused?.status === constant('SKC_STATUS_OUT_OF_RANGE'), `a step in layer 7 of 1: ${refused}`);
    console.log(`expected error: ${refused.message}`);
    const info = cache.info();
    ensure(info.length_min === TOKENS && info.cached_tokens === SINKS + WINDOW,
        `${info.length_min} tokens, ${info.cached_tokens} kept`);
    console.log(`Node.js: ${info.length_min} tokens, ${info.cached_tokens} kept, ${cache.bytes} bytes, ` +
        `${worst.toExponential(1)} from a plain softmax`);
}

// An exception that nobody catches ends Node.js with exit code 1.
ensure(lib.skc_abi_version() === ABI_VERSION, `ABI version ${lib.skc_abi_version()}, this file is for ${ABI_VERSION}`);
const cache = new Cache();
try {
    stream(cache);
} finally {
    cache.close();
}
