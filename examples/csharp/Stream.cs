// Streams random tokens past a window through P/Invoke, and checks every row of the output against a plain softmax over
// the tokens held. Mono finds the library as libsinkcache.so in LD_LIBRARY_PATH.
//
//     mcs -out:target/stream.exe examples/csharp/Stream.cs
//     LD_LIBRARY_PATH=$PWD/target/release mono target/stream.exe
using System;
using System.Runtime.InteropServices;

[StructLayout(LayoutKind.Sequential)]
struct LayerConfig
{
    public uint struct_size, flags, n_sink, window, position_mode, rope_style, rope_dim, n_inv_freq;
    public double rope_base, rope_scale, rope_mscale, scale, softcap;
    public IntPtr inv_freq, alibi_slopes, sink_logits;
    public uint n_alibi_slopes, n_sink_logits, max_pinned, max_segments;
}

[StructLayout(LayoutKind.Sequential)]
struct CacheConfig
{
    public uint struct_size, flags, backend, n_layers, n_seqs, n_q_heads, n_kv_heads, head_dim, head_dim_v;
    public uint in_dtype, out_dtype, kv_dtype, max_chunk, max_rewind, n_threads, n_layer_configs;
    public IntPtr layers;
    public ulong layer_stride;
    public IntPtr alloc, free, memory_user, parallel_for, parallel_for_user, log, log_user;
    public uint cuda_device, reserved;
    public IntPtr cuda_context, device_alloc, device_free, device_memory_user;
    public uint k_dtype, v_dtype;
}

[StructLayout(LayoutKind.Sequential)]
struct StepArgs
{
    public uint struct_size, flags, layer, n_entries;
    public IntPtr seq_ids, n_tokens, k, v, q, @out, lse;
    public long k_token_stride, k_head_stride, v_token_stride, v_head_stride, q_token_stride, q_head_stride;
    public long out_token_stride, out_head_stride, lse_token_stride, lse_head_stride;
    public IntPtr stream;
    public ulong n_rows;
    public uint max_tokens, reserved;
}

[StructLayout(LayoutKind.Sequential)]
struct SequenceInfo
{
    public uint struct_size, flags;
    public ulong length_min, length_max, start_position, cached_tokens, evicted_tokens, room, rewindable;
    public ulong pinned_tokens, segments, counted_segments;
}

// The library calls it like a function of C. Without the attribute, 32-bit Windows would use another convention.
[UnmanagedFunctionPointer(CallingConvention.Cdecl)]
delegate void LogCallback(IntPtr user, uint level, IntPtr text);

static class Lib
{
    const string Name = "sinkcache";
    const CallingConvention C = CallingConvention.Cdecl;

    [DllImport(Name, CallingConvention = C)] public static extern uint skc_abi_version();
    // Strings come as IntPtr: for a result of type string .NET would free the library's memory.
    [DllImport(Name, CallingConvention = C)] public static extern IntPtr skc_status_name(int status);
    [DllImport(Name, CallingConvention = C)] public static extern IntPtr skc_last_error();
    [DllImport(Name, CallingConvention = C)] public static extern int skc_constant(string name, out long value);
    [DllImport(Name, CallingConvention = C)]
    public static extern int skc_layer_config_init(out LayerConfig config, uint size);
    [DllImport(Name, CallingConvention = C)]
    public static extern int skc_cache_config_init(out CacheConfig config, uint size);
    [DllImport(Name, CallingConvention = C)]
    public static extern int skc_cache_bytes(ref CacheConfig config, out ulong host, out ulong device);
    [DllImport(Name, CallingConvention = C)]
    public static extern int skc_create_cache(ref CacheConfig config, out IntPtr cache);
    [DllImport(Name, CallingConvention = C)] public static extern int skc_destroy_cache(IntPtr cache);
    [DllImport(Name, CallingConvention = C)] public static extern int skc_step(IntPtr cache, ref StepArgs args);
    [DllImport(Name, CallingConvention = C)]
    public static extern int skc_seq_info(IntPtr cache, uint layer, int seqId, ref SequenceInfo info);

    // Throws unless the status is SKC_STATUS_OK. The library keeps the text of an error for the thread: ask for it
    // before an await, after which another thread may go on.
    public static void Check(int status)
    {
        if (status != 0) throw new SinkcacheException(status);
    }

