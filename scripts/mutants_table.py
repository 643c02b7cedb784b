"""The mutants of `scripts/mutants.py`: what each of them changes in its line, which a comment in src/ marks.

    line of code;  // mutant: NAME             the mark stands behind the line ...
    // mutant: NAME, OTHER                     ... or alone in the line above; it may name several mutants

A name here is the name in the mark. It says what is wrong in the mutant.
"""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Replace:
    """`old`, which stands exactly once in the line, becomes `new`.

    `first`: a program and its test that are run before all others, to save time where the usual order comes late to the
    test that fails. Where it passes, all others follow.
    """
    old: str
    new: str
    first: tuple = None


@dataclasses.dataclass(frozen=True)
class Line:
    """The whole line becomes `new`."""
    new: str
    first: tuple = None


@dataclasses.dataclass(frozen=True)
class Delete:
    """The line is removed."""
    first: tuple = None


# Tests that several mutants name.
LARGE_SCORES = ("instruction_sets", "the_largest_key_wins")
INFINITIES = ("instruction_sets", "edges_keep_infinities_out")
SOFTMAX = ("lib", "backend::cpu::simd::softmax::tests::weights_are_those_of_the_plain_way")
INTEGER_SCORES = ("lib", "backend::cpu::simd::integer::tests::rounded_queries_give_the_scores_of_queries")
INTEGER_RESULTS = ("lib", "backend::cpu::simd::integer::tests::rounded_weights_give_the_results_of_weights")
QUANTISED_ROWS = ("lib", "backend::cpu::simd::quantise::tests::rows_are_those_of_the_definition")
LOADS = ("lib", "ring::tests::a_load_brings_back_what_both_rings_allow")
STEPS = ("cuda", "steps::a_step_stores_what_an_append_stores")
STREAMS = ("cuda", "differential::streams_agree_with_the_cpu")
SEGMENTS = ("cuda", "segments::segments_agree_with_the_cpu")
RANGE_EDITS = ("cuda", "segments::device_arrays_equal_host_arrays")
ROW_MOVES = ("cuda", "segments::rows_move_as_on_the_cpu")
CODES = ("cuda", "codes::rows_that_are_not_rotated_are_those_of_the_definition")
SPLIT_CHUNKS = ("cuda", "chunk_splits::split_chunks_agree_with_unsplit_ones")
MASKED = ("cuda", "differential::masked_infinities_do_not_reach_a_query")

HISTORIES = ("histories", "random_histories_match_the_definition")
VECTORS = ("vectors", "every_vector_every_way")

