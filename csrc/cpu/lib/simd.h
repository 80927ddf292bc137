// Vectors of float32: with simd_int.h the only place with ISA intrinsics. Included by units that
// are compiled once per ISA; all names live in that ISA's own namespace, so that the linker can
// never merge two variants of one inline function.
//
//   F           W float32 lanes                M      a lane mask
//   load/store  W elements of float, bf16 or f16 (widened to, rounded from float32)
//   loadn/storen  the first n of W elements, the rest read as zero and is never touched
// Integers are in simd_int.h.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(MC_AVX512) || defined(MC_AVX2)
#include <immintrin.h>
#endif

#if defined(MC_AVX512)
#define MC_ISA avx512
#elif defined(MC_AVX2)
#define MC_ISA avx2
#else
#define MC_ISA scalar
#endif
#define MC_INLINE static inline __attribute__((always_inline))

namespace mingcore {
namespace MC_ISA {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

#if defined(MC_AVX512)

constexpr int W = 16;
typedef __m512 F;
typedef __m512i I;
typedef __mmask16 M;

MC_INLINE F set1(float a) { return _mm512_set1_ps(a); }
MC_INLINE F zero() { return _mm512_setzero_ps(); }
MC_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
MC_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
MC_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
MC_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
MC_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
MC_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }  // NaN in either: b
MC_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
MC_INLINE F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MC_INLINE M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
MC_INLINE F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
MC_INLINE bool all(M m) { return m == 0xffff; }
MC_INLINE F abs(F a) { return _mm512_abs_ps(a); }
MC_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
MC_INLINE F swap_neighbours(F a) { return _mm512_permute_ps(a, 0xB1); }  // lanes 1 0 3 2 ...
MC_INLINE F copysign(F a, F sign) {
    const I s = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(s, _mm512_castps_si512(sign), _mm512_castps_si512(a), 0xCA));
}
MC_INLINE F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n integral

MC_INLINE __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
MC_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
MC_INLINE F loadn(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
MC_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a); }
MC_INLINE void storen(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }

MC_INLINE F widen_bf16(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
MC_INLINE F load(const bf16* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
MC_INLINE F loadn(const bf16* p, int n) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p));
}
MC_INLINE F load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
MC_INLINE F loadn(const f16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
MC_INLINE __m256i narrow_bf16(F a) {  // to nearest even; NaN stays a (quiet) NaN
    const I u = _mm512_castps_si512(a);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const I r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const M nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const I q = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(r, nan, q), 16));
}
MC_INLINE void store(bf16* p, F a) { _mm256_storeu_si256((__m256i*)p, narrow_bf16(a)); }
MC_INLINE void storen(bf16* p, F a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(a));
}
MC_INLINE __m256i narrow_f16(F a) {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MC_INLINE void store(f16* p, F a) { _mm256_storeu_si256((__m256i*)p, narrow_f16(a)); }
MC_INLINE void storen(f16* p, F a, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_f16(a)); }

// W 32-bit words of two bf16 each: the low halves and the high halves, as float32.
MC_INLINE void load_halves(const bf16* p, F& low, F& high) {
    const I w = _mm512_loadu_si512(p);
    low = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    high = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000)));
}
MC_INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

MC_INLINE void transpose(F r[W]) {  // 16x16: by 32 bits, 64 bits, then 128-bit lanes
    F t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Lane i is the sum of r[i]'s lanes.
MC_INLINE F sum_rows(const F r[W]) {
    F t[8], u[4];
    for (int i = 0; i < 8; ++i)
        t[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                             _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(t[2 * i]), b = _mm512_castps_pd(t[2 * i + 1]);
        u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; ++i)
        t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(t[0], t[1], 0x88),
                         _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
}

#elif defined(MC_AVX2)

constexpr int W = 8;
typedef __m256 F;
typedef __m256i I;
typedef __m256 M;

MC_INLINE F set1(float a) { return _mm256_set1_ps(a); }
MC_INLINE F zero() { return _mm256_setzero_ps(); }
MC_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
MC_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
MC_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
MC_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
MC_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
MC_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
MC_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
MC_INLINE F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MC_INLINE M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
MC_INLINE F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
MC_INLINE bool all(M m) { return _mm256_movemask_ps(m) == 0xff; }
MC_INLINE F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
MC_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
MC_INLINE F swap_neighbours(F a) { return _mm256_permute_ps(a, 0xB1); }
MC_INLINE F copysign(F a, F sign) {
    const F s = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(s, a), _mm256_and_ps(s, sign));
}
MC_INLINE F pow2(I n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
MC_INLINE F scale2(F a, F n) {  // in two halves, so that 2^128 and 2^-150 come out right
    const I i = _mm256_cvtps_epi32(n), h = _mm256_srai_epi32(i, 1);
    return _mm256_mul_ps(_mm256_mul_ps(a, pow2(h)), pow2(_mm256_sub_epi32(i, h)));
}

MC_INLINE I first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MC_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
MC_INLINE F loadn(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
MC_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a); }
MC_INLINE void storen(float* p, F a, int n) { _mm256_maskstore_ps(p, first(n), a); }

