// inflight-serve: runs the requests of a file through the executor.
#include "command_line.hpp"
#include "cpu_model.hpp"
#include "executor.hpp"
#include "feed.hpp"
#include "metrics.hpp"
#include "mpi_group.hpp"
#include "report.hpp"
#include "storage_types.hpp"
#ifdef INFLIGHT_HTTP
#include "metrics_server.hpp"
#endif
#ifdef INFLIGHT_CUDA
#include "cuda_device.hpp"
#include "device_model.hpp"
#endif

#include <CLI/CLI.hpp>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <regex>
#include <unistd.h>

namespace {

using namespace inflight;
using Clock = std::chrono::steady_clock;

/** --max-segments where it is not given, but --max-pinned is. */
constexpr std::uint32_t SEGMENTS_WITH_PINS = 64;

struct Options {
    std::string model, requests, metrics;
    PluginConfig plugin;
    ExecutorConfig executor;
    std::string kv_dtype = "f32";
    std::uint32_t threads = 1;
    int cuda_device = -1;
    std::optional<std::uint32_t> max_segments;
    std::uint64_t park_memory = 0, park_disk = 0;
    std::string park_dir;
    std::string metrics_address = "127.0.0.1";
    std::optional<std::uint16_t> metrics_port;
    std::uint32_t metrics_linger = 0;
    bool json = false, stream = false, quiet = false;
};

void declare(CLI::App &app, Options &o) {
    const CLI::Range count(1u, 1u << 24);
    app.add_option("--model", o.model, "GGUF file of a model (docs/inflight.md has the architectures)")->required();
    app.add_option("--requests", o.requests, "JSON lines: id, prompt, ... (see docs/inflight.md)")->required();
    app.add_option("--max-seqs", o.executor.max_seqs, "sequences in the cache")->capture_default_str()->check(count);
    app.add_option("--budget", o.executor.budget, "token budget of a batch; larger than --chunk")
        ->capture_default_str()
        ->check(count);
    app.add_option("--chunk", o.executor.chunk, "prompts are split at multiples of this")
        ->capture_default_str()
        ->check(count);
    app.add_option("--sink", o.plugin.n_sink, "sink tokens of a sequence")->capture_default_str();
    app.add_option("--window", o.plugin.window, "most recent tokens a query sees")->capture_default_str()->check(count);
    app.add_option("--max-pinned", o.plugin.max_pinned, "room for pinned tokens of a sequence (pin_prompt)")
        ->capture_default_str()
        ->check(CLI::Range(0u, 1u << 24));
    app.add_option("--max-segments", o.max_segments,
                   "room for pinned runs and dropped ranges of a sequence (pin_prompt, drop, drop_thoughts); default " +
                       std::to_string(SEGMENTS_WITH_PINS) + " with --max-pinned, else 0")
        ->check(CLI::Range(0u, 1024u));
    app.add_option("--draft", o.executor.draft, "most draft tokens of a step, by prompt lookup; 0 = none")
        ->capture_default_str()
        ->check(CLI::Range(0u, 256u));
    app.add_option("--max-prompt", o.executor.max_prompt, "longest prompt accepted, in tokens")->capture_default_str();
    app.add_option("--kv-dtype", o.kv_dtype,
                   std::string("type of K and V in the cache: ") + programs::STORAGE_TYPES_ALLOWED)
        ->capture_default_str();
    app.add_option("--threads", o.threads, "threads of attention and of matrix products")
        ->capture_default_str()
        ->check(CLI::Range(1u, 1024u));
#ifdef INFLIGHT_CUDA
    app.add_flag("--cuda", o.plugin.cuda, "run on a GPU; each rank on its own");
    app.add_option("--cuda-device", o.cuda_device, "index of the GPU; -1 = the rank's number")->capture_default_str();
#endif
    const CLI::AsSizeValue bytes(false);
    const CLI::Validator digits(
        [](std::string &text) {
            static const std::regex sizes("(0|[1-9][0-9]*) ?([kmgtKMGT]i?)?[bB]?");
            const bool size = std::regex_match(text, sizes);
            return size ? "" : "'" + text + "' is no size: digits, then K, M, G or T are allowed: 64M";
        },
        "SIZE");
    const CLI::Validator named([](std::string &text) { return text.empty() ? "the name is empty" : ""; }, "FOLDER");
    const CLI::Range size(std::uint64_t{0}, std::uint64_t{1} << 50);
    app.add_option("--park-memory", o.park_memory, "bytes of host memory for conversations whose slot is wanted")
        ->capture_default_str()
        ->transform(bytes)
        ->transform(digits)
        ->check(size);
    CLI::Option *dir =
        app.add_option("--park-dir", o.park_dir, "private folder for those that memory does not hold")->check(named);
    CLI::Option *disk =
        app.add_option("--park-disk", o.park_disk, "bytes of files in --park-dir, such as 10G")
            ->transform(bytes)
            ->transform(digits)
            ->check(size);
    dir->needs(disk);
    disk->needs(dir);
    app.add_option("--metrics", o.metrics, "file for Prometheus' textfile collectors, rewritten every second");
#ifdef INFLIGHT_HTTP
    CLI::Option *port = app.add_option("--metrics-port", o.metrics_port,
                                       "port of http://ADDRESS:PORT/metrics, for Prometheus; 0 = a free one, printed");
    app.add_option("--metrics-address", o.metrics_address, "address of this machine that --metrics-port listens on")
        ->capture_default_str()
        ->needs(port);
    app.add_option("--metrics-linger", o.metrics_linger,
                   "seconds that the end waits for Prometheus to read the last counters")
        ->capture_default_str()
        ->check(CLI::Range(0u, 86400u))
        ->needs(port);
#endif
    app.add_flag("--json", o.json, "a JSON line per request, then one of totals");
    app.add_flag("--stream", o.stream, "with --json: also a line for each part of an answer, as it comes")
        ->needs(app.get_option("--json"));
    app.add_flag("--quiet", o.quiet, "no progress on the terminal");
}

/** Counters for Prometheus: a file, HTTP, both or none. */
class MetricsOutput {
public:
    /** Opens them: a wrong path or port must not show after hours. Only rank 0 has any. */
    MetricsOutput(const Options &options, const Group &group) : options_(options) {
        if (group.rank() != 0) {
            return;
        }
        to_file_ = !options.metrics.empty();
        write_file({});
#ifdef INFLIGHT_HTTP
        if (options.metrics_port) {
            server_ = std::make_unique<MetricsServer>(options.metrics_address, *options.metrics_port);
            if (!options.quiet) {
                std::cerr << "metrics: " << server_->url() << std::endl;
            }
        }
#endif
    }
    /** For HTTP, after each batch: cheap. */
    template <class MakeMetrics>
    void publish([[maybe_unused]] const MakeMetrics &make) {
#ifdef INFLIGHT_HTTP
        if (server_) {
            server_->publish(make());
        }
#endif
    }
    void write_file(const Metrics &metrics) const {
        if (to_file_) {
            write_metrics(options_.metrics, metrics);
        }
    }
    void linger() {
#ifdef INFLIGHT_HTTP
        if (server_ && options_.metrics_linger > 0 &&
            !server_->wait_until_read(std::chrono::seconds(options_.metrics_linger)) && !options_.quiet) {
            std::cerr << "metrics: nobody has read the last counters" << std::endl;
        }
#endif
    }

private:
    const Options &options_;
    bool to_file_ = false;
#ifdef INFLIGHT_HTTP
    std::unique_ptr<MetricsServer> server_;
#endif
};

/** Writes results, progress and metrics. Only rank 0 writes. */
class Console {
public:
    Console(const Options &options, const Group &group, const Vocabulary &vocabulary, CacheBytes cache,
            MetricsOutput &metrics)
        : first_(group.rank() == 0), ranks_(group.size()), cache_(cache), metrics_(metrics),
          progress_(!options.quiet && isatty(STDERR_FILENO)), report_(std::cout, options.json, vocabulary) {}

