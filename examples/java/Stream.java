// Streams random tokens past a window through JNA, and checks every row of the output against a plain softmax over the
// tokens held. JNA runs from Java 8 on; java.lang.foreign, which would do without it, needs Java 22.
//
//     LD_LIBRARY_PATH=$PWD/target/release java -cp /usr/share/java/jna.jar examples/java/Stream.java

import com.sun.jna.Library;
import com.sun.jna.Memory;
import com.sun.jna.Native;
import com.sun.jna.Pointer;
import com.sun.jna.Structure;
import com.sun.jna.Structure.FieldOrder;
import com.sun.jna.ptr.LongByReference;
import com.sun.jna.ptr.PointerByReference;

public final class Stream {
    static final int Q_HEADS = 8, KV_HEADS = 2, DIM = 64, SINKS = 4, WINDOW = 60, PROMPT = 100, TOKENS = 1000;
    static final int Q_ROW = Q_HEADS * DIM, KV_ROW = KV_HEADS * DIM;
    static final double TOLERANCE = 1e-5;
    /** SKC_ABI_VERSION of the header that the structs below follow. */
    static final int ABI_VERSION = 0;

    // JNA needs structs as public classes with public fields. Memory that it allocates for one is cleared, as the
    // library wants it. uint32_t is an int and uint64_t a long: Java has no unsigned types.

    @FieldOrder({"struct_size", "flags", "n_sink", "window", "position_mode", "rope_style", "rope_dim", "n_inv_freq",
        "rope_base", "rope_scale", "rope_mscale", "scale", "softcap", "inv_freq", "alibi_slopes", "sink_logits",
        "n_alibi_slopes", "n_sink_logits", "max_pinned", "max_segments"})
    public static class LayerConfig extends Structure {
        public int struct_size, flags, n_sink, window, position_mode, rope_style, rope_dim, n_inv_freq;
        public double rope_base, rope_scale, rope_mscale, scale, softcap;
        public Pointer inv_freq, alibi_slopes, sink_logits;
        public int n_alibi_slopes, n_sink_logits, max_pinned, max_segments;
    }

    // Callbacks are pointers here, as this program sets none. A host that does must keep a reference to the Callback
    // object until skc_destroy_cache has returned: once it is collected, the library calls into freed memory.
    @FieldOrder({"struct_size", "flags", "backend", "n_layers", "n_seqs", "n_q_heads", "n_kv_heads", "head_dim",
        "head_dim_v", "in_dtype", "out_dtype", "kv_dtype", "max_chunk", "max_rewind", "n_threads", "n_layer_configs",
        "layers", "layer_stride", "alloc", "free", "memory_user", "parallel_for", "parallel_for_user", "log",
        "log_user", "cuda_device", "reserved", "cuda_context", "device_alloc", "device_free", "device_memory_user",
        "k_dtype", "v_dtype"})
    public static class CacheConfig extends Structure {
        public int struct_size, flags, backend, n_layers, n_seqs, n_q_heads, n_kv_heads, head_dim, head_dim_v;
        public int in_dtype, out_dtype, kv_dtype, max_chunk, max_rewind, n_threads, n_layer_configs;
        public Pointer layers;
        public long layer_stride;
        public Pointer alloc, free, memory_user, parallel_for, parallel_for_user, log, log_user;
        public int cuda_device, reserved;
        public Pointer cuda_context, device_alloc, device_free, device_memory_user;
        public int k_dtype, v_dtype;
    }

    @FieldOrder({"struct_size", "flags", "layer", "n_entries", "seq_ids", "n_tokens", "k", "v", "q", "out", "lse",
        "k_token_stride", "k_head_stride", "v_token_stride", "v_head_stride", "q_token_stride", "q_head_stride",
        "out_token_stride", "out_head_stride", "lse_token_stride", "lse_head_stride", "stream", "n_rows",
        "max_tokens", "reserved"})
    public static class StepArgs extends Structure {
        public int struct_size = size(), flags, layer, n_entries;
        public Pointer seq_ids, n_tokens, k, v, q, out, lse;
        public long k_token_stride, k_head_stride, v_token_stride, v_head_stride, q_token_stride, q_head_stride;
        public long out_token_stride, out_head_stride, lse_token_stride, lse_head_stride;
        public Pointer stream;
        public long n_rows;
        public int max_tokens, reserved;
    }

