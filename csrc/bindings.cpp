// The Python module `mingcore._cpu`: checks arguments, releases the GIL, calls the kernels of the
// selected ISA. Compiled at the baseline ISA, without PyTorch: a tensor arrives as the tuple
// (data_ptr, dtype code, sizes, strides in elements), or None where it may be absent.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/lib/kernels.h"
#include "cpu/lib/parallel.h"

namespace py = pybind11;
using namespace mingcore;

namespace {

#include "bind_args.h"

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

    const bool quads = dtype_of(weight_) == static_cast<int64_t>(Dtype::u8);
    const Array weight =
        args.read(weight_, "weight", a.layout == Layout::rows ? 2 : quads ? 4 : 3, true,
                  Args::Takes::weights);
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
        const int64_t rows = quads ? (a.K + 3) / 4 : a.K, row = quads ? 128 : 32;
        args.size(weight, "weight", 0, panels, "panels");
        args.size(weight, "weight", 1, rows, quads ? "ceil(K/4)" : "K");
        args.size(weight, "weight", 2, 32, "columns");
        if (quads) args.size(weight, "weight", 3, 4, "k");
        if (weight.stride[1] != row || weight.stride[0] != row * rows ||
            weight.stride[2] * 32 != row)
            args.reject("weight", "contiguous panels", "strides");
        // the sums of 127 * 127 stay below 2^31
        if (quads && a.K > 1 << 17) args.reject("x", "[M, K] with K <= 131072", x.shape());
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

// The shared pair may be None, and so may each of the 4 scales. Returns the first slot whose id is not in 0..E-1, and
// nothing is computed; else -1.
int64_t moe_mlp(const py::object& x_, const py::object& gate_up_, const py::object& down_,
                const py::object& weights_, const py::object& ids_,
                const py::object& shared_gate_up_, const py::object& shared_down_,
                const py::sequence& scales, const py::object& out_, const std::string& layout, int threads) {
    const Args args("moe_mlp");
    const Array x = args.read(x_, "x", 2), out = args.read(out_, "out", 2);
    const Array weights = args.read(weights_, "weights", 2, false);
    const Array ids = args.read(ids_, "ids", 2, false, Args::Takes::ids);
    MoeArgs a{};
    a.layout = one_of<Layout>(args, "layout", layout, layout_names);
    if (a.layout == Layout::panels_swiglu) args.reject("layout", "rows or panels", layout);
    const bool rows = a.layout == Layout::rows;
    const bool quads = dtype_of(gate_up_) == static_cast<int64_t>(Dtype::u8);
    const int dims = rows ? 3 : quads ? 5 : 4;
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

    // [E, 2I, H] and [E, H, I], or one of them without E; or their panels; and scales [E, 2I], [E, H]
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
        const int64_t stored = quads ? (k + 3) / 4 : k, row = quads ? 128 : 32;
        args.size(w, name, d, (n + 31) / 32, "panels");
        args.size(w, name, d + 1, stored, quads ? "ceil(columns / 4)" : "columns");
        args.size(w, name, d + 2, 32, "rows of a panel");
        if (quads) args.size(w, name, d + 3, 4, "columns of a quad");
        if (w.stride[d + 1] != row || w.stride[d] != row * stored || w.stride[d + 2] * 32 != row)
            args.reject(name, "contiguous panels", "strides");
        if (!quantised) return m;
        if (quads && k > 1 << 17)  // the sums of 127 * 127 stay below 2^31
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
    // the width of quads is not in their shape
    a.I = quads ? args.read(scales[0], "gate_up_scale", 2).size[1] / 2 : down.size[2];
    if (a.E < 1 || a.I < 1) args.reject("down", "of E >= 1 experts of width I >= 1", down.shape());
    a.gate_up = matrix(gate_up, "gate_up", 2 * a.I, a.H, 0);
    a.down = matrix(down, "down", a.H, a.I, 1);
    if (shared_gate_up.data) {
        if (!shared_down.data) args.reject("shared_down", "given with shared_gate_up", "None");
        a.shared_I = quads ? args.read(scales[2], "shared_gate_up_scale", 1).size[0] / 2
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

void flow_step(const py::object& x_, const py::object& v_cond_, const py::object& v_null_,
               double dt, const py::object& guidance_, const py::object& noise_,
               const py::object& noise_scale_, const py::object& out_, int threads) {
    const Args args("flow_step");
    static const char* const letters[] = {"B", "P", "C"};
    const Array x = args.read(x_, "x", 3), out = args.read(out_, "out", 3);
    args.dtype(x, "x", Dtype::f32, "float32");
    args.dtype(out, "out", Dtype::f32, "float32");
    auto operand = [&](const py::object& value, const char* name) -> Float3 {
        const Array v = args.read_or_none(value, name, 3);
        if (value.is_none()) return {nullptr, Dtype::f32, 0, 0};
        for (int i = 0; i < 3; ++i) args.size(v, name, i, x.size[i], letters[i]);
        return {v.data, v.dtype, v.stride[0], v.stride[1]};
    };
    auto per_row = [&](const py::object& value, const char* name) {
        const Array v = args.read(value, name, 1);
        args.size(v, name, 0, x.size[0], "B");
        args.dtype(v, name, Dtype::f32, "float32");
        return reinterpret_cast<const float*>(v.data);
    };
    FlowStepArgs a{};
    a.B = x.size[0], a.P = x.size[1], a.C = x.size[2];
    a.x = operand(x_, "x");
    a.v_cond = operand(v_cond_, "v_cond");
    a.v_null = operand(v_null_, "v_null");
    a.noise = operand(noise_, "noise");
    a.guidance = per_row(guidance_, "guidance");
    a.noise_scale = per_row(noise_scale_, "noise_scale");
    for (int i = 0; i < 3; ++i) args.size(out, "out", i, x.size[i], letters[i]);
    args.writable(out, "out");
    a.out = reinterpret_cast<float*>(out.data), a.out_batch = out.stride[0],
    a.out_row = out.stride[1];
    a.dt = static_cast<float>(dt);
    a.threads = args.threads(threads);
    if (x.empty()) return;
    py::gil_scoped_release release;
    current().flow_step(a);
}

#include "bind_audio.h"
#include "bind_flow_sample.h"
#include "bind_small.h"

uint32_t read_probe(uintptr_t data, int64_t bytes, int threads, int streams, int64_t ahead) {
    const Args args("read_probe");
    if (!data) args.reject("data", "an address", "0");
    if (bytes < 0) args.reject("bytes", ">= 0", std::to_string(bytes));
    args.threads(threads);
    py::gil_scoped_release release;
    return current().read_probe(reinterpret_cast<const void*>(data), bytes, threads, streams, ahead);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "mingcore's CPU kernels; called through mingcore.ops";
    m.def("linear", &linear);
    m.def("silu_mul", &silu_mul);
    m.def("moe_mlp", &moe_mlp, "Returns the first slot with an id out of range, or -1.");
    m.def("flow_step", &flow_step);
    m.def("flow_sample", &flow_sample);
    m.def("causal_conv", &causal_conv);
    m.def("overlap_add", &overlap_add);
    m.def("spectrum_head", &spectrum_head);
    m.def("rms_norm", &rms_norm);
    m.def("layer_norm", &layer_norm);
    m.def("rope", &rope);
    m.def("qkv_rope", &qkv_rope);
    m.def("route_topk", &route_topk);
    m.def("kv_write", &kv_write);
    m.def("attention_decode", &attention_decode);
    m.def("read_probe", &read_probe, py::arg("data"), py::arg("bytes"), py::arg("threads"),
          py::arg("streams") = 1, py::arg("ahead") = 4096,
          "Read `bytes` of bfloat16 at `data`: the streaming ceiling (testing/roofline.py).");
    m.def(
        "ask_for_huge_pages",
        [](uintptr_t data, size_t bytes) { ask_for_huge_pages(reinterpret_cast<void*>(data), bytes); },
        "Back this new memory with huge pages, where the system gives them when asked.");
    m.def("isa", [] { return current().isa; }, "The instruction set in use.");
    m.def(
        "isas",
        [] {
            py::list names;
            for (int i = 0; i < available_count; ++i)
                if (cpu_runs(*available[i])) names.append(available[i]->isa);
            return names;
        },
        "The instruction sets that this build holds and this CPU runs, best first.");
    m.def(
        "set_isa",
        [](const std::string& isa) {
            if (!select_isa(isa.c_str()))
                fail("set_isa: this build on this CPU has no '" + isa + "'");
        },
        "Use another instruction set from here on; for tests.");
    m.def(
        "vnni", [] { return cpu_vnni; }, "Whether int8_dyn uses the VNNI instruction.");
    m.def(
        "set_vnni",
        [](bool wanted) {
            if (!select_vnni(wanted))
                fail(std::string("set_vnni: no VNNI here with '") + current().isa + "'");
        },
        "Multiply int8_dyn with or without VNNI until the next set_isa; for tests.");
    m.def(
        "bf16", [] { return cpu_bf16; }, "Whether bf16 is multiplied with bf16 by AVX512-BF16.");
    m.def(
        "set_bf16",
        [](bool wanted) {
            if (!select_bf16(wanted))
                fail(std::string("set_bf16: no AVX512-BF16 here with '") + current().isa + "'");
        },
        "Multiply bf16 with or without it until the next set_isa; for tests.");
    m.def("thread_pool", &thread_pool,
          "Where threads come from: 'openmp' (PyTorch's pool) or 'std::thread'.");
}