    // Value of a constant of the header, by its name.
    public static int Constant(string name)
    {
        long value;
        Check(skc_constant(name, out value));
        return (int)value;
    }
}

// A call that failed. Status is one of the SKC_STATUS_ numbers.
class SinkcacheException : Exception
{
    public readonly int Status;

    public SinkcacheException(int status)
        : base(Marshal.PtrToStringAnsi(Lib.skc_status_name(status)) + ": "
               + Marshal.PtrToStringAnsi(Lib.skc_last_error()))
    {
        Status = status;
    }
}

// An array that the garbage collector does not move, so that its address can be in a struct of the library. Arrays that
// are passed to a function are pinned during the call by themselves; those that a struct points to are not.
sealed class Pinned<T> : IDisposable where T : struct
{
    public readonly T[] Array;
    GCHandle handle;

    public Pinned(T[] array)
    {
        Array = array;
        handle = GCHandle.Alloc(array, GCHandleType.Pinned);
    }

    public IntPtr At(int index)
    {
        return Marshal.UnsafeAddrOfPinnedArrayElement(Array, index);
    }

    public void Dispose()
    {
        handle.Free();
    }
}

// One layer for one sequence, in f32 and without RoPE. One call at a time.
sealed class Cache : IDisposable
{
    public readonly ulong Bytes;
    // The library keeps the function's address, which keeps nothing alive: without this field the delegate would be
    // collected, and the library would call what is no longer there.
    readonly LogCallback log;
    readonly Pinned<int> seqIds = new Pinned<int>(new[] { 0 }), nTokens = new Pinned<int>(new int[1]);
    IntPtr handle; // a number, not an address

    public Cache(int heads, int kvHeads, int dim, int sinks, int window, Action<string> log)
    {
        // An exception must not leave a callback: the library does not catch it.
        this.log = (user, level, text) =>
        {
            try { log(Marshal.PtrToStringAnsi(text)); } catch (Exception) { }
        };
        LayerConfig layer;
        CacheConfig config;
        Lib.Check(Lib.skc_layer_config_init(out layer, (uint)Marshal.SizeOf(typeof(LayerConfig))));
        Lib.Check(Lib.skc_cache_config_init(out config, (uint)Marshal.SizeOf(typeof(CacheConfig))));
        layer.n_sink = (uint)sinks;
        layer.window = (uint)window;
        layer.position_mode = (uint)Lib.Constant("SKC_POSITION_NONE");
        config.n_q_heads = (uint)heads;
        config.n_kv_heads = (uint)kvHeads;
        config.head_dim = (uint)dim;
        config.kv_dtype = (uint)Lib.Constant("SKC_DTYPE_F32");
        config.log = Marshal.GetFunctionPointerForDelegate(this.log);
        using (var layers = new Pinned<LayerConfig>(new[] { layer }))
        {
            config.n_layer_configs = 1;
            config.layers = layers.At(0);
            ulong device;
            Lib.Check(Lib.skc_cache_bytes(ref config, out Bytes, out device));
            Lib.Check(Lib.skc_create_cache(ref config, out handle));
        }
    }

    // Appends n tokens and attends with their queries.
    public void Step(uint layer, int n, IntPtr q, IntPtr k, IntPtr v, IntPtr @out)
    {
        nTokens.Array[0] = n;
        var args = new StepArgs
        {
            struct_size = (uint)Marshal.SizeOf(typeof(StepArgs)), layer = layer, n_entries = 1,
            seq_ids = seqIds.At(0), n_tokens = nTokens.At(0), q = q, k = k, v = v, @out = @out
        };
        Lib.Check(Lib.skc_step(handle, ref args));
    }

    public SequenceInfo Info()
    {
        var info = new SequenceInfo { struct_size = (uint)Marshal.SizeOf(typeof(SequenceInfo)) };
        Lib.Check(Lib.skc_seq_info(handle, 0, 0, ref info));
        return info;
    }

    public void Dispose()
    {
        Lib.Check(Lib.skc_destroy_cache(handle)); // writes a line of the log too
        GC.KeepAlive(log);
        seqIds.Dispose();
        nTokens.Dispose();
    }
}

