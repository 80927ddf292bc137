// Dispatch by CPUID when the module is loaded; tests may select another instruction set.
#include "cpu/lib/dispatch.h"

#include <cstring>

#include "cpu/lib/features.h"

#if defined(MC_X86)
#include <cpuid.h>
#endif

#define MC_NAME(result, name, arguments) name,
#define MC_KERNELS(ISA)                                     \
    namespace ISA {                                         \
    MC_OPS(MC_DECLARE)                                      \
    static const Kernels kernels = {#ISA, MC_OPS(MC_NAME)}; \
    }

namespace mingcore {

#if defined(MC_X86)
MC_KERNELS(avx512)
MC_KERNELS(avx2)
#endif
MC_KERNELS(scalar)

const Kernels* const available[] = {
#if defined(MC_X86)
    &avx512::kernels,
    &avx2::kernels,
#endif
    &scalar::kernels,
};
const int available_count = sizeof(available) / sizeof(available[0]);

bool cpu_runs(const Kernels& kernels) {
#if defined(MC_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (!strcmp(kernels.isa, "avx2")) return avx2;
    if (!strcmp(kernels.isa, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return !strcmp(kernels.isa, "scalar");
}

static const Kernels* best() {
    for (const Kernels* k : available)
        if (cpu_runs(*k)) return k;
    return available[available_count - 1];
}

static bool has_vnni(const Kernels& kernels) {
#if defined(MC_X86)
    __builtin_cpu_init();
    if (!strcmp(kernels.isa, "avx512")) return __builtin_cpu_supports("avx512vnni");
#if defined(MC_AVX_VNNI)
    unsigned a = 0, b, c, d;
    if (!strcmp(kernels.isa, "avx2")) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
#endif
#endif
    return false;
}

static bool has_bf16(const Kernels& kernels) {
#if defined(MC_X86)
    unsigned a = 0, b, c, d;
    if (!strcmp(kernels.isa, "avx512"))
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1;
#endif
    return false;
}

static const Kernels* selected = best();
bool cpu_vnni = has_vnni(*selected);
bool cpu_bf16 = has_bf16(*selected);

const Kernels& current() { return *selected; }

bool select_vnni(bool wanted) {
    if (wanted && !has_vnni(*selected)) return false;
    cpu_vnni = wanted;
    return true;
}

bool select_bf16(bool wanted) {
    if (wanted && !has_bf16(*selected)) return false;
    cpu_bf16 = wanted;
    return true;
}

bool select_isa(const char* isa) {
    for (const Kernels* k : available)
        if (!strcmp(k->isa, isa) && cpu_runs(*k)) {
            selected = k;
            cpu_vnni = has_vnni(*k);
            cpu_bf16 = has_bf16(*k);
            return true;
        }
    return false;
}

}  // namespace mingcore
