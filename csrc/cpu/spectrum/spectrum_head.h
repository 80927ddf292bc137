#pragma once
#include "cpu/gemm/linear.h"
#include "cpu/spectrum/overlap_add.h"

namespace mingcore {

struct SpectrumHeadArgs {    // frames = irfft(min(exp m, 100) (cos p + i sin p)), [m | p] = linear
    LinearArgs linear;       // of [B T, H]; its out, out_row and threads are set here
    OverlapAddArgs overlap;  // its frames are set here
    const int32_t* radices;  // of h = F / 2, zero-terminated
    const float *table, *turns;  // twiddles (fft.h); cosines and sines of 2 pi k / F for k < h
};

}  // namespace mingcore
