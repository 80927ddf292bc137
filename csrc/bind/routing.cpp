#include "bind/args.h"
#include "bind/register.h"
#include "cpu/routing/route_topk.h"

namespace mingcore {
namespace {

void route_topk(const py::object& logits_, bool renormalize, const py::object& weights_,
                const py::object& ids_, int threads) {
    const Args args("route_topk");
    const Array logits = args.read(logits_, "logits", 2, false);
    const Array weights = args.read(weights_, "weights", 2);
    const Array ids = args.read(ids_, "ids", 2, true, Args::Takes::ids);
    RouteTopkArgs a{};
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

}  // namespace

void register_routing(py::module_& m) { m.def("route_topk", &route_topk); }

}  // namespace mingcore
