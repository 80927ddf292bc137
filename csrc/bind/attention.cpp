#include "bind/args.h"
#include "bind/register.h"
#include "cpu/attention/attention_decode.h"
#include "cpu/attention/kv_write.h"

namespace mingcore {
namespace {

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

void attention_decode(const py::object& q_, const py::object& k_cache_, const py::object& v_cache_,
                      const py::object& positions, int64_t window, double scale,
                      const py::object& k_scale_, const py::object& v_scale_,
                      const py::object& out_, int threads) {
    const Args args("attention_decode");
    const auto stored = k_scale_.is_none() ? Args::Takes::floats : Args::Takes::weights;
    const Array q = args.read(q_, "q", 4), k = args.read(k_cache_, "k_cache", 4, true, stored);
    const Array v = args.read(v_cache_, "v_cache", 4, true, stored),
                out = args.read(out_, "out", 4);
    all_sizes(args, v, "v_cache", k);
    all_sizes(args, out, "out", q);
    AttentionDecodeArgs a{};
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

}  // namespace

void register_attention(py::module_& m) {
    m.def("kv_write", &kv_write);
    m.def("attention_decode", &attention_decode);
}

}  // namespace mingcore
