#include "jinja.hpp"

#ifdef LLAMA_STREAM_HAS_JINJA

#include "child.hpp"

#include <jinja/parser.h>
#include <jinja/runtime.h>
#include <json.h>

namespace {

std::string render(const std::string &text, const EdgeTokens &tokens, const std::vector<ChatMessage> &messages) {
    jinja::lexer lexer;
    const auto lexed = lexer.tokenize(text);
    const jinja::program program = jinja::parse_from_tokens(lexed);
    common_json list = common_json::array();
    for (const ChatMessage &message : messages) {
        list.push_back(common_json{{"role", message.role}, {"content", message.content}});
    }
    common_json values;
    values["messages"] = list;
    values["bos_token"] = tokens.bos;
    values["eos_token"] = tokens.eos;
    values["add_generation_prompt"] = true;
    jinja::context context(lexed.source);
    jinja::global_from_json(context, values, false);
    jinja::runtime runtime(context);
    const jinja::value result = runtime.execute(program);
    return jinja::runtime::gather_string_parts(result)->as_string().str();
}

/** A file's template can recurse, loop and allocate without end. */
class Interpreted : public JinjaTemplate {
public:
    Interpreted(std::string text, EdgeTokens tokens) : text_(std::move(text)), tokens_(std::move(tokens)) {}

    std::string apply(const std::vector<ChatMessage> &messages) const override {
        std::string result = in_child("the model's chat template (--raw runs without it)",
                                      [&] { return render(text_, tokens_, messages); });
        if (tokens_.adds_bos && !tokens_.bos.empty() && result.rfind(tokens_.bos, 0) == 0) {
            result.erase(0, tokens_.bos.size());
        }
        return result;
    }

private:
    std::string text_;
    EdgeTokens tokens_;
};

}  // namespace

std::shared_ptr<const JinjaTemplate> JinjaTemplate::make(const std::string &text, const EdgeTokens &tokens) {
    return std::make_shared<Interpreted>(text, tokens);
}

#else

std::shared_ptr<const JinjaTemplate> JinjaTemplate::make(const std::string &, const EdgeTokens &) { return nullptr; }

#endif
