// llama-make-model: writes a model with random weights and the bundled tokenizer: a Llama of any size, for measuring
// speed, or a small one with recurrent layers.
#include "support/random_hybrid.hpp"
#include "support/random_model.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <map>

int main(int argc, char **argv) {
    Shape shape;
    shape.n_layers = 12;
    shape.n_embd = 1024;
    shape.n_heads = 16;
    shape.n_kv_heads = 8;
    shape.head_dim = 64;
    shape.n_ff = 2816;
    shape.n_vocab = 259;
    const std::map<std::string, RandomModel> hybrids = hybrid_models(shape.n_vocab);
    std::string path, hybrid;
    ggml_type type = GGML_TYPE_Q8_0;
    const std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}};

    CLI::App app("Writes a model with random weights: by default a Llama of 140 million parameters.");
    app.add_option("file", path, "GGUF to write")->required();
    app.add_option("--layers", shape.n_layers)->capture_default_str()->check(CLI::Range(1, 1000));
    app.add_option("--embd", shape.n_embd)->capture_default_str()->check(CLI::Range(32, 1 << 16));
    app.add_option("--heads", shape.n_heads)->capture_default_str()->check(CLI::Range(1, 1024));
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str()->check(CLI::Range(1, 1024));
    app.add_option("--head-dim", shape.head_dim)->capture_default_str()->check(CLI::Range(8, 512));
    app.add_option("--ff", shape.n_ff)->capture_default_str()->check(CLI::Range(32, 1 << 18));
    app.add_option("--type", type, "Weights: f32, f16, q8_0")
        ->transform(CLI::CheckedTransformer(types, CLI::ignore_case));
    app.add_option("--hybrid", hybrid, "Instead: this model with recurrent layers, a small one")
        ->check(CLI::IsMember(names(hybrids)));
    CLI11_PARSE(app, argc, argv);
    try {
        RandomModel model = hybrid.empty() ? decoder("llama", shape) : hybrids.at(hybrid);
        model.tokenizer_of = DATA "/tiny-llama-bytes.gguf";
        model.type = type;
        model.write(path);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "llama-make-model: %s\n", e.what());
        return 1;
    }
    return 0;
}
