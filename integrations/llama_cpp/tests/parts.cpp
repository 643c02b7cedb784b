// Parts of llama-stream that its output does not cover.
#include "../program/engine.hpp"
#include "../program/llama_log.hpp"
#include "../program/measure.hpp"
#include "../program/template.hpp"
#include "../program/thoughts.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

TEST(Parts, Quantiles) {
    Durations d;
    EXPECT_FALSE(d.quantile(0.5).has_value());
    for (int i = 1; i <= 1000; ++i) {
        d.add(i);
    }
    EXPECT_NEAR(*d.quantile(0.5), 500, 4);
    EXPECT_NEAR(*d.quantile(0.99), 990, 8);
    EXPECT_NEAR(*d.quantile(1.0), 1000, 8);
    EXPECT_NEAR(d.total_ms(), 500500, 1e-6);
    d.add(0);  // below the resolution of the clock
    EXPECT_EQ(d.count(), 1001U);
}

TEST(Parts, Likelihoods) {
    const std::vector<float> logits = {1000.0F, 1000.0F, -1e30F, 1000.0F};
    EXPECT_NEAR(negative_log_likelihood(logits.data(), 4, 1), std::log(3.0), 1e-9);
    Perplexity p;
    EXPECT_FALSE(p.value().has_value());
    p.add(std::log(2.0));
    p.add(std::log(8.0));
    EXPECT_NEAR(*p.value(), 4, 1e-12);
}

