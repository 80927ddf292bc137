// The kernels of every instruction set that this build holds, and the set in use.
#pragma once
#include <cstdint>

#include "ops.def"

namespace mingcore {

#define MC_FORWARD(result, name, arguments) struct arguments;
#define MC_DECLARE(result, name, arguments) result name(const arguments&);
#define MC_POINTER(result, name, arguments) result (*name)(const arguments&);

MC_OPS(MC_FORWARD)

struct Kernels {
    const char* isa;
    MC_OPS(MC_POINTER)
};

// The variants that this build holds, best first, and the one in use.
extern const Kernels* const available[];
extern const int available_count;
bool cpu_runs(const Kernels& kernels);
const Kernels& current();
bool select_isa(const char* isa);  // false: not compiled in, or this CPU cannot run it

// For tests, until the next select_isa; false: not here.
bool select_bf16(bool wanted);
bool select_vnni(bool wanted);

}  // namespace mingcore
