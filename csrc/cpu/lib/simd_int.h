// Vectors of int8 and int32, and the dot products of VNNI operands: 32-bit words of several k of
// one column.
//
//   I           W int32 lanes
//   vnni4       four k of a column as int8 + 128: weights of "int8_dyn"
//   vnni2       two k of a column as bf16: bf16 micro-panels, two rows at a time
//   pack_bytes  the low bytes of four vectors side by side: VNNI-4 activations
//   dot4<VNNI>  acc + the four products of each vnni4 and four int8 activations, in int32, exactly
//   dot2        acc + the two products of each vnni2 and two bf16 activations, in float32
//
// VNNI (vpdpbusd) multiplies unsigned with signed bytes: weights are used as they are stored, and
// the sum is too large by 128 * (the sum of the activations), which the caller subtracts. Without
// VNNI, vpmaddubsw multiplies |w| with x that has the sign of w: the sum of two such products is at
// most 2 * 127 * 127, below the 16 bits at which the instruction saturates.
#pragma once
#include "cpu/lib/features.h"
#include "cpu/lib/simd.h"

namespace mingcore {
namespace MC_ISA {

struct vnni4 {
    uint8_t at[4];
};
struct vnni2 {  // as stored, a word of a bf16 micro-panel: the next k's is 16 words further on
    bf16 at[2];
};

#if defined(MC_AVX512)

MC_INLINE F load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
MC_INLINE F loadn(const int8_t* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}

MC_INLINE I zero_int() { return _mm512_setzero_si512(); }
MC_INLINE I set1_int(int32_t a) { return _mm512_set1_epi32(a); }
MC_INLINE I load_int(const void* p) { return _mm512_loadu_si512(p); }
MC_INLINE void store_int(void* p, I a) { _mm512_storeu_si512(p, a); }
MC_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
MC_INLINE I max(I a, I b) { return _mm512_max_epi32(a, b); }
MC_INLINE I as_int(F a) { return _mm512_castps_si512(a); }
MC_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }  // to nearest even
MC_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
MC_INLINE void storen(int8_t* p, I a, int n) { _mm512_mask_cvtepi32_storeu_epi8(p, first(n), a); }
MC_INLINE I pack_bytes(I a, I b, I c, I d) {
    const I low = _mm512_set1_epi32(255);
    const I ab =
        _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32(_mm512_and_si512(b, low), 8));
    const I c2 = _mm512_slli_epi32(_mm512_and_si512(c, low), 16);
    return _mm512_or_si512(ab, _mm512_or_si512(c2, _mm512_slli_epi32(d, 24)));
}
// Two k of a bf16 micro-panel, words of the columns j and j + 16, shuffled into VNNI-2: both k of
// column j in a, of column j + 16 in b.
MC_INLINE void load_vnni2(const vnni2* p, I& a, I& b) {
    const I r = _mm512_loadu_si512(p), s = _mm512_loadu_si512(p + 16);
    a = _mm512_mask_blend_epi16(0xaaaaaaaa, r, _mm512_slli_epi32(s, 16));
    b = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(r, 16), s);
}
// vdpbf16ps; only where cpu_bf16.
MC_INLINE F dot2(F acc, I w, I x) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}
template <bool VNNI>
MC_INLINE I dot4(I acc, I w, I x) {
    if constexpr (VNNI) {
        asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
        return acc;
    }
    const I s = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
    const I t = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(s), _mm512_setzero_si512(), x);
    const I sums16 = _mm512_maddubs_epi16(_mm512_abs_epi8(s), t);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(sums16, _mm512_set1_epi16(1)));
}

#elif defined(MC_AVX2)

MC_INLINE F load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
MC_INLINE F loadn(const int8_t* p, int n) {
    int8_t t[8] = {0};
    memcpy(t, p, (size_t)n);
    return load(t);
}

MC_INLINE I zero_int() { return _mm256_setzero_si256(); }
MC_INLINE I set1_int(int32_t a) { return _mm256_set1_epi32(a); }
MC_INLINE I load_int(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
MC_INLINE void store_int(void* p, I a) { _mm256_storeu_si256((__m256i*)p, a); }
MC_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
MC_INLINE I max(I a, I b) { return _mm256_max_epi32(a, b); }
MC_INLINE I as_int(F a) { return _mm256_castps_si256(a); }
MC_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }  // to nearest even
MC_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
MC_INLINE void storen(int8_t* p, I a, int n) {
    int32_t t[W];
    store_int(t, a);
    for (int i = 0; i < n; ++i) p[i] = (int8_t)t[i];
}
MC_INLINE I pack_bytes(I a, I b, I c, I d) {
    const I low = _mm256_set1_epi32(255);
    const I ab =
        _mm256_or_si256(_mm256_and_si256(a, low), _mm256_slli_epi32(_mm256_and_si256(b, low), 8));
    const I c2 = _mm256_slli_epi32(_mm256_and_si256(c, low), 16);
    return _mm256_or_si256(ab, _mm256_or_si256(c2, _mm256_slli_epi32(d, 24)));
}
template <bool VNNI>
MC_INLINE I dot4(I acc, I w, I x) {
#if defined(MC_AVX_VNNI)
    if constexpr (VNNI) {
        asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
        return acc;
    }
#endif
    const I s = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    const I sums16 = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(sums16, _mm256_set1_epi16(1)));
}

#else

MC_INLINE I zero_int() { return I{0, 0, 0, 0}; }
MC_INLINE I set1_int(int32_t a) { return I{a, a, a, a}; }
MC_INLINE I load_int(const void* p) {
    I a;
    memcpy(&a, p, 16);
    return a;
}
MC_INLINE void store_int(void* p, I a) { memcpy(p, &a, 16); }
MC_INLINE I add(I a, I b) { return a + b; }
MC_INLINE I max(I a, I b) {
    const I m = a > b;
    return (m & a) | (~m & b);
}
MC_INLINE I as_int(F a) { return bits(a); }
MC_INLINE I to_int(F a) { return __builtin_convertvector(round(a), I); }  // to nearest even
MC_INLINE F to_float(I a) { return __builtin_convertvector(a, F); }
MC_INLINE void storen(int8_t* p, I a, int n) {
    for (int i = 0; i < n; ++i) p[i] = (int8_t)a[i];
}
MC_INLINE I pack_bytes(I a, I b, I c, I d) {
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24;
}
template <bool VNNI>
MC_INLINE I dot4(I acc, I w, I x) {
    for (int i = 0; i < 32; i += 8) acc += ((w >> i & 255) - 128) * (x << (24 - i) >> 24);
    return acc;
}

#endif

MC_INLINE F as_float(I a) {
    F f;
    memcpy(&f, &a, sizeof f);
    return f;
}

}  // namespace MC_ISA
}  // namespace mingcore
