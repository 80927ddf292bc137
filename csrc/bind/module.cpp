// The Python module `mingcore._cpu`: checks arguments, releases the GIL, calls the kernels of the
// selected ISA. Compiled at the baseline ISA, without PyTorch (see args.h).
#include "bind/args.h"
#include "bind/register.h"
#include "cpu/lib/features.h"
#include "cpu/lib/parallel.h"

using namespace mingcore;

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "mingcore's CPU kernels; called through mingcore.ops";
    register_gemm(m);
    register_activation(m);
    register_norm(m);
    register_rotary(m);
    register_routing(m);
    register_moe(m);
    register_attention(m);
    register_flow(m);
    register_conv(m);
    register_spectrum(m);
    register_probe(m);
    m.def(
        "ask_for_huge_pages",
        [](uintptr_t data, size_t bytes) {
            ask_for_huge_pages(reinterpret_cast<void*>(data), bytes);
        },
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
    m.def("vnni", [] { return cpu_vnni; }, "Whether int8_dyn uses the VNNI instruction.");
    m.def(
        "set_vnni",
        [](bool wanted) {
            if (!select_vnni(wanted))
                fail(std::string("set_vnni: no VNNI here with '") + current().isa + "'");
        },
        "Multiply int8_dyn with or without VNNI until the next set_isa; for tests.");
    m.def("bf16", [] { return cpu_bf16; }, "Whether bf16 is multiplied with bf16 by AVX512-BF16.");
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
