// The online softmax of one row of scores (one query and head): a running state that takes in keys tile by tile, that
// is merged over warps and KV splits, and that is normalised into a row of the result. Every attention kernel uses it.
#pragma once

#include "params.cuh"
#include "ptx.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Exponentials in base 2 of scores that are scaled by log2 e: one instruction each.
struct Base2 {
    SKC_DEVICE static float exp(float x) { return exp2_fast(x); }
    SKC_DEVICE static float from_natural(float x) { return x * LOG2_E; }
    SKC_DEVICE static float to_natural(float x) { return x * LN_2; }
};

// Exponentials in base e, correct to f32 rounding.
struct BaseE {
    SKC_DEVICE static float exp(float x) { return exp_f(x); }
    SKC_DEVICE static float from_natural(float x) { return x; }
    SKC_DEVICE static float to_natural(float x) { return x; }
};

// Row maximum and row sum: the part of the state that does not depend on head_dim. Scores are in base Base.
template <class Base>
struct alignas(8) RowStats {
    float max;  // of the scores so far, NaN ignored; minus infinity before the first
    float sum;  // of exp(score - max); NaN if a score was NaN

    SKC_DEVICE static RowStats empty() { return {minus_infinity(), 0.0f}; }

    // What is subtracted from scores under the exponential. It is 0 while no score is above minus infinity: the
    // exponentials of minus infinity are then 0, and a NaN stays NaN.
    SKC_DEVICE float base() const { return max == minus_infinity() ? 0.0f : max; }

    // exp(score - maximum): the probability, but for the division by the row sum at the end. The score is subtracted
    // from as it was rounded when the maximum was taken, so that the largest key's exponent is 0, however large the
    // scores. A fused multiply-add of an unrounded score would leave its rounding error: 512 at a score of 1e10.
    SKC_DEVICE float probability(float score) const {
        return Base::exp(sub_f(score, base())); // mutant: exponent_of_unrounded_score
    }

    // Raises the maximum. Returns the rescale factor (alpha) of what has been accumulated; the caller applies it to the
    // sum (with add) and to the accumulator.
    SKC_DEVICE float raise(float new_max) {
        float old_max = max;
        max = new_max;
        return probability(old_max);
    }

    // Adds probabilities whose sum is `total`.
    SKC_DEVICE void add(float alpha, float total) { sum = sum * alpha + total; }

    // Takes in the scores of N keys from each lane that shares the row, and turns them into probabilities. Those lanes'
    // numbers differ in the bits from `low` up to `high` (exclusive) only. Returns alpha. The sum stays the lane's own:
    // see sum_lanes.
    template <u32 N>
    SKC_DEVICE float add_scores(float (&s)[N], u32 low, u32 high) {
        float new_max = max;
#pragma unroll
        for (u32 i = 0; i < N; ++i) new_max = max_f(new_max, s[i]);
        for (u32 mask = low; mask < high; mask *= 2) new_max = max_f(new_max, shuffle_xor(new_max, mask));
        float alpha = raise(new_max);
#pragma unroll
        for (u32 i = 0; i < N; ++i) s[i] = probability(s[i]);
        float total = s[0];
#pragma unroll
        for (u32 i = 1; i < N; ++i) total += s[i];
        add(alpha, total);
        return alpha;
    }

    // Adds up the sums of the lanes that share the row. Their maxima are the same.
    SKC_DEVICE void sum_lanes(u32 low, u32 high) {
        for (u32 mask = low; mask < high; mask *= 2) sum += shuffle_xor(sum, mask);
    }

    // Merges another partial result of the row.
    SKC_DEVICE void merge(const RowStats& other) {
        RowStats old = *this;
        max = max_f(old.max, other.max);
        sum = old.sum * probability(old.max) + other.sum * probability(other.max);
    }

    // Merges the partial results of all lanes of the warp.
    SKC_DEVICE void merge_warp() {
        float old_max = max;
        for (u32 mask = 16; mask > 0; mask /= 2) max = max_f(max, shuffle_xor(max, mask));
        sum *= probability(old_max);
        for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    }

    // Ends the row of query head `head`: adds its learned sink logit, if the layer has them, which counts as a key with
    // that score and a value of zero. Returns the factor on the accumulator.
    SKC_DEVICE float finish(const SkcLayer& l, u32 head) {
        float alpha = 1.0f;
        if (l.sink_logits) {
            float logit = Base::from_natural(l.sink_logits[head]);
            alpha = raise(max_f(max, logit));
            add(alpha, probability(logit));
        }
        return alpha / sum;
    }

    // Natural log of the softmax denominator.
    SKC_DEVICE float lse() const { return Base::to_natural(max) + log_f(sum); }
};

// The state of a row: maximum, sum, and the N dims of PV that a lane has, not yet divided by the sum.
template <u32 N, class Base = Base2>
struct SoftmaxState {
    RowStats<Base> stats;
    float acc[N];

    SKC_DEVICE static SoftmaxState empty() {
        SoftmaxState s;
        s.stats = RowStats<Base>::empty();
#pragma unroll
        for (u32 i = 0; i < N; ++i) s.acc[i] = 0.0f;
        return s;
    }

    SKC_DEVICE void rescale(float alpha) {
#pragma unroll
        for (u32 i = 0; i < N; ++i) acc[i] *= alpha;
    }

    // Adds the accumulator of a partial result that was computed relative to another maximum. The maxima and sums have
    // been merged before.
    SKC_DEVICE void add_partial(const float (&x)[N], float partial_max) {
        float alpha = stats.probability(partial_max);
#pragma unroll
        for (u32 i = 0; i < N; ++i) acc[i] += x[i] * alpha;
    }

    // Turns the accumulator into the row's result.
    SKC_DEVICE void normalise(const SkcLayer& l, u32 head) { rescale(stats.finish(l, head)); }
};
