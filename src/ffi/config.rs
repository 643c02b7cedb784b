//! Configuration structs, their defaults, and their conversion.

use std::ffi::{c_char, c_void};

use super::boundary::{boundary, check_pointer};
use super::c_struct::{CStruct, MAX_STRUCT_SIZE, c_struct, read_array, read_struct};
use super::constants::{
    SKC_BACKEND_CPU, SKC_BACKEND_CUDA, SKC_DTYPE_BF16, SKC_DTYPE_F16, SKC_DTYPE_F32, SKC_NO_DISK_CACHE,
    SKC_POSITION_ALIBI, SKC_POSITION_NONE, SKC_POSITION_ROPE, SKC_POSITION_ROPE_APPLIED, SKC_PROGRAMMATIC_LAUNCH,
    SKC_ROPE_INTERLEAVED, SKC_ROPE_NEOX, skc_status,
};
use crate::config::{
    BackendKind, CacheConfig, CudaConfig, DType, LayerConfig, MAX_LAYERS, PositionMode, RopeStyle, StorageType,
};
use crate::error::{Result, bail};
use crate::exec::ParallelFor;
use crate::memory::{Memory, copied, with_room};

/// Allocates memory for a cache: returns `bytes` bytes aligned to `align` (a power of two), or NULL if it cannot.
/// `user` is memory_user or device_memory_user.
///
/// Lifetime: it is called by skc_create_cache only. The memory must stay valid until skc_free_fn gets it.
///
/// Threads: the thread that called the library. It may call this library.
pub type skc_alloc_fn = Option<unsafe extern "C" fn(user: *mut c_void, bytes: usize, align: usize) -> *mut c_void>;
/// Frees memory of a cache: `ptr` is what skc_alloc_fn returned for `bytes` bytes.
///
/// Lifetime: it is called by skc_destroy_cache, and by skc_create_cache if it fails.
///
/// Threads: the thread that called the library. It may call this library; this cache's handle is no longer valid.
pub type skc_free_fn = Option<unsafe extern "C" fn(user: *mut c_void, ptr: *mut c_void, bytes: usize)>;
/// One iteration of a parallel loop: the library passes it to skc_parallel_for_fn, the host calls it.
///
/// Lifetime: valid until the skc_parallel_for_fn that got it returns.
///
/// Threads: any thread, several at a time.
pub type skc_task_fn = Option<unsafe extern "C" fn(data: *mut c_void, index: u32)>;
/// The host's parallel loop: calls task(data, i) for every i below n, on any threads, and returns when all of these
/// calls have returned. It must not start a task after it has returned. `user` is parallel_for_user.
///
/// Lifetime: it is called during calls on the cache, until skc_destroy_cache has returned.
///
/// Threads: the thread that called the library. Calls on the same cache from inside it return SKC_STATUS_BUSY.
pub type skc_parallel_for_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, n: u32, task: skc_task_fn, data: *mut c_void)>;
/// Receives a line of text: level is one of SKC_LOG_, `user` is log_user. It is called when a cache is created (also
/// for warnings) or destroyed, and when a call on it is rejected or fails.
///
/// Lifetime: text is valid during the call. It is called until skc_destroy_cache has returned.
///
/// Threads: the thread that called the library, several at a time if several threads call it. It may call this library,
/// also on the same cache (skc_destroy_cache returns SKC_STATUS_BUSY); failures of these calls are not logged.
pub type skc_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: u32, text: *const c_char)>;

