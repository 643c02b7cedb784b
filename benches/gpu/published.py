"""Times that others have published, to stand beside ours. They are nobody's measurement here."""

# github.com/vllm-project/vllm/pull/43232, "Per-cell times": microseconds of attention in a layer, one sequence, by
# cached tokens, 8 KV heads of 128 on Hopper. Keys are rotated and stored by other kernels, which are not counted.
VLLM_43232 = {
    "XQA": {1024: 7.6, 2048: 8.1, 4096: 10.5, 8192: 14.5, 16384: 21.3, 32768: 35.1},
    "FA3": {1024: 11.2, 2048: 12.5, 4096: 13.8, 8192: 17.1, 16384: 23.0, 32768: 34.5},
}
CACHED = tuple(VLLM_43232["XQA"])
