#include "requests_file.hpp"

#include "command_line.hpp"

#include <nlohmann/json.hpp>

#include <limits>
#include <set>
#include <stdexcept>

namespace inflight {
namespace {

using Json = nlohmann::json;

const std::set<std::string> FIELDS{"id",   "prompt",       "tokens",   "max_tokens", "temperature", "seed",
                                   "fork", "conversation", "continue", "end",        "arrival",     "cancel_after",
                                   "drop", "pin_prompt",   "messages", "drop_thoughts"};

/** A value and its type, short enough for an error message however large it is. */
std::string shown(const Json &value) {
    if (value.is_array() || value.is_object()) {
        return (value.is_array() ? "an array of " : "an object of ") + std::to_string(value.size());
    }
    const char *type = value.is_string() ? "text" : value.is_number() ? "number" : value.type_name();
    // Of a text no more than is shown. Without `replace`, dump() throws for text that is not UTF-8.
    const Json first = value.is_string() ? Json(value.get_ref<const std::string &>().substr(0, programs::SHOWN_BYTES))
                                         : value;
    return programs::one_line(first.dump(-1, ' ', false, Json::error_handler_t::replace)) + " (" + type + ")";
}

[[noreturn]] void reject(const std::string &field, const Json &value, const std::string &allowed) {
    throw std::runtime_error("field '" + field + "' is " + shown(value) + ": it must be " + allowed);
}

/** Parses without recursion, so only the error messages limit the depth: a deep value could not be shown. */
Json parse(const std::string &text) {
    return Json::parse(text, [](int depth, Json::parse_event_t, const Json &) {
        if (depth > RequestReader::MAX_DEPTH) {
            throw std::runtime_error("the line has more than " + std::to_string(RequestReader::MAX_DEPTH) +
                                     " arrays and objects inside one another");
        }
        return true;
    });
}

std::string text(const Json &line, const std::string &field) {
    if (!line.contains(field)) {
        return "";
    }
    const Json &value = line[field];
    if (!value.is_string() || value.get_ref<const std::string &>().empty()) {
        reject(field, value, "a text that is not empty");
    }
    return value;
}

/** A name, which later error messages repeat. */
std::string name(const Json &line, const std::string &field) {
    std::string name = text(line, field);
    if (name.size() > RequestReader::MAX_NAME) {
        throw std::runtime_error("field '" + field + "' has " + std::to_string(name.size()) + " bytes: at most " +
                                 std::to_string(RequestReader::MAX_NAME) + " are allowed");
    }
    return name;
}

std::uint64_t whole_number(const Json &line, const std::string &field, std::uint64_t default_value,
                           std::uint64_t most) {
    if (!line.contains(field)) {
        return default_value;
    }
    const Json &value = line[field];
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > most) {
        reject(field, value, "a whole number from 0 to " + std::to_string(most));
    }
    return value;
}

std::vector<Token> token_ids(const Json &list, const LlamaConfig &model) {
    if (!list.is_array() || list.empty()) {
        reject("tokens", list, "an array of token ids that is not empty");
    }
    std::vector<Token> tokens;
    for (const Json &token : list) {
        if (!token.is_number_unsigned() || token.get<std::uint64_t>() >= model.vocabulary) {
            reject("tokens", token, "made of token ids below " + std::to_string(model.vocabulary));
        }
        tokens.push_back(token);
    }
    return tokens;
}

std::vector<Message> messages(const Json &list) {
    if (!list.is_array() || list.empty()) {
        reject("messages", list, "an array of messages that is not empty");
    }
    std::vector<Message> messages;
    for (const Json &message : list) {
        const bool has_both = message.is_object() && message.size() == 2 && message.contains("role") &&
                              message.contains("content");
        if (!has_both || !message["role"].is_string() || !message["content"].is_string()) {
            reject("messages", message, "made of objects with the texts 'role' and 'content'");
        }
        const std::set<std::string> roles{"system", "user", "assistant"};
        if (!roles.count(message["role"])) {
            reject("messages", message["role"], "made of roles system, user and assistant");
        }
        // Templates take texts that end there: the rest would be lost.
        if (message["content"].get_ref<const std::string &>().find('\0') != std::string::npos) {
            reject("messages", message["content"], "made of contents without a NUL character");
        }
        messages.push_back({message["role"], message["content"]});
    }
    return messages;
}

/** Sets the prompt of a request whose start is set. */
void read_prompt(Request &r, const Json &line, const LlamaConfig &model, const Vocabulary &vocabulary) {
    std::vector<std::string> given;
    for (const char *field : {"prompt", "messages", "tokens"}) {
        if (line.contains(field)) {
            given.push_back(field);
        }
    }
    if (given.size() != 1) {
        throw std::runtime_error(given.empty() ? "field 'prompt' (or 'messages' or 'tokens') is missing"
                                               : "fields '" + given[0] + "' and '" + given[1] +
                                                     "' exclude each other");
    }
    if (given[0] == "tokens") {
        r.prompt = token_ids(line["tokens"], model);
    } else if (given[0] == "prompt") {
        r.prompt = vocabulary.tokenize(text(line, "prompt"));
    } else {
        const ChatPrompt chat = vocabulary.chat(messages(line["messages"]), r.start != Start::empty);
        r.prompt = chat.tokens;
        r.answer_end = chat.answer_end;
    }
    if (r.prompt.empty()) {
        throw std::runtime_error("field '" + given[0] + "' has no tokens");
    }
}

/** Puts the model's first token in front, unless a template has done it. Returns whether it has. */
bool begin(Request &r, const LlamaConfig &model, bool by_template) {
    if (r.start != Start::empty || !model.add_bos || (by_template && r.prompt[0] == model.bos)) {
        return false;
    }
    r.prompt.insert(r.prompt.begin(), model.bos);
    return true;
}

/** Tokens of a prompt to pin: `true` for all of them, or a number. */
std::size_t pinned(const Json &line, std::size_t prompt_tokens) {
    if (!line.contains("pin_prompt")) {
        return 0;
    }
    const Json &value = line["pin_prompt"];
    if (value.is_boolean()) {
        return value.get<bool>() ? prompt_tokens : 0;
    }
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > prompt_tokens) {
        reject("pin_prompt", value,
               "true, false, or a number of the prompt's " + std::to_string(prompt_tokens) + " tokens");
    }
    return value;
}