# Semantics, and what all instruction sets share.
COMMON = {
    # The record of entries that a device has skipped.
    "torn_record_taken": Replace("word(begun) != number", "false",
                                 ("lib", "backend::cuda::error_record::tests::a_record_that_is_being_written_is_left")),
    # Which tokens a ring holds.
    "evicted_one_too_few": Replace("self.n_sink + self.window", "self.n_sink + self.window + 1"),
    "ring_without_chunk_room": Replace("u64::from(max_chunk)", "u64::from(max_chunk) - 1",
                                       ("edges", "an_aborted_step_can_be_done_again")),
    "evict_counts_from_zero": Replace("= ring.evicted(self.len, self.floor) + n", "+= n"),
    "rewind_keeps_evicted": Line("self.apply(|layer, state, _, len| { state.floor = layer.ring.evicted(state.len, "
                                 "state.floor); state.cut(len) });"),
    "rewind_forgets_highest": Line("self.len = len; self.highest = len;"),
    "in_step_of_later_layers_alone": Replace("len.saturating_add(entry.n)", "state.len",
                                             ("edges", "a_batch_in_step_follows_a_forward_pass")),
    "reset_keeps_floor": Replace("Seq::default()", "Seq { floor: state.floor, ..Seq::default() }"),
    "fork_copies_too_little": Replace("used_slots(&state)",
                                      "used_slots(&Seq { highest: state.len.saturating_sub(1), ..state })", HISTORIES),
    # Pins and evicted ranges.
    "fork_without_pins": Replace(" + u64::from(seq.n_pinned)", "", HISTORIES),
    "rewind_across_an_edit": Line("let _ = EditRejection::Edited;", HISTORIES),
    "segment_border_off_by_one": Replace("self.end() + self.later", "self.end() + self.later + 1", VECTORS),
    "pin_counted_as_dropped": Replace("{ 0 } else { self.n }", "{ self.n } else { self.n }", VECTORS),
    "passed_range_kept": Replace("r.first > self.oldest_after", "r.first > 0", HISTORIES),
    "edit_forgets_the_window": Replace(".max(self.oldest_index)", "", HISTORIES),
    "pin_overwrites_a_pin": Replace("rank + taken", "rank", HISTORIES),
    "evicted_pin_stays": Replace("slot_of_pinned(before), after", "slot_of_pinned(before + 1), after", VECTORS),
    "window_moves_one_too_far": Replace("end + self.taken", "end + self.taken + 1", VECTORS),
    "pinned_from_its_old_slot": Replace("move_rows(run.slot, ", "move_rows(run.slot + 1, ", VECTORS),
    "saved_ranges_that_are_passed": Replace("r.first > oldest", "r.first > 0",
                                            ("snapshots", "ranges::what_there_is_no_room_for_is_refused")),
    "pins_not_saved": Replace(" + u64::from(seq.n_pinned)", "",
                              ("histories", "random_histories_with_snapshots_match_the_definition")),
    # Snapshots.
    "rewind_below_a_load": Replace(".max(seq.loaded_from)", "", LOADS),
    "abort_below_a_load": Replace(".max(seq.loaded_from)", "", LOADS),
    "snapshot_of_the_window_alone": Replace(".min(back)", "",
                                            ("histories", "random_histories_with_snapshots_match_the_definition")),
    "saved_key_of_another_lane": Replace("2 * lane", "2 * (lane ^ 1)",
                                         ("snapshots", "snapshots_of_all_versions_load")),
    "saved_codes_swapped": Replace("(pair[0] ^ 8) | (pair[1] ^ 8) << 4", "(pair[1] ^ 8) | (pair[0] ^ 8) << 4",
                                   ("snapshots", "snapshots_of_all_versions_load")),
    # Which keys a query sees, and at which distance.
    "evicted_token_visible": Replace("self.evicted..end", "self.evicted.saturating_sub(1)..end"),
    "future_token_visible": Replace("self.index + 1", "self.index + 2"),
    "sink_distance_in_stream": Replace("row.index - offset", "row.index", VECTORS),
    "block_begins_late": Replace("offset % SLOT_ALIGN", "offset % SLOT_ALIGN + u64::from(offset % SLOT_ALIGN == 7)"),
    "pins_dropped_for_sinks": Replace(" - self.pinned", "", VECTORS),
    "turned_query_without_hadamard": Line("()", VECTORS),
    "turned_query_of_another_segment": Replace("t == turn", "t != turn", VECTORS),
    "passed_pin_as_new": Replace("turn.has_passed(&layer.ring, scratch.ranges[r])", "false", VECTORS),
    "segment_overwrites_its_neighbour": Replace("columns.n > 0", "columns.n > 99", VECTORS),
    "rows_moved_oldest_first": Replace("from < to", "from > to",
                                       ("lib", "backend::cpu::row_moves::tests::moved_rows_are_the_same")),
    "part_of_another_tile": Replace("self.first_row + first as u64", "self.first_row"),
    "columns_counted_from_block": Replace("(v.from - from, v.to - from)", "(v.from, v.to)"),
    # RoPE.
    "float_positions": Replace("position.wrapping_mul(f)", "(position as f32 as u64).wrapping_mul(f)"),
    "sink_rotation_dropped": Replace("position.wrapping_sub(dropped)", "position"),
    "sink_rotated_other_way": Replace("0_u64.wrapping_sub(dropped)", "evicted"),
    "mscale_twice": Replace("1.0", "layer.mscale"),
    "key_angle_of_first_token": Replace("wrapping_add(index)", "wrapping_add(entry.first)"),
    "angles_of_another_slab": Replace("(token - start) as usize", "(token - tokens.start) as usize % half.max(1)",
                                      ("instruction_sets", "long_windows")),
    # Storage.
    "key_in_another_lane": Replace("KEY_GROUP + lane", "KEY_GROUP + (lane ^ 1)"),
    "values_of_another_half": Replace("(row, in_tile, 0)", "(row, 0, 0)"),
    "part_of_group_written_whole": Replace("== KEY_GROUP as u64", ">= KEY_GROUP as u64 - 1"),
    "code_of_another_slot": Replace("to.read() & other |", "to.read() |",
                                    ("lib", "backend::cpu::code_store::tests::slots_keep_their_codes")),
    # Quantised rows.
    "a_query_of_nan_rounded": Delete(INFINITIES),
    "key_not_turned": Delete(("vectors", "every_vector_every_way")),
    "window_query_not_turned": Delete(("vectors", "every_vector_every_way")),
    "sink_query_not_turned": Delete(("vectors", "every_vector_every_way")),
    "last_of_equal_magnitudes": Replace("u64::from(u32::MAX >> 1) - i", "i", QUANTISED_ROWS),
    "scale_beyond_the_range": Replace("(a.from..a.to).contains(&(first + i))", "first + i < a.to.max(32)", INFINITIES),
    # Softmax and products.
    "learned_sink_scaled": Replace("logit / self.score_unit(r)", "logit", LARGE_SCORES),
    "bias_before_softcap": Replace("a.softcap > 0.0", "a.softcap > 0.0 && visible.slope == 0.0"),
    "maximum_subtracted_late": Replace(
        "V::load(at(i)).add(minus_max).mul(factor)", "V::load(at(i)).fma(factor, minus_max.mul(factor))", LARGE_SCORES),
    "merge_of_raw_maxima": Replace("let unit = tile.score_unit(r)", "let unit = 1.0"),
    "masked_score_counts": Replace("end - 1", "first"),
    "masked_row_is_nan": Replace("new == f32::NEG_INFINITY", "new == f32::INFINITY"),
    "masked_by_zero_probability": Replace("visible.iter().all(|v| (v.from, v.to) == (from, to))", "!visible.is_empty()",
                                          INFINITIES),
    "infinity_reaches_masked_rows": Replace("separate: ", "separate: false && ",
                                            ("edges", "poison_reaches_only_those_who_see_it")),
    "split_merged_without_rescale": Replace("*a * alpha", "*a"),
    "last_keys_counted_twice": Replace("last", "all.from", ("instruction_sets", "long_windows_of_padded_rows")),
}

