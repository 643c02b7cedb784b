// Instructions that lanes execute by themselves: arithmetic, comparisons, conversions.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "instruction_table.hpp"
#include "lanes.hpp"
#include "warp.hpp"

namespace ptx {
namespace {

template <class A, auto F>
void compare(Warp& w, const Instruction& i, u32 m) {
    const A* a = w.reg<A>(i.operands[1]);
    const A* b = w.reg<A>(i.operands[2]);
    u32 r = 0;
    for (u32 l = 0; l < 32; ++l) r |= static_cast<u32>(F(a[l], b[l]) ? 1 : 0) << l;
    u32& p = w.p[i.operands[0]];
    p = (p & ~m) | (r & m);
}

template <class T>
void select(Warp& w, const Instruction& i, u32 m) {
    T* d = w.reg<T>(i.operands[0]);
    const T* a = w.reg<T>(i.operands[1]);
    const T* b = w.reg<T>(i.operands[2]);
    u32 p = w.p[i.operands[3]];
    for (u32 l = 0; l < 32; ++l) {
        T x = p >> l & 1 ? a[l] : b[l];
        if (m >> l & 1) d[l] = x;
    }
}

template <auto F>
void predicates(Warp& w, const Instruction& i, u32 m) {
    u32 r = F(w.p[i.operands[1]], w.p[i.operands[2]]);
    u32& p = w.p[i.operands[0]];
    p = (p & ~m) | (r & m);
}

template <auto F>
void predicate(Warp& w, const Instruction& i, u32 m) {
    u32 r = F(w.p[i.operands[1]]);
    u32& p = w.p[i.operands[0]];
    p = (p & ~m) | (r & m);
}

// ---- Floats. NaN results are 0x7fffffff, as on the device.

// The number, not the NaN; +0 above -0.
float fmax_(float a, float b) {
    if (a != a) return nan_of(b);
    if (b != b) return a;
    if (a == b) return bits<u32>(a) >> 31 ? b : a;
    return b < a ? a : b;
}
float fmin_(float a, float b) {
    if (a != a) return nan_of(b);
    if (b != b) return a;
    if (a == b) return bits<u32>(a) >> 31 ? a : b;
    return a < b ? a : b;
}
float flush(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

// Off by up to two units in the last place, the same way for the same argument.
float nudge(float y, float x) {
    if (Options::get().approx == 0 || !std::isfinite(y) || y == 0.0f) return y;
    u32 h = bits<u32>(x) * 0x9e3779b1u;
    h ^= h >> 15;
    h *= 0x85ebca77u;
    int by = static_cast<int>((h >> 13) % 5) - 2;
    return bits<float>(bits<u32>(y) + static_cast<u32>(by));
}
float ex2_ftz(float x) {
    x = flush(x);
    float y = static_cast<float>(std::exp2(static_cast<double>(x)));
    // Powers of two are exact on the device as well; a nudge there would be unfair.
    if (x != std::floor(x)) y = nudge(y, x);
    return nan_of(flush(y));
}
float ex2(float x) {
    float y = static_cast<float>(std::exp2(static_cast<double>(x)));
    if (x != std::floor(x)) y = nudge(y, x);
    return nan_of(y);
}
float rcp_ftz(float x) {
    x = flush(x);
    return nan_of(flush(nudge(1.0f / x, x)));
}
float rcp(float x) { return nan_of(nudge(1.0f / x, x)); }
float lg2(float x) { return nan_of(nudge(static_cast<float>(std::log2(static_cast<double>(x))), x)); }
float lg2_ftz(float x) { return lg2(flush(x)); }

__attribute__((noinline)) float fma_down(float a, float b, float c) {
    // a * b is exact in f64; the sum may be off by a rounding of f64, which a residue tells.
    double product = static_cast<double>(a) * b, sum = product + c;
    double t = sum - product, error = (product - (sum - t)) + (c - t);
    if (!std::isfinite(sum)) return nan_of(static_cast<float>(sum));
    float y = static_cast<float>(sum);
    double d = static_cast<double>(y);
    if (d > sum || (d == sum && error < 0)) y = std::nextafterf(y, -INFINITY);
    return y;
}

template <class T>
T shift_left(T a, u32 n) {
    return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << n);
}
template <class T>
T shift_right(T a, u32 n) {
    if (n >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T(0);
    return static_cast<T>(a >> n);
}

u32 bfi32(u32 a, u32 b, u32 c, u32 d) {
    u32 pos = c & 0xff, len = d & 0xff;
    u32 f = b;
    for (u32 i = 0; i < len && pos + i <= 31; ++i) f = (f & ~(1u << (pos + i))) | ((a >> i & 1) << (pos + i));
    return f;
}
void bfi(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (m >> l & 1) {
            w.reg<u32>(i.operands[0])[l] = bfi32(w.reg<u32>(i.operands[1])[l], w.reg<u32>(i.operands[2])[l],
                                                 w.reg<u32>(i.operands[3])[l], w.reg<u32>(i.operands[4])[l]);
        }
    }
}
void bfi64(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u64 a = w.reg<u64>(i.operands[1])[l], f = w.reg<u64>(i.operands[2])[l];
        u32 pos = w.reg<u32>(i.operands[3])[l] & 0xff, len = w.reg<u32>(i.operands[4])[l] & 0xff;
        for (u32 k = 0; k < len && pos + k <= 63; ++k) {
            f = (f & ~(u64{1} << (pos + k))) | ((a >> k & 1) << (pos + k));
        }
        w.reg<u64>(i.operands[0])[l] = f;
    }
}
u32 fma_bf16x2(u32 x, u32 y, u32 z) {
    u32 high = fma_bf16(static_cast<u16>(x >> 16), static_cast<u16>(y >> 16), static_cast<u16>(z >> 16));
    return high << 16 | fma_bf16(static_cast<u16>(x), static_cast<u16>(y), static_cast<u16>(z));
}
template <class T>
void bfe(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        T a = w.reg<T>(i.operands[1])[l];
        u32 pos = w.reg<u32>(i.operands[2])[l] & 0xff, len = w.reg<u32>(i.operands[3])[l] & 0xff;
        bool sign = std::is_signed_v<T> && len && (pos + len - 1 > 31 ? a < 0 : (a >> (pos + len - 1) & 1));
        u32 f = 0;
        for (u32 k = 0; k < 32; ++k)
            f |= (k < len && pos + k <= 31 ? static_cast<u32>(a) >> (pos + k) & 1 : sign ? 1u : 0u) << k;
        w.reg<u32>(i.operands[0])[l] = f;
    }
}
void lop3(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        u32 a = w.reg<u32>(i.operands[1])[l], b = w.reg<u32>(i.operands[2])[l], c = w.reg<u32>(i.operands[3])[l],
            t = w.reg<u32>(i.operands[4])[l], f = 0;
        for (u32 k = 0; k < 32; ++k) f |= (t >> ((a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1)) & 1) << k;
        w.reg<u32>(i.operands[0])[l] = f;
    }
}
u32 prmt_(u32 a, u32 b, u32 c) {
    u64 all = static_cast<u64>(b) << 32 | a;
    u32 d = 0;
    for (u32 k = 0; k < 4; ++k) {
        u32 s = c >> 4 * k & 15;
        u32 byte = static_cast<u32>(all >> 8 * (s & 7)) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0;
        d |= byte << 8 * k;
    }
    return d;
}

