#include "bind/args.h"
#include "bind/register.h"
#include "cpu/activation/silu_mul.h"

namespace mingcore {
namespace {

void silu_mul(const py::object& gate_up_, const py::object& out_, int threads) {
    const Args args("silu_mul");
    const Array gate_up = args.read(gate_up_, "gate_up", 2), out = args.read(out_, "out", 2);
    if (gate_up.size[1] % 2) args.reject("gate_up", "[M, 2 I]", gate_up.shape());
    SiluMulArgs a{};
    a.M = gate_up.size[0], a.I = gate_up.size[1] / 2;
    args.size(out, "out", 0, a.M, "M");
    args.size(out, "out", 1, a.I, "I");
    if (gate_up.dtype != out.dtype) args.reject("out", "of gate_up's dtype", "another");
    args.writable(out, "out");
    a.threads = args.threads(threads);
    if (out.empty()) return;
    a.gate_up = gate_up.data, a.out = out.data, a.dtype = out.dtype;
    a.gate_up_row = gate_up.stride[0], a.out_row = out.stride[0];
    py::gil_scoped_release release;
    current().silu_mul(a);
}

}  // namespace

void register_activation(py::module_& m) { m.def("silu_mul", &silu_mul); }

}  // namespace mingcore
