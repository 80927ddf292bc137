// spectrum_head: hidden -> linear -> [m | p] -> min(exp m, 100) (cos p + i sin p) -> inverse real
// FFT -> window, overlap-add: one call, in the thread's scratch.
//
// Cost: the weight is read once (F + 2 by H; 2.3 MB in bf16 at the real size) and all else stays in
// cache: a frame's transform of n = 1280 points is one of 640 complex points (14.7 k complex
// multiply-adds in radices 8, 8, 5, 2), against 1.1 M multiply-adds of its linear. As a matrix the
// transform would be 1.6 M multiply-adds a frame and 6.6 MB more to read.
#include "cpu/spectrum/spectrum_head.h"
#include "cpu/lib/arena.h"
#include "cpu/lib/dispatch.h"
#include "cpu/lib/parallel.h"
#include "cpu/lib/trig.h"
#include "cpu/spectrum/fft.h"

namespace mingcore {
namespace MC_ISA {

MC_OPS(MC_DECLARE)

namespace {

struct Plan {
    const SpectrumHeadArgs& a;
    int64_t frames, n, ld;     // frames of all rows, points of one, floats between spectra
    float *spectra, *scratch;  // [frames, ld]: overwritten by their samples
    int64_t scratch_each, part;
    Counter work;
};

// One spectrum [m | p] to its n samples, in place.
void to_samples(const Plan& p, float* at, float* scratch) {
    const int64_t h = p.n / 2, part = p.part;
    float *re = scratch, *im = re + part;
    for (int64_t k = 0; k <= h; k += W) {
        const int c = (int)(h + 1 - k < W ? h + 1 - k : W);
        const F size = min(set1(100.0f), exp(loadn(at + k, c)));
        const SinCos phase = sincos(loadn(at + h + 1 + k, c));
        store(re + k, mul(size, phase.cos));
        store(im + k, mul(size, phase.sin));
    }
    im[0] = im[h] = 0.0f;  // as a real signal has them
    Complex x{im + part, im + 2 * part}, y{im + 3 * part, im + 4 * part};
    const float *cosine = p.a.turns, *sine = cosine + h, scale = 1.0f / (float)p.n;
    for (int64_t k = 0; k < h; ++k) {  // even samples are real parts, odd ones imaginary parts
        const float a = re[k] + re[h - k], b = im[k] - im[h - k];
        const float c = re[k] - re[h - k], d = im[k] + im[h - k];
        x.re[k] = scale * (a - (c * sine[k] + d * cosine[k]));
        x.im[k] = scale * (b + (c * cosine[k] - d * sine[k]));
    }
    const Complex out = inverse_fft(p.a.radices, p.a.table, h, x, y);
    for (int64_t k = 0; k < h; ++k) {
        at[2 * k] = out.re[k];
        at[2 * k + 1] = out.im[k];
    }
}

void run(void* context, int id) {
    Plan& p = *(Plan*)context;
    for (int64_t frame; (frame = claim(p.work)) < p.frames;)
        to_samples(p, p.spectra + frame * p.ld, p.scratch + id * p.scratch_each);
}

}  // namespace

void spectrum_head(const SpectrumHeadArgs& a) {
    LinearArgs product = a.linear;
    OverlapAddArgs overlap = a.overlap;
    Plan p{a};
    p.frames = product.M, p.n = overlap.F;
    p.ld = round_up(p.n + 2, 16);
    p.part = round_up(p.n / 2 + 1 + W, 16);
    p.scratch_each = 6 * p.part;
    const int threads = overlap.threads;
    const int64_t floats = p.frames * p.ld + threads * p.scratch_each;
    p.spectra = (float*)workspace((size_t)floats * sizeof(float), 1);
    p.scratch = p.spectra + p.frames * p.ld;
    product.out = p.spectra, product.out_dtype = Dtype::f32, product.out_row = p.ld;
    if (p.frames > 0) {
        linear(product);
        parallel(p.frames < 2 ? 1 : threads, run, &p);
    }
    overlap.frames = p.spectra;
    overlap.frames_row = p.ld, overlap.frames_batch = overlap.T * p.ld;
    overlap_add(overlap);
}

}  // namespace MC_ISA
}  // namespace mingcore