template <class T>
void integer(std::unordered_map<std::string, Entry>& t, const std::string& s, const char* two_operands,
             const char* one_operand) {
    t["add." + s] = {two<T, T, T, [](T a, T b) { return static_cast<T>(a + b); }>, two_operands};
    t["sub." + s] = {two<T, T, T, [](T a, T b) { return static_cast<T>(a - b); }>, two_operands};
    using U = std::make_unsigned_t<T>;
    t["mul.lo." + s] = {
        two<T, T, T, [](T a, T b) { return static_cast<T>(static_cast<u64>(static_cast<U>(a)) * static_cast<U>(b)); }>,
        two_operands};
    t["min." + s] = {two<T, T, T, [](T a, T b) { return a < b ? a : b; }>, two_operands};
    t["max." + s] = {two<T, T, T, [](T a, T b) { return b < a ? a : b; }>, two_operands};
    t["div." + s] = {
        two<T, T, T,
            [](T a, T b) {
                return b == 0 ? static_cast<T>(-1)
                              : static_cast<T>(b == static_cast<T>(-1) && std::is_signed_v<T> ? T(0) - a : a / b);
            }>,
        two_operands};
    t["rem." + s] = {two<T, T, T,
                         [](T a, T b) {
                             return b == 0 ? a
                                           : static_cast<T>(b == static_cast<T>(-1) && std::is_signed_v<T> ? 0 : a % b);
                         }>,
                     two_operands};
    t["neg." + s] = {one<T, T, [](T a) { return static_cast<T>(T(0) - a); }>, one_operand};
    t["abs." + s] = {one<T, T, [](T a) { return static_cast<T>(a < 0 ? T(0) - a : a); }>, one_operand};
}
template <class T>
void comparisons(std::unordered_map<std::string, Entry>& t, const std::string& s, const char* operands) {
    t["setp.eq." + s] = {compare<T, [](T a, T b) { return a == b; }>, operands};
    t["setp.ne." + s] = {compare<T, [](T a, T b) { return a < b || b < a; }>, operands};
    t["setp.lt." + s] = {compare<T, [](T a, T b) { return a < b; }>, operands};
    t["setp.le." + s] = {compare<T, [](T a, T b) { return a <= b; }>, operands};
    t["setp.gt." + s] = {compare<T, [](T a, T b) { return b < a; }>, operands};
    t["setp.ge." + s] = {compare<T, [](T a, T b) { return a >= b; }>, operands};
}
template <class T>
void bitwise(std::unordered_map<std::string, Entry>& t, const std::string& s, const char* two_operands,
             const char* one_operand, const char* shift) {
    t["and." + s] = {two<T, T, T, [](T a, T b) { return static_cast<T>(a & b); }>, two_operands};
    t["or." + s] = {two<T, T, T, [](T a, T b) { return static_cast<T>(a | b); }>, two_operands};
    t["xor." + s] = {two<T, T, T, [](T a, T b) { return static_cast<T>(a ^ b); }>, two_operands};
    t["not." + s] = {one<T, T, [](T a) { return static_cast<T>(~a); }>, one_operand};
    t["shl." + s] = {two<T, T, u32, [](T a, u32 n) { return shift_left<T>(a, n); }>, shift};
}