/// Settings of one layer. Initialise it with skc_layer_config_init or SKC_LAYER_CONFIG_INIT, then set what differs from
/// the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_layer_config {
    /// Set to sizeof(skc_layer_config): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: none is defined, set to 0.
    pub flags: u32,
    /// First tokens of each sequence, which are never dropped. Default 4.
    pub n_sink: u32,
    /// Most recent tokens that a query attends to, its own included; at least 1. Default 2044.
    pub window: u32,
    /// How keys and queries get their positions, one of SKC_POSITION_. Default SKC_POSITION_ROPE.
    pub position_mode: u32,
    /// Which dims RoPE rotates together, one of SKC_ROPE_. Default SKC_ROPE_NEOX.
    pub rope_style: u32,
    /// Leading dims of a head that RoPE rotates, an even number; 0 = head_dim. Default 0.
    pub rope_dim: u32,
    /// Number of elements of inv_freq: rope_dim / 2, or 0 for the frequencies of rope_base. Default 0.
    pub n_inv_freq: u32,
    /// Base of the RoPE frequencies (theta). Default 10000.
    pub rope_base: f64,
    /// Linear position scaling: angle = position x rope_scale x frequency. Default 1.
    pub rope_scale: f64,
    /// Factor on the rotated dims of q and of k (YaRN's attention factor). With SKC_POSITION_ROPE_APPLIED the host
    /// applies it. Default 1.
    pub rope_mscale: f64,
    /// Factor on QK^T, at least 1e-30; 0 = 1 / sqrt(head_dim). Default 0.
    pub scale: f64,
    /// Above 0: score = softcap x tanh(score / softcap). Default 0.
    pub softcap: f64,
    /// Angular frequencies in radians per token (YaRN, Llama-3 scaling). NULL if n_inv_freq is 0. Frequencies that
    /// change with the length of the stream (dynamic NTK) are not possible, because a stored key is never rotated
    /// again.
    pub inv_freq: *const f32,
    /// ALiBi slopes of the query heads. Required with SKC_POSITION_ALIBI, not allowed otherwise.
    pub alibi_slopes: *const f32,
    /// Learned sink logits of the query heads (gpt-oss): they are added to the softmax denominator, unscaled.
    pub sink_logits: *const f32,
    /// Number of elements of alibi_slopes: n_q_heads, or 0.
    pub n_alibi_slopes: u32,
    /// Number of elements of sink_logits: n_q_heads, or 0 for none.
    pub n_sink_logits: u32,
    /// The most tokens of a sequence that skc_pin may hold at a time, 0 to 2^24. A layer with 0 ignores pins. Default
    /// 0.
    pub max_pinned: u32,
    /// The most segments of a sequence at a time, 0 to 1024: runs of pinned tokens, and ranges dropped by
    /// skc_evict_range that the window has not moved past. Default 0.
    pub max_segments: u32,
}
c_struct!(skc_layer_config, 0, 104);

