// mma.sync (tensor cores, a warp's product), ldmatrix and stmatrix.
#pragma once
#include "lib/shared_memory.cuh"
#include "lib/types.cuh"
#ifndef MC_EMULATED

// d [16, 8] += a [16, 16] b [16, 8] by the 32 lanes of a warp, X bf16 or f16. Lane 4g + c holds of a
// the rows g (a0, a2) and g + 8 (a1, a3), columns 2c, 2c + 1 (a0, a1) and 8 more (a2, a3); of b the
// column g, rows 2c, 2c + 1 (b0) and 8 more (b1); of d the rows g (0, 1) and g + 8 (2, 3), columns
// 2c, 2c + 1.
template <class X>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                             unsigned a3, unsigned b0, unsigned b1) {
    if constexpr (is_same<X, bf16>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
            "%7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit values, transposed: lane 8i + r gives the address of row r of matrix
// i, 16 bytes; lane 4g + c gets of each rows 2c and 2c + 1 of column g.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The inverse (sm_90): lane 4g + c holds of matrix i, in v[i], the rows 2c and 2c + 1 of column g as
// they are stored; lane 8i + r gives the address of its row r.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const unsigned (&v)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

#endif