MC_INLINE __m128i load16n(const void* p, int n) {
    uint16_t t[8] = {0};
    memcpy(t, p, (size_t)n * 2);
    return _mm_loadu_si128((const __m128i*)t);
}
MC_INLINE void store16n(void* p, __m128i a, int n) {
    uint16_t t[8];
    _mm_storeu_si128((__m128i*)t, a);
    memcpy(p, t, (size_t)n * 2);
}
MC_INLINE F widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
MC_INLINE F load(const bf16* p) { return widen_bf16(_mm_loadu_si128((const __m128i*)p)); }
MC_INLINE F loadn(const bf16* p, int n) { return widen_bf16(load16n(p, n)); }
MC_INLINE F load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
MC_INLINE F loadn(const f16* p, int n) { return _mm256_cvtph_ps(load16n(p, n)); }
MC_INLINE __m128i narrow_bf16(F a) {  // to nearest even; NaN stays a (quiet) NaN
    const I u = _mm256_castps_si256(a);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const I r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const I q = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const I s = _mm256_srli_epi32(_mm256_blendv_epi8(r, q, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}
MC_INLINE void store(bf16* p, F a) { _mm_storeu_si128((__m128i*)p, narrow_bf16(a)); }
MC_INLINE void storen(bf16* p, F a, int n) { store16n(p, narrow_bf16(a), n); }
MC_INLINE __m128i narrow_f16(F a) {
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MC_INLINE void store(f16* p, F a) { _mm_storeu_si128((__m128i*)p, narrow_f16(a)); }
MC_INLINE void storen(f16* p, F a, int n) { store16n(p, narrow_f16(a), n); }

MC_INLINE void load_halves(const bf16* p, F& low, F& high) {
    const I w = _mm256_loadu_si256((const __m256i*)p);
    low = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    high = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000)));
}
MC_INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

MC_INLINE void transpose(F r[W]) {
    F t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
}

MC_INLINE F sum_rows(const F r[W]) {
    F t[4], u[2];
    for (int i = 0; i < 4; ++i)
        t[i] = _mm256_add_ps(_mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                             _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    for (int i = 0; i < 2; ++i)
        u[i] = _mm256_add_ps(_mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                             _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    return _mm256_add_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20),
                         _mm256_permute2f128_ps(u[0], u[1], 0x31));
}

#else  // portable: the compiler's own 4-lane vectors (SSE2, NEON or plain scalars)

constexpr int W = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
typedef I M;