std::vector<TokenRange> ranges(const Json &line) {
    std::vector<TokenRange> ranges;
    if (!line.contains("drop")) {
        return ranges;
    }
    const Json &list = line["drop"];
    if (!list.is_array() || list.empty() || list.size() > RequestReader::MAX_RANGES) {
        reject("drop", list, "an array of 1 to " + std::to_string(RequestReader::MAX_RANGES) + " ranges [first, n]");
    }
    for (const Json &range : list) {
        constexpr std::uint64_t MOST = std::numeric_limits<std::int32_t>::max();
        const bool is_pair = range.is_array() && range.size() == 2;
        if (!is_pair) {
            reject("drop", range, "made of ranges [first, n]");
        }
        if (!range[0].is_number_unsigned()) {
            reject("drop", range[0], "made of ranges [first, n]: first is the index of a token, from 0");
        }
        if (!range[1].is_number_unsigned() || range[1].get<std::uint64_t>() < 1 ||
            range[1].get<std::uint64_t>() > MOST) {
            reject("drop", range[1], "made of ranges [first, n]: n is a number of tokens from 1 to " +
                                         std::to_string(MOST));
        }
        ranges.push_back({range[0], range[1]});
    }
    return ranges;
}

/** A token by its number or its text. */
Token marker(const Json &value, const LlamaConfig &model, const Vocabulary &vocabulary) {
    if (value.is_number_unsigned() && value.get<std::uint64_t>() < model.vocabulary) {
        return value;
    }
    if (value.is_string() && vocabulary.has_text()) {
        const auto tokens = vocabulary.tokenize(value.get_ref<const std::string &>());
        if (tokens.size() == 1) {
            return tokens[0];
        }
    }
    reject("drop_thoughts", value,
           "made of token ids below " + std::to_string(model.vocabulary) +
               (vocabulary.has_text() ? ", or texts of one token" : ""));
}

