#include "bind/args.h"
#include "bind/register.h"
#include "cpu/spectrum/overlap_add.h"
#include "cpu/spectrum/spectrum_head.h"

namespace mingcore {
namespace {

OverlapAddArgs overlap_args(const Args& args, int64_t B, int64_t T, const py::object& window_,
                            int64_t hop, const py::object& numerator_,
                            const py::object& numerator_out_, const py::tuple& rows,
                            const py::object& out_, int threads) {
    const Array window = args.read(window_, "window", 1), out = args.read(out_, "out", 2),
                numerator = args.read_or_none(numerator_, "numerator", 2),
                numerator_out = args.read(numerator_out_, "numerator_out", 2);
    OverlapAddArgs a{};
    a.B = B, a.T = T, a.F = window.size[0], a.hop = hop, a.outputs = out.size[1];
    if (hop < 1 || hop > a.F) args.reject("hop", "in 1..F", std::to_string(hop));
    for (const Array* each : {&window, &out, &numerator, &numerator_out})
        args.dtype(*each, "every operand", Dtype::f32, "float32");
    args.size(out, "out", 0, B, "B");
    for (const Array* each : {&numerator, &numerator_out}) {
        if (!each->data) continue;
        args.size(*each, "numerator", 0, B, "B");
        args.size(*each, "numerator", 1, a.F - hop, "F - hop");
        if (B > 1 && each->stride[0] != a.F - hop)
            args.reject("numerator", "contiguous", "strides");
    }
    a.window = reinterpret_cast<const float*>(window.data);
    a.numerator = reinterpret_cast<const float*>(numerator.data);
    a.numerator_out = reinterpret_cast<float*>(numerator_out.data);
    a.rows = stream_rows(args, rows);
    check_rows(args, a.rows, B, T);
    a.out = reinterpret_cast<float*>(out.data), a.out_row = out.stride[0];
    a.threads = args.threads(threads);
    return a;
}

void overlap_add(const py::object& frames_, const py::object& window, int64_t hop,
                 const py::object& numerator, const py::object& numerator_out,
                 const py::tuple& rows, const py::object& out, int threads) {
    const Args args("overlap_add");
    const Array frames = args.read(frames_, "frames", 3);
    OverlapAddArgs a = overlap_args(args, frames.size[0], frames.size[1], window, hop, numerator,
                                    numerator_out, rows, out, threads);
    args.size(frames, "frames", 2, a.F, "F");
    args.dtype(frames, "frames", Dtype::f32, "float32");
    a.frames = reinterpret_cast<const float*>(frames.data);
    a.frames_batch = frames.stride[0], a.frames_row = frames.stride[1];
    py::gil_scoped_release release;
    current().overlap_add(a);
}

// The head's linear: [B T, H] to [m | p], into scratch that the kernel owns.
LinearArgs head_linear(const Args& args, const Array& hidden, const py::object& weight_,
                       const py::object& bias_, const std::string& layout, int64_t n, int threads) {
    LinearArgs a{};
    a.M = hidden.size[0] * hidden.size[1], a.K = hidden.size[2], a.N = n;
    a.layout = one_of<Layout>(args, "layout", layout, layout_names);
    const bool rows = a.layout == Layout::rows;
    if (a.layout == Layout::panels_swiglu) args.reject("layout", "rows or panels", layout);
    const Array weight = args.read(weight_, "weight", rows ? 2 : 3),
                bias = args.read_or_none(bias_, "bias", 1);
    args.size(weight, "weight", 0, rows ? n : (n + 31) / 32, rows ? "N" : "panels");
    args.size(weight, "weight", 1, a.K, "K");
    if (!rows) args.size(weight, "weight", 2, 32, "columns");
    if (!rows && (weight.stride[1] != 32 || weight.stride[0] != 32 * a.K))
        args.reject("weight", "contiguous panels", "strides");
    if (bias.data) args.size(bias, "bias", 0, n, "N");
    a.x = hidden.data, a.x_dtype = hidden.dtype, a.x_row = a.K;
    a.w = weight.data, a.w_dtype = weight.dtype, a.w_row = weight.stride[0];
    a.bias = bias.data, a.bias_dtype = bias.dtype;
    a.act = Act::none;
    a.threads = threads;
    return a;
}

// table: see cpu/spectrum/fft.h; turns [2, F / 2]: cosines and sines of 2 pi k / F.
void spectrum_head(const py::object& hidden_, const py::object& weight, const py::object& bias,
                   const std::string& layout, const py::object& window, int64_t hop,
                   const py::object& numerator, const py::object& numerator_out,
                   const py::tuple& rows, const py::object& out, const py::tuple& radices,
                   const py::object& table_, const py::object& turns_, int threads) {
    const Args args("spectrum_head");
    const Array hidden = args.read(hidden_, "hidden", 3), table = args.read(table_, "table", 1),
                turns = args.read(turns_, "turns", 2);
    const int64_t B = hidden.size[0], T = hidden.size[1], H = hidden.size[2];
    SpectrumHeadArgs a{};
    a.overlap = overlap_args(args, B, T, window, hop, numerator, numerator_out, rows, out, threads);
    const int64_t h = a.overlap.F / 2;
    if (B * T > 1 && (hidden.stride[1] != H || (B > 1 && hidden.stride[0] != T * H)))
        args.reject("hidden", "contiguous", "strides");
    args.size(turns, "turns", 0, 2, "2");
    args.size(turns, "turns", 1, h, "F / 2");
    int32_t factors[33] = {0};
    int64_t product = 1, twiddles = 2 * 8 * 9, points = h;
    if (radices.size() > 32) args.reject("radices", "at most 32", std::to_string(radices.size()));
    for (size_t i = 0; i < radices.size(); ++i) {
        const int64_t r = radices[i].cast<int64_t>();
        if (r < 2 || r > 8 || r == 6 || points % r)
            args.reject("radices", "factors of F / 2", "others");
        factors[i] = static_cast<int32_t>(r);
        product *= r, points /= r;
        twiddles += 2 * (r - 1) * points;
    }
    if (product != h || 2 * h != a.overlap.F) args.reject("window", "[F], F = 2 radices", "other");
    args.size(table, "table", 0, twiddles, "twiddles");
    a.radices = factors;
    a.table = reinterpret_cast<const float*>(table.data);
    a.turns = reinterpret_cast<const float*>(turns.data);

    a.linear = head_linear(args, hidden, weight, bias, layout, a.overlap.F + 2, threads);
    py::gil_scoped_release release;
    current().spectrum_head(a);
}

}  // namespace

void register_spectrum(py::module_& m) {
    m.def("overlap_add", &overlap_add);
    m.def("spectrum_head", &spectrum_head);
}

}  // namespace mingcore
