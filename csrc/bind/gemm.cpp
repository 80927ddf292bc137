#include "bind/args.h"
#include "bind/register.h"
#include "cpu/gemm/linear.h"

namespace mingcore {
namespace {

void linear(const py::object& x_, const py::object& weight_, const py::object& bias_,
            const py::object& residual_, const py::object& scale_, const py::object& out_,
            const std::string& activation, const std::string& layout, int64_t n, int threads) {
    const Args args("linear");
    const Array x = args.read(x_, "x", 2), bias = args.read_or_none(bias_, "bias", 1);
    const Array residual = args.read_or_none(residual_, "residual", 2),
                scale = args.read_or_none(scale_, "scale", 1), out = args.read(out_, "out", 2);
    LinearArgs a{};
    a.act = one_of<Act>(args, "activation", activation, act_names);
    a.layout = one_of<Layout>(args, "layout", layout, layout_names);
    a.M = x.size[0], a.K = x.size[1], a.N = n;
    if (n < 1) args.reject("n", ">= 1", std::to_string(n));
    if (a.K < 1) args.reject("x", "[M, K] with K >= 1", x.shape());
    const bool swiglu = a.act == Act::swiglu;
    if (swiglu && n % 2) args.reject("n", "even for swiglu", std::to_string(n));
    const int64_t outputs = swiglu ? n / 2 : n;

    const bool vnni4 = dtype_of(weight_) == static_cast<int64_t>(Dtype::u8);
    const Array weight = args.read(weight_, "weight",
                                   a.layout == Layout::rows ? 2
                                   : vnni4                  ? 4
                                                            : 3,
                                   true, Args::Takes::weights);
    if (a.layout == Layout::rows) {
        args.size(weight, "weight", 0, n, "N");
        args.size(weight, "weight", 1, a.K, "K");
        a.w_row = weight.stride[0];
        if (weight.dtype > Dtype::f16) args.reject("weight", "panels where quantised", "rows");
    } else {
        if (a.layout == Layout::panels_swiglu && !swiglu)
            args.reject("layout", "rows or panels for activation " + activation, layout);
        if (a.layout == Layout::panels && swiglu)
            args.reject("layout", "panels_swiglu or rows for activation swiglu", layout);
        const int64_t panels = swiglu ? (outputs + 15) / 16 : (n + 31) / 32;
        const int64_t rows = vnni4 ? (a.K + 3) / 4 : a.K, row = vnni4 ? 128 : 32;
        args.size(weight, "weight", 0, panels, "panels");
        args.size(weight, "weight", 1, rows, vnni4 ? "ceil(K/4)" : "K");
        args.size(weight, "weight", 2, 32, "columns");
        if (vnni4) args.size(weight, "weight", 3, 4, "k");
        if (weight.stride[1] != row || weight.stride[0] != row * rows ||
            weight.stride[2] * 32 != row)
            args.reject("weight", "contiguous panels", "strides");
        // int32 sums of products up to 127 * 127 do not overflow
        if (vnni4 && a.K > 1 << 17) args.reject("x", "[M, K] with K <= 131072", x.shape());
    }
    if (weight.dtype > Dtype::f16) {
        if (!scale.data) args.reject("scale", "given with a quantised weight", "None");
        args.size(scale, "scale", 0, n, "N");
        args.dtype(scale, "scale", Dtype::f32, "float32");
        a.scale = reinterpret_cast<const float*>(scale.data);
    } else if (scale.data) {
        args.reject("scale", "None with an unquantised weight", scale.shape());
    }
    if (bias.data) args.size(bias, "bias", 0, n, "N");
    if (residual.data) {
        args.size(residual, "residual", 0, a.M, "M");
        args.size(residual, "residual", 1, outputs, "N_out");
    }
    args.size(out, "out", 0, a.M, "M");
    args.size(out, "out", 1, outputs, "N_out");
    args.writable(out, "out");
    a.threads = args.threads(threads);
    if (a.M == 0) return;

    a.x = x.data, a.x_dtype = x.dtype, a.x_row = x.stride[0];
    a.w = weight.data, a.w_dtype = weight.dtype;
    a.bias = bias.data, a.bias_dtype = bias.dtype;
    a.residual = residual.data, a.residual_dtype = residual.dtype,
    a.residual_row = residual.stride[0];
    a.out = out.data, a.out_dtype = out.dtype, a.out_row = out.stride[0];
    py::gil_scoped_release release;
    current().linear(a);
}

}  // namespace

void register_gemm(py::module_& m) { m.def("linear", &linear); }

}  // namespace mingcore
