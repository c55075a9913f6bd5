// A libcuda.so.1 for tests: memory of the host, graphs that are recorded closures, kernels through the
// shim. Device memory begins as what is no number. A stream is a queue whose work is done late: some of
// it, on streams in a random order, whenever somebody asks how far an event is; all that is needed when
// somebody waits.
//
// MOCK_CUDA_INIT: what cuInit answers; MOCK_CUDA_DEVICES: how many there are;
// MOCK_CUDA_CAPABILITY: 90 for 9.0; MOCK_CUDA_REFUSES_KERNELS: the fatbin does not load;
// MOCK_CUDA_MEMORY_MIB: how much there is; MOCK_CUDA_NAN_TOKEN: its embedding is no number;
// MOCK_CUDA_FAULT_TOKEN: a kernel that meets it fails; MOCK_CUDA_SEED: another order; MOCK_CUDA_WRONG_PRODUCTS: what is in the names of those of
// our own products whose first number is wrong; MOCK_CUDA_WRONG_IN_TURN: so it is of many rows by one cluster, that are
// finished as they are computed; MOCK_CUDA_FORGETS_SUMS: these forget the first number that they add to;
// MOCK_CUDA_FAULT_KERNEL: a kernel with that in its name fails; MOCK_CUDA_ENDLESS_KERNEL: one that never ends;
// MOCK_CUDA_WAITS_AT_EXIT: the end of the process waits for it.
#define VERDICT_SHIM
#include "kernels.cu"

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <unistd.h>
#include <utility>

