#include "bind/args.h"
#include "bind/register.h"
#include "cpu/probe/read_probe.h"

namespace mingcore {
namespace {

uint32_t read_probe(uintptr_t data, int64_t bytes, int threads, int streams, int64_t ahead) {
    const Args args("read_probe");
    if (!data) args.reject("data", "an address", "0");
    if (bytes < 0) args.reject("bytes", ">= 0", std::to_string(bytes));
    args.threads(threads);
    py::gil_scoped_release release;
    return current().read_probe(
        {reinterpret_cast<const void*>(data), bytes, threads, streams, ahead});
}

}  // namespace

void register_probe(py::module_& m) {
    m.def("read_probe", &read_probe, py::arg("data"), py::arg("bytes"), py::arg("threads"),
          py::arg("streams") = 1, py::arg("ahead") = 4096,
          "Read `bytes` of bfloat16 at `data`: the streaming ceiling (testing/roofline.py).");
}

}  // namespace mingcore
