// A stand-in for the CUDA driver, built by test_cuda.py as libcuda.so.1: it "launches" the kernels,
// compiled as plain C++, on the CPU. So the launcher's calls, the bytes of the parameters and the
// kernels' arithmetic, indexing and waiting are tested where there is no GPU.
#include <dlfcn.h>
#include "emulated_gpu.h"
#include "flow_step.cu"
#include "moe_decode.cu"

static void* context = nullptr;
static int loads = 0;

static void note(const char* format, u64 a = 0, u64 b = 0, u64 c = 0, u64 d = 0) {
    FILE* log = fopen(getenv("EMULATED_CUDA_LOG"), "a");
    fprintf(log, format, a, b, c, d);
    fclose(log);
}

extern "C" {
void emulated_lose(int arrivals) { gpu::lost = arrivals; }
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
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** params, void**) {
    note("launch %llu %llu %llu %llu\n", (u64)gx * gy * gz, (u64)bx * by * bz, shared, (u64)stream);
    for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < bx; ++threadIdx.x)
            ((void (*)(const FlowStepParams))function)(*(const FlowStepParams*)params[0]);
    return 0;
}
int cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, void* stream,
                              void** params) {
    note("cooperative %llu %llu %llu %llu\n", (u64)gx * gy * gz, (u64)bx * by * bz, shared,
         (u64)stream);
    const MoeDecodeParams p = *(const MoeDecodeParams*)params[0];
    gpu::run(gx, bx, shared, [=] { ((void (*)(const MoeDecodeParams))function)(p); });
    return 0;
}
int cuGetProcAddress_v2(const char* name, void** found, int, u64, int* status) {
    void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *found = dlsym(self, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
}
