// Every kernel of a process with its times, a line each: begin and end in ns, stream, grid, name. A library that the
// driver loads by itself (CUDA_INJECTION64_PATH names it), by CUPTI's activity records; TRACE_OUT names the file.
//
//     g++ -O2 -fPIC -shared -I CUDA/include -I CUPTI/include trace.cpp -o libtrace.so -L CUPTI/lib64 -l:libcupti.so.13
#include <cupti.h>

#include <cstdio>
#include <cstdlib>

namespace {

FILE* out;

void CUPTIAPI requested(uint8_t** buffer, size_t* size, size_t* records) {
    *size = 8 << 20;
    *buffer = static_cast<uint8_t*>(aligned_alloc(8, *size));
    *records = 0;
}

void CUPTIAPI completed(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
    CUpti_Activity* record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
        const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
        fprintf(out, "%llu %llu %u %d,%d,%d %s\n", static_cast<unsigned long long>(kernel->start),
                static_cast<unsigned long long>(kernel->end), kernel->streamId, kernel->gridX, kernel->gridY, kernel->gridZ,
                kernel->name);
    }
    fflush(out);
    free(buffer);
}

void finish() { cuptiActivityFlushAll(1); }

}  // namespace

extern "C" int InitializeInjection() {
    const char* path = getenv("TRACE_OUT");
    out = fopen(path ? path : "trace.txt", "w");
    if (out == nullptr) return 0;
    cuptiActivityRegisterCallbacks(requested, completed);
    if (cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS) return 0;
    cuptiActivityFlushPeriod(200);
    atexit(finish);
    return 1;
}