namespace {

using Work = std::function<void()>;
using Address = unsigned long long;

enum Status { SUCCESS = 0, LAUNCH_FAILED = 719, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, NOT_FOUND = 500,
              NOT_READY = 600, CAPTURING = 900 };
enum Attribute { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MULTIPROCESSORS = 16, SHARED_OF_MULTIPROCESSOR = 81 };
constexpr int MAX_DYNAMIC_SHARED = 8;  // of a function
enum LaunchAttribute { CLUSTER_DIMENSION = 4, PROGRAMMATIC = 6 };

// As cuLaunchKernelEx has them.
struct Asked {
    int id, reserved;
    union {
        char all[64];
        unsigned cluster[3];
        int early;
    };
};
struct Config {
    unsigned grid[3], block[3], shared;
    void* stream;
    Asked* attributes;
    unsigned count;
};

// An event has happened when as many of its records were passed as were made before somebody asked.
struct Event {
    size_t recorded = 0, passed = 0;
};

// A piece of work that can be done when `ready` says so, if it is there.
struct Item {
    Work work;
    std::function<bool()> ready;
};

struct Stream {
    int priority;
    std::deque<Item> queue;
};

std::set<Stream*> streams;
std::vector<Work>* recording = nullptr;
std::map<Address, size_t> allocated;
size_t used = 0;
// What is told at the end: graphs launched, kernels by the priority of their stream, events that were
// asked for before they had happened, streams that had to wait for another's, kernels that may begin early, products of
// our own.
size_t graphs_launched = 0, too_early = 0, waits = 0, early = 0, gated_of_192 = 0;
std::map<std::string, size_t> kernels_by_name;
std::map<int, size_t> kernels_by_priority;
std::mt19937 order;

int setting(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value ? atoi(value) : otherwise;
}

void submit(void* stream, Work work) {
    if (recording) recording->push_back(std::move(work));
    else static_cast<Stream*>(stream)->queue.push_back({std::move(work), nullptr});
}

// Does one piece of work of some stream; false if there is none that can be done.
bool step() {
    std::vector<Stream*> able;
    for (Stream* stream : streams)
        if (!stream->queue.empty() && (!stream->queue.front().ready || stream->queue.front().ready())) able.push_back(stream);
    if (able.empty()) return false;
    Stream* stream = able[order() % able.size()];
    Work work = std::move(stream->queue.front().work);
    stream->queue.pop_front();
    work();
    return true;
}

void run_until(std::function<bool()> done) {
    while (!done())
        if (!step()) shim::fail("streams wait for each other");
}

bool is_idle() {
    for (Stream* stream : streams)
        if (!stream->queue.empty()) return false;
    return true;
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

void report() {
    printf("mock: %zu graphs, %zu urgent kernels, %zu patient kernels, %zu events too early, %zu waits, %zu early kernels, "
           "%zu products of few rows, %zu products of many rows, %zu gated of few, %zu gated of many, %zu rotations, "
           "%zu tall products, %zu gated of tall, %zu gated of 192, %zu attentions of warpgroups\n",
           graphs_launched, kernels_by_priority[-5], kernels_by_priority[0], too_early, waits, early, kernels_by_name["few_rows"],
           kernels_by_name["many_rows"], kernels_by_name["few_rows_gated"], kernels_by_name["many_rows_gated"],
           kernels_by_name["rotate"], kernels_by_name["tall_rows"], kernels_by_name["tall_rows_gated"], gated_of_192,
           kernels_by_name["attention_hopper"]);
}

// A kernel runs that never ends: a driver may wait for it when the process ends.
std::atomic<bool> never_ends{false};
void wait_at_exit() {
    while (never_ends) pause();
}

// What calls say once a kernel has failed: it stays so.
bool faulted = false;
int state() { return faulted ? LAUNCH_FAILED : SUCCESS; }

// One sequence's numbers are none from the start; or it is a fault of the device.
void embed_with_nan(const int* plan, const bf16* table, float* residual, int hidden) {
    embed(plan, table, residual, hidden);
    static const int bad = setting("MOCK_CUDA_NAN_TOKEN", -1), fault = setting("MOCK_CUDA_FAULT_TOKEN", -1);
    int row = blockIdx.x;
    if (row < plan[ROWS] && list<int>(plan, TOKENS)[row] == fault) faulted = true;
    if (threadIdx.x == 0 && row < plan[ROWS] && list<int>(plan, TOKENS)[row] == bad) residual[static_cast<size_t>(row) * hidden] = NAN;
}

#define ENTRY(name) entry(#name, name)
std::vector<Kernel> kernels = {
    entry("embed", embed_with_nan), ENTRY(add_norm), ENTRY(add_norm_held), ENTRY(select_answers), ENTRY(rotate_32), ENTRY(rotate_64), ENTRY(rotate_128),
    ENTRY(attention_32), ENTRY(attention_64), ENTRY(attention_128), ENTRY(attention_hopper_128), ENTRY(attention_row_32), ENTRY(attention_row_64),
    ENTRY(attention_row_128), ENTRY(silu_mul), ENTRY(grade_logits),
    ENTRY(vocabulary), ENTRY(combine), ENTRY(repeat_rows), ENTRY(count_differences), ENTRY(few_rows_8), ENTRY(few_rows_16), ENTRY(few_rows_32), ENTRY(few_rows_48),
    ENTRY(few_rows_64), ENTRY(few_rows_96), ENTRY(few_rows_128), ENTRY(few_rows_192), ENTRY(few_rows_gated_16),
    ENTRY(few_rows_gated_32), ENTRY(few_rows_gated_48), ENTRY(few_rows_gated_64), ENTRY(few_rows_gated_96),
    ENTRY(few_rows_gated_128), ENTRY(few_rows_gated_192), ENTRY(many_rows_64), ENTRY(many_rows_128),
    ENTRY(many_rows_256), ENTRY(few_rows_turned_64), ENTRY(few_rows_turned_128), ENTRY(many_rows_turned_128), ENTRY(many_rows_turned_256), ENTRY(many_rows_gated_64), ENTRY(many_rows_gated_128),
    ENTRY(many_rows_gated_192), ENTRY(many_rows_gated_256),
    ENTRY(tall_rows_32), ENTRY(tall_rows_48), ENTRY(tall_rows_64), ENTRY(tall_rows_96), ENTRY(tall_rows_gated_32), ENTRY(tall_rows_gated_48), ENTRY(tall_rows_gated_64), ENTRY(tall_rows_gated_96)};

}  // namespace

extern "C" {

// For the other library, so that its products keep their place among the kernels.
void mock_submit(void (*run)(void*), void* with, void* stream) {
    submit(stream, [run, with] { run(with); });
}

int cuInit(unsigned) {
    order.seed(setting("MOCK_CUDA_SEED", 1));
    static const int told = atexit(report), waits = setting("MOCK_CUDA_WAITS_AT_EXIT", 0) ? atexit(wait_at_exit) : 0;
    (void)told, (void)waits;
    return setting("MOCK_CUDA_INIT", SUCCESS);
}
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
    switch (attribute) {
        case CAPABILITY_MAJOR: *value = capability / 10; break;
        case CAPABILITY_MINOR: *value = capability % 10; break;
        case SHARED_OF_MULTIPROCESSOR: *value = (capability >= 90 ? 228 : 100) << 10; break;
        // Few, so that passes have more blocks than they hold at once, and fewer.
        case MULTIPROCESSORS: *value = 4; break;
        default: *value = 0;
    }
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) { *context = &streams; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void** context) { *context = &streams; return SUCCESS; }
int cuCtxSetCurrent(void*) { return SUCCESS; }
int cuCtxSynchronize() { run_until(is_idle); return state(); }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0, *greatest = -5; return SUCCESS; }

