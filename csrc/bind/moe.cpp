#include "bind/args.h"
#include "bind/register.h"
#include "cpu/moe/moe_mlp.h"

namespace mingcore {
namespace {

// The shared expert's matrices may be None, and so may each of the 4 scales. Returns the first slot
// whose id is not in 0..E-1, and then nothing is computed; else -1.
int64_t moe_mlp(const py::object& x_, const py::object& gate_up_, const py::object& down_,
                const py::object& weights_, const py::object& ids_,
                const py::object& shared_gate_up_, const py::object& shared_down_,
                const py::sequence& scales, const py::object& out_, const std::string& layout,
                int threads) {
    const Args args("moe_mlp");
    const Array x = args.read(x_, "x", 2), out = args.read(out_, "out", 2);
    const Array weights = args.read(weights_, "weights", 2, false);
    const Array ids = args.read(ids_, "ids", 2, false, Args::Takes::ids);
    MoeMlpArgs a{};
    a.layout = one_of<Layout>(args, "layout", layout, layout_names);
    if (a.layout == Layout::panels_swiglu) args.reject("layout", "rows or panels", layout);
    const bool rows = a.layout == Layout::rows;
    const bool vnni4 = dtype_of(gate_up_) == static_cast<int64_t>(Dtype::u8);
    const int dims = rows ? 3 : vnni4 ? 5 : 4;
    auto weight = [&](const py::object& value, const char* name, int dims) {
        if (value.is_none()) return Array();
        return args.read(value, name, dims, true, Args::Takes::weights);
    };
    const Array gate_up = weight(gate_up_, "gate_up", dims), down = weight(down_, "down", dims);
    const Array shared_gate_up = weight(shared_gate_up_, "shared_gate_up", dims - 1);
    const Array shared_down = weight(shared_down_, "shared_down", dims - 1);
    if (!gate_up.data || !down.data) args.reject("gate_up and down", "tensors", "None");
    if (scales.size() != 4) args.reject("scales", "4", std::to_string(scales.size()));
    const bool quantised = gate_up.dtype > Dtype::f16;
    if (quantised && rows) args.reject("gate_up", "panels where quantised", "rows");
    a.T = x.size[0], a.H = x.size[1], a.K = ids.size[1], a.E = gate_up.size[0];
    if (a.H < 1) args.reject("x", "[T, H] with H >= 1", x.shape());
    args.size(ids, "ids", 0, a.T, "T");
    args.size(weights, "weights", 0, a.T, "T");
    args.size(weights, "weights", 1, a.K, "K");
    args.dtype(weights, "weights", Dtype::f32, "float32");
    args.size(out, "out", 0, a.T, "T");
    args.size(out, "out", 1, a.H, "H");
    args.writable(out, "out");

    // [E, 2I, H] or [E, H, I], or without E; or their micro-panels; and scales [E, 2I] or [E, H]
    auto matrix = [&](const Array& w, const char* name, int64_t n, int64_t k, int scale) {
        const bool each = w.dims == dims;
        const int d = each;
        if (each) args.size(w, name, 0, a.E, "E");
        if (w.dtype != gate_up.dtype) args.reject(name, "of gate_up's dtype", "another");
        ExpertMatrix m{w.data, each ? w.stride[0] : 0, w.stride[d], nullptr, 0};
        if (rows) {
            args.size(w, name, d, n, "rows");
            args.size(w, name, d + 1, k, "columns");
            return m;
        }
        const int64_t stored = vnni4 ? (k + 3) / 4 : k, row = vnni4 ? 128 : 32;
        args.size(w, name, d, (n + 31) / 32, "panels");
        args.size(w, name, d + 1, stored, vnni4 ? "ceil(columns / 4)" : "columns");
        args.size(w, name, d + 2, 32, "rows of a panel");
        if (vnni4) args.size(w, name, d + 3, 4, "columns of a quad");
        if (w.stride[d + 1] != row || w.stride[d] != row * stored || w.stride[d + 2] * 32 != row)
            args.reject(name, "contiguous panels", "strides");
        if (!quantised) return m;
        if (vnni4 && k > 1 << 17)  // int32 sums of products up to 127 * 127 do not overflow
            args.reject(name, "of at most 131072 columns", std::to_string(k));
        const std::string of = std::string(name) + "_scale";
        const Array s = args.read(scales[scale], of.c_str(), each ? 2 : 1);
        if (each) args.size(s, of.c_str(), 0, a.E, "E");
        args.size(s, of.c_str(), d, n, "rows");
        args.dtype(s, of.c_str(), Dtype::f32, "float32");
        m.scale = reinterpret_cast<const float*>(s.data);
        m.scale_expert = each ? s.stride[0] : 0;
        return m;
    };
    // the width of a VNNI-4 matrix is not in its shape, which is padded
    a.I = vnni4 ? args.read(scales[0], "gate_up_scale", 2).size[1] / 2 : down.size[2];
    if (a.E < 1 || a.I < 1) args.reject("down", "of E >= 1 experts of width I >= 1", down.shape());
    a.gate_up = matrix(gate_up, "gate_up", 2 * a.I, a.H, 0);
    a.down = matrix(down, "down", a.H, a.I, 1);
    if (shared_gate_up.data) {
        if (!shared_down.data) args.reject("shared_down", "given with shared_gate_up", "None");
        a.shared_I = vnni4 ? args.read(scales[2], "shared_gate_up_scale", 1).size[0] / 2
                           : shared_down.size[1];
        if (a.shared_I < 1) args.reject("shared_down", "of width >= 1", shared_down.shape());
        a.shared_gate_up = matrix(shared_gate_up, "shared_gate_up", 2 * a.shared_I, a.H, 2);
        a.shared_down = matrix(shared_down, "shared_down", a.H, a.shared_I, 3);
    }
    a.threads = args.threads(threads);
    a.x = x.data, a.x_dtype = x.dtype, a.x_row = x.stride[0], a.w_dtype = gate_up.dtype;
    a.weights = reinterpret_cast<const float*>(weights.data);
    a.weights_row = weights.stride[0], a.weights_column = weights.stride[1];
    a.ids = reinterpret_cast<const int32_t*>(ids.data);
    a.ids_row = ids.stride[0], a.ids_column = ids.stride[1];
    a.out = out.data, a.out_dtype = out.dtype, a.out_row = out.stride[0];
    py::gil_scoped_release release;
    return current().moe_mlp(a);
}

}  // namespace

void register_moe(py::module_& m) {
    m.def("moe_mlp", &moe_mlp, "Returns the first slot with an id out of range, or -1.");
}

}  // namespace mingcore