// The texts of all rounds together are the template's text of the whole conversation.
TEST(Parts, TemplatesRoundByRound) {
    ChatTemplate chatml("{{'<|im_start|>'}}", "");
    std::string all = chatml.next("hi");
    EXPECT_EQ(all, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    for (const std::string answer : {"hello", "", "a\nb"}) {
        chatml.answered(answer);
        const std::string next = chatml.next("more");
        EXPECT_EQ(next, "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n");
        all += answer + next;
    }
    const std::vector<llama_chat_message> messages = {{"user", "hi"},    {"assistant", "hello"}, {"user", "more"},
                                                      {"assistant", ""}, {"user", "more"},       {"assistant", "a\nb"},
                                                      {"user", "more"}};
    std::string whole(4096, '\0');
    const int n =
        llama_chat_apply_template("{{'<|im_start|>'}}", messages.data(), messages.size(), true, whole.data(), 4096);
    ASSERT_GT(n, 0);
    whole.resize(std::size_t(n));
    EXPECT_EQ(all, whole);

    ChatTemplate mistral("[INST] strip [/INST]", "");  // trims its messages
    EXPECT_NE(mistral.next("hi").find("hi"), std::string::npos);
    mistral.answered("  hello \n");
    const std::string next = mistral.next("more");
    EXPECT_NE(next.find("[INST] more [/INST]"), std::string::npos) << next;
    EXPECT_EQ(next.find("hello"), std::string::npos) << next;

    ChatTemplate raw("", "You are kind.");
    EXPECT_EQ(raw.next("hi"), "You are kind.\nhi\n");
    raw.answered("hello");
    EXPECT_EQ(raw.next("more"), "\nmore\n");
    EXPECT_THROW(ChatTemplate("nothing known", "").next("hi"), UserError);
}

// A template that drops the thoughts of earlier answers, and that has a system message of its own.
TEST(Parts, TemplatesInJinjaRoundByRound) {
    const std::string text = R"({{- bos_token -}}
{%- if messages[0].role != 'system' -%}<system>You are kind.</system>{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- set content = message.content.split('</think>')[-1] | trim -%}
        <assistant>{{ content }}</assistant>
    {%- else -%}
        <{{ message.role }}>{{ message.content | trim }}</{{ message.role }}>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%})";
    const auto jinja = JinjaTemplate::make(text, {"<s>", "</s>", true});
    if (!jinja) {
        GTEST_SKIP() << "this build has no interpreter of templates";
    }
    ChatTemplate chat(text, "", jinja);
    // Tokenization adds the token for the beginning.
    EXPECT_EQ(chat.next("hi"), "<system>You are kind.</system><user>hi</user><assistant>");
    for (const char *answer : {"<think>They greet me.</think>  Hello.  ", "", "sinkcache", "hi"}) {
        chat.answered(answer);
        EXPECT_EQ(chat.next(" more "), "</assistant><user>more</user><assistant>") << answer;
    }
    ChatTemplate with_system(text, "Be brief.", jinja);
    const std::string first = with_system.next("hi");
    EXPECT_EQ(first, "<system>Be brief.</system><user>hi</user><assistant>");
    EXPECT_EQ(first.substr(0, with_system.system_bytes(first, "hi")), "<system>Be brief.");

    const auto error_of = [](const std::string &source, const std::string &system) -> std::string {
        try {
            ChatTemplate(source, system, JinjaTemplate::make(source, {})).next("hi");
        } catch (const UserError &e) {
            return e.what();
        }
        return "no error";
    };
    EXPECT_NE(error_of("{% for message in messages %}", "").find("the model's chat template ("), std::string::npos);
    EXPECT_NE(error_of("{{ messages[0].nothing.at_all() }}", "").find("at_all"), std::string::npos);
    // These would end the process, and for want of an end not soon.
    const std::string crashes = "crashes, or takes more than 20 seconds of the processor or 1 GiB";
    EXPECT_NE(error_of("{{ " + std::string(200000, '(') + " }}", "").find(crashes), std::string::npos);
    EXPECT_NE(error_of("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "").find(crashes), std::string::npos);
    EXPECT_NE(error_of("{% for i in range(1000000000) %}{% endfor %}", ""), "no error");
    const std::string doubles =
        "{% set n = namespace(s='xx') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}";
    EXPECT_NE(error_of(doubles, ""), "no error");
    EXPECT_NE(error_of("no Jinja at all", "").find("does not contain the prompt"), std::string::npos);
    // A vocabulary that adds no token for the beginning leaves it to the template.
    const EdgeTokens edges{"<s>", "</s>"};
    EXPECT_EQ(ChatTemplate(text, "", JinjaTemplate::make(text, edges)).next("hi").rfind("<s><system>", 0), 0U);
    // A prompt may have the text that stands for answers, and a template may change its letters.
    chat.answered("Hello.");
    EXPECT_EQ(chat.next("sinkcache-answer-5d1f0c9b"),
              "</assistant><user>sinkcache-answer-5d1f0c9b</user><assistant>");
    chat.answered("Hello.");
    EXPECT_EQ(chat.next("more"), "</assistant><user>more</user><assistant>");
    const std::string quotes = "{% for message in messages %}[{{ message.content | tojson }}]{% endfor %}";
    EXPECT_EQ(ChatTemplate(quotes, "", JinjaTemplate::make(quotes, {})).next("say \"hi\""), R"(["say \"hi\""])");

    const std::string refuses =
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}"
        "{{ messages[-1].content }}";
    // One of llama.cpp's list, which merges the system message.
    const std::string gemma = refuses + "{# <start_of_turn> #}";
    EXPECT_NE(ChatTemplate(gemma, "Be brief.", JinjaTemplate::make(gemma, {})).next("hi").find("Be brief."),
              std::string::npos);
    EXPECT_NE(error_of(refuses, "Be brief.").find("no system messages here"), std::string::npos);
    EXPECT_EQ(error_of(refuses, ""), "no error");
}

// A template that writes no answers does not begin anew.
TEST(Parts, TheSystemMessageIsReadOnce) {
    const std::string text = "{% for message in messages %}{% if message.role != 'assistant' %}{{ message.role }}: "
                             "{{ message.content }}\n{% endif %}{% endfor %}";
    const auto jinja = JinjaTemplate::make(text, {});
    if (!jinja) {
        GTEST_SKIP() << "this build has no interpreter of templates";
    }
    ChatTemplate chat(text, "Be brief.", jinja);
    EXPECT_EQ(chat.next("hi"), "system: Be brief.\nuser: hi\n");
    chat.answered("Hello.");
    EXPECT_EQ(chat.next("more"), "user: more\n");
}