int cuStreamCreateWithPriority(void** stream, unsigned, int priority) {
    auto* made = new Stream{priority, {}};
    streams.insert(made);
    *stream = made;
    return SUCCESS;
}
int cuStreamDestroy_v2(void* stream) {
    auto* gone = static_cast<Stream*>(stream);
    if (!gone->queue.empty()) shim::fail("a stream is destroyed while work waits");
    streams.erase(gone);
    delete gone;
    return SUCCESS;
}
int cuStreamSynchronize(void* stream) {
    if (recording) return CAPTURING;
    run_until([=] { return static_cast<Stream*>(stream)->queue.empty(); });
    return state();
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    auto* awaited = static_cast<Event*>(event);
    size_t records = awaited->recorded;
    ++waits;
    static_cast<Stream*>(stream)->queue.push_back({[] {}, [=] { return awaited->passed >= records; }});
    return SUCCESS;
}

int cuEventCreate(void** event, unsigned) { *event = new Event; return SUCCESS; }
int cuEventDestroy_v2(void* event) { delete static_cast<Event*>(event); return SUCCESS; }
int cuEventRecord(void* event, void* stream) {
    auto* recorded = static_cast<Event*>(event);
    ++recorded->recorded;
    submit(stream, [=] { ++recorded->passed; });
    return SUCCESS;
}
int cuEventQuery(void* event) {
    auto* asked = static_cast<Event*>(event);
    for (int i = order() % 40; i > 0; --i) step();
    if (asked->passed == asked->recorded) return state();
    ++too_early;
    return NOT_READY;
}
int cuEventSynchronize(void* event) {
    auto* asked = static_cast<Event*>(event);
    run_until([=] { return asked->passed == asked->recorded; });
    return state();
}

int cuMemAlloc_v2(Address* at, size_t bytes) {
    if (recording) return CAPTURING;
    if (used + bytes > static_cast<size_t>(setting("MOCK_CUDA_MEMORY_MIB", 4096)) << 20) return OUT_OF_MEMORY;
    used += bytes;
    void* memory = malloc(bytes);
    memset(memory, 0xff, bytes);
    *at = reinterpret_cast<Address>(memory);
    allocated[*at] = bytes;
    return SUCCESS;
}
int cuMemFree_v2(Address at) {
    if (!is_idle()) shim::fail("memory is freed while work waits");
    if (allocated.count(at) != 1) return INVALID_VALUE;
    used -= allocated[at];
    allocated.erase(at);
    free(reinterpret_cast<void*>(at));
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = static_cast<size_t>(setting("MOCK_CUDA_MEMORY_MIB", 4096)) << 20;
    *free = *total - used;
    return SUCCESS;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned) { *at = malloc(bytes); return SUCCESS; }
