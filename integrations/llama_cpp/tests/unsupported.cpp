// What the adapter cannot serve is refused with a reason when the context is made.
#include "support/host.hpp"

#include <gtest/gtest.h>

using sinkcache::LlamaContext;

namespace {

class Refused : public testing::TestWithParam<std::string> {};

std::string refusal(llama_model *model, const llama_context_params &p, const sinkcache::LlamaOptions &o) {
    try {
        const LlamaContext ctx(model, p, o);
    } catch (const sinkcache::Error &e) {
        EXPECT_EQ(e.status(), SKC_STATUS_INVALID_CONFIG) << e.what();
        return e.what();
    }
    return "not refused";
}

}  // namespace

TEST_P(Refused, WithAReason) {
    const Unsupported unsupported = unsupported_models().at(GetParam());
    const Model model = load(unsupported.model, GetParam());
    const std::string text = refusal(model.get(), params(32), options(4, 508));
    EXPECT_NE(text.find(unsupported.reason), std::string::npos) << text;
    std::printf("%s: %s\n", GetParam().c_str(), text.c_str());
}

namespace {

std::vector<std::string> names() {
    std::vector<std::string> all;
    for (const auto &entry : unsupported_models()) {
        all.push_back(entry.first);
    }
    return all;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Models, Refused, testing::ValuesIn(names()), [](const auto &info) { return info.param; });
