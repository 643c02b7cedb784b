// Integers of fixed width. NVRTC compiles without any header, so there is no <cstdint>.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