    @FieldOrder({"struct_size", "flags", "length_min", "length_max", "start_position", "cached_tokens",
        "evicted_tokens", "room", "rewindable", "pinned_tokens", "segments", "counted_segments"})
    public static class SequenceInfo extends Structure {
        public int struct_size = size(), flags;
        public long length_min, length_max, start_position, cached_tokens, evicted_tokens, room, rewindable;
        public long pinned_tokens, segments, counted_segments;
    }

    /** The calls that this program needs. */
    public interface Lib extends Library {
        int skc_abi_version();

        String skc_status_name(int status);

        String skc_last_error();

        int skc_constant(String name, LongByReference value);

        int skc_layer_config_init(LayerConfig config, int size);

        int skc_cache_config_init(CacheConfig config, int size);

        int skc_cache_bytes(CacheConfig config, LongByReference host, LongByReference device);

        int skc_create_cache(CacheConfig config, PointerByReference cache);

        int skc_destroy_cache(Pointer cache);

        int skc_step(Pointer cache, StepArgs args);

        int skc_seq_info(Pointer cache, int layer, int seqId, SequenceInfo info);
    }

    static final Lib LIB = Native.load("sinkcache", Lib.class);

    /** A call that failed. The status is one of the SKC_STATUS_ numbers. */
    static final class SinkcacheException extends RuntimeException {
        final int status;

        SinkcacheException(int status) {
            super(LIB.skc_status_name(status) + ": " + LIB.skc_last_error());
            this.status = status;
        }
    }

    /**
     * Throws unless the status is SKC_STATUS_OK.
     *
     * The library keeps the text of an error for the operating system's thread: ask for it where the call was made, not
     * in another task of an executor. A virtual thread may move to another thread between two calls; use threads of the
     * platform.
     */
    static void check(int status) {
        if (status != 0) {
            throw new SinkcacheException(status);
        }
    }

    /** Value of a constant of the header, by its name. */
    static int constant(String name) {
        LongByReference value = new LongByReference();
        check(LIB.skc_constant(name, value));
        return (int) value.getValue();
    }

    /** One layer for one sequence, in f32 and without RoPE. One call at a time. */
    static final class Cache implements AutoCloseable {
        final long bytes;
        private final Pointer handle; // a number, not an address
        // Memory is freed when no object of Java refers to it. The fields of a Structure do, until the call returns;
        // a bare address (Pointer.nativeValue) does not.
        private final Memory seqIds = zeros(1), nTokens = zeros(1);

        Cache() {
            LayerConfig layer = new LayerConfig();
            CacheConfig config = new CacheConfig();
            check(LIB.skc_layer_config_init(layer, layer.size()));
            check(LIB.skc_cache_config_init(config, config.size()));
            layer.n_sink = SINKS;
            layer.window = WINDOW;
            layer.position_mode = constant("SKC_POSITION_NONE");
            // JNA copies the fields of an argument to its memory, but not those of what an argument points to.
            layer.write();
            config.n_q_heads = Q_HEADS;
            config.n_kv_heads = KV_HEADS;
            config.head_dim = DIM;
            config.kv_dtype = constant("SKC_DTYPE_F32");
            config.n_layer_configs = 1;
            config.layers = layer.getPointer();
            LongByReference host = new LongByReference(), device = new LongByReference();
            check(LIB.skc_cache_bytes(config, host, device));
            PointerByReference cache = new PointerByReference();
            check(LIB.skc_create_cache(config, cache));
            bytes = host.getValue();
            handle = cache.getValue();
        }

        /**
         * Appends n tokens and attends with their queries. Tensors are Memory, not arrays: a struct cannot hold the
         * address of an array, which the collector moves. share() is a view, which keeps its Memory alive.
         */
        void step(int layer, int n, Pointer q, Pointer k, Pointer v, Pointer out) {
            nTokens.setInt(0, n);
            StepArgs args = new StepArgs();
            args.layer = layer;
            args.n_entries = 1;
            args.seq_ids = seqIds;
            args.n_tokens = nTokens;
            args.q = q;
            args.k = k;
            args.v = v;
            args.out = out;
            check(LIB.skc_step(handle, args));
        }

        SequenceInfo info() {
            SequenceInfo info = new SequenceInfo();
            check(LIB.skc_seq_info(handle, 0, 0, info));
            return info;
        }

