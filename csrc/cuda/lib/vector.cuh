// Vector access, 16 bytes at a time, and weights as the tensor cores take them.
#pragma once
#include "lib/arith.cuh"

// N elements that one instruction loads or stores; N * sizeof(T) is a power of two up to 16.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
    T at[N];
};
struct alignas(16) Vector16 {
    unsigned word[4];
};

template <int N, class T>
__device__ __forceinline__ void load(const T* p, float (&to)[N]) {
    const Vector<T, N> v = *reinterpret_cast<const Vector<T, N>*>(p);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(v.at[i]);
}
template <int N, class T>
__device__ __forceinline__ void store(T* p, const float (&from)[N]) {
    Vector<T, N> v;
#pragma unroll
    for (int i = 0; i < N; ++i) narrow(from[i], v.at[i]);
    *reinterpret_cast<Vector<T, N>*>(p) = v;
}

// 16 bytes of weights W, of 1 or 2 bytes each, as packed x2 operands of mma of type X. Exact: int8
// and e4m3 fit into the significand of bf16 and f16, so bit operations and one fma suffice.
template <class X, class W>
__device__ __forceinline__ void widen_x2(const Vector16& v, unsigned (&x2)[8 / sizeof(W)]) {
    constexpr bool BF16 = is_same<X, bf16>;
#pragma unroll
    for (int i = 0; i < 8 / (int)sizeof(W); ++i) {
        if constexpr (sizeof(W) == 2) {
            x2[i] = v.word[i];
        } else if constexpr (is_same<W, int8>) {
            const unsigned h = __byte_perm(v.word[i / 2], 0, i % 2 ? 0x4342 : 0x4140);
            if constexpr (BF16)  // 128 + the low seven bits, less 128 or, where negative, 256
                x2[i] = fma_bf16x2((h & 0x00800080) | 0x43004300, 0xbf80bf80,
                                   (h & 0x007f007f) | 0x43004300);
            else  // 1024 + 128 + value, less 1152
                x2[i] = fma_f16x2((h ^ 0x00800080) | 0x64006400, 0x3c003c00, 0xe480e480);
        } else {  // e4m3: the same fields in a wider exponent, times the difference of the biases
            const unsigned h = __byte_perm(v.word[i / 2], 0, i % 2 ? 0x3424 : 0x1404);
            const unsigned sign = h & 0x80008000, rest = h & 0x7f007f00;
            if constexpr (BF16) x2[i] = fma_bf16x2(sign | rest >> 4, 0x7b807b80, 0x80008000);
            else x2[i] = fma_f16x2(sign | rest >> 1, 0x5c005c00, 0x80008000);
        }
    }
}