    void results(const std::vector<Result> &results) {
        if (first_ && !results.empty() && progress_) {
            std::cerr << "\r\033[K" << std::flush;
        }
        for (const Result &r : results) {
            if (first_) {
                report_.request(r);
                log_notes(std::cerr, r);
            }
        }
    }
    void token(const std::string &id, Token token) {
        if (first_) {
            report_.token(id, token);
        }
    }
    void update(const Counters &counters, const Parking *parking) {
        if (!first_) {
            return;
        }
        metrics_.publish([&] { return metrics(counters, parking); });
        const auto now = Clock::now();
        if (now - updated_ < std::chrono::milliseconds(progress_ ? 200 : 1000)) {
            return;
        }
        updated_ = now;
        if (progress_) {
            show_progress(std::cerr, counters);
        }
        metrics_.write_file(metrics(counters, parking));
    }
    void totals(const Counters &counters, const Parking *parking) {
        if (first_) {
            if (progress_) {
                std::cerr << "\r\033[K" << std::flush;
            }
            metrics_.publish([&] { return metrics(counters, parking); });
            metrics_.write_file(metrics(counters, parking));
            const double seconds = std::chrono::duration<double>(Clock::now() - began_).count();
            report_.totals({counters, counters_of(parking), seconds, cache_, ranks_});
        }
    }

private:
    bool first_;
    std::size_t ranks_;
    CacheBytes cache_;
    MetricsOutput &metrics_;
    bool progress_;
    Report report_;
    Clock::time_point began_ = Clock::now(), updated_;

