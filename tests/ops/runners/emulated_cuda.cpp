// A fake CUDA driver, built by emulated.py as libcuda.so.1: it "launches" the kernels, compiled as
// plain C++, on the CPU. So the launcher's calls, the bytes of the parameters and the kernels'
// arithmetic, indexing and synchronisation are tested where there is no GPU.
#include <dlfcn.h>
#include <string>
#include "emulated_hopper.h"

#include "lib/cp_async.cuh"
#include "lib/grid_barrier.cuh"
#include "lib/mbarrier.cuh"
#include "lib/mma.cuh"
#include "lib/vector.cuh"
#include "lib/warpgroup.cuh"
#include "lib/wgmma.cuh"

#include "flow/flow_step.cu"
namespace decode {
#include "moe/moe_decode.cu"
}
namespace prefill {
#include "moe/moe_prefill.cu"
}
#include "lib/skinny_gemm.cuh"
#include "spectrum/overlap_rows.cuh"
namespace overlap {
#include "spectrum/overlap_add.cu"
}
namespace head {
#include "spectrum/spectrum_head.cu"
}
namespace frames {
#include "spectrum/frame_embed.cu"
}
namespace conv {
#include "conv/causal_conv.cu"
}

static void* context = nullptr;
static int loads = 0;
static std::map<void*, std::string> names;  // of kernels

static void note(const char* format, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0) {
    FILE* log = fopen(getenv("EMULATED_CUDA_LOG"), "a");
    fprintf(log, format, a, b, c, d);
    fclose(log);
}

template <class Params>
static void on_fibers(void* function, unsigned blocks, unsigned threads, unsigned shared,
                      void** params) {
    const Params p = *(const Params*)params[0];
    gpu::run(blocks, threads, shared, [&] { ((void (*)(const Params))function)(p); });
}
static void launch(void* function, unsigned gx, unsigned bx, unsigned shared, void** params) {
    const std::string name = names[function];
    const auto is = [&](const char* start) { return name.rfind(start, 0) == 0; };
    if (is("moe_decode"))
        return on_fibers<decode::MoeDecodeParams>(function, gx, bx, shared, params);
    if (is("moe_prefill_sort"))
        return on_fibers<prefill::MoeSortParams>(function, gx, bx, shared, params);
    if (is("moe_prefill_sum"))
        return on_fibers<prefill::MoeSumParams>(function, gx, bx, shared, params);
    if (is("moe_prefill"))
        return on_fibers<prefill::MoePrefillParams>(function, gx, bx, shared, params);
    if (is("overlap_add") || is("spectrum_inverse"))
        return on_fibers<OverlapParams>(function, gx, bx, shared, params);
    if (is("spectrum")) return on_fibers<head::SpectrumParams>(function, gx, bx, shared, params);
    if (is("frame_embed"))
        return on_fibers<frames::FrameEmbedParams>(function, gx, bx, shared, params);
    if (is("causal_conv"))
        return on_fibers<conv::CausalConvParams>(function, gx, bx, shared, params);
    for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)  // flow_step, whose threads are alone
        for (threadIdx.x = 0; threadIdx.x < bx; ++threadIdx.x)
            ((void (*)(const FlowStepParams))function)(*(const FlowStepParams*)params[0]);
}

extern "C" {
void emulated_lose(int arrivals) { gpu::lost = arrivals; }
void emulated_watch(u64 begin, u64 bytes, u64 reach_bytes) {
    gpu::memory = {begin, begin + bytes, reach_bytes / 16};
}
u64 emulated_missed_bytes() { return gpu::memory.missed * 16; }
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return 0;
}
int cuCtxGetCurrent(void** current) {
    *current = context;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** made, int) {
    *made = (void*)0xc0;
    note("retain\n");
    return 0;
}
int cuCtxSetCurrent(void* made) {
    context = made;
    note("set\n");
    return 0;
}
int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*,
                      unsigned) {
    *library = (void*)0x11;
    note("load %llu\n", *(const unsigned*)code == 0x464c457f);  // a cubin is an ELF file
    return ++loads > 1;
}
int cuLibraryGetKernel(void** kernel, void*, const char* name) {
    *kernel = dlsym(RTLD_DEFAULT, name);
    if (!*kernel) {
        void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        *kernel = self ? dlsym(self, name) : nullptr;
    }
    names[*kernel] = name;
    return *kernel ? 0 : 500;  // CUDA_ERROR_NOT_FOUND
}
int cuKernelGetFunction(void** function, void* kernel) {
    *function = kernel;
    return 0;
}
int cuFuncSetAttribute(void*, int attribute, int value) {
    note("attribute %llu %llu\n", attribute, value);
    return 0;
}
int cuTensorMapEncodeTiled(TensorMap* map, int type, unsigned rank, void* address, const u64* dims,
                           const u64* strides, const unsigned* box, const unsigned* steps,
                           int interleave, int swizzle, int promotion, int fill) {
    const unsigned sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    bool fits = rank == 4 && (u64)address % 16 == 0 && (u64)map % 64 == 0 && !interleave && !fill;
    fits = fits && (swizzle == 0 || (swizzle == 3 && box[0] * sizes[type] <= 128));
    map->word[0] = (u64)address;
    map->word[1] = rank;
    for (unsigned i = 0; fits && i < rank; ++i) {
        fits = dims[i] && box[i] && box[i] <= 256 && steps[i] == 1;
        fits = fits && (i == 0 || (strides[i - 1] % 16 == 0 && strides[i - 1] < 1ull << 40));
        map->word[2 + i] = dims[i];
        if (i) map->word[5 + i] = strides[i - 1];
        map->word[9 + i] = box[i];
    }
    map->word[13] = sizes[type];
    map->word[14] = swizzle == 3;
    note("map %llu\n", fits);
    return !fits;  // CUDA_ERROR_INVALID_VALUE
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** params, void**) {
    note("launch %llu %llu %llu %llu\n", (u64)gx * gy * gz, (u64)bx * by * bz, shared, (u64)stream);
    launch(function, gx, bx, shared, params);
    return 0;
}
int cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, void* stream,
                              void** params) {
    note("cooperative %llu %llu %llu %llu\n", (u64)gx * gy * gz, (u64)bx * by * bz, shared,
         (u64)stream);
    launch(function, gx, bx, shared, params);
    return 0;
}
int cuGetProcAddress_v2(const char* name, void** found, int, u64, int* status) {
    void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    const bool own = !strcmp(name, "cuGetProcAddress");
    *found = dlsym(self, own ? "cuGetProcAddress_v2" : name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
}
