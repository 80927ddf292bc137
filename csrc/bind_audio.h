// The bindings of the streamed ops of sound; part of bindings.cpp, whose Args it uses. What is not
// floating point (lengths, valid, ended, emitted) comes as an address, 0 where absent: [B] int64, and
// bytes for `ended`; ops/cpu_audio.py has them checked and dense.
#pragma once

const char* const conv_act_names[] = {"none", "silu", "elu", "gelu", "gelu_tanh", "tanh", "snake",
                                      nullptr};

StreamRows stream_rows(const Args& args, const py::tuple& t) {
    if (t.size() != 6) args.reject("rows", "six addresses", std::to_string(t.size()));
    auto at = [&](int i) { return t[i].cast<uintptr_t>(); };
    StreamRows rows;
    rows.lengths = reinterpret_cast<const int64_t*>(at(0));
    rows.valid = reinterpret_cast<const int64_t*>(at(1));
    rows.ended = reinterpret_cast<const bool*>(at(2));
    rows.last = at(3) != 0;
    rows.lengths_out = reinterpret_cast<int64_t*>(at(4));
    rows.emitted = reinterpret_cast<int64_t*>(at(5));
    if (!rows.lengths_out || !rows.emitted) args.reject("rows", "given where to count", "null");
    return rows;
}

// valid in 0..L, lengths >= 0: a wrong one would read beyond the chunk.
void check_rows(const Args& args, const StreamRows& rows, int64_t B, int64_t L) {
    for (int64_t b = 0; b < B; ++b) {
        if (rows.valid && (rows.valid[b] < 0 || rows.valid[b] > L))
            args.reject("valid", "in 0.." + std::to_string(L), std::to_string(rows.valid[b]));
        if (rows.lengths && rows.lengths[b] < 0)
            args.reject("state.lengths", ">= 0", std::to_string(rows.lengths[b]));
    }
}

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
    ConvArgs a{};
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

OverlapArgs overlap_args(const Args& args, int64_t B, int64_t T, const py::object& window_,
                         int64_t hop, const py::object& numerator_, const py::object& numerator_out_,
                         const py::tuple& rows, const py::object& out_, int threads) {
    const Array window = args.read(window_, "window", 1), out = args.read(out_, "out", 2),
                numerator = args.read_or_none(numerator_, "numerator", 2),
                numerator_out = args.read(numerator_out_, "numerator_out", 2);
    OverlapArgs a{};
    a.B = B, a.T = T, a.F = window.size[0], a.hop = hop, a.outputs = out.size[1];
    if (hop < 1 || hop > a.F) args.reject("hop", "in 1..F", std::to_string(hop));
    for (const Array* each : {&window, &out, &numerator, &numerator_out})
        args.dtype(*each, "every operand", Dtype::f32, "float32");
    args.size(out, "out", 0, B, "B");
    for (const Array* each : {&numerator, &numerator_out}) {
        if (!each->data) continue;
        args.size(*each, "numerator", 0, B, "B");
        args.size(*each, "numerator", 1, a.F - hop, "F - hop");
        if (B > 1 && each->stride[0] != a.F - hop) args.reject("numerator", "contiguous", "strides");
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
    OverlapArgs a = overlap_args(args, frames.size[0], frames.size[1], window, hop, numerator,
                                 numerator_out, rows, out, threads);
    args.size(frames, "frames", 2, a.F, "F");
    args.dtype(frames, "frames", Dtype::f32, "float32");
    a.frames = reinterpret_cast<const float*>(frames.data);
    a.frames_batch = frames.stride[0], a.frames_row = frames.stride[1];
    py::gil_scoped_release release;
    current().overlap_add(a);
}

// The Linear of the head: [B T, H] to [m | p], written to scratch that the kernel owns.
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
    SpectrumArgs a{};
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
        if (r < 2 || r > 8 || r == 6 || points % r) args.reject("radices", "factors of F / 2", "others");
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
