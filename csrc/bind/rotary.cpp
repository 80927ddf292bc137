#include "bind/args.h"
#include "bind/register.h"
#include "cpu/rotary/rope.h"

namespace mingcore {
namespace {

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
                       int64_t heads, int64_t rotated) {
    const int64_t sizes[] = {a.B, a.T, heads, a.D};
    static const char* const letters[] = {"B", "T", "heads", "D"};
    for (int i = 0; i < 4; ++i) args.size(out, name, i, sizes[i], letters[i]);
    if (out.dtype != a.dtype) args.reject(name, "of the input's dtype", "another");
    args.writable(out, name);
    return {heads, rotated < heads ? rotated : heads, heads_of(out)};
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

}  // namespace

void register_rotary(py::module_& m) {
    m.def("rope", &rope);
    m.def("qkv_rope", &qkv_rope);
}

}  // namespace mingcore