/// Settings of a cache. Initialise it with skc_cache_config_init or SKC_CACHE_CONFIG_INIT, then set what differs from
/// the defaults; n_q_heads, n_kv_heads, head_dim and layers have none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct skc_cache_config {
    /// Set to sizeof(skc_cache_config): says which version of the struct the caller was built with.
    pub struct_size: u32,
    /// Flags: SKC_NO_DISK_CACHE and SKC_PROGRAMMATIC_LAUNCH, or 0.
    pub flags: u32,
    /// Where K and V are stored and kernels run, one of SKC_BACKEND_. Default SKC_BACKEND_CPU.
    pub backend: u32,
    /// Attention layers, 1 to 65536. Default 1.
    pub n_layers: u32,
    /// Sequences that the cache holds, 1 to 2^24. Default 1.
    pub n_seqs: u32,
    /// Query heads, a multiple of n_kv_heads, at most 65536. A tensor-parallel shard has its own heads only.
    pub n_q_heads: u32,
    /// Heads of K and V. Query head h uses KV head h / (n_q_heads / n_kv_heads).
    pub n_kv_heads: u32,
    /// Dims of a head of Q and K: a multiple of 8, at most 512.
    pub head_dim: u32,
    /// Dims of a head of V and of the output: a multiple of 8, at most 512; 0 = head_dim. Default 0.
    pub head_dim_v: u32,
    /// Element type of the caller's q, k and v, one of SKC_DTYPE_. Default SKC_DTYPE_F32.
    pub in_dtype: u32,
    /// Element type of the output, one of SKC_DTYPE_; 0 = in_dtype. Default 0.
    pub out_dtype: u32,
    /// Type that K and V are stored in, one of SKC_DTYPE_. Default SKC_DTYPE_F16, which ends at 65,504: larger numbers
    /// are stored as infinity, without a warning. SKC_DTYPE_BF16 has the range of SKC_DTYPE_F32. k_dtype and v_dtype
    /// override it.
    pub kv_dtype: u32,
    /// The most tokens of one sequence in one skc_append_kv, 1 to 2^30. Default 512.
    pub max_chunk: u32,
    /// How far below its highest length skc_rewind may cut a sequence, 0 to 2^30. Default 16.
    pub max_rewind: u32,
    /// CPU: the most threads of a call: those of the cache's pool, the tasks of one parallel_for, or the largest team
    /// of skc_step_part. 1 to 1024. Default 1.
    pub n_threads: u32,
    /// Number of elements of layers: 1, which then holds for all layers, or n_layers.
    pub n_layer_configs: u32,
    /// Settings of the layers.
    pub layers: *const skc_layer_config,
    /// Bytes from one element of layers to the next; 0 = struct_size of the first.
    pub layer_stride: u64,
    /// Allocator of host memory. Set both alloc and free, or neither: NULL = the process's allocator.
    pub alloc: skc_alloc_fn,
    /// Frees what alloc has returned.
    pub free: skc_free_fn,
    /// First argument of alloc and free.
    pub memory_user: *mut c_void,
    /// CPU: the host's parallel loop; NULL = with n_threads above 1, a pool of the cache's own. Threads of the pool
    /// spin for 50 microseconds after a call and then sleep. After fork(2) the child gets a new pool at its first call.
    /// An append of few tokens runs on the calling thread alone.
    pub parallel_for: skc_parallel_for_fn,
    /// First argument of parallel_for.
    pub parallel_for_user: *mut c_void,
    /// Receives log lines; NULL = no log.
    pub log: skc_log_fn,
    /// First argument of log.
    pub log_user: *mut c_void,
    /// CUDA: ordinal of the device, whose primary context is used. Default 0.
    pub cuda_device: u32,
    /// Unused: set to 0.
    pub reserved: u32,
    /// CUDA: a context of the host (CUcontext) to use instead; NULL = the primary context of cuda_device.
    pub cuda_context: *mut c_void,
    /// CUDA: allocator of device memory. Set both device_alloc and device_free, or neither: NULL = cuMemAlloc. The
    /// cache's context is current when they are called.
    pub device_alloc: skc_alloc_fn,
    /// CUDA: frees what device_alloc has returned.
    pub device_free: skc_free_fn,
    /// CUDA: first argument of device_alloc and device_free.
    pub device_memory_user: *mut c_void,
    /// Type that K is stored in, one of SKC_DTYPE_; 0 = kv_dtype. Default 0. SKC_DTYPE_Q8 and SKC_DTYPE_Q4 take a half
    /// and about a quarter of the memory of SKC_DTYPE_F16.
    pub k_dtype: u32,
    /// Type that V is stored in, one of SKC_DTYPE_; 0 = kv_dtype. Default 0.
    pub v_dtype: u32,
}
c_struct!(skc_cache_config, SKC_NO_DISK_CACHE | SKC_PROGRAMMATIC_LAUNCH, 136);

impl Default for skc_layer_config {
    fn default() -> Self {
        let d = LayerConfig::default();
        Self {
            struct_size: size_of::<Self>() as u32,
            flags: 0,
            n_sink: d.n_sink,
            window: d.window,
            position_mode: d.position_mode as u32,
            rope_style: d.rope_style as u32,
            rope_dim: d.rope_dim,
            n_inv_freq: 0,
            rope_base: d.rope_base,
            rope_scale: d.rope_scale,
            rope_mscale: d.rope_mscale,
            scale: d.scale,
            softcap: d.softcap,
            inv_freq: std::ptr::null(),
            alibi_slopes: std::ptr::null(),
            sink_logits: std::ptr::null(),
            n_alibi_slopes: 0,
            n_sink_logits: 0,
            max_pinned: d.max_pinned,
            max_segments: d.max_segments,
        }
    }
}

