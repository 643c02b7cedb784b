// cvt, and the conversions that other instructions need.
#include <cmath>
#include <cstring>
#include <limits>

#include "instruction_table.hpp"
#include "lanes.hpp"
#include "warp.hpp"

namespace ptx {
namespace {

// ---- Conversions between register widths: the value as `from`, extended as `to` says.

template <class To, class From>
To clamp_float(From x) {
    if (x != x) return sizeof(To) == 8 ? static_cast<To>(u64{1} << 63) : To(0);
    double d = std::trunc(static_cast<double>(x));
    double low = static_cast<double>(std::numeric_limits<To>::min()),
           high = static_cast<double>(std::numeric_limits<To>::max());
    if (d <= low) return std::numeric_limits<To>::min();
    if (d >= high) return std::numeric_limits<To>::max();
    return static_cast<To>(d);
}

template <class To, class From>
void convert(Warp& w, const Instruction& i, u32 m) {
    const u8* a = w.r + i.operands[1];
    u8* d = w.r + i.operands[0];
    u32 from_stride = i.width[1], to_stride = i.width[0];
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        From x;
        std::memcpy(&x, a + l * from_stride, sizeof x);  // little endian: the low part
        To y;
        if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
            y = clamp_float<To>(x);
        } else {
            y = static_cast<To>(x);
        }
        // An integer that is narrower than its register is extended.
        u64 wide;
        if constexpr (std::is_floating_point_v<To>) {
            wide = 0;
            std::memcpy(&wide, &y, sizeof y);
        } else if constexpr (std::is_signed_v<To>) {
            wide = static_cast<u64>(static_cast<i64>(y));
        } else {
            wide = static_cast<u64>(y);
        }
        std::memcpy(d + l * to_stride, &wide, to_stride);
    }
}

// Registers as wide as the types: no strides.
template <class To, class From>
Handler either(bool exact) {
    if (!exact) return convert<To, From>;
    if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>)
        return one<To, From, [](From x) { return clamp_float<To>(x); }>;
    return one<To, From, [](From x) { return static_cast<To>(x); }>;
}

template <class To>
Handler convert_to(const std::string& from, bool exact) {
    if (from == "u8") return convert<To, u8>;
    if (from == "s8") return convert<To, int8_t>;
    if (from == "u16") return either<To, u16>(exact);
    if (from == "s16") return either<To, i16>(exact);
    if (from == "u32") return either<To, u32>(exact);
    if (from == "s32") return either<To, i32>(exact);
    if (from == "u64") return either<To, u64>(exact);
    if (from == "s64") return either<To, i64>(exact);
    if (from == "f32") return either<To, float>(exact);
    return nullptr;
}

}  // namespace

Handler convert_handler(const Conversion& c) {
    const std::string &to = c.to, &from = c.from, &rounding = c.rounding;
    const bool exact = c.exact;
    if (to == "f32" && from == "f32") {
        // To a number from 0 to 1; to an integer that stays a float, of two the even one.
        if (c.saturate && rounding.empty()) {
            return one<float, float, [](float a) { return 0.0f < a ? (a < 1.0f ? a : 1.0f) : 0.0f; }>;
        }
        if (!c.saturate && rounding == "rni") {
            return one<float, float, [](float a) { return nan_of(std::nearbyint(a)); }>;
        }
        return nullptr;
    }
    if (c.saturate) return nullptr;
    if (to == "f32" && from == "f16" && rounding.empty()) {
        return one<float, u16, [](u16 h) { return half_to_float(h); }>;
    }
    if (to == "f16" && from == "f32" && rounding == "rn") {
        return one<u16, float, [](float x) { return float_to_half(x); }>;
    }
    if (to == "bf16" && from == "f32" && rounding == "rn") {
        return one<u16, float, [](float x) { return float_to_bf16(x); }>;
    }
    if (to == "f32" && from == "bf16" && rounding.empty()) {
        return one<float, u16, [](u16 h) { return bits<float>(u32{h} << 16); }>;
    }
    bool from_float = from[0] == 'f', to_float = to[0] == 'f';
    if (to_float && !from_float && rounding != "rn") return nullptr;
    if (from_float && !to_float && rounding != "rzi") return nullptr;
    if (!from_float && !to_float && !rounding.empty()) return nullptr;
    if (to == "u8") return convert_to<u8>(from, false);
    if (to == "s8") return convert_to<int8_t>(from, false);
    if (to == "u16") return convert_to<u16>(from, exact);
    if (to == "s16") return convert_to<i16>(from, exact);
    if (to == "u32") return convert_to<u32>(from, exact);
    if (to == "s32") return convert_to<i32>(from, exact);
    if (to == "u64") return convert_to<u64>(from, exact);
    if (to == "s64") return convert_to<i64>(from, exact);
    if (to == "f32") return convert_to<float>(from, exact);
    return nullptr;
}

float half_to_float(u16 h) {
    u32 sign = u32{h} >> 15 << 31, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        float x = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -x : x;
    }
    return bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

u16 float_to_half(float x) {
    u32 b = bits<u32>(x), sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<u16>(sign | 0x7c00);  // 65520 and above
    if (magnitude < 0x38800000) {                                         // below 2^-14: multiples of 2^-24
        double scaled = std::fabs(static_cast<double>(x)) * 16777216.0;
        return static_cast<u16>(sign | static_cast<u32>(std::nearbyint(scaled)));
    }
    u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<u16>(sign | (rounded - 0x38000000) >> 13);
}

u16 float_to_bf16(float x) {
    u32 b = bits<u32>(x);
    if ((b & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<u16>((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

u16 fma_bf16(u16 x, u16 y, u16 z) {
    // The product of two bf16 is exact in f64. What rounding the sum to f64 leaves out is known exactly (two-sum). The
    // sum is then rounded to f32 "to odd", which keeps all that rounding to bf16 has to know of it.
    double product = static_cast<double>(bits<float>(u32{x} << 16)) * bits<float>(u32{y} << 16);
    double addend = bits<float>(u32{z} << 16);
    double sum = product + addend;
    if (!std::isfinite(sum)) return float_to_bf16(static_cast<float>(sum));
    double part = sum - product;
    double left_out = (product - (sum - part)) + (addend - part);
    float rounded = static_cast<float>(sum);
    double more = std::isinf(rounded) ? std::copysign(-1.0, sum) : (sum - rounded) + left_out;
    if (more == 0) return float_to_bf16(rounded);
    // Towards zero first: away from zero it has gone too far.
    if (std::isinf(rounded) || (rounded > 0 ? more < 0 : rounded < 0 ? more > 0 : false)) {
        rounded = bits<float>(bits<u32>(rounded) - 1);
    } else if (rounded == 0) {
        rounded = std::copysign(0.0f, static_cast<float>(more));
    }
    return float_to_bf16(bits<float>(bits<u32>(rounded) | 1));
}

}  // namespace ptx