std::unordered_map<std::string, Entry> make_table() {
    std::unordered_map<std::string, Entry> t;
    integer<u32>(t, "u32", "www", "ww");
    integer<i32>(t, "s32", "www", "ww");
    integer<u64>(t, "u64", "lll", "ll");
    integer<i64>(t, "s64", "lll", "ll");
    integer<u16>(t, "u16", "hhh", "hh");
    integer<i16>(t, "s16", "hhh", "hh");
    for (const char* s : {"u16", "b16"}) comparisons<u16>(t, s, "phh");
    comparisons<i16>(t, "s16", "phh");
    for (const char* s : {"u32", "b32"}) comparisons<u32>(t, s, "pww");
    comparisons<i32>(t, "s32", "pww");
    for (const char* s : {"u64", "b64"}) comparisons<u64>(t, s, "pll");
    comparisons<i64>(t, "s64", "pll");
    comparisons<float>(t, "f32", "pww");
    t["setp.equ.f32"] = {compare<float, [](float a, float b) { return !(a < b || b < a); }>, "pww"};
    t["setp.neu.f32"] = {compare<float, [](float a, float b) { return !(a == b); }>, "pww"};
    t["setp.ltu.f32"] = {compare<float, [](float a, float b) { return !(a >= b); }>, "pww"};
    t["setp.leu.f32"] = {compare<float, [](float a, float b) { return !(b < a); }>, "pww"};
    t["setp.gtu.f32"] = {compare<float, [](float a, float b) { return !(a <= b); }>, "pww"};
    t["setp.geu.f32"] = {compare<float, [](float a, float b) { return !(a < b); }>, "pww"};
    t["setp.num.f32"] = {compare<float, [](float a, float b) { return a == a && b == b; }>, "pww"};
    t["setp.nan.f32"] = {compare<float, [](float a, float b) { return a != a || b != b; }>, "pww"};
    bitwise<u16>(t, "b16", "hhh", "hh", "hhw");
    bitwise<u32>(t, "b32", "www", "ww", "www");
    bitwise<u64>(t, "b64", "lll", "ll", "llw");
    t["shr.u16"] = t["shr.b16"] = {two<u16, u16, u32, [](u16 a, u32 n) { return shift_right<u16>(a, n); }>, "hhw"};
    t["shr.s16"] = {two<i16, i16, u32, [](i16 a, u32 n) { return shift_right<i16>(a, n); }>, "hhw"};
    t["shr.u32"] = t["shr.b32"] = {two<u32, u32, u32, [](u32 a, u32 n) { return shift_right<u32>(a, n); }>, "www"};
    t["shr.s32"] = {two<i32, i32, u32, [](i32 a, u32 n) { return shift_right<i32>(a, n); }>, "www"};
    t["shr.u64"] = t["shr.b64"] = {two<u64, u64, u32, [](u64 a, u32 n) { return shift_right<u64>(a, n); }>, "llw"};
    t["shr.s64"] = {two<i64, i64, u32, [](i64 a, u32 n) { return shift_right<i64>(a, n); }>, "llw"};
    t["mul.wide.u16"] = {two<u32, u16, u16, [](u16 a, u16 b) { return u32{a} * b; }>, "whh"};
    t["mul.wide.s16"] = {two<i32, i16, i16, [](i16 a, i16 b) { return i32{a} * b; }>, "whh"};
    t["mul.wide.u32"] = {two<u64, u32, u32, [](u32 a, u32 b) { return u64{a} * b; }>, "lww"};
    t["mul.wide.s32"] = {two<i64, i32, i32, [](i32 a, i32 b) { return i64{a} * b; }>, "lww"};
    t["mul.hi.u32"] = {two<u32, u32, u32, [](u32 a, u32 b) { return static_cast<u32>(u64{a} * b >> 32); }>, "www"};
    t["mul.hi.s32"] = {two<i32, i32, i32, [](i32 a, i32 b) { return static_cast<i32>(i64{a} * b >> 32); }>, "www"};
    t["mul.hi.u64"] = {
        two<u64, u64, u64, [](u64 a, u64 b) { return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64); }>,
        "lll"};
    t["mul.hi.s64"] = {
        two<i64, i64, i64, [](i64 a, i64 b) { return static_cast<i64>(static_cast<__int128>(a) * b >> 64); }>, "lll"};
    for (const char* s : {"u32", "s32"})
        t["mad.lo." + std::string(s)] = {three<u32, u32, u32, u32, [](u32 a, u32 b, u32 c) { return a * b + c; }>,
                                         "wwww"};
    for (const char* s : {"u64", "s64"})
        t["mad.lo." + std::string(s)] = {three<u64, u64, u64, u64, [](u64 a, u64 b, u64 c) { return a * b + c; }>,
                                         "llll"};
    for (const char* s : {"u16", "s16"})
        t["mad.lo." + std::string(s)] = {
            three<u16, u16, u16, u16, [](u16 a, u16 b, u16 c) { return static_cast<u16>(u32{a} * b + c); }>, "hhhh"};
    t["mad.wide.u32"] = {three<u64, u32, u32, u64, [](u32 a, u32 b, u64 c) { return u64{a} * b + c; }>, "lwwl"};
    t["mad.wide.s32"] = {
        three<i64, i32, i32, i64,
              [](i32 a, i32 b, i64 c) { return static_cast<i64>(static_cast<u64>(i64{a} * b) + static_cast<u64>(c)); }>,
        "lwwl"};
    for (const char* s : {"b32", "u32", "s32", "f32"}) t["selp." + std::string(s)] = {select<u32>, "wwwp"};
    for (const char* s : {"b64", "u64", "s64", "f64"}) t["selp." + std::string(s)] = {select<u64>, "lllp"};
    for (const char* s : {"b16", "u16", "s16"}) t["selp." + std::string(s)] = {select<u16>, "hhhp"};
    t["and.pred"] = {predicates<[](u32 a, u32 b) { return a & b; }>, "ppp"};
    t["or.pred"] = {predicates<[](u32 a, u32 b) { return a | b; }>, "ppp"};
    t["xor.pred"] = {predicates<[](u32 a, u32 b) { return a ^ b; }>, "ppp"};
    t["not.pred"] = {predicate<[](u32 a) { return ~a; }>, "pp"};
    t["mov.pred"] = {predicate<[](u32 a) { return a; }>, "pp"};
    t["bfi.b32"] = {bfi, "wwwww"};
    t["bfi.b64"] = {bfi64, "lllww"};
    t["bfe.u32"] = {bfe<u32>, "wwww"};
    t["bfe.s32"] = {bfe<i32>, "wwww"};
    t["lop3.b32"] = {lop3, "wwwww"};
    t["prmt.b32"] = {three<u32, u32, u32, u32, [](u32 a, u32 b, u32 c) { return prmt_(a, b, c); }>, "wwww"};
    t["shf.l.wrap.b32"] = {
        three<u32, u32, u32, u32,
              [](u32 a, u32 b, u32 c) { return static_cast<u32>(((u64{b} << 32 | a) << (c & 31)) >> 32); }>,
        "wwww"};
    t["shf.r.wrap.b32"] = {
        three<u32, u32, u32, u32, [](u32 a, u32 b, u32 c) { return static_cast<u32>((u64{b} << 32 | a) >> (c & 31)); }>,
        "wwww"};
    t["popc.b32"] = {one<u32, u32, [](u32 a) { return static_cast<u32>(__builtin_popcount(a)); }>, "ww"};
    t["clz.b32"] = {one<u32, u32, [](u32 a) { return a ? static_cast<u32>(__builtin_clz(a)) : 32u; }>, "ww"};

    for (const char* r : {"", "rn."}) {
        std::string f = std::string(r) + "f32";
        t["add." + f] = {two<float, float, float, [](float a, float b) { return a + b; }>, "www"};
        t["sub." + f] = {two<float, float, float, [](float a, float b) { return a - b; }>, "www"};
        t["mul." + f] = {two<float, float, float, [](float a, float b) { return a * b; }>, "www"};
    }
    t["div.rn.f32"] = {two<float, float, float, [](float a, float b) { return a / b; }>, "www"};
    t["fma.rn.f32"] = {
        three<float, float, float, float, [](float a, float b, float c) { return __builtin_fmaf(a, b, c); }>, "wwww"};
    t["fma.rm.f32"] = {three<float, float, float, float, fma_down>, "wwww"};
    t["max.f32"] = {two<float, float, float, fmax_>, "www"};
    t["min.f32"] = {two<float, float, float, fmin_>, "www"};
    t["neg.f32"] = {one<u32, u32, [](u32 a) { return a ^ 0x80000000u; }>, "ww"};
    t["abs.f32"] = {one<u32, u32, [](u32 a) { return a & 0x7fffffffu; }>, "ww"};
    // The sign of a into the value of b.
    t["copysign.f32"] = {two<u32, u32, u32, [](u32 a, u32 b) { return (a & 0x80000000u) | (b & 0x7fffffffu); }>, "www"};
    t["ex2.approx.ftz.f32"] = {one<float, float, ex2_ftz>, "ww"};
    t["ex2.approx.f32"] = {one<float, float, ex2>, "ww"};
    t["rcp.approx.ftz.f32"] = {one<float, float, rcp_ftz>, "ww"};
    t["rcp.approx.f32"] = {one<float, float, rcp>, "ww"};
    t["rcp.rn.f32"] = {one<float, float, [](float a) { return 1.0f / a; }>, "ww"};
    t["lg2.approx.f32"] = {one<float, float, lg2>, "ww"};
    t["lg2.approx.ftz.f32"] = {one<float, float, lg2_ftz>, "ww"};
    t["sqrt.rn.f32"] = {one<float, float, [](float a) { return std::sqrt(a); }>, "ww"};

    t["fma.rn.bf16x2"] = {three<u32, u32, u32, u32, fma_bf16x2>, "wwww"};

    // Upper half from a, lower half from b.
    t["cvt.rn.f16x2.f32"] = {
        two<u32, float, float, [](float a, float b) { return u32{float_to_half(a)} << 16 | float_to_half(b); }>, "www"};
    t["cvt.rn.bf16x2.f32"] = {
        two<u32, float, float, [](float a, float b) { return u32{float_to_bf16(a)} << 16 | float_to_bf16(b); }>, "www"};
    return t;
}

}  // namespace