# Of AMX: run where the processor has it, or the emulator of instruction sets.
AMX = {
    "amx_tile_of_wrong_rows": Replace("a.add(16 * dim)", "a.add(8 * dim)"),
    "amx_low_half_left_out": Replace("{ 3 }", "{ 2 }"),
    "amx_stale_infinity": Replace("unsafe { pack::all_finite(v, keys.n * dim_v) }", "true", INFINITIES),
    "amx_stale_values": Replace("block.all_visible && (", "!block.all_visible || (", INFINITIES),
    "amx_infinity_reaches_masked_rows": Replace("separate = ", "separate = false && ", INFINITIES),
    "amx_nan_row_is_masked": Replace("*row.add(c) == f32::NEG_INFINITY",
                                     "*row.add(c) < f32::INFINITY || (*row.add(c)).is_nan()", SOFTMAX),
    "amx_masked_columns_count": Replace("!WHOLE", "!WHOLE && a.n == 0"),
    "amx_sums_without_rescale": Replace("_mm512_fmadd_ps(sum, alpha, total)", "_mm512_add_ps(sum, total)", INFINITIES),
    "fused_softmax_without_limit": Replace(
        "set1_ps(HEADROOM)", "set1_ps(1e30 * HEADROOM)",
        ("lib", "backend::cpu::simd::amx::fused_softmax::tests::a_declined_block_changes_no_sum")),
    "amx_maximum_subtracted_late": Line(
        "_mm512_fmadd_ps(_mm512_loadu_ps(row.add(at)), factor, _mm512_mul_ps(minus_max, factor))", LARGE_SCORES),
    "fused_maximum_subtracted_late": Line(
        "_mm512_fmadd_ps(_mm512_load_ps(strip.add(r * STRIP + c)), self.factor, "
        "_mm512_mul_ps(minus_max, self.factor))",
        ("lib", "backend::cpu::simd::amx::fused_softmax::tests::the_running_maximum_has_probability_one")),
    "fused_softmax_unmasked": Line("let _ = (one, two);"),
    "rough_exp2_of_zero": Replace("1.0]", "0.999_5]",
                                  ("lib", "backend::cpu::simd::x86_64::avx512::tests::powers_are_as_near_as_stated")),
}

# Of AVX-512 FP16: run where the processor has it, or the emulator.
FP16 = {
    "fp16_overflow": Replace("= 9", "= 14"),
    "fp16_small_probabilities_lost": Line("let row_max = max;", SOFTMAX),
    "fp16_maximum_subtracted_late": Line(
        "let p = rough_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(row.add(i * KEY_GROUP)), "
        "factor, _mm512_mul_ps(row_max, factor)));",
        ("lib", "backend::cpu::simd::fp16::softmax::tests::the_largest_weight_is_one")),
    "fp16_sum_without_block_scale": Replace("block_scale * ", "", SOFTMAX),
    "fp16_small_queries_lost": Replace(
        "largest_bits >= f32::MIN_POSITIVE", "largest_bits >= 1.0",
        ("lib", "backend::cpu::simd::fp16::pack::tests::rows_are_scaled_by_their_largest")),
    "fp16_queries_unscaled": Replace("_mm512_fmadd_ps(high, alpha, c1)", "_mm512_add_ps(high, c1)"),
}