    static std::optional<ParkingCounters> counters_of(const Parking *parking) {
        return parking ? std::optional<ParkingCounters>(parking->counters()) : std::nullopt;
    }
    Metrics metrics(const Counters &counters, const Parking *parking) const {
        return {counters, counters_of(parking), cache_.host + cache_.device};
    }
};

/** The model on the CPU or on a GPU. */
struct Engine {
#ifdef INFLIGHT_CUDA
    std::unique_ptr<Device> device;
#endif
    std::unique_ptr<Model> model;

    Engine(const Options &options, LlamaWeights weights, Group &group) {
#ifdef INFLIGHT_CUDA
        if (options.plugin.cuda) {
            device = cuda_device(options.cuda_device, group);
            PluginConfig plugin = options.plugin;
            plugin.cuda_device = static_cast<std::uint32_t>(options.cuda_device >= 0 ? options.cuda_device
                                                                                     : static_cast<int>(group.rank()));
            model = std::make_unique<DeviceModel>(weights, plugin, group, *device, options.executor.budget);
            return;
        }
#endif
        model =
            std::make_unique<CpuModel>(std::move(weights), options.plugin, group, options.threads);
    }
};

bool parks(const Options &options) { return options.park_memory > 0 || !options.park_dir.empty(); }

std::string shard_name(const Group &group) {
    return "rank-" + std::to_string(group.rank()) + "-of-" + std::to_string(group.size());
}

/** What parked conversations belong to. Those of other settings, which the cache would refuse, are left alone. */
programs::Digest shard_tag(const Options &options, const Group &group) {
    const programs::Digest model = programs::hash_file(options.model);
    const PluginConfig &plugin = options.plugin;
    std::string settings;
    for (const std::uint32_t setting : {plugin.n_sink, plugin.window, plugin.k_dtype, plugin.v_dtype}) {
        settings += " " + std::to_string(setting);
    }
    return programs::Hash().add(model.data(), model.size()).add(shard_name(group)).add(settings).digest();
}

/** Where conversations rest. Each of several ranks has a folder of its own. */
std::unique_ptr<Parking> make_parking(const Options &options, Group &group) {
    ParkingConfig config{options.park_memory, options.park_dir, options.park_disk, options.plugin.shard};
    if (!config.folder.empty() && group.size() > 1) {
        programs::Folder::open_private(config.folder);
        config.folder += "/" + shard_name(group);
    }
    return std::make_unique<Parking>(config, group);
}

void serve(Options options, Group &group) {
    RequestsFile file = RequestsFile::open(options.requests);
    MetricsOutput metrics(options, group);
    LlamaWeights weights = LlamaWeights::load(options.model, group.rank(), group.size());
    const auto vocabulary = make_vocabulary(options.model, weights.config);
    std::unique_ptr<Parking> parking;
    if (parks(options)) {
        options.plugin.shard = shard_tag(options, group);
        parking = make_parking(options, group);
    }
    const auto cache_bytes = AttentionPlugin::bytes(with_shape(options.plugin, weights));
    const Engine engine(options, std::move(weights), group);
    Model &model = *engine.model;
    Executor executor(model, options.executor, parking.get());
    if (group.rank() == 0 && !options.quiet) {
        std::cerr << model.describe() << std::endl;
    }
    const std::uint64_t trained = model.config().trained_context, reached = model.plugin().positions(0);
    if (group.rank() == 0 && trained != 0 && reached > trained) {
        std::cerr << "warning: --sink and --window reach " << reached << " positions: the model was trained with "
                  << trained << std::endl;
    }
    Console console(options, group, *vocabulary, cache_bytes, metrics);
    if (options.stream && vocabulary->has_text()) {
        executor.observe([&](const std::string &id, Token token) { console.token(id, token); });
    }
    Feed feed(std::move(file), group.size() == 1, executor, model.config(), *vocabulary);
    // Unreadable lines count as failed requests.
    const auto counters = [&] {
        Counters c = executor.counters();
        c.failed += feed.unreadable();
        return c;
    };
    bool idle = true;
    while (!idle || !feed.ended()) {
        console.results(feed.submit(idle));
        console.results(executor.take_results());
        idle = !executor.step();
        console.results(executor.take_results());
        console.update(counters(), parking.get());
    }
    if (parking && !options.park_dir.empty()) {
        executor.park_idle();
    }
    console.totals(counters(), parking.get());
    metrics.linger();
}

}  // namespace