MC_INLINE F set1(float a) { return F{a, a, a, a}; }
MC_INLINE F zero() { return F{0, 0, 0, 0}; }
MC_INLINE I bits(F a) {
    I r;
    memcpy(&r, &a, 16);
    return r;
}
MC_INLINE F floats(I a) {
    F r;
    memcpy(&r, &a, 16);
    return r;
}
MC_INLINE F add(F a, F b) { return a + b; }
MC_INLINE F sub(F a, F b) { return a - b; }
MC_INLINE F mul(F a, F b) { return a * b; }
MC_INLINE F div(F a, F b) { return a / b; }
MC_INLINE F fma(F a, F b, F c) { return a * b + c; }
MC_INLINE F select(M m, F yes, F no) { return floats((m & bits(yes)) | (~m & bits(no))); }
MC_INLINE M less(F a, F b) { return a < b; }
MC_INLINE bool all(M m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
MC_INLINE F min(F a, F b) { return select(a < b, a, b); }
MC_INLINE F max(F a, F b) { return select(a > b, a, b); }
MC_INLINE F round(F a) {  // |a| < 2^22, to nearest even
    const F magic = set1(12582912.0f);
    return (a + magic) - magic;
}
MC_INLINE F abs(F a) { return floats(bits(a) & 0x7fffffff); }
MC_INLINE F sqrt(F a) {
    return F{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
             __builtin_sqrtf(a[3])};
}
MC_INLINE F swap_neighbours(F a) { return F{a[1], a[0], a[3], a[2]}; }
MC_INLINE F copysign(F a, F sign) {
    return floats((bits(a) & 0x7fffffff) | (bits(sign) & INT32_MIN));
}
MC_INLINE F pow2(I n) { return floats((n + 127) << 23); }
MC_INLINE F scale2(F a, F n) {
    const I i = bits(n + set1(12582912.0f)) - bits(set1(12582912.0f)), h = i >> 1;
    return a * pow2(h) * pow2(i - h);
}

MC_INLINE F load(const float* p) {
    F a;
    memcpy(&a, p, 16);
    return a;
}
MC_INLINE void store(float* p, F a) { memcpy(p, &a, 16); }
MC_INLINE F loadn(const float* p, int n) {
    F a = zero();
    memcpy(&a, p, (size_t)n * 4);
    return a;
}
MC_INLINE void storen(float* p, F a, int n) { memcpy(p, &a, (size_t)n * 4); }

MC_INLINE float widen(bf16 h) {
    const uint32_t u = (uint32_t)h.bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
MC_INLINE float widen(f16 h) {
    const uint32_t sign = (uint32_t)(h.bits & 0x8000) << 16, mag = h.bits & 0x7fff;
    uint32_t u = mag >= 0x7c00 ? 0x7f800000 | (mag & 0x3ff) << 13 : (mag + (112 << 10)) << 13;
    float f;
    if (mag < 0x400) {  // zero and subnormals: mag * 2^-24 is exact
        f = (float)mag * 5.9604644775390625e-8f;
        memcpy(&u, &f, 4);
    }
    u |= sign;
    memcpy(&f, &u, 4);
    return f;
}
MC_INLINE void narrow(float f, bf16& h) {
    uint32_t u;
    memcpy(&u, &f, 4);
    h.bits = (uint16_t)((f != f ? u | 0x400000 : u + 0x7fff + (u >> 16 & 1)) >> 16);
}
MC_INLINE void narrow(float f, f16& h) {
    uint32_t u;
    memcpy(&u, &f, 4);
    const uint32_t sign = u >> 16 & 0x8000, mag = u & 0x7fffffff;
    uint32_t r;
    if (mag > 0x7f800000) r = 0x7e00 | (mag >> 13 & 0x3ff);
    else if (mag >= 0x477ff000) r = 0x7c00;  // rounds to infinity
    else if (mag < 0x38800000) {  // subnormal: adding 0.5 rounds at the right bit, to even
        float t;
        memcpy(&t, &mag, 4);
        t += 0.5f;
        memcpy(&r, &t, 4);
        r -= 0x3f000000;
    } else r = (mag + 0xfff + (mag >> 13 & 1) - (112u << 23)) >> 13;
    h.bits = (uint16_t)(sign | r);
}
MC_INLINE float widen(int8_t a) { return a; }
template <class T>
MC_INLINE F loadn(const T* p, int n) {
    F a = zero();
    for (int i = 0; i < n; ++i) a[i] = widen(p[i]);
    return a;
}
template <class T>
MC_INLINE F load(const T* p) {
    return F{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}
template <class T>
MC_INLINE void storen(T* p, F a, int n) {
    for (int i = 0; i < n; ++i) narrow(a[i], p[i]);
}
template <class T>
MC_INLINE void store(T* p, F a) {
    storen(p, a, W);
}

MC_INLINE void load_halves(const bf16* p, F& low, F& high) {
    I w;
    memcpy(&w, p, 16);
    low = floats(w << 16);
    high = floats(w & (int32_t)0xffff0000);
}
MC_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
MC_INLINE void transpose(F r[W]) {
    for (int i = 0; i < W; ++i)
        for (int j = 0; j < i; ++j) {
            const float t = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = t;
        }
}
MC_INLINE F sum_rows(const F r[W]) {
    F t[W] = {r[0], r[1], r[2], r[3]};
    transpose(t);
    return (t[0] + t[2]) + (t[1] + t[3]);
}

#endif

}  // namespace MC_ISA
}  // namespace mingcore
