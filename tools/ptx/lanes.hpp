// Instructions that every lane executes by itself, as functions of one, two or three registers.
#pragma once

#include <cstring>

#include "warp.hpp"

namespace ptx {

template <class To, class From>
To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

// NaN results are this one, as on the device.
inline float nan_of(float x) { return x == x ? x : bits<float>(0x7fffffffu); }

template <class D, class A, auto F>
void one(Warp& w, const Instruction& i, u32 m) {
    D* d = w.reg<D>(i.operands[0]);
    const A* a = w.reg<A>(i.operands[1]);
    if (m == ~0u) {
#pragma GCC ivdep
        for (u32 l = 0; l < 32; ++l) d[l] = F(a[l]);
        return;
    }
    for (u32 l = 0; l < 32; ++l) {
        if (m >> l & 1) d[l] = F(a[l]);
    }
}

template <class D, class A, class B, auto F>
void two(Warp& w, const Instruction& i, u32 m) {
    D* d = w.reg<D>(i.operands[0]);
    const A* a = w.reg<A>(i.operands[1]);
    const B* b = w.reg<B>(i.operands[2]);
    if (m == ~0u) {
#pragma GCC ivdep
        for (u32 l = 0; l < 32; ++l) d[l] = F(a[l], b[l]);
        return;
    }
    for (u32 l = 0; l < 32; ++l) {
        if (m >> l & 1) d[l] = F(a[l], b[l]);
    }
}

template <class D, class A, class B, class C, auto F>
void three(Warp& w, const Instruction& i, u32 m) {
    D* d = w.reg<D>(i.operands[0]);
    const A* a = w.reg<A>(i.operands[1]);
    const B* b = w.reg<B>(i.operands[2]);
    const C* c = w.reg<C>(i.operands[3]);
    if (m == ~0u) {
#pragma GCC ivdep
        for (u32 l = 0; l < 32; ++l) d[l] = F(a[l], b[l], c[l]);
        return;
    }
    for (u32 l = 0; l < 32; ++l) {
        if (m >> l & 1) d[l] = F(a[l], b[l], c[l]);
    }
}

}  // namespace ptx
