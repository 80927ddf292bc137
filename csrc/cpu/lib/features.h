// Instructions that are optional inside an instruction set, known by CPUID at run time.
#pragma once

// Whether the assembler knows AVX-VNNI.
#if defined(MC_X86) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define MC_AVX_VNNI
#endif

namespace mingcore {

// Whether the set in use multiplies VNNI-4 operands with the VNNI instruction: AVX512-VNNI for
// avx512, AVX-VNNI for avx2. Without it the same sums are made from 16-bit products.
extern bool cpu_vnni;
// Whether it has the bf16 dot product (AVX512-BF16, avx512 only): products of bf16 with bf16.
extern bool cpu_bf16;

}  // namespace mingcore
