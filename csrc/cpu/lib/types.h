// Plain data that the bindings (baseline ISA) and the per-ISA kernels exchange: element types,
// layouts and operands that several ops share. Sizes and strides are in elements. Neither here nor
// in an op's header may anything own memory or instantiate a standard-library template: these
// headers are shared by code that is compiled for different instruction sets.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mingcore {

// i8 and u8 are weights only: int8, and int8 + 128 in VNNI-4.
enum class Dtype : int32_t { f32 = 0, bf16 = 1, f16 = 2, i8 = 3, u8 = 4, i32 = 5, i64 = 6 };
enum class Act : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3, swiglu = 4 };
// How a weight [N, K] is stored. rows: as it is. panels: packed micro-panels of 32 output columns,
// [ceil(N/32), K, 32], zero padded. panels_swiglu: [ceil(I/16), K, 32], a micro-panel being 16 gate
// columns and their 16 up columns. In bf16 micro-panels the 32-bit word j of a k holds the columns
// j (low half) and j + 16 (high half), so that a shift or a mask widens it; the other types keep
// the columns in order. u8 is in VNNI-4, [panels, ceil(K/4), 32, 4]: four k of a column in one
// 32-bit word.
enum class Layout : int32_t { rows = 0, panels = 1, panels_swiglu = 2 };

struct Heads {  // [B, T, Hn, D] whose last dimension is dense; data is null when absent
    char* data;
    int64_t batch, token, head;
};

struct Positions {  // [B, T]
    const int64_t* data;
    int64_t batch, token;
};

// What a streamed call knows of each row of its batch, and what it tells of it; all [B].
struct StreamRows {
    const int64_t* lengths;  // inputs that a row had in earlier calls; null: none
    const int64_t* valid;    // how many of this call's inputs are its own; null: all
    const bool* ended;       // whether the stream ends here; null: `last` for all
    bool last;
    int64_t* lengths_out;  // may be `lengths`
    int64_t* emitted;      // outputs of this call
};

}  // namespace mingcore
