#include "bind/args.h"
#include "bind/register.h"
#include "cpu/norm/norms.h"

namespace mingcore {
namespace {

// What rms_norm and layer_norm share. x and out are [..., H].
NormArgs norm_of(const Args& args, const py::object& x_, const py::object& weight_, double eps,
                 const py::object& out_, int threads) {
    const Array x = args.read_rows(x_, "x"), out = args.read_rows(out_, "out");
    const Array weight = args.read(weight_, "weight", 1);
    NormArgs a{};
    a.M = x.size[0], a.H = x.size[1];
    args.size(weight, "weight", 0, a.H, "H");
    args.size(out, "out", 0, a.M, "M");
    args.size(out, "out", 1, a.H, "H");
    same_dtype(args, out, "out", x, "x");
    args.writable(out, "out");
    a.x = x.data, a.dtype = x.dtype, a.x_row = x.stride[0];
    a.weight = weight.data, a.weight_dtype = weight.dtype;
    a.out = out.data, a.out_row = out.stride[0];
    a.eps = static_cast<float>(eps);
    a.threads = args.threads(threads);
    return a;
}

// residual and sum are both None, or [..., H] like x.
void rms_norm(const py::object& x_, const py::object& residual_, const py::object& weight_,
              double eps, const py::object& out_, const py::object& sum_, int threads) {
    const bool adds = !residual_.is_none();
    const Args args(adds ? "add_rms_norm" : "rms_norm");
    NormArgs a = norm_of(args, x_, weight_, eps, out_, threads);
    if (adds) {
        const Array residual = args.read_rows(residual_, "residual");
        const Array sum = args.read_rows(sum_, "sum");
        args.writable(sum, "sum");
        for (const Array* each : {&residual, &sum}) {
            const char* name = each == &sum ? "sum" : "residual";
            args.size(*each, name, 0, a.M, "M");
            args.size(*each, name, 1, a.H, "H");
            if (each->dtype != a.dtype) args.reject(name, "of x's dtype", "another");
        }
        a.residual = residual.data, a.residual_row = residual.stride[0];
        a.sum = sum.data, a.sum_row = sum.stride[0];
    }
    if (a.M == 0 || a.H == 0) return;
    py::gil_scoped_release release;
    current().rms_norm(a);
}

void layer_norm(const py::object& x_, const py::object& weight_, const py::object& bias_,
                double eps, const py::object& out_, int threads) {
    const Args args("layer_norm");
    NormArgs a = norm_of(args, x_, weight_, eps, out_, threads);
    if (!bias_.is_none()) {
        const Array bias = args.read(bias_, "bias", 1);
        args.size(bias, "bias", 0, a.H, "H");
        a.bias = bias.data, a.bias_dtype = bias.dtype;
    }
    if (a.M == 0 || a.H == 0) return;
    py::gil_scoped_release release;
    current().layer_norm(a);
}

}  // namespace

void register_norm(py::module_& m) {
    m.def("rms_norm", &rms_norm);
    m.def("layer_norm", &layer_norm);
}

}  // namespace mingcore