impl Default for skc_cache_config {
    fn default() -> Self {
        let d = CacheConfig::WITHOUT_LAYERS;
        Self {
            struct_size: size_of::<Self>() as u32,
            flags: 0,
            backend: d.backend as u32,
            n_layers: d.n_layers,
            n_seqs: d.n_seqs,
            n_q_heads: 0,
            n_kv_heads: 0,
            head_dim: 0,
            head_dim_v: 0,
            in_dtype: d.in_dtype as u32,
            out_dtype: 0,
            kv_dtype: d.kv_dtype as u32,
            max_chunk: d.max_chunk,
            max_rewind: d.max_rewind,
            n_threads: d.n_threads,
            n_layer_configs: 0,
            layers: std::ptr::null(),
            layer_stride: 0,
            alloc: None,
            free: None,
            memory_user: std::ptr::null_mut(),
            parallel_for: None,
            parallel_for_user: std::ptr::null_mut(),
            log: None,
            log_user: std::ptr::null_mut(),
            cuda_device: d.cuda.device,
            reserved: 0,
            cuda_context: std::ptr::null_mut(),
            device_alloc: None,
            device_free: None,
            device_memory_user: std::ptr::null_mut(),
            k_dtype: 0,
            v_dtype: 0,
        }
    }
}

/// Fills a cache's configuration with the defaults, the same as SKC_CACHE_CONFIG_INIT. `struct_size` is the caller's
/// sizeof(skc_cache_config): not more bytes are written.
///
/// Returns: SKC_STATUS_OK, or
/// - SKC_STATUS_NULL_POINTER: config is NULL.
/// - SKC_STATUS_INVALID_ARGUMENT: config is misaligned.
/// - SKC_STATUS_VERSION_MISMATCH: struct_size is smaller than in the first release, or above 4096.
/// - SKC_STATUS_INTERNAL: a bug in this library.
///
/// Lifetime: config until the call returns.
///
/// Threads: any thread, also several at a time.
///
/// # Safety
/// `config` must be NULL or writable for `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_cache_config_init(config: *mut skc_cache_config, struct_size: u32) -> skc_status {
    // SAFETY: NULL or writable for `struct_size` bytes.
    boundary(|| unsafe { init("skc_cache_config", config, struct_size, skc_cache_config::default()) })
}

/// Fills a layer's configuration with the defaults, the same as SKC_LAYER_CONFIG_INIT. `struct_size` is the caller's
/// sizeof(skc_layer_config): not more bytes are written.
///
/// Returns: SKC_STATUS_OK, or
/// - SKC_STATUS_NULL_POINTER: config is NULL.
/// - SKC_STATUS_INVALID_ARGUMENT: config is misaligned.
/// - SKC_STATUS_VERSION_MISMATCH: struct_size is smaller than in the first release, or above 4096.
/// - SKC_STATUS_INTERNAL: a bug in this library.
///
/// Lifetime: config until the call returns.
///
/// Threads: any thread, also several at a time.
///
/// # Safety
/// `config` must be NULL or writable for `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn skc_layer_config_init(config: *mut skc_layer_config, struct_size: u32) -> skc_status {
    // SAFETY: NULL or writable for `struct_size` bytes.
    boundary(|| unsafe { init("skc_layer_config", config, struct_size, skc_layer_config::default()) })
}

/// Writes defaults into a struct of `size` bytes. Bytes that this library does not know become 0.
///
/// # Safety
/// `out` must be NULL or writable for `size` bytes.
unsafe fn init<T: CStruct>(name: &str, out: *mut T, size: u32, defaults: T) -> Result<()> {
    check_pointer(name, out)?;
    let (bytes, known) = (size as usize, size_of::<T>());
    if !(T::FIRST_SIZE..=MAX_STRUCT_SIZE).contains(&bytes) {
        bail!(VersionMismatch, "struct_size of {name} is {size}: {} to {MAX_STRUCT_SIZE} is allowed", T::FIRST_SIZE);
    }
    // SAFETY: not NULL, by the check, and writable for `bytes` bytes, as this function demands; struct_size comes
    // first.
    unsafe {
        out.cast::<u8>().write_bytes(0, bytes);
        std::ptr::copy_nonoverlapping((&raw const defaults).cast::<u8>(), out.cast(), bytes.min(known));
        out.cast::<u32>().write(size);
    }
    Ok(())
}