const std::unordered_map<std::string, Entry>& table() {
    static const auto t = make_table();
    return t;
}

Handler move_handler(u32 bytes) {
    if (bytes == 2) return one<u16, u16, [](u16 a) { return a; }>;
    if (bytes == 4) return one<u32, u32, [](u32 a) { return a; }>;
    return one<u64, u64, [](u64 a) { return a; }>;
}

namespace {

template <class Whole, class Half>
void split_halves(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        Whole x = w.reg<Whole>(i.operands[2])[l];
        w.reg<Half>(i.operands[0])[l] = static_cast<Half>(x);
        w.reg<Half>(i.operands[1])[l] = static_cast<Half>(x >> 8 * sizeof(Half));
    }
}

template <class Whole, class Half>
void join_halves(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (!(m >> l & 1)) continue;
        Whole high = w.reg<Half>(i.operands[2])[l];
        w.reg<Whole>(i.operands[0])[l] = high << 8 * sizeof(Half) | w.reg<Half>(i.operands[1])[l];
    }
}

}  // namespace

Handler halves_handler(bool split, u32 bytes) {
    if (bytes == 8) return split ? split_halves<u64, u32> : join_halves<u64, u32>;
    return split ? split_halves<u32, u16> : join_halves<u32, u16>;
}

namespace {

// In the order of special_register's names.
u32 special_value(const Warp& w, u32 lane, u8 mode) {
    const u32 value[] = {w.tid(lane),
                         0,
                         0,
                         w.block->coordinate[0],
                         w.block->coordinate[1],
                         w.block->coordinate[2],
                         w.launch->grid[0],
                         w.launch->grid[1],
                         w.launch->grid[2],
                         w.launch->threads,
                         1,
                         1,
                         lane,
                         w.block->rank,
                         static_cast<u32>(w.block->cluster->blocks.size())};
    return value[mode];
}

}  // namespace

bool special_register(const std::string& name, u8& mode) {
    static const char* const kNames[] = {"%tid.x",   "%tid.y",    "%tid.z",    "%ctaid.x",          "%ctaid.y",
                                         "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z",         "%ntid.x",
                                         "%ntid.y",  "%ntid.z",   "%laneid",   "%cluster_ctarank", "%cluster_nctarank"};
    auto it = std::find(std::begin(kNames), std::end(kNames), name);
    mode = static_cast<u8>(it - std::begin(kNames));
    return it != std::end(kNames);
}

void special(Warp& w, const Instruction& i, u32 m) {
    for (u32 l = 0; l < 32; ++l) {
        if (m >> l & 1) w.reg<u32>(i.operands[0])[l] = special_value(w, l, i.mode);
    }
}

void nothing(Warp&, const Instruction&, u32) {}

}  // namespace ptx
