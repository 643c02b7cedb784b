// Streams random tokens past a window through cgo, and checks every row of the output against a plain softmax over the
// tokens held.
//
//	export CGO_CFLAGS=-I$PWD/include CGO_LDFLAGS=-L$PWD/target/release LD_LIBRARY_PATH=$PWD/target/release
//	go run examples/go/stream.go
package main

/*
#cgo LDFLAGS: -lsinkcache
#include <sinkcache.h>
#include <stdlib.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"unsafe"
)

const (
	qHeads, kvHeads, dim         = 8, 2, 64
	sinks, window                = 4, 60
	prompt, tokens               = 100, 1000
	qRow, kvRow                  = qHeads * dim, kvHeads * dim
	tolerance            float64 = 1e-5
)

// Error is a call that failed: one of the SKC_STATUS_ numbers, and the library's text.
type Error struct {
	Status C.skc_status
	Text   string
}

func (e *Error) Error() string {
	return C.GoString(C.skc_status_name(e.Status)) + ": " + e.Text
}

// call runs a call of the library.
//
// The library keeps the text of an error for the operating system's thread, and Go may move a goroutine to another
// thread between two calls: the lock holds it where it is until the text is read. A host that uses CUDA locks for
// longer: the current context belongs to the thread too.
func call(f func() C.skc_status) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if status := f(); status != C.SKC_STATUS_OK {
		return &Error{status, C.GoString(C.skc_last_error())}
	}
	return nil
}

// alloc returns n zeros in C's memory; free them with C.free.
//
// The argument structs of the library hold pointers. cgo lets C have a Go struct, but not one that points to Go memory:
// the program panics ("cgo argument has Go pointer to Go pointer"). So whatever a struct points to is in C's memory.
// From Go 1.21 on a runtime.Pinner can hold Go memory in place instead.
func alloc[T any](n int) []T {
	var zero T
	p := C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof(zero)))
	if p == nil {
		panic("out of memory")
	}
	return unsafe.Slice((*T)(p), n)
}

func free[T any](x []T) {
	C.free(unsafe.Pointer(&x[0]))
}

// Cache is one layer for one sequence, in f32 and without RoPE. One call at a time; Close frees it.
type Cache struct {
	// A number, not an address. In the type that cgo gives it, a pointer to an incomplete struct, the garbage collector
	// leaves it alone; as an unsafe.Pointer it might end the program as a bad pointer.
	handle  *C.skc_cache
	entries []C.int32_t // a batch of one entry: its sequence, its number of tokens
	bytes   uint64
}

func newCache() (*Cache, error) {
	layer := alloc[C.skc_layer_config](1)
	defer free(layer) // the library has copied it when the call returns
	var config C.skc_cache_config
	var host, device C.uint64_t
	c := &Cache{}
	err := call(func() C.skc_status { return C.skc_layer_config_init(&layer[0], C.sizeof_skc_layer_config) })
	if err == nil {
		err = call(func() C.skc_status { return C.skc_cache_config_init(&config, C.sizeof_skc_cache_config) })
	}
	layer[0].n_sink, layer[0].window, layer[0].position_mode = sinks, window, C.SKC_POSITION_NONE
	config.n_q_heads, config.n_kv_heads, config.head_dim = qHeads, kvHeads, dim
	config.kv_dtype = C.SKC_DTYPE_F32
	config.n_layer_configs, config.layers = 1, &layer[0]
	if err == nil {
		err = call(func() C.skc_status { return C.skc_cache_bytes(&config, &host, &device) })
	}
	if err == nil {
		err = call(func() C.skc_status { return C.skc_create_cache(&config, &c.handle) })
	}
	if err != nil {
		return nil, err
	}
	c.bytes, c.entries = uint64(host), alloc[C.int32_t](2)
	return c, nil
}

// Close destroys the cache. Go's garbage collector does not see its memory, so a finalizer might run far too late.
func (c *Cache) Close() error {
	free(c.entries)
	return call(func() C.skc_status { return C.skc_destroy_cache(c.handle) })
}

// Step appends n tokens and attends with their queries. The tensors are in C's memory.
func (c *Cache) Step(layer uint32, n int, q, k, v, out []float32) error {
	c.entries[1] = C.int32_t(n)
	args := C.skc_step_args{struct_size: C.sizeof_skc_step_args, layer: C.uint32_t(layer), n_entries: 1}
	args.seq_ids, args.n_tokens = &c.entries[0], &c.entries[1]
	args.q, args.k, args.v = unsafe.Pointer(&q[0]), unsafe.Pointer(&k[0]), unsafe.Pointer(&v[0])
	args.out = unsafe.Pointer(&out[0])
	return call(func() C.skc_status { return C.skc_step(c.handle, &args) })
}

// Info describes the sequence.
func (c *Cache) Info() (C.skc_sequence_info, error) {
	info := C.skc_sequence_info{struct_size: C.sizeof_skc_sequence_info}
	err := call(func() C.skc_status { return C.skc_seq_info(c.handle, 0, 0, &info) })
	return info, err
}

// random fills x uniformly from [-1, 1), in place of the q, k and v of a model.
func random(x []float32, state *uint32) {
	for i := range x {
		*state = *state*1664525 + 1013904223
		x[i] = float32(*state>>8)/8388608 - 1
	}
}

// difference is the largest of row t of out from a plain softmax over sinks and window, relative to the largest value.
func difference(t int, q, k, v, out []float32) float64 {
	worst, largest := 0.0, 0.0
	for h := 0; h < qHeads; h++ {
		kv := h / (qHeads / kvHeads) * dim
		var want [dim]float64
		sum := 0.0
		for i := 0; i <= t; i++ {
			if i >= sinks && i+window <= t {
				continue
			}
			score := 0.0
			for d := 0; d < dim; d++ {
				score += float64(q[t*qRow+h*dim+d]) * float64(k[i*kvRow+kv+d])
			}
			p := math.Exp(score / math.Sqrt(dim))
			sum += p
			for d := range want {
				want[d] += p * float64(v[i*kvRow+kv+d])
			}
		}
		for d := range want {
			// math.Max returns NaN if either is NaN.
			worst = math.Max(worst, math.Abs(float64(out[h*dim+d])-want[d]/sum))
			largest = math.Max(largest, math.Abs(want[d]/sum))
		}
	}
	return worst / largest
}

func stream() (err error) {
	if version := C.skc_abi_version(); version != C.SKC_ABI_VERSION {
		return fmt.Errorf("built for ABI version %d, the library has %d", C.SKC_ABI_VERSION, version)
	}
	q, k, v := alloc[float32](tokens*qRow), alloc[float32](tokens*kvRow), alloc[float32](tokens*kvRow)
	out := alloc[float32](prompt * qRow)
	state := uint32(1)
	for _, x := range [][]float32{q, k, v} {
		random(x, &state)
		defer free(x)
	}
	defer free(out)
	cache, err := newCache()
	if err != nil {
		return err
	}
	defer func() {
		if closed := cache.Close(); err == nil {
			err = closed
		}
	}()

	// A prompt that is longer than the window, then token by token.
	worst := 0.0
	for t, n := 0, prompt; t < tokens; t, n = t+n, 1 {
		if err := cache.Step(0, n, q[t*qRow:], k[t*kvRow:], v[t*kvRow:], out); err != nil {
			return err
		}
		for i := 0; i < n; i++ {
			worst = math.Max(worst, difference(t+i, q, k, v, out[i*qRow:]))
		}
	}
	if !(worst <= tolerance) {
		return fmt.Errorf("differs from the plain softmax by %.1e of the largest value", worst)
	}

	var refused *Error
	if err := cache.Step(7, 1, q, k, v, out); !errors.As(err, &refused) || refused.Status != C.SKC_STATUS_OUT_OF_RANGE {
		return fmt.Errorf("a step in layer 7 of 1 returned: %v", err)
	}
	fmt.Println("expected error:", refused)
	info, err := cache.Info()
	if err != nil {
		return err
	}
	if info.length_min != tokens || info.cached_tokens != sinks+window {
		return fmt.Errorf("%d tokens, %d kept", info.length_min, info.cached_tokens)
	}
	fmt.Printf("Go: %d tokens, %d kept, %d bytes, %.1e from a plain softmax\n",
		info.length_min, info.cached_tokens, cache.bytes, worst)
	return nil
}

func main() {
	if err := stream(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
