// A GGUF file, any bytes: an error of one line, or a model whose keys and tensors are within their limits and the file.
// What lies behind the header is a hole of 16 MiB, so that tensors have room.
#include "gguf.hpp"
#include "llama_config.hpp"
#include "model_checks.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace {

constexpr off_t FILE_BYTES = 16 << 20;

void expect(bool holds, const char *what) {
    if (!holds) {
        std::fprintf(stderr, "failed: %s\n", what);
        std::abort();
    }
}

/** Reads every byte that a tensor says it has. */
void read_all(inflight::Gguf &file) {
    for (const programs::GgufTensor &tensor : file.tensors()) {
        const auto n = static_cast<std::size_t>(tensor.dims[1]), k = static_cast<std::size_t>(tensor.dims[0]);
        if (k > 1U << 16 || n > 64) {
            continue;
        }
        try {
            const inflight::Matrix matrix = file.matrix(tensor.name, n, k);
            std::vector<float> row(k);
            for (std::size_t i = 0; i < n; i++) {
                matrix.unpack(i, row.data());
            }
        } catch (const std::runtime_error &) {
            // A type that cannot be multiplied, or no matrix.
        }
    }
}

void read(const std::string &path) {
    inflight::Gguf file(path);
    for (const programs::GgufTensor &tensor : file.tensors()) {
        expect(tensor.bytes <= FILE_BYTES && tensor.offset <= FILE_BYTES - tensor.bytes, "a tensor is in the file");
    }
    read_all(file);
    programs::check_model(file);
    const inflight::LlamaConfig config = read_config(file);
    expect(config.n_layers > 0 && config.layers.size() == config.n_layers, "a model has layers");
    expect(config.n_kv_heads > 0 && config.n_q_heads % config.n_kv_heads == 0, "KV heads divide query heads");
    expect(!config.bytes || config.vocabulary >= 256, "bytes have tokens");
    const auto is_token = [&](inflight::Token t) { return t >= 0 && std::size_t(t) < config.vocabulary; };
    expect(is_token(config.bos), "the first token is of the vocabulary");
    expect(std::all_of(config.end_tokens.begin(), config.end_tokens.end(), is_token), "what ends an answer is a token");
    const auto is_positive = [](double x) { return std::isfinite(x) && x > 0; };
    expect(is_positive(config.rms_eps), "the epsilon of norms is above 0");
    expect(std::all_of(config.layers.begin(), config.layers.end(), [&](const inflight::LayerShape &layer) {
        return is_positive(layer.rope_base) && is_positive(layer.rope_scale);
    }), "frequencies can be computed");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const int fd = memfd_create("model", 0);
    expect(fd >= 0 && write(fd, data, size) == static_cast<ssize_t>(size) && ftruncate(fd, FILE_BYTES) == 0,
           "a file in memory");
    try {
        read("/proc/self/fd/" + std::to_string(fd));
    } catch (const std::runtime_error &error) {
        const std::string text = error.what();
        expect(!text.empty() && text.size() < 4000, "an error text is short");
        expect(text.find('\n') == std::string::npos, "an error text is one line");
    }
    close(fd);
    return 0;
}