std::optional<ThoughtMarkers> thoughts(const Json &line, const LlamaConfig &model,
                                       const Vocabulary &vocabulary) {
    if (!line.contains("drop_thoughts")) {
        return std::nullopt;
    }
    const Json &value = line["drop_thoughts"];
    if (!value.is_array() || value.size() != 2) {
        reject("drop_thoughts", value, "two marker tokens, [open, close]");
    }
    return ThoughtMarkers{marker(value[0], model, vocabulary), marker(value[1], model, vocabulary)};
}

Request request(const Json &line, const LlamaConfig &model, const Vocabulary &vocabulary) {
    if (!line.is_object()) {
        throw std::runtime_error("the line is not a JSON object");
    }
    for (const auto &field : line.items()) {
        if (!FIELDS.count(field.key())) {
            throw std::runtime_error("field '" + programs::one_line(field.key()) + "' is not known");
        }
    }
    constexpr auto ANY = std::numeric_limits<std::uint64_t>::max();
    Request r;
    r.id = name(line, "id");
    if (r.id.empty()) {
        throw std::runtime_error("field 'id' is missing");
    }
    r.conversation = name(line, "conversation");
    const std::string continued = name(line, "continue"), forked = name(line, "fork");
    if (!continued.empty() && !forked.empty()) {
        throw std::runtime_error("fields 'continue' and 'fork' exclude each other");
    }
    r.source = continued.empty() ? forked : continued;
    r.start = !continued.empty() ? Start::continued : !forked.empty() ? Start::forked : Start::empty;
    read_prompt(r, line, model, vocabulary);
    r.pin_prompt = pinned(line, r.prompt.size());
    r.drop = ranges(line);
    if (!r.drop.empty() && r.start == Start::empty) {
        throw std::runtime_error("field 'drop' needs 'continue' or 'fork'");
    }
    r.drop_thoughts = thoughts(line, model, vocabulary);
    if (begin(r, model, line.contains("messages"))) {
        // What stands before a pinned token is pinned, too.
        r.pin_prompt += r.pin_prompt > 0;
    }
    r.max_tokens =
        static_cast<std::uint32_t>(whole_number(line, "max_tokens", 64, std::numeric_limits<std::uint32_t>::max()));
    r.sampling.seed = whole_number(line, "seed", 0, ANY);
    // Low enough that sums of iterations cannot overflow.
    r.arrival = whole_number(line, "arrival", 0, ANY / 4);
    if (line.contains("cancel_after")) {
        r.cancel_after = whole_number(line, "cancel_after", 0, ANY / 4);
    }
    if (line.contains("temperature")) {
        if (!line["temperature"].is_number()) {
            reject("temperature", line["temperature"], "a number");
        }
        r.sampling.temperature = line["temperature"];
    }
    if (line.contains("end")) {
        if (!line["end"].is_boolean()) {
            reject("end", line["end"], "true or false");
        }
        r.end = line["end"];
    }
    return r;
}

}  // namespace

std::optional<Line> RequestReader::next() {
    while (lines_.next()) {
        if (auto line = read({lines_.text(), lines_.number(), lines_.cut()}, model_, vocabulary_)) {
            return line;
        }
    }
    return std::nullopt;
}

std::optional<Line> RequestReader::read(const TextLine &text, const LlamaConfig &model, const Vocabulary &vocabulary) {
    if (text.text.find_first_not_of(" \t") == std::string::npos) {
        return std::nullopt;
    }
    const std::string number = "line " + std::to_string(text.number);
    Line line{{}, number, ""};
    try {
        if (text.cut) {
            throw std::runtime_error("the line has more than " + std::to_string(programs::LineReader::MAX_BYTES) +
                                     " bytes");
        }
        const Json json = parse(text.text);
        if (json.is_object() && json.contains("id") && json["id"].is_string()) {
            line.id = programs::one_line(json["id"]);
        }
        line.request = request(json, model, vocabulary);
    } catch (const Json::parse_error &) {
        line.error = "the line is not JSON";
    } catch (const Json::out_of_range &) {
        line.error = "the line has a number that is too large for a double";
    } catch (const std::exception &error) {
        // Nothing about one line may keep the others from being served.
        line.error = error.what();
    }
    if (!line.error.empty()) {
        line.error = number + ": " + line.error;
    }
    return line;
}

}  // namespace inflight