TEST(Parts, TheSystemMessageOfATemplate) {
    const auto system = [](const char *text, const std::string &message) {
        ChatTemplate chat(text, message);
        const std::string first = chat.next("hi");
        return first.substr(0, chat.system_bytes(first, "hi"));
    };
    EXPECT_EQ(system("{{'<|im_start|>'}}", "Be kind."), "<|im_start|>system\nBe kind.<|im_end|>\n");
    EXPECT_EQ(system("{{'<|im_start|>'}}", ""), "");
    EXPECT_EQ(system("", "Be kind."), "Be kind.\n");
    // A template that writes it into the first prompt: up to its end.
    const std::string mixed = system("[INST] strip [/INST]", " Be kind. ");
    EXPECT_EQ(mixed.substr(mixed.size() - 8), "Be kind.");
}

TEST(Parts, ThoughtsAreFoundInTheTextsOfTokens) {
    using Spans = std::vector<std::pair<std::size_t, std::size_t>>;
    const auto found = [](const std::vector<std::string> &pieces, std::size_t answer) {
        Spans spans;
        for (const TokenSpan &span : find_thoughts(pieces, answer, ThoughtMarkers())) {
            spans.emplace_back(span.first, span.end);
        }
        return spans;
    };
    EXPECT_EQ(found({"hi", "<think>", "well", "</think>", "yes"}, 1), (Spans{{1, 4}}));
    // Markers of several tokens, and tokens with other text beside a marker.
    EXPECT_EQ(found({"hi", "a <th", "ink>", "", "b", "</", "think>c", "d"}, 1), (Spans{{1, 7}}));
    EXPECT_EQ(found({"hi", "<think></think><think>x</think>", "d"}, 1), (Spans{{1, 2}, {1, 2}}));
    // Opened by the prompt; closed by it, too; not closed; not opened.
    EXPECT_EQ(found({"hi", "<think>", "well", "</think>", "yes"}, 2), (Spans{{1, 4}}));
    EXPECT_EQ(found({"<think>", "well", "</think>", "yes"}, 3), Spans());
    EXPECT_EQ(found({"hi", "<think>", "well"}, 1), Spans());
    EXPECT_EQ(found({"hi", "</think>", "well"}, 1), Spans());
    // A marker in what the user has written: the template opens the thought, or the answer does.
    EXPECT_EQ(found({"<think>?", "<think>", "well", "</think>", "yes"}, 2), (Spans{{1, 4}}));
    EXPECT_EQ(found({"<think>?", "<think>", "well", "</think>", "yes"}, 1), (Spans{{1, 4}}));
    EXPECT_EQ(found({"<think>?", "hi", "<think>", "<think>", "</think>"}, 2), (Spans{{2, 5}}));
    EXPECT_EQ(found({}, 0), Spans());
}

// What the checks of a file do not find must not end the program by a signal.
TEST(Log, AFailedAssertionOfGgmlIsOneLineAndExitCode2) {
    EXPECT_EXIT(
        {
            keep_errors();
            ggml_abort("/far/away/llama.cpp/ggml.c", 7, "GGML_ASSERT(%d) failed\n", 0);
        },
        testing::ExitedWithCode(2), "^error: llama.cpp cannot run this model: ggml.c:7: GGML_ASSERT");
}

TEST(Log, ErrorsAreKeptUntilTheyAreAskedFor) {
    EXPECT_EXIT(
        {
            keep_errors();
            ggml_log_callback log = nullptr;
            void *data = nullptr;
            llama_log_get(&log, &data);
            log(GGML_LOG_LEVEL_WARN, "a warning\n", data);
            log(GGML_LOG_LEVEL_ERROR, "the cause\n", data);
            log(GGML_LOG_LEVEL_ERROR, "what follows\n", data);
            std::fprintf(stderr, "first: %s\n", first_kept_error().c_str());
            print_kept_errors();
            std::exit(0);
        },
        testing::ExitedWithCode(0), "^first: the cause\nthe cause\nwhat follows\n$");
}