fn dtype(name: &str, value: u32) -> Result<DType> {
    match value {
        SKC_DTYPE_F32 => Ok(DType::F32),
        SKC_DTYPE_F16 => Ok(DType::F16),
        SKC_DTYPE_BF16 => Ok(DType::Bf16),
        _ => bail!(InvalidConfig, "{name} is {value}: SKC_DTYPE_F32 (1), _F16 (2) or _BF16 (3) is allowed"),
    }
}

fn storage_type(name: &str, value: u32) -> Result<StorageType> {
    match StorageType::ALL.into_iter().find(|&t| t as u32 == value) {
        Some(found) => Ok(found),
        None => bail!(
            InvalidConfig,
            "{name} is {value}: SKC_DTYPE_F32 (1), _F16 (2), _BF16 (3), _Q8 (4) or _Q4 (5) is allowed"
        ),
    }
}

/// A type that replaces `kv_dtype`, or none for 0.
fn own_type(name: &str, value: u32) -> Result<Option<StorageType>> {
    if value == 0 { Ok(None) } else { storage_type(name, value).map(Some) }
}

/// The allocator that a pair of callbacks makes, or the default if both are NULL.
fn memory(names: [&str; 2], alloc: skc_alloc_fn, free: skc_free_fn, user: *mut c_void) -> Result<Memory> {
    let [alloc_name, free_name] = names;
    match (alloc, free) {
        (None, None) => Ok(Memory::default()),
        // SAFETY: the header demands of the callbacks what `Memory::new` does.
        (Some(alloc), Some(free)) => Ok(unsafe { Memory::new(alloc, free, user) }),
        (Some(_), None) => {
            bail!(InvalidConfig, "{alloc_name} is set but {free_name} is NULL: both or neither is allowed")
        }
        (None, Some(_)) => {
            bail!(InvalidConfig, "{free_name} is set but {alloc_name} is NULL: both or neither is allowed")
        }
    }
}

/// Converts a caller's configuration. The values themselves are checked by `CacheConfig`.
///
/// # Safety
/// `config` and all that it points to must be NULL or as the header says.
pub unsafe fn read_config(config: *const skc_cache_config) -> Result<(CacheConfig, skc_cache_config)> {
    // SAFETY: NULL or a struct of struct_size bytes.
    let c = unsafe { read_struct(config) }?;
    let backend = match c.backend {
        SKC_BACKEND_CPU => BackendKind::Cpu,
        SKC_BACKEND_CUDA => BackendKind::Cuda,
        other => bail!(InvalidConfig, "backend is {other}: SKC_BACKEND_CPU (1) or SKC_BACKEND_CUDA (2) is allowed"),
    };
    let in_dtype = dtype("in_dtype", c.in_dtype)?;
    if c.reserved != 0 {
        bail!(VersionMismatch, "reserved is {}: it must be 0", c.reserved);
    }
    let memory = memory(["alloc", "free"], c.alloc, c.free, c.memory_user)?;
    let cuda = CudaConfig {
        device: c.cuda_device,
        context: c.cuda_context,
        memory: self::memory(["device_alloc", "device_free"], c.device_alloc, c.device_free, c.device_memory_user)?,
        disk_cache: c.flags & SKC_NO_DISK_CACHE == 0,
        programmatic: c.flags & SKC_PROGRAMMATIC_LAUNCH != 0,
    };
    // SAFETY: the header demands of the callback what `ParallelFor::new` does.
    let parallel_for = c.parallel_for.map(|call| unsafe { ParallelFor::new(call, c.parallel_for_user) });
    let mut config = CacheConfig {
        isa: None,
        backend,
        n_layers: c.n_layers,
        n_seqs: c.n_seqs,
        n_q_heads: c.n_q_heads,
        n_kv_heads: c.n_kv_heads,
        head_dim: c.head_dim,
        head_dim_v: c.head_dim_v,
        in_dtype,
        out_dtype: if c.out_dtype == 0 { in_dtype } else { dtype("out_dtype", c.out_dtype)? },
        kv_dtype: storage_type("kv_dtype", c.kv_dtype)?,
        k_dtype: own_type("k_dtype", c.k_dtype)?,
        v_dtype: own_type("v_dtype", c.v_dtype)?,
        max_chunk: c.max_chunk,
        max_rewind: c.max_rewind,
        n_threads: c.n_threads,
        layers: Vec::new(),
        memory,
        parallel_for,
        cuda,
    };
    // First the numbers that say how long the layers' arrays are.
    config.shape()?;
    // SAFETY: `layers` is as the header says.
    config.layers = unsafe { read_layers(&c, &config) }?;
    Ok((config, c))
}