static class Program
{
    const int QHeads = 8, KvHeads = 2, Dim = 64, Sinks = 4, Window = 60, Prompt = 100, Tokens = 1000;
    const int QRow = QHeads * Dim, KvRow = KvHeads * Dim;
    const double Tolerance = 1e-5;
    // SKC_ABI_VERSION of the header that the structs follow.
    const uint AbiVersion = 0;

    static uint state = 1;

    // Numbers that are uniform in [-1, 1), in place of the q, k and v of a model.
    static Pinned<float> Random(int n)
    {
        var x = new float[n];
        for (int i = 0; i < n; i++)
        {
            state = unchecked(state * 1664525 + 1013904223);
            x[i] = (state >> 8) / 8388608f - 1;
        }
        return new Pinned<float>(x);
    }

    // The largest difference of row t of the output from a plain softmax over sinks and window, relative to the largest
    // value.
    static double Difference(int t, float[] q, float[] k, float[] v, float[] rows, int row)
    {
        double worst = 0, largest = 0;
        for (int h = 0; h < QHeads; h++)
        {
            int kv = h / (QHeads / KvHeads) * Dim;
            var want = new double[Dim];
            double sum = 0;
            for (int i = 0; i <= t; i++)
            {
                if (i >= Sinks && i + Window <= t) continue;
                double score = 0;
                for (int d = 0; d < Dim; d++) score += (double)q[t * QRow + h * Dim + d] * k[i * KvRow + kv + d];
                double p = Math.Exp(score / Math.Sqrt(Dim));
                sum += p;
                for (int d = 0; d < Dim; d++) want[d] += p * v[i * KvRow + kv + d];
            }
            for (int d = 0; d < Dim; d++)
            {
                // Math.Max returns NaN if either is NaN.
                worst = Math.Max(worst, Math.Abs(rows[row * QRow + h * Dim + d] - want[d] / sum));
                largest = Math.Max(largest, Math.Abs(want[d] / sum));
            }
        }
        return worst / largest;
    }

    static void Ensure(bool holds, string otherwise)
    {
        if (!holds) throw new Exception(otherwise);
    }

    static void Stream()
    {
        uint version = Lib.skc_abi_version();
        Ensure(version == AbiVersion, "ABI version " + version + ", this file is for " + AbiVersion);
        int lines = 0;
        using (var q = Random(Tokens * QRow))
        using (var k = Random(Tokens * KvRow))
        using (var v = Random(Tokens * KvRow))
        using (var rows = new Pinned<float>(new float[Prompt * QRow]))
        using (var cache = new Cache(QHeads, KvHeads, Dim, Sinks, Window, text => lines++))
        {
            double worst = 0;
            // A prompt that is longer than the window, then token by token.
            for (int t = 0, n = Prompt; t < Tokens; t += n, n = 1)
            {
                cache.Step(0, n, q.At(t * QRow), k.At(t * KvRow), v.At(t * KvRow), rows.At(0));
                for (int i = 0; i < n; i++)
                    worst = Math.Max(worst, Difference(t + i, q.Array, k.Array, v.Array, rows.Array, i));
            }
            Ensure(worst <= Tolerance, "differs from the plain softmax by " + worst + " of the largest value");

            SinkcacheException refused = null;
            GC.Collect(); // what nothing refers to is gone now: the callback must not be
            int before = lines;
            try { cache.Step(7, 1, q.At(0), k.At(0), v.At(0), rows.At(0)); }
            catch (SinkcacheException e) { refused = e; }
            Ensure(refused != null && refused.Status == Lib.Constant("SKC_STATUS_OUT_OF_RANGE"),
                   "a step in layer 7 of 1: " + refused);
            Console.WriteLine("expected error: " + refused.Message);
            Ensure(lines == before + 1, "the rejected step was not logged");
            SequenceInfo info = cache.Info();
            Ensure(info.length_min == Tokens && info.cached_tokens == Sinks + Window,
                   info.length_min + " tokens, " + info.cached_tokens + " kept");
            Console.WriteLine("C#: {0} tokens, {1} kept, {2} bytes, {3:0.0e-0} from a plain softmax",
                              info.length_min, info.cached_tokens, cache.Bytes, worst);
        }
    }

    static int Main()
    {
        try
        {
            Stream();
            return 0;
        }
        catch (Exception e)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }
}
