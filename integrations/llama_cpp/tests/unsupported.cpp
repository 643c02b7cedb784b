// Models that the adapter does not support are rejected, with the reason, when the context is created.
#include "support/host.hpp"

#include <gtest/gtest.h>

using sinkcache::LlamaContext;

namespace {

class UnsupportedModels : public testing::TestWithParam<std::string> {};

std::string rejection(llama_model *model, const llama_context_params &p, const sinkcache::LlamaOptions &o) {
    try {
        const LlamaContext ctx(model, p, o);
    } catch (const sinkcache::Error &e) {
        EXPECT_EQ(e.status(), SKC_STATUS_INVALID_CONFIG) << e.what();
        return e.what();
    }
    return "not rejected";
}

}  // namespace

TEST_P(UnsupportedModels, AreRejectedWithAReason) {
    const Unsupported unsupported = unsupported_models().at(GetParam());
    const llama_model_ptr model = load(unsupported.model, GetParam());
    const std::string text = rejection(model.get(), params(32), options(4, 508));
    EXPECT_NE(text.find(unsupported.reason), std::string::npos) << text;
    std::printf("%s: %s\n", GetParam().c_str(), text.c_str());
}

INSTANTIATE_TEST_SUITE_P(Models, UnsupportedModels, testing::ValuesIn(names(unsupported_models())),
                         [](const auto &info) { return info.param; });
