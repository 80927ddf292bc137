#include "bind/args.h"
#include "bind/register.h"
#include "cpu/flow/flow_sample.h"
#include "cpu/flow/flow_step.h"

namespace mingcore {
namespace {

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

void flow_dense(const Args& args, const Array& v, const char* name) {
    int64_t dense = 1;
    for (int i = v.dims - 1; i >= 0; dense *= v.size[i--])
        if (v.size[i] > 1 && v.stride[i] != dense && !v.empty())
            args.reject(name, "contiguous", "strides");
}

FlowVector flow_vector(const Args& args, const py::handle& value, const char* name, int64_t layers,
                       int64_t n) {
    const bool blocks = layers > 0;
    const Array v = args.read(py::reinterpret_borrow<py::object>(value), name, blocks ? 2 : 1);
    if (blocks) args.size(v, name, 0, layers, "L");
    args.size(v, name, blocks, n, "width");
    flow_dense(args, v, name);
    return {v.data, v.dtype, n};
}

FlowMatrix flow_matrix(const Args& args, const py::handle& value, const char* name, int64_t layers,
                       int64_t n, int64_t k) {
    const bool blocks = layers > 0;
    const Array w = args.read(py::reinterpret_borrow<py::object>(value), name, blocks ? 4 : 3, true,
                              Args::Takes::weights);
    const int64_t panels = (n + 31) / 32;
    if (blocks) args.size(w, name, 0, layers, "L");
    args.size(w, name, blocks, panels, "panels");
    const bool vnni4 = w.dtype == Dtype::u8;
    args.size(w, name, blocks + 1, vnni4 ? (k + 3) / 4 : k, "K");
    args.size(w, name, blocks + 2, vnni4 ? 4 * 32 : 32, "columns");
    flow_dense(args, w, name);
    return {w.data, w.dtype, n, k, nullptr};
}

const float* flow_floats(const Args& args, const py::object& value, const char* name,
                         std::initializer_list<int64_t> sizes) {
    const Array v = args.read(value, name, static_cast<int>(sizes.size()));
    args.dtype(v, name, Dtype::f32, "float32");
    for (int i = 0; i < v.dims; ++i) args.size(v, name, i, sizes.begin()[i], "size");
    flow_dense(args, v, name);
    return reinterpret_cast<const float*>(v.data);
}

void flow_sample(const py::object& condition_, const py::object& history_, const py::object& noise_,
                 const py::object& guidance, const py::object& times_, const py::object& dt,
                 const py::object& noise_scale, const py::bytes& advance, const py::object& cos,
                 const py::object& sin, const py::list& matrices, const py::list& biases,
                 const py::list& norms, const py::list& scales, int64_t heads, int64_t rope_heads,
                 bool guided, const py::object& out_, int threads) {
    const Args args("flow_sample");
    static const char* const names[] = {"cond", "x", "qkv", "out", "up", "down", "final"};
    if (matrices.size() != 7) args.reject("matrices", "7", std::to_string(matrices.size()));
    if (biases.size() != 7) args.reject("biases", "7", std::to_string(biases.size()));
    if (norms.size() != 3 && norms.size() != 5)
        args.reject("norms", "3 or 5", std::to_string(norms.size()));
    const std::string flags = advance;

    FlowSampleArgs a{};
    const Array times = args.read(times_, "times", 2), noise = args.read(noise_, "noise", 4);
    const Array condition = args.read(condition_, "condition", 2);
    const Array history = args.read(history_, "history", 3);
    const Array norm1 = args.read(py::object(norms[0]), "norm1", 2);
    const Array up_bias = args.read(py::object(biases[4]), "bias of up", 2);
    a.E = times.size[0], a.H = times.size[1], a.L = norm1.size[0], a.W = up_bias.size[1];
    a.B = noise.size[1], a.P = noise.size[2], a.C = noise.size[3], a.N = history.size[1];
    a.heads = heads, a.rope_heads = rope_heads, a.guided = guided;
    if (a.E < 1) args.reject("times", "[E, H] with E >= 1", times.shape());
    if (a.H < 1 || heads < 1 || a.H % heads || a.H / heads % 2)
        args.reject("heads", "so many that H / heads is whole and even", std::to_string(heads));
    if (a.L < 1 || a.W < 1) args.reject("bias of up", "[L, W], both >= 1", up_bias.shape());
    if (a.P < 1 || a.C < 1) args.reject("noise", "[draws, B, P, C] with P, C >= 1", noise.shape());
    if (static_cast<int64_t>(flags.size()) != a.E)
        args.reject("advance", "E = " + std::to_string(a.E) + " flags",
                    std::to_string(flags.size()));
    const int64_t H = a.H, T = 1 + a.N + a.P, Hc = condition.size[1];
    if (Hc < 1) args.reject("condition", "[B, Hc] with Hc >= 1", condition.shape());
    const int64_t n[] = {H, H, 3 * H, H, a.W, H, a.C}, k[] = {Hc, a.C, H, H, H, a.W, H};
    for (int i = 0; i < 7; ++i) {
        const int64_t layers = i >= 2 && i < 6 ? a.L : 0;
        a.matrix[i] = flow_matrix(args, matrices[i], names[i], layers, n[i], k[i]);
        a.bias[i] = flow_vector(args, biases[i], names[i], layers, n[i]);
        const bool scaled = a.matrix[i].dtype == Dtype::i8 || a.matrix[i].dtype == Dtype::u8;
        if (scaled && !layers) args.reject(names[i], "float32, bfloat16 or float16", "int8");
        if (scaled && a.matrix[i].dtype != a.matrix[2].dtype)
            args.reject(names[i], "of the type of qkv", "another");
        if (scaled && scales.size() != 7) args.reject("scales", "7", std::to_string(scales.size()));
        if (scaled)
            a.matrix[i].scale = flow_floats(args, py::object(scales[i]), "scales", {layers, n[i]});
    }
    a.quantised = a.matrix[2].dtype == Dtype::u8;
    for (size_t i = 0; i < norms.size(); ++i)
        a.norm[i] = flow_vector(args, norms[i], "norms", i == 2 ? 0 : a.L, i < 3 ? H : H / heads);

    args.size(condition, "condition", 0, a.B, "B");
    args.size(history, "history", 0, a.B, "B");
    args.size(history, "history", 2, a.C, "C");
    a.condition_dtype = condition.dtype, a.history_dtype = history.dtype;
    flow_dense(args, condition, "condition");
    flow_dense(args, history, "history");
    a.noise = flow_floats(args, noise_, "noise", {noise.size[0], a.B, a.P, a.C});
    a.guidance = flow_floats(args, guidance, "guidance", {a.B});
    a.times = flow_floats(args, times_, "times", {a.E, H});
    a.dt = flow_floats(args, dt, "dt", {a.E});
    a.noise_scale = flow_floats(args, noise_scale, "noise_scale", {a.E, a.B});
    a.cos = flow_floats(args, cos, "cos", {T, H / heads / 2});
    a.sin = flow_floats(args, sin, "sin", {T, H / heads / 2});
    a.out = const_cast<float*>(flow_floats(args, out_, "out", {a.B, a.P, a.C}));
    a.advance = reinterpret_cast<const uint8_t*>(flags.data());
    a.threads = args.threads(threads);
    if (a.B == 0) return;
    int64_t draw = 0;
    for (int64_t e = 0; e < a.E; ++e) {
        draw += flags[e] != 0;
        for (int64_t b = 0; b < a.B && flags[e]; ++b)
            if (a.noise_scale[e * a.B + b] != 0 && draw >= noise.size[0])
                args.reject("noise", "[draws, B, P, C] with a draw for each step that has a scale",
                            noise.shape());
    }
    if (noise.size[0] < 1) args.reject("noise", "[draws, B, P, C] with draws >= 1", noise.shape());
    a.condition = condition.data, a.history = history.data;
    py::gil_scoped_release release;
    current().flow_sample(a);
}

}  // namespace

void register_flow(py::module_& m) {
    m.def("flow_step", &flow_step);
    m.def("flow_sample", &flow_sample);
}

}  // namespace mingcore
