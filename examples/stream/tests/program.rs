//! The program from its command line: what it rejects, and whether its results are right.

use std::fs;
use std::path::{Path, PathBuf};

use sinkcache_stream::model::{Llama, VOCABULARY};
use sinkcache_stream::modes::{Mode, Setting};
use sinkcache_stream::ops::nll;
use sinkcache_stream::pass::run_mode;
use sinkcache_stream::scores::ScoredPositions;
use sinkcache_stream::stats::perplexity;
use sinkcache_stream::text::{BYTE_OFFSET, Stream};
use sinkcache_stream::{EXIT_ERROR, EXIT_OK, cache::KvCache, cache::KvTypes, run};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name)
}

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Exit code, stdout and stderr of a command line.
fn program(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(["stream"].iter().chain(args), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// The program must reject these arguments in one line that contains `part`.
fn rejected(args: &[&str], part: &str) {
    let (code, out, err) = program(args);
    assert_eq!((code, out.as_str()), (EXIT_ERROR, ""), "{args:?}: {err}");
    assert!(err.starts_with("error: ") && err.ends_with('\n') && err.lines().count() == 1, "{args:?}: {err:?}");
    assert!(err.contains(part), "{args:?}: {err:?} should contain {part:?}");
}

fn rejected_model(bytes: &[u8], name: &str, part: &str) {
    let path = scratch(name);
    fs::write(&path, bytes).unwrap();
    rejected(&["--model", path.to_str().unwrap()], part);
}

#[test]
fn unusable_models_are_rejected() {
    let gguf = fs::read(data("tiny-llama-bytes.gguf")).unwrap();
    for n in [0, 3, 4, 20, 100, 1000, 5000, 9000, 12_000, 100_000, 5_000_000, gguf.len() - 1] {
        rejected_model(&gguf[..n], &format!("cut{n}.gguf"), "model '");
    }
    let patched = |from: &[u8], to: &[u8]| {
        let at = gguf.windows(from.len()).position(|w| w == from).unwrap();
        [&gguf[..at], to, &gguf[at + from.len()..]].concat()
    };
    rejected_model(&patched(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0bloom"), "bloom.gguf", "'bloom'");
    rejected_model(&patched(&259_u32.to_le_bytes(), &9999_u32.to_le_bytes()), "vocabulary.gguf", "9999 tokens");
    rejected_model(&vec![b'x'; 4096], "text.gguf", "GGUF");
    // No tensor, one key: an alignment of 0, by which the GGUF crate would divide.
    let alignment =
        b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0\0\0\0\0";
    rejected_model(alignment, "align0.gguf", "key 'general.alignment': is 0: a power of two is allowed");
    rejected(&["--model", "/nowhere/model.gguf"], "/nowhere/model.gguf");
    rejected(&["--model", env!("CARGO_MANIFEST_DIR")], "model '");
}

#[test]
fn unusable_texts_are_rejected() {
    let empty = scratch("empty.txt");
    fs::write(&empty, "").unwrap();
    rejected(&["--text", empty.to_str().unwrap()], "is empty");
    rejected(&["--text", "/nowhere/text.txt"], "/nowhere/text.txt");
    rejected(&["--text", env!("CARGO_MANIFEST_DIR")], "text '");
    rejected(&["--tokens", "700000", "--skip", "0"], "has only 599984");
    rejected(&["--tokens", "700000"], "has only 594512 after its first 5472 bytes");
    rejected(&["--skip", "599984"], "is empty after its first 599984 bytes");
    rejected(&["--skip", "1000000"], "is empty");
    rejected(&["--tokens", "500"], "scoring starts at token 512");
}

#[test]
fn invalid_arguments_are_rejected() {
    rejected(&["--frobnicate"], "--frobnicate");
    rejected(&["--mode", "magic"], "recompute");
    rejected(&["--tokens", "0"], "--tokens");
    rejected(&["--chunk", "many"], "--chunk");
    rejected(&["--kv-dtype", "f8"], "'f8' is no storage type: f32, f16, bf16, q8 or q4 is allowed, or K/V of them");
    rejected(&["--kv-dtype", "q8/q4/q4"], "'q4/q4' is no storage type");
    rejected(&["--kv-dtype", "f16,"], "'' is no storage type");
    rejected(&["--kv-dtype", "f16,q8", "--mode", "dense"], "only mode sink compares them");
    rejected(&["--kv-dtype", "f16,q8", "--plot", "types.svg"], "no --plot or --data");
    rejected(&["--threads", "0"], "--threads");
    rejected(&["--sink", "-1"], "-1");
    rejected(&["--window", "0"], "SKC_STATUS_INVALID_CONFIG");
    rejected(&["--window", "4294967295"], "error: ");
    rejected(&["--sink", "0", "--window", "1", "--tokens", "600"], "2 tokens or more");
    rejected(&["--plot", "/nowhere/plot.svg"], "/nowhere/plot.svg");
    rejected(&["--data", "/nowhere/data.json"], "/nowhere/data.json");
    rejected(&["--draw", "/nowhere/data.json"], "/nowhere/data.json");
    rejected(&["--draw", data("stream.txt").to_str().unwrap()], "stream.txt");
    rejected(&["--draw", "/dev/zero"], "data '/dev/zero' has 268435456 bytes or more");
    rejected(&["--draw", "data.json", "--tokens", "900"], "--tokens");
    rejected(&["--text", "/nowhere/\u{1b}[2J"], "/nowhere/\\u{1b}[2J");
    // The tests run in the package's folder, which has no target: a rejected run must not leave an empty plot there.
    assert!(!Path::new("stream.svg").exists());
}

#[test]
fn help_is_no_error() {
    let (code, out, err) = program(&["--help"]);
    assert_eq!((code, err.as_str()), (EXIT_OK, ""));
    assert!(out.contains("--stride") && out.contains("--kv-dtype"), "{out}");
}

#[test]
fn json_has_a_line_per_mode_and_data_give_the_same_plot() {
    let plot = scratch("plot.svg");
    let (plot, data) = (plot.to_str().unwrap(), scratch("data.json"));
    let data = data.to_str().unwrap();
    let (code, out, err) = program(&["--tokens", "900", "--json", "--plot", plot, "--data", data]);
    assert_eq!((code, err.as_str()), (EXIT_OK, ""));
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let modes: Vec<_> = lines.iter().map(|line| line["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["sink", "window", "dense", "recompute"]);
    for line in &lines {
        assert_eq!((line["tokens"].as_u64(), line["scored"].as_u64()), (Some(900), Some(10)), "{line}");
        assert_eq!(line["skipped"].as_u64(), Some(5472), "{line}");
        for key in ["ppl", "ppl_last_tenth", "ppl_beginning_trained", "tokens_per_s", "cache_bytes"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key}: {line}");
        }
    }
    assert!(lines[3]["sink_minus_recompute_nats"].is_f64());
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("recompute"));

    let again = scratch("again.svg");
    let (code, out, err) = program(&["--draw", data, "--plot", again.to_str().unwrap()]);
    assert_eq!((code, out, err.as_str()), (EXIT_OK, format!("plot: {}\n", again.display()), ""));
    assert!(fs::read_to_string(again).unwrap() == svg, "a data file gives another plot than its run");
}

/// Perplexities of all types lie near that of f16: the narrower, the farther.
#[test]
fn storage_types_are_compared_token_by_token() {
    let types = ["f16", "f32", "bf16", "q8", "q8/q4", "q4"];
    let arguments = ["--tokens", "4000", "--stride", "4", "--json", "--kv-dtype", &types.join(",")];
    let (code, out, err) = program(&arguments);
    assert_eq!((code, err.as_str()), (EXIT_OK, ""));
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = lines.iter().map(|line| line["kv_dtype"].as_str().unwrap()).collect();
    assert_eq!(names, types);
    for (line, (off, bytes)) in
        lines.iter().zip([(1e-9, 0), (0.003, 0), (0.01, 0), (0.005, 52), (0.015, 41), (0.05, 29)])
    {
        let ratio = line["ratio"].as_f64().unwrap();
        assert!((ratio - 1.0).abs() <= off, "{line}");
        let percent = line["bytes_per_token"].as_u64().unwrap() * 100 / lines[0]["bytes_per_token"].as_u64().unwrap();
        assert!(bytes == 0 || percent <= bytes, "{line}");
    }
    let (code, out, _) = program(&["--tokens", "700", "--kv-dtype", "f16,q8/q4"]);
    assert_eq!(code, EXIT_OK);
    assert!(out.contains("beside f16") && out.contains("q8/q4"), "{out}");
}

#[test]
fn the_bundled_text_starts_with_its_first_chapter() {
    let stream = Stream::open(&data("stream.txt"), 5472, None, 14).unwrap();
    let bytes = (1..=stream.len()).map(|p| (stream.token(p) - BYTE_OFFSET) as u8);
    assert_eq!(String::from_utf8(bytes.collect()).unwrap(), "\"Well, Prince,");
}

fn llama() -> Llama {
    Llama::open(&data("tiny-llama-bytes.gguf")).unwrap()
}

fn stream(tokens: usize) -> Stream {
    Stream::open(&data("stream.txt"), 0, Some(tokens as u64), 0).unwrap()
}

/// Scores nothing at the beginning.
fn setting(chunk: u32, scored: ScoredPositions) -> Setting {
    let beginning = ScoredPositions { start: 0, stride: 1, end: 0 };
    Setting { sink: 4, window: 252, chunk, kv_dtype: KvTypes::F16, threads: 2, scored, beginning }
}

/// 4.00476 is the result of plain attention in NumPy, with the weights from before their conversion to GGUF.
#[test]
fn the_first_256_tokens_have_their_perplexity() {
    let (llama, stream) = (llama(), stream(256));
    let mut cache = KvCache::new(llama.cache_shape(4, 252, 256, KvTypes::F32, 1)).unwrap();
    let (mut tokens, keep) = (Vec::new(), Vec::from_iter(0..256));
    stream.fill(0..256, &mut tokens);
    let logits = llama.forward(&tokens, &keep, &mut cache).unwrap();
    let next = (1..=256).map(|p| stream.token(p));
    let nlls: Vec<f32> = logits.chunks_exact(VOCABULARY).zip(next).map(|(l, t)| nll(l, t)).collect();
    let perplexity = perplexity(&nlls).unwrap();
    assert!((perplexity - 4.004_76).abs() < 1e-4, "{perplexity}");
}

#[test]
fn chunks_do_not_change_the_scores() {
    let (llama, stream) = (llama(), stream(700));
    let scored = ScoredPositions { start: 0, stride: 7, end: 700 };
    let whole = run_mode(Mode::Sink, &setting(256, scored), &llama, &stream).unwrap();
    assert_eq!(whole.scores.nlls.len(), 100);
    for chunk in [1, 100, 601] {
        let cut = run_mode(Mode::Sink, &setting(chunk, scored), &llama, &stream).unwrap();
        let error = whole.scores.nlls.iter().zip(&cut.scores.nlls).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 5e-3, "chunks of {chunk}: {error}");
    }
}

#[test]
fn below_the_window_all_modes_agree() {
    let (llama, stream) = (llama(), stream(255));
    let setting = setting(64, ScoredPositions { start: 3, stride: 9, end: 255 });
    let runs = Mode::ALL.map(|mode| run_mode(mode, &setting, &llama, &stream).unwrap());
    for run in &runs {
        assert_eq!(run.scores.nlls.len(), 28);
        let error = runs[0].scores.nlls.iter().zip(&run.scores.nlls).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 5e-3, "{}: {error}", run.mode.name());
    }
}

#[test]
fn far_past_the_window_sink_stays_near_recompute_and_the_others_do_not() {
    let (llama, stream) = (llama(), stream(1200));
    let setting = setting(128, ScoredPositions { start: 800, stride: 20, end: 1200 });
    let [sink, window, dense, recompute] =
        Mode::ALL.map(|mode| perplexity(&run_mode(mode, &setting, &llama, &stream).unwrap().scores.nlls).unwrap());
    assert!((sink / recompute - 1.0).abs() < 0.05, "{sink} {recompute}");
    assert!(window > 1.3 * sink && dense > 2.0 * sink, "{sink} {window} {dense}");
}