# Products of codes in integers, AVX512_VNNI.
VNNI = {
    "small_block_of_query_rounded": Replace("q.len() > block", "false",
                                            ("instruction_sets", "large_channels_of_queries_stay_in_their_block")),
    "bias_of_codes_left_in": Replace("-bias::<I, C>() * sum", "0 * sum", INTEGER_SCORES),
    "scale_of_masked_column": Replace("_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(p, zero)", "0xFFFF_u16", INTEGER_RESULTS),
}


# Of NEON: the library's own tests must catch them on AArch64, elsewhere under QEMU.
NEON = {
    "neon_maximum_hides_nan": Replace("vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0)",
                                      "vmaxnmq_f32(self.0, other.0)"),
    "neon_lane_beyond_range": Replace("vcltq_s32(lane, limit(to))", "vcleq_s32(lane, limit(to))"),
    "neon_unsigned_codes": Replace('asm!("sdot ', 'asm!(".arch_extension i8mm\\nusdot '),
    "neon_upper_halves": Replace("fcvtl {x:v}.4s, {h:v}.4h", "fcvtl2 {x:v}.4s, {h:v}.8h"),
}

# Of the CUDA kernels: the device tests must catch them on the stand-in.
CUDA = {
    "decode_wrong_fragment": Replace("(line + matrix / 2 * 8) * ROW_BYTES + matrix % 2 * 16",
                                     "(line + matrix % 2 * 8) * ROW_BYTES + matrix / 2 * 16", STREAMS),
    "chunk_wrong_fragment": Replace("pack(hi[0], hi[1])", "pack(lo[2], lo[3])"),
    "decode_missing_barrier": Delete(),
    "chunk_missing_barrier": Delete(),
    "copies_not_waited_for": Replace("STAGES - 2", "STAGES - 1"),
    "merge_before_all_arrived": Replace("p.n_splits - 1", "p.n_splits / 2", STREAMS),
    "slices_merged_too_early": Delete(SPLIT_CHUNKS),
    "slices_at_one_scale": Replace("others[r].max", "own.max", SPLIT_CHUNKS),
    "chunk_splits_at_one_scale": Replace("stats.z", "stats.x", SPLIT_CHUNKS),
    "chunk_split_left_out": Replace("u32 i = 0", "u32 i = 1", SPLIT_CHUNKS),
    "chunk_merged_before_all_arrived": Replace("!= n - 1", "!= 0", SPLIT_CHUNKS),
    "chunk_arrivals_not_reset": Replace("n - 1", "n", SPLIT_CHUNKS),
    "chunk_share_read_too_early": Delete(SPLIT_CHUNKS),
    "cluster_rank_of_another_block": Replace("(own, i)", "(own, 0)", SPLIT_CHUNKS),
    "cluster_splits_at_one_scale": Replace("stats[i][0]", "all.max", SPLIT_CHUNKS),
    "cluster_rows_written_too_early": Delete(SPLIT_CHUNKS),
    "cluster_read_too_early": Delete(SPLIT_CHUNKS),
    "cluster_left_too_early": Delete(SPLIT_CHUNKS),
    "last_key_left_out": Replace("key < keys.n", "key + 1 < keys.n"),
    "lengths_before_all_blocks_read": Replace("!= blocks - 1", "!= 0"),
    "step_reads_old_slots": Delete(),
    "step_without_its_own_key": Replace("> keys.stored", "> keys.stored + keys.n", STEPS),
    "new_token_in_another_tile": Replace("first > keys.stored ? first - keys.stored : 0", "0", STEPS),
    "new_token_not_stored": Replace("piece.is_key", "true"),
    "launch_before_the_last_ended": Delete(("cuda", "steps::programmatic_launches_change_no_bit")),
    "hidden_infinity": Replace("masked && ", "false && ", MASKED),
    "decode_hidden_infinity": Replace("masked && ", "false && ", MASKED),
    # Codes and scales.
    "keys_not_turned": Delete(CODES),
    "queries_not_turned": Delete(("cuda", "differential::every_pair_of_types_agrees_with_the_cpu")),
    "fast_queries_not_turned": Delete(STREAMS),
    "new_key_not_turned": Delete(STEPS),
    "hadamard_without_a_sign": Replace("lane() & h ? other - row.x[j] : row.x[j] + other", "row.x[j] + other", CODES),
    "infinite_row_with_a_scale": Replace("finite && magnitude_bits(value) < INFINITY_BITS", "true", CODES),
    "code_not_clipped": Replace("min_f(max_f(round_even(x / value), least), most)", "round_even(x / value)", CODES),
    "largest_of_another_lane": Replace("31 - (u32)best", "(u32)best", CODES),
    "scale_without_a_sign": Replace("largest / -8.0f", "bits_float(magnitude_bits(largest)) / 8.0f", CODES),
    "fork_without_scales": Delete(("cuda", "codes::a_fork_has_the_codes_and_scales_of_its_source")),
    "code_without_its_sign": Replace("x & 0x00800080", "x & 0", STREAMS),
    "key_scale_of_another_key": Replace("key(slot, g)", "key(slot, g ^ 1)", STREAMS),
    "chunk_key_scale_of_another_key": Replace("key(slot, ", "key(slot ^ 1, ", STREAMS),
    "hidden_scale": Replace("masked && ", "false && ", MASKED),
    "hidden_block_scale": Replace("masked && ", "false && ", MASKED),
    "last_code_left_out": Replace("key < keys.n", "key + 1 < keys.n", STREAMS),
    "attend_reported_as_append": Replace("SKC_CALL_ATTEND", "SKC_CALL_APPEND",
                                         ("cuda", "graphs::invalid_attends_are_skipped_and_reported")),
    "record_overwritten": Replace(
        "taken);", "true);",
        ("cuda", "errors::all_invalid_entries_are_counted_and_one_of_the_first_launch_is_shown")),
    # What a fused multiply-add of the product leaves of the rounding of the score.
    "exponent_of_unrounded_score": Replace("sub_f(score, base())", "fma_f(score, 1.0000001f, -base())",
                                           ("cuda", "scores::the_largest_key_wins_however_large_the_scores")),
    # Pins and evicted ranges.
    "segment_offset_off_by_one": Replace("window_start - before", "window_start - before - 1", SEGMENTS),
    "hole_counted_as_window": Replace("range_evicted(next)", "range_later_evicted(next)", SEGMENTS),
    "pinned_rows_of_another_range": Replace("n_pinned - r.later_pinned - n", "r.later_pinned", SEGMENTS),
    "passed_token_visible": Replace("s.window ? ", "s.window && s.n == 0 ? ", SEGMENTS),
    "segments_read_old_slots": Delete(SEGMENTS),
    "segment_missing_barrier": Delete(SEGMENTS),
    "segment_copies_not_waited_for": Replace("STAGES - 2", "STAGES - 1", SEGMENTS),
    "segment_step_without_its_own_key": Replace("at.i == 0 || newest", "at.i == 0", SEGMENTS),
    "range_edit_leaves_queries": Delete(("cuda", "segments::no_query_sees_what_was_before_an_edit")),
    "range_end_overflows": Replace("first > seq.len || n > seq.len - first", "first + n > seq.len", RANGE_EDITS),
    "device_edit_forgets_the_window": Replace(
        "e.oldest_index", "0", ("cuda", "segments::no_rewind_goes_below_the_window_of_an_edit")),
    "device_rewind_across_an_edit": Replace("left < seq.edited", "false", RANGE_EDITS),
    "device_fork_without_pins": Replace(" + seq.n_pinned", "", RANGE_EDITS),
    "fork_without_ranges": Replace("seq.n_ranges > 0", "false", RANGE_EDITS),
    "device_pin_from_its_old_slot": Replace("move_rows(at, slot, n)", "move_rows(at + 1, slot, n)", ROW_MOVES),
    "device_pin_overwrites_a_pin": Replace("slot + taken", "slot", ROW_MOVES),
    "device_evicted_pin_stays": Delete(ROW_MOVES),
    "device_window_moves_one_too_far": Replace("end + e.taken", "end + e.taken + 1", ROW_MOVES),
    "rows_moved_before_they_are_read": Delete(ROW_MOVES),
    "moved_without_scales": Delete(ROW_MOVES),
}

ALL = {**COMMON, **AMX, **FP16, **VNNI, **NEON, **CUDA}
assert len(ALL) == sum(map(len, (COMMON, AMX, FP16, VNNI, NEON, CUDA))), "a name stands twice"
