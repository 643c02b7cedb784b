// A libllama of a version that has few functions, as an old one may.
extern "C" {

void *llama_init_from_model() { return nullptr; }
// What a host calls before it creates a context. The result is no model; it is only passed on.
void *llama_model_load_from_file() { return reinterpret_cast<void *>(1); }
}