int cuMemFreeHost(void* at) {
    if (!is_idle()) shim::fail("pinned memory is freed while work waits");
    free(at);
    return SUCCESS;
}
int cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    if (recording) return CAPTURING;
    if (!inside(to, bytes)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    if (!inside(to, bytes)) return INVALID_VALUE;
    if (faulted) return LAUNCH_FAILED;
    submit(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    if (!inside(from, bytes)) return INVALID_VALUE;
    submit(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
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
int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute == MAX_DYNAMIC_SHARED) static_cast<Kernel*>(function)->shared = value;
    return SUCCESS;
}
int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void**) {
    auto* kernel = static_cast<Kernel*>(function);
    auto [x, y, z] = config->grid;
    Dim grid{x, y, z}, block{config->block[0], config->block[1], config->block[2]};
    size_t shared = config->shared;
    unsigned cluster = 1;
    bool programmatic = false;
    for (unsigned i = 0; i < config->count; ++i) {
        const Asked& asked = config->attributes[i];
        if (asked.id == CLUSTER_DIMENSION) cluster = asked.cluster[0];
        else if (asked.id == PROGRAMMATIC) programmatic = asked.early;
        else return INVALID_VALUE;
    }
    bool whole = x > 0 && y > 0 && y <= 65535 && z == 1 && cluster > 0 && x % cluster == 0;
    if (!whole || static_cast<int>(shared) > kernel->shared) return INVALID_VALUE;
    Work body = kernel->bind(parameters);
    int priority = static_cast<Stream*>(config->stream)->priority;
    // Without their widths.
    std::string name = kernel->name.substr(0, kernel->name.find_last_not_of("_0123456789") + 1);
    uint16_t* wrong = nullptr;
    const char* wrong_name = getenv("MOCK_CUDA_WRONG_PRODUCTS");
    bool multiplies = name.find("few_rows") == 0 || name.find("tall_rows") == 0 || name.find("many_rows") == 0;
    if (wrong_name && multiplies && name.find(wrong_name) != name.npos) memcpy(&wrong, parameters[2], sizeof wrong);
    bool in_turn = (name == "many_rows_gated" || name == "many_rows_turned") && grid.x == cluster;
    if (in_turn && getenv("MOCK_CUDA_WRONG_IN_TURN")) memcpy(&wrong, parameters[2], sizeof wrong);
    float* forgotten = nullptr;
    bool adds = multiplies && name.find("gated") == name.npos && name.find("turned") == name.npos && static_cast<Product*>(parameters[3])->into == INTO_SUM;
    if (adds && getenv("MOCK_CUDA_FORGETS_SUMS")) memcpy(&forgotten, parameters[2], sizeof forgotten);
    const char* fault_name = getenv("MOCK_CUDA_FAULT_KERNEL");
    bool faults = fault_name && name.find(fault_name) != name.npos;
    const char* endless_name = getenv("MOCK_CUDA_ENDLESS_KERNEL");
    bool endless = endless_name && name.find(endless_name) != name.npos;
    submit(config->stream, [=] {
        if (endless) never_ends = true;
        while (endless) pause();
        faulted |= faults;
        ++kernels_by_priority[priority];
        ++kernels_by_name[name], early += programmatic;
        gated_of_192 += kernel->name == "many_rows_gated_192";
        if (forgotten) *forgotten = 0.0f;
        shim::launch(grid, block, shared, body, cluster, programmatic);
        if (wrong) *wrong ^= 1 << 8;
    });
    return SUCCESS;
}
int cuOccupancyMaxActiveClusters(int* count, void*, const Config*) { *count = 6; return SUCCESS; }
int cuTensorMapEncodeTiled(TensorMap* map, int type, unsigned dimensions, void* base, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* tile, const uint32_t* steps, int interleave, int swizzle, int, int fill) {
    constexpr int BF16 = 9, OF_128_BYTES = 3;
    bool ours = type == BF16 && (dimensions == 2 || dimensions == 4) && interleave == 0 && swizzle == OF_128_BYTES && fill == 0;
    for (unsigned i = 0; i < dimensions; ++i) ours &= steps[i] == 1;
    size_t end = sizes[0] * 2;
    for (unsigned i = 1; i < dimensions; ++i) end += (sizes[i] - 1) * strides[i - 1];
    bool there = inside(reinterpret_cast<Address>(base), end);
    bool fits = dimensions == 2 ? shim::encode(*map, base, sizes[0], sizes[1], strides[0], tile[0], tile[1])
                                : shim::encode_panels(*map, base, sizes, strides, tile);
    return ours && there && fits ? SUCCESS : INVALID_VALUE;
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
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long) {
    if (setting("MOCK_CUDA_REFUSES_GRAPHS", 0)) return OUT_OF_MEMORY;
    *ready = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph));
    return SUCCESS;
}
int cuGraphLaunch(void* ready, void* stream) {
    ++graphs_launched;
    for (auto& work : *static_cast<std::vector<Work>*>(ready)) submit(stream, work);
    return SUCCESS;
}
int cuGraphExecDestroy(void* ready) { delete static_cast<std::vector<Work>*>(ready); return SUCCESS; }
int cuGraphDestroy(void* graph) { delete static_cast<std::vector<Work>*>(graph); return SUCCESS; }
}
