// The bindings of norms, rotary embedding, routing and attention over a cache; part of bindings.cpp,
// whose Args it uses.
#pragma once

Heads heads_of(const Array& a) {  // [B, T, Hn, D]
    return {a.data, a.stride[0], a.stride[1], a.stride[2]};
}

void same_dtype(const Args& args, const Array& a, const char* name, const Array& b,
                const char* as) {
    if (a.dtype != b.dtype) args.reject(name, std::string("of ") + as + "'s dtype", "another");
}

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

// cos and sin [1 or B, T, D / 2]; the rest of RopeArgs but x and the parts.
RopeArgs rope_of(const Args& args, int64_t B, int64_t T, int64_t D, const py::object& cos_,
                 const py::object& sin_, bool interleaved, int threads) {
    const Array cos = args.read(cos_, "cos", 3), sin = args.read(sin_, "sin", 3);
    if (D % 2) args.reject("D", "even", std::to_string(D));
    for (const Array* each : {&cos, &sin}) {
        const char* name = each == &cos ? "cos" : "sin";
        args.dtype(*each, name, Dtype::f32, "float32");
        if (each->size[0] != 1) args.size(*each, name, 0, B, "1 or B");
        args.size(*each, name, 1, T, "T");
        args.size(*each, name, 2, D / 2, "D/2");
    }
    RopeArgs a{};
    a.B = B, a.T = T, a.D = D, a.interleaved = interleaved;
    a.cos = reinterpret_cast<const float*>(cos.data), a.cos_token = cos.stride[1];
    a.sin = reinterpret_cast<const float*>(sin.data), a.sin_token = sin.stride[1];
    a.cos_batch = cos.size[0] == 1 ? 0 : cos.stride[0];
    a.sin_batch = sin.size[0] == 1 ? 0 : sin.stride[0];
    a.threads = args.threads(threads);
    return a;
}

RopeArgs::Part part_of(const Args& args, const RopeArgs& a, const Array& out, const char* name,
                       int64_t heads, int64_t turned) {
    const int64_t sizes[] = {a.B, a.T, heads, a.D};
    static const char* const letters[] = {"B", "T", "heads", "D"};
    for (int i = 0; i < 4; ++i) args.size(out, name, i, sizes[i], letters[i]);
    if (out.dtype != a.dtype) args.reject(name, "of the input's dtype", "another");
    args.writable(out, name);
    return {heads, turned < heads ? turned : heads, heads_of(out)};
}

void rope(const py::object& x_, const py::object& cos, const py::object& sin, bool interleaved,
          int64_t rope_heads, const py::object& out_, int threads) {
    const Args args("rope");
    const Array x = args.read(x_, "x", 4), out = args.read(out_, "out", 4);
    RopeArgs a = rope_of(args, x.size[0], x.size[1], x.size[3], cos, sin, interleaved, threads);
    a.x = heads_of(x), a.dtype = x.dtype, a.parts = 1;
    if (rope_heads < 0) args.reject("rope_heads", ">= 0", std::to_string(rope_heads));
    a.part[0] = part_of(args, a, out, "out", x.size[2], rope_heads);
    if (x.empty()) return;
    py::gil_scoped_release release;
    current().rope(a);
}

// qkv [B, T, (Hq + 2 Hkv) D]; the outputs [B, T, Hq or Hkv, D].
void qkv_rope(const py::object& qkv_, const py::object& cos, const py::object& sin,
              bool interleaved, int64_t rope_heads, const py::object& q_, const py::object& k_,
              const py::object& v_, int threads) {
    const Args args("qkv_rope");
    const Array qkv = args.read(qkv_, "qkv", 3);
    const Array q = args.read(q_, "q", 4), k = args.read(k_, "k", 4), v = args.read(v_, "v", 4);
    RopeArgs a = rope_of(args, qkv.size[0], qkv.size[1], q.size[3], cos, sin, interleaved, threads);
    args.size(qkv, "qkv", 2, (q.size[2] + 2 * k.size[2]) * a.D, "(Hq + 2 Hkv) D");
    a.x = {qkv.data, qkv.stride[0], qkv.stride[1], a.D}, a.dtype = qkv.dtype, a.parts = 3;
    if (rope_heads < 0) args.reject("rope_heads", ">= 0", std::to_string(rope_heads));
    a.part[0] = part_of(args, a, q, "q", q.size[2], rope_heads);
    a.part[1] = part_of(args, a, k, "k", k.size[2], rope_heads);
    a.part[2] = part_of(args, a, v, "v", k.size[2], 0);
    if (qkv.empty()) return;
    py::gil_scoped_release release;
    current().rope(a);
}

void route_topk(const py::object& logits_, bool renormalize, const py::object& weights_,
                const py::object& ids_, int threads) {
    const Args args("route_topk");
    const Array logits = args.read(logits_, "logits", 2, false);
    const Array weights = args.read(weights_, "weights", 2);
    const Array ids = args.read(ids_, "ids", 2, true, Args::Takes::ids);
    RouteArgs a{};
    a.T = logits.size[0], a.E = logits.size[1], a.K = weights.size[1];
    if (a.K < 1 || a.K > a.E)
        args.reject("top_k", "in 1..E = 1.." + std::to_string(a.E), std::to_string(a.K));
    args.dtype(weights, "weights", Dtype::f32, "float32");
    for (const Array* each : {&weights, &ids}) {
        const char* name = each == &ids ? "ids" : "weights";
        args.size(*each, name, 0, a.T, "T");
        args.size(*each, name, 1, a.K, "K");
        if (a.T > 1 && each->stride[0] != a.K) args.reject(name, "contiguous", "strides");
    }
    a.logits = logits.data, a.dtype = logits.dtype;
    a.row = logits.stride[0], a.column = logits.stride[1];
    a.renormalize = renormalize;
    a.weights = reinterpret_cast<float*>(weights.data);
    a.ids = reinterpret_cast<int32_t*>(ids.data);
    a.threads = args.threads(threads);
    if (a.T == 0) return;
    py::gil_scoped_release release;
    current().route_topk(a);
}

