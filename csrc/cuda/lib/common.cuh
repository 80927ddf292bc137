// What the kernels share: element types, conversions, vector access. No toolkit header is included,
// so that nvcc and NVRTC compile the same text, and NVRTC needs nothing installed beside it.
#pragma once
#include "lib/primitives.cuh"

struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ __forceinline__ float widen(f16 v) { return from_f16(v.bits); }
__device__ __forceinline__ void narrow(float v, float& r) { r = v; }
__device__ __forceinline__ void narrow(float v, bf16& r) { r.bits = to_bf16(v); }
__device__ __forceinline__ void narrow(float v, f16& r) { r.bits = to_f16(v); }

// N elements that one instruction loads or stores; N * sizeof(T) is a power of two up to 16.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
    T at[N];
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