/// # Safety
/// `c.layers` must be NULL or have `n_layer_configs` elements, if that is 1 or `n_layers`.
unsafe fn read_layers(c: &skc_cache_config, config: &CacheConfig) -> Result<Vec<LayerConfig>> {
    let n = c.n_layer_configs;
    // Checked before any element is read: a wrong count does not say how many elements there are.
    if n == 0 || n > MAX_LAYERS || (n != 1 && n != c.n_layers) {
        bail!(InvalidConfig, "n_layer_configs is {n}: 1 or n_layers ({}) is allowed", c.n_layers);
    }
    let mut layers = with_room(n as usize, "layers")?;
    // SAFETY: NULL, or there is at least one element.
    let first = unsafe { read_struct(c.layers) }?;
    let stride = if c.layer_stride == 0 { u64::from(first.struct_size) } else { c.layer_stride };
    let align = align_of::<skc_layer_config>() as u64;
    if stride < u64::from(first.struct_size) || !stride.is_multiple_of(align) || stride > u64::from(u32::MAX) {
        bail!(
            InvalidConfig,
            "layer_stride is {stride}: a multiple of {align} from struct_size {} is needed",
            first.struct_size
        );
    }
    for i in 0..n as usize {
        // SAFETY: there are n elements, `stride` bytes apart.
        let layer = unsafe { read_struct(c.layers.byte_add(i * stride as usize)) }?;
        // SAFETY: the arrays of each element are as the header says.
        layers.push(unsafe { read_layer(&layer, config) }?);
    }
    Ok(layers)
}

/// # Safety
/// Each array must be NULL or have as many elements as its count says, if that is one that `config` allows.
unsafe fn read_layer(c: &skc_layer_config, config: &CacheConfig) -> Result<LayerConfig> {
    let rope_dim = if c.rope_dim == 0 { config.head_dim } else { c.rope_dim.min(config.head_dim) };
    // `allowed`, beside 0: a wrong count does not say how many elements there are, so none is read.
    let floats = |name: &str, ptr: *const f32, n: u32, allowed: u32| {
        if n != 0 && n != allowed {
            bail!(InvalidConfig, "n_{name} is {n}: 0 or {allowed} is allowed");
        }
        // SAFETY: NULL or n elements, as this function demands.
        let values = unsafe { read_array(name, ptr, n as usize) }?;
        copied(values, name)
    };
    Ok(LayerConfig {
        n_sink: c.n_sink,
        window: c.window,
        position_mode: match c.position_mode {
            SKC_POSITION_ROPE => PositionMode::Rope,
            SKC_POSITION_ROPE_APPLIED => PositionMode::RopeApplied,
            SKC_POSITION_ALIBI => PositionMode::Alibi,
            SKC_POSITION_NONE => PositionMode::None,
            other => bail!(InvalidConfig, "position_mode is {other}: one of SKC_POSITION_ (1 to 4) is allowed"),
        },
        rope_style: match c.rope_style {
            SKC_ROPE_NEOX => RopeStyle::Neox,
            SKC_ROPE_INTERLEAVED => RopeStyle::Interleaved,
            other => bail!(InvalidConfig, "rope_style is {other}: SKC_ROPE_NEOX (1) or _INTERLEAVED (2) is allowed"),
        },
        rope_dim: c.rope_dim,
        rope_base: c.rope_base,
        rope_scale: c.rope_scale,
        rope_mscale: c.rope_mscale,
        inv_freq: floats("inv_freq", c.inv_freq, c.n_inv_freq, rope_dim / 2)?,
        alibi_slopes: floats("alibi_slopes", c.alibi_slopes, c.n_alibi_slopes, config.n_q_heads)?,
        scale: c.scale,
        softcap: c.softcap,
        sink_logits: floats("sink_logits", c.sink_logits, c.n_sink_logits, config.n_q_heads)?,
        max_pinned: c.max_pinned,
        max_segments: c.max_segments,
    })
}