Positions positions_of(const Args& args, const py::object& value, int64_t B, int64_t T) {
    const Array p = args.read(value, "positions", 2, false, Args::Takes::positions);
    args.size(p, "positions", 0, B, "B");
    args.size(p, "positions", 1, T, "T");
    return {reinterpret_cast<const int64_t*>(p.data), p.stride[0], p.stride[1]};
}

void all_sizes(const Args& args, const Array& a, const char* name, const Array& as) {
    static const char* const letters[] = {"B", "S or T", "heads", "D"};
    for (int i = 0; i < 4; ++i) args.size(a, name, i, as.size[i], letters[i]);
    same_dtype(args, a, name, as, "the other");
}

void kv_write(const py::object& k_cache_, const py::object& v_cache_, const py::object& k_,
              const py::object& v_, const py::object& positions, int threads) {
    const Args args("kv_write_");
    const Array k_cache = args.read(k_cache_, "k_cache", 4), k = args.read(k_, "k", 4);
    const Array v_cache = args.read(v_cache_, "v_cache", 4), v = args.read(v_, "v", 4);
    all_sizes(args, v_cache, "v_cache", k_cache);
    all_sizes(args, v, "v", k);
    same_dtype(args, k, "k", k_cache, "k_cache");
    args.size(k, "k", 0, k_cache.size[0], "B");
    args.size(k, "k", 2, k_cache.size[2], "Hkv");
    args.size(k, "k", 3, k_cache.size[3], "D");
    args.writable(k_cache, "k_cache");
    args.writable(v_cache, "v_cache");
    KvWriteArgs a{};
    a.B = k.size[0], a.T = k.size[1], a.S = k_cache.size[1], a.Hn = k.size[2], a.D = k.size[3];
    a.positions = positions_of(args, positions, a.B, a.T);
    a.cache[0] = heads_of(k_cache), a.cache[1] = heads_of(v_cache);
    a.from[0] = heads_of(k), a.from[1] = heads_of(v);
    a.element = k.dtype == Dtype::f32 ? 4 : 2;
    a.threads = args.threads(threads);
    if (k.empty() || a.S == 0) return;
    py::gil_scoped_release release;
    current().kv_write(a);
}

void attention_decode(const py::object& q_, const py::object& k_cache_,
                      const py::object& v_cache_, const py::object& positions, int64_t window,
                      double scale, const py::object& k_scale_, const py::object& v_scale_,
                      const py::object& out_, int threads) {
    const Args args("attention_decode");
    const auto stored = k_scale_.is_none() ? Args::Takes::floats : Args::Takes::weights;
    const Array q = args.read(q_, "q", 4), k = args.read(k_cache_, "k_cache", 4, true, stored);
    const Array v = args.read(v_cache_, "v_cache", 4, true, stored), out = args.read(out_, "out", 4);
    all_sizes(args, v, "v_cache", k);
    all_sizes(args, out, "out", q);
    DecodeArgs a{};
    if (k_scale_.is_none()) {
        same_dtype(args, k, "k_cache", q, "q");
    } else {
        if (k.dtype != Dtype::i8 || v.dtype != Dtype::i8)
            args.reject("k_cache", "int8, as v_cache, where there are scales", "another type");
        const Array ks = args.read(k_scale_, "k_scale", 4), vs = args.read(v_scale_, "v_scale", 4);
        const char* const dims[] = {"B", "S", "Hkv", "1"};
        for (int i = 0; i < 4; ++i) args.size(ks, "k_scale", i, i < 3 ? k.size[i] : 1, dims[i]);
        all_sizes(args, vs, "v_scale", ks);
        if (ks.dtype != Dtype::f32 || vs.dtype != Dtype::f32)
            args.reject("k_scale", "float32, as v_scale", "another type");
        a.k_scale = heads_of(ks), a.v_scale = heads_of(vs);
    }
    args.size(k, "k_cache", 0, q.size[0], "B");
    args.size(k, "k_cache", 3, q.size[3], "D");
    a.B = q.size[0], a.T = q.size[1], a.Hq = q.size[2], a.D = q.size[3];
    a.S = k.size[1], a.Hkv = k.size[2], a.window = window;
    if (a.S < 1) args.reject("k_cache", "of S >= 1 slots", k.shape());
    if (a.Hkv < 1 || a.Hq % a.Hkv)
        args.reject("q", "of a multiple of Hkv = " + std::to_string(a.Hkv) + " heads", q.shape());
    if (window < 0) args.reject("window", ">= 0", std::to_string(window));
    args.writable(out, "out");
    a.positions = positions_of(args, positions, a.B, a.T);
    a.q = heads_of(q), a.k = heads_of(k), a.v = heads_of(v), a.out = heads_of(out);
    a.dtype = q.dtype, a.scale = static_cast<float>(scale);
    a.threads = args.threads(threads);
    if (q.empty()) return;
    py::gil_scoped_release release;
    current().attention_decode(a);
}
