// Weights of 1 or 2 bytes as kernels copy them, 16 bytes at a time, and as the tensor cores take
// them: pairs of the activations' type.
#pragma once
#include "lib/common.cuh"

struct int8 {
    signed char bits;
};
struct e4m3 {
    unsigned char bits;
};

struct alignas(16) Vector16 {
    unsigned word[4];
};

template <class, class>
constexpr bool same = false;
template <class T>
constexpr bool same<T, T> = true;

// 16 bytes of weights W as pairs of X; exact.
template <class X, class W>
__device__ __forceinline__ void widen_pairs(const Vector16& v, unsigned (&pair)[8 / sizeof(W)]) {
    constexpr bool BF16 = same<X, bf16>;
#pragma unroll
    for (int i = 0; i < 8 / (int)sizeof(W); ++i) {
        if constexpr (sizeof(W) == 2) {
            pair[i] = v.word[i];
        } else if constexpr (same<W, int8>) {
            const unsigned h = __byte_perm(v.word[i / 2], 0, i % 2 ? 0x4342 : 0x4140);
            if constexpr (BF16)  // 128 + low seven bits, less 128 or, where negative, 256
                pair[i] = fma2_bf16((h & 0x00800080) | 0x43004300, 0xbf80bf80,
                                    (h & 0x007f007f) | 0x43004300);
            else  // 1024 + 128 + value, less that
                pair[i] = fma2_f16((h ^ 0x00800080) | 0x64006400, 0x3c003c00, 0xe480e480);
        } else {  // the same fields in a wider exponent, times the difference of the biases
            const unsigned h = __byte_perm(v.word[i / 2], 0, i % 2 ? 0x3424 : 0x1404);
            const unsigned sign = h & 0x80008000, rest = h & 0x7f007f00;
            if constexpr (BF16)
                pair[i] = fma2_bf16(sign | rest >> 4, 0x7b807b80, 0x80008000);
            else
                pair[i] = fma2_f16(sign | rest >> 1, 0x5c005c00, 0x80008000);
        }
    }
}