        @Override
        public void close() {
            check(LIB.skc_destroy_cache(handle));
        }
    }

    /** Memory of n numbers of 4 bytes, cleared; Memory by itself is not. */
    static Memory zeros(long n) {
        Memory memory = new Memory(4 * n);
        memory.clear();
        return memory;
    }

    static int state = 1;

    /** Numbers that are uniform in [-1, 1), in place of the q, k and v of a model. */
    static float[] random(int n) {
        float[] x = new float[n];
        for (int i = 0; i < n; i++) {
            state = state * 1664525 + 1013904223;
            x[i] = (state >>> 8) / 8388608f - 1;
        }
        return x;
    }

    static Memory copy(float[] x) {
        Memory memory = new Memory(4L * x.length);
        memory.write(0, x, 0, x.length);
        return memory;
    }

    /** The largest difference of row t of the output from a plain softmax, relative to the largest value. */
    static double difference(int t, float[] q, float[] k, float[] v, float[] out, int row) {
        double worst = 0, largest = 0;
        for (int h = 0; h < Q_HEADS; h++) {
            int kv = h / (Q_HEADS / KV_HEADS) * DIM;
            double[] want = new double[DIM];
            double sum = 0;
            for (int i = 0; i <= t; i++) {
                if (i >= SINKS && i + WINDOW <= t) {
                    continue;
                }
                double score = 0;
                for (int d = 0; d < DIM; d++) {
                    score += (double) q[t * Q_ROW + h * DIM + d] * k[i * KV_ROW + kv + d];
                }
                double p = Math.exp(score / Math.sqrt(DIM));
                sum += p;
                for (int d = 0; d < DIM; d++) {
                    want[d] += p * v[i * KV_ROW + kv + d];
                }
            }
            for (int d = 0; d < DIM; d++) {
                // Math.max returns NaN if either is NaN.
                worst = Math.max(worst, Math.abs(out[row * Q_ROW + h * DIM + d] - want[d] / sum));
                largest = Math.max(largest, Math.abs(want[d] / sum));
            }
        }
        return worst / largest;
    }

    static void ensure(boolean holds, String otherwise) {
        if (!holds) {
            throw new IllegalStateException(otherwise);
        }
    }

    static void stream(Cache cache) {
        float[] q = random(TOKENS * Q_ROW), k = random(TOKENS * KV_ROW), v = random(TOKENS * KV_ROW);
        Memory qs = copy(q), ks = copy(k), vs = copy(v), out = zeros(PROMPT * Q_ROW);
        double worst = 0;
        // A prompt that is longer than the window, then token by token.
        for (int t = 0, n = PROMPT; t < TOKENS; t += n, n = 1) {
            cache.step(0, n, qs.share(4L * t * Q_ROW), ks.share(4L * t * KV_ROW), vs.share(4L * t * KV_ROW), out);
            float[] rows = out.getFloatArray(0, n * Q_ROW);
            for (int i = 0; i < n; i++) {
                worst = Math.max(worst, difference(t + i, q, k, v, rows, i));
            }
        }
        ensure(worst <= TOLERANCE, "differs from the plain softmax by " + worst + " of the largest value");

        SinkcacheException refused = null;
        try {
            cache.step(7, 1, qs, ks, vs, out);
        } catch (SinkcacheException e) {
            refused = e;
        }
        ensure(refused != null && refused.status == constant("SKC_STATUS_OUT_OF_RANGE"),
            "a step in layer 7 of 1: " + refused);
        System.out.println("expected error: " + refused.getMessage());
        SequenceInfo info = cache.info();
        ensure(info.length_min == TOKENS && info.cached_tokens == SINKS + WINDOW,
            info.length_min + " tokens, " + info.cached_tokens + " kept");
        System.out.printf("Java: %d tokens, %d kept, %d bytes, %.1e from a plain softmax%n",
            info.length_min, info.cached_tokens, cache.bytes, worst);
    }

    /** An exception that nobody catches ends Java with exit code 1. */
    public static void main(String[] args) {
        int version = LIB.skc_abi_version();
        ensure(version == ABI_VERSION, "ABI version " + version + ", this file is for " + ABI_VERSION);
        try (Cache cache = new Cache()) {
            stream(cache);
        }
    }
}
