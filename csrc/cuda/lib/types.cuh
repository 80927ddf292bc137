// Element types. No toolkit header is included, so that nvcc and NVRTC compile the same text and
// NVRTC needs nothing installed beside it.
#pragma once

typedef unsigned long long u64;

struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};
struct int8 {
    signed char bits;
};
struct e4m3 {
    unsigned char bits;
};

template <class, class>
constexpr bool is_same = false;
template <class T>
constexpr bool is_same<T, T> = true;