int main(int argc, char **argv) {
    Options options;
    CLI::App app("Runs requests through an executor with in-flight batching whose attention is sinkcache.");
    declare(app, options);
    if (const auto code = programs::parse(app, argc, argv)) {
        return *code;
    }
    // A limit of file sizes is then an error of the write, and not the end of the process.
    std::signal(SIGXFSZ, SIG_IGN);
    options.plugin.max_seqs = options.executor.max_seqs;
    options.plugin.chunk = options.executor.chunk;
    options.plugin.max_draft = options.executor.draft;
    options.plugin.n_threads = options.threads;
    const auto types = programs::storage_types(options.kv_dtype);
    if (!types) {
        return programs::fail("--kv-dtype " + programs::in_quotes(options.kv_dtype) + ": allowed are " +
                              programs::STORAGE_TYPES_ALLOWED);
    }
    options.plugin.k_dtype = types->k;
    options.plugin.v_dtype = types->v;
    options.plugin.max_segments = options.max_segments.value_or(options.plugin.max_pinned > 0 ? SEGMENTS_WITH_PINS : 0);
    if (options.plugin.max_pinned > 0 && options.plugin.max_segments == 0) {
        return programs::fail("--max-pinned " + std::to_string(options.plugin.max_pinned) +
                              " with --max-segments 0: pinned tokens are a segment, at least 1 is needed");
    }
    options.executor.reclaim_idle = true;
    std::unique_ptr<Group> group;
    try {
        group = make_group(&argc, &argv);
        serve(options, *group);
        return programs::finish_output();
    } catch (const std::exception &error) {
        if (group) {
            group->abort(error.what());
        }
        return programs::fail(error.what());
    }
}
