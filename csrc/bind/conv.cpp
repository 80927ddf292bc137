#include "bind/args.h"
#include "bind/register.h"
#include "cpu/conv/causal_conv.h"

namespace mingcore {
namespace {

const char* const conv_act_names[] = {"none",      "silu", "elu",   "gelu",
                                      "gelu_tanh", "tanh", "snake", nullptr};

Activation activation_of(const Args& args, const char* name, const std::string& act,
                         const py::object& alpha_, const py::object& gain_, int64_t channels) {
    Activation a{one_of<ConvAct>(args, name, act, conv_act_names), nullptr, nullptr};
    if (a.act != ConvAct::snake) return a;
    const Array alpha = args.read(alpha_, "alpha", 1), gain = args.read(gain_, "gain", 1);
    for (const Array* each : {&alpha, &gain}) {
        args.size(*each, name, 0, channels, "C");
        args.dtype(*each, name, Dtype::f32, "float32");
    }
    a.alpha = reinterpret_cast<const float*>(alpha.data);
    a.gain = reinterpret_cast<const float*>(gain.data);
    return a;
}

// sizes: groups, taps, stride, dilation, up, left_pad, flush, replicate. w is [groups, N / groups *
// up, C / groups * taps], or its panels.
void causal_conv(const py::object& x_, const py::object& w_, const py::object& bias_,
                 const py::object& residual_, const py::object& context_,
                 const py::object& context_out_, const py::tuple& rows, const py::object& out_,
                 const py::tuple& sizes, const std::string& before, const py::object& before_alpha,
                 const py::object& before_gain, const std::string& after,
                 const py::object& after_alpha, const py::object& after_gain, bool panels,
                 int threads) {
    const Args args("causal_conv");
    const Array x = args.read(x_, "x", 3), w = args.read(w_, "weight", panels ? 4 : 3),
                bias = args.read_or_none(bias_, "bias", 1),
                residual = args.read_or_none(residual_, "residual", 3),
                context = args.read_or_none(context_, "context", 3),
                context_out = args.read(context_out_, "context_out", 3),
                out = args.read(out_, "out", 3, false);
    if (sizes.size() != 8) args.reject("sizes", "eight numbers", std::to_string(sizes.size()));
    int64_t s[8];
    for (int i = 0; i < 8; ++i) s[i] = sizes[i].cast<int64_t>();
    CausalConvArgs a{};
    a.groups = s[0], a.taps = s[1], a.stride = s[2], a.dilation = s[3], a.up = s[4];
    a.left_pad = s[5], a.flush = s[6], a.replicate = s[7] != 0;
    for (int i = 0; i < 5; ++i)
        if (s[i] < 1) args.reject("sizes", ">= 1", std::to_string(s[i]));
    a.B = x.size[0], a.C = x.size[1], a.L = x.size[2], a.N = out.size[1], a.T = out.size[2];
    if (a.C % a.groups || a.N % a.groups)
        args.reject("groups", "a divisor of the channels", std::to_string(a.groups));
    const int64_t K = a.C / a.groups * a.taps, n = a.N / a.groups * a.up;
    args.size(w, "weight", 0, a.groups, "groups");
    args.size(w, "weight", 1, panels ? (n + 31) / 32 : n, panels ? "panels" : "N");
    args.size(w, "weight", 2, K, "K");
    if (panels) args.size(w, "weight", 3, 32, "columns");
    args.size(out, "out", 0, a.B, "B");
    const int64_t span = (a.taps - 1) * a.dilation;
    for (const Array* each : {&context, &context_out}) {
        if (!each->data) continue;
        const char* name = each == &context ? "context" : "context_out";
        args.size(*each, name, 0, a.B, "B");
        args.size(*each, name, 1, a.C, "C");
        args.size(*each, name, 2, span, "W");
        if (each->stride[1] != span || (a.B > 1 && each->stride[0] != a.C * span) ||
            each->dtype != x.dtype)
            args.reject(name, "contiguous and of x's type", "another");
    }
    if (bias.data) args.size(bias, "bias", 0, a.N, "N");
    if (residual.data)
        for (int i = 0; i < 3; ++i) args.size(residual, "residual", i, out.size[i], "B, N or T");
    auto operand = [](const Array& t) {
        return Operand3{t.data, t.dtype, t.stride[0], t.stride[1], t.stride[2]};
    };
    a.x = operand(x), a.residual = operand(residual), a.out = operand(out);
    a.context = context.data, a.context_out = context_out.data;
    a.rows = stream_rows(args, rows);
    check_rows(args, a.rows, a.B, a.L);
    a.w = w.data, a.w_dtype = w.dtype, a.layout = panels ? Layout::panels : Layout::rows;
    a.bias = bias.data, a.bias_dtype = bias.dtype;
    a.before = activation_of(args, "activation_before", before, before_alpha, before_gain, a.C);
    a.after = activation_of(args, "activation", after, after_alpha, after_gain, a.N);
    a.threads = args.threads(threads);
    py::gil_scoped_release release;
    current().causal_conv(a);
}

}  // namespace

void register_conv(py::module_& m) { m.def("causal_conv", &causal_conv); }

}  // namespace mingcore
