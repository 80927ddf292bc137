// cvt, packed fma and the approximate ex2 and rcp. As in every header of lib/ there is one function
// per instruction and kernels hold no other inline PTX: a test defines MC_EMULATED and the same
// functions in plain C++, and runs a kernel on the CPU.
#pragma once
#include "lib/types.cuh"
#ifndef MC_EMULATED

__device__ __forceinline__ float cvt_f32_f16(unsigned short bits) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
    return r;
}
__device__ __forceinline__ unsigned short cvt_f16_f32(float v) {
    unsigned short r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ unsigned short cvt_bf16_f32(float v) {
    unsigned short r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}
// Both rounded to 16 bits, `low` in the low half.
__device__ __forceinline__ unsigned cvt_bf16x2_f32(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ __forceinline__ unsigned cvt_f16x2_f32(float low, float high) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// a * b + c on two packed values, rounded once.
__device__ __forceinline__ unsigned fma_f16x2(unsigned a, unsigned b, unsigned c) {
    unsigned r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
__device__ __forceinline__ unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
    unsigned r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// MUFU: 2^v and 1 / v to about 2 ulp.
__device__ __forceinline__ float ex2_approx(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float rcp_approx(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

#endif

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ __forceinline__ float widen(f16 v) { return cvt_f32_f16(v.bits); }
__device__ __forceinline__ void narrow(float v, float& r) { r = v; }
__device__ __forceinline__ void narrow(float v, bf16& r) { r.bits = cvt_bf16_f32(v); }
__device__ __forceinline__ void narrow(float v, f16& r) { r.bits = cvt_f16_f32(v); }
