// A libcuda.so.1 for tests: memory of the host, one queue that runs when somebody waits, graphs
// that are recorded closures, kernels through the shim. Device memory begins as what is no number.
//
// MOCK_CUDA_INIT: what cuInit answers; MOCK_CUDA_DEVICES: how many there are;
// MOCK_CUDA_CAPABILITY: 90 for 9.0; MOCK_CUDA_REFUSES_KERNELS: the fatbin does not load.
#define VERDICT_SHIM
#include "kernels.cu"

#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace {

using Work = std::function<void()>;
using Address = unsigned long long;

enum Status { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, NOT_FOUND = 500,
              CAPTURING = 900 };
enum Attribute { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

std::vector<Work> queue;
std::vector<Work>* recording = nullptr;
std::map<Address, size_t> allocated;
size_t graphs_launched = 0;

int setting(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value ? atoi(value) : otherwise;
}

void submit(Work work) { (recording ? *recording : queue).push_back(std::move(work)); }

void drain() {
    std::vector<Work> works;
    works.swap(queue);
    for (auto& work : works) work();
}

// A range of device memory must lie in one allocation.
bool inside(Address at, size_t bytes) {
    auto next = allocated.upper_bound(at);
    if (next == allocated.begin()) return false;
    auto [base, size] = *std::prev(next);
    return at + bytes <= base + size;
}

template <class... A, size_t... I>
Work bound(void (*kernel)(A...), void** parameters, std::index_sequence<I...>) {
    std::tuple<A...> values{*static_cast<A*>(parameters[I])...};
    return [kernel, values] { std::apply(kernel, values); };
}

struct Kernel {
    std::string name;
    std::function<Work(void**)> bind;
    int shared = 48 << 10;
};

template <class... A>
Kernel entry(const char* name, void (*kernel)(A...)) {
    return {name, [kernel](void** parameters) { return bound(kernel, parameters, std::index_sequence_for<A...>{}); }};
}

#define ENTRY(name) entry(#name, name)
std::vector<Kernel> kernels = {
    ENTRY(embed), ENTRY(add_norm), ENTRY(select_answers), ENTRY(rotate_32), ENTRY(rotate_64), ENTRY(rotate_128),
    ENTRY(attention_32), ENTRY(attention_64), ENTRY(attention_128), ENTRY(silu_mul), ENTRY(grade_logits),
    ENTRY(vocabulary), ENTRY(combine)};

}  // namespace

extern "C" {

// For the other library, so that its products keep their place among the kernels.
void mock_submit(void (*run)(void*), void* with) {
    submit([run, with] { run(with); });
}
// How often a graph was launched.
size_t mock_graph_launches() { return graphs_launched; }

int cuInit(unsigned) { return setting("MOCK_CUDA_INIT", SUCCESS); }
int cuDriverGetVersion(int* version) { *version = 13000; return SUCCESS; }
int cuGetErrorString(int status, const char** text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == INVALID_IMAGE ? "device kernel image is invalid" : "an error of the mock";
    return SUCCESS;
}
int cuGetErrorName(int, const char** text) { *text = "MOCK_ERROR"; return SUCCESS; }
int cuDeviceGetCount(int* count) { *count = setting("MOCK_CUDA_DEVICES", 1); return SUCCESS; }
int cuDeviceGet(int* device, int) { *device = 0; return SUCCESS; }
int cuDeviceGetName(char* name, int length, int) { snprintf(name, length, "Mock GPU"); return SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = setting("MOCK_CUDA_CAPABILITY", 90);
    *value = attribute == CAPABILITY_MAJOR ? capability / 10 : attribute == CAPABILITY_MINOR ? capability % 10 : 0;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) { *context = &queue; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void** context) { *context = &queue; return SUCCESS; }
int cuCtxSetCurrent(void*) { return SUCCESS; }
int cuCtxSynchronize() { drain(); return SUCCESS; }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0, *greatest = -5; return SUCCESS; }

int cuStreamCreateWithPriority(void** stream, unsigned, int) { *stream = malloc(1); return SUCCESS; }
int cuStreamDestroy_v2(void* stream) { drain(); free(stream); return SUCCESS; }
int cuStreamSynchronize(void*) {
    if (recording) return CAPTURING;
    drain();
    return SUCCESS;
}

int cuMemAlloc_v2(Address* at, size_t bytes) {
    if (recording) return CAPTURING;
    if (bytes > static_cast<size_t>(setting("MOCK_CUDA_MEMORY_MIB", 4096)) << 20) return OUT_OF_MEMORY;
    void* memory = malloc(bytes);
    memset(memory, 0xff, bytes);
    *at = reinterpret_cast<Address>(memory);
    allocated[*at] = bytes;
    return SUCCESS;
}
int cuMemFree_v2(Address at) {
    if (!queue.empty()) shim::fail("memory is freed while work waits");
    if (allocated.erase(at) != 1) return INVALID_VALUE;
    free(reinterpret_cast<void*>(at));
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *free = *total = static_cast<size_t>(setting("MOCK_CUDA_MEMORY_MIB", 4096)) << 20;
    return SUCCESS;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) { *at = malloc(bytes); return SUCCESS; }
int cuMemFreeHost(void* at) { free(at); return SUCCESS; }
int cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    if (recording) return CAPTURING;
    if (!inside(to, bytes)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void*) {
    if (!inside(to, bytes)) return INVALID_VALUE;
    submit([=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void*) {
    if (!inside(from, bytes)) return INVALID_VALUE;
    submit([=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != 0xba55ed50 || setting("MOCK_CUDA_REFUSES_KERNELS", 0)) return INVALID_IMAGE;
    *module = &kernels;
    return SUCCESS;
}
int cuModuleUnload(void*) { return SUCCESS; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    for (auto& kernel : kernels) {
        if (kernel.name == name) {
            *function = &kernel;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}
int cuFuncSetAttribute(void* function, int, int value) {
    static_cast<Kernel*>(function)->shared = value;
    return SUCCESS;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void*, void** parameters, void**) {
    auto* kernel = static_cast<Kernel*>(function);
    if (x == 0 || y == 0 || z == 0 || y > 65535 || static_cast<int>(shared) > kernel->shared) return INVALID_VALUE;
    Work body = kernel->bind(parameters);
    submit([=] { shim::launch({x, y, z}, {threads, threads_y, threads_z}, shared, body); });
    return SUCCESS;
}

int cuStreamBeginCapture_v2(void*, int) {
    recording = new std::vector<Work>;
    return SUCCESS;
}
int cuStreamEndCapture(void*, void** graph) {
    *graph = recording;
    recording = nullptr;
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long) { *ready = graph; return SUCCESS; }
int cuGraphLaunch(void* ready, void*) {
    ++graphs_launched;
    for (auto& work : *static_cast<std::vector<Work>*>(ready)) submit(work);
    return SUCCESS;
}
int cuGraphExecDestroy(void*) { return SUCCESS; }
int cuGraphDestroy(void* graph) { delete static_cast<std::vector<Work>*>(graph); return SUCCESS; }
}
