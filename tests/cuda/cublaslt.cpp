// A libcublasLt.so.13 for tests: products of bf16 with sums in float, to bf16, to float, or added to it. Its heuristic proposes an
// algorithm that splits its sums, one whose sums depend on how many rows there are, one of use, a faster one
// that sums the other way round, and for few rows one that sums as the third does
// and refuses some numbers of rows.
//
// For a GPU too (`scripts/kernels.py plain`): there it has one algorithm, a plain kernel, for compute-sanitizer's racecheck, which
// fails where the library's own kernels run.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
#include <vector>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#endif

#ifndef __CUDACC__
extern "C" void mock_submit(void (*)(void*), void*, void*);
#endif

// In functions that are found by their names: of types without a name outside, nvcc would hide them.
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Algorithm {
    uint64_t kind, reserved[7];
};
struct Candidate {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

namespace {

struct Product {
    int transposed;
};
enum Kind { SPLITS = 1, DEPENDS = 2, FIXED = 3, OTHER = 4, FEW = 5 };
constexpr uint64_t FEW_ROWS = 64;
enum { R_32F = 0, R_16BF = 14, SPLITK = 2, REDUCTION = 3, TRANSA = 3, OP_T = 1, NOT_SUPPORTED = 15 };

struct Job {
    Layout w, x, y;
    Kind kind;
    const uint16_t *weights, *rows;
    void* out;
    float kept;
};

#ifdef __CUDACC__
// Sums of products in order, one to a thread.
__global__ void multiply(Job job) {
    size_t output = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, depth = job.w.rows;
    if (output >= job.w.columns) return;
    auto wide = [](uint16_t half) { return __uint_as_float(static_cast<uint32_t>(half) << 16); };
    float sum = 0.0f;
    for (size_t d = 0; d < depth; ++d) sum = fmaf(wide(job.weights[output * depth + d]), wide(job.rows[row * depth + d]), sum);
    size_t at = row * job.w.columns + output;
    if (job.y.type == R_16BF) static_cast<__nv_bfloat16*>(job.out)[at] = __float2bfloat16_rn(sum);
    else static_cast<float*>(job.out)[at] = sum + (job.kept == 0.0f ? 0.0f : job.kept * static_cast<float*>(job.out)[at]);
}

constexpr int CANDIDATES = 1;
constexpr Kind FIRST = FIXED;

int submit(const Job& job, void* stream) {
    dim3 grid((job.w.columns + 127) / 128, job.x.columns);
    multiply<<<grid, 128, 0, static_cast<cudaStream_t>(stream)>>>(job);
    return cudaGetLastError() == cudaSuccess ? 0 : 1;
}
#else
constexpr size_t ROWS = 8, SIDE = 8;

float wide(uint16_t half) {
    uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

typedef float Side __attribute__((vector_size(SIDE * sizeof(float))));

// Sums of some rows, which lie depth by depth, with SIDE outputs' weights, each in order.
__attribute__((target_clones("avx2", "default"))) void sum_side_by_side(float (&sums)[ROWS][SIDE], const float* weights,
                                                                        const std::vector<float>& rows, bool backwards) {
    Side found[ROWS] = {};
    size_t depth = rows.size() / ROWS;
    for (size_t i = 0; i < depth; ++i) {
        size_t d = backwards ? depth - 1 - i : i;
        Side w;
        memcpy(&w, weights + d * SIDE, sizeof w);
#pragma GCC unroll 8
        for (size_t r = 0; r < ROWS; ++r) found[r] += w * rows[d * ROWS + r];
    }
    memcpy(sums, found, sizeof found);
}

void put(const Job& job, size_t at, float sum) {
    if (job.y.type == R_16BF) static_cast<uint16_t*>(job.out)[at] = narrow(sum);
    else static_cast<float*>(job.out)[at] = sum + (job.kept == 0.0f ? 0.0f : job.kept * static_cast<float*>(job.out)[at]);
}

void run(void* with) {
    const Job& job = *static_cast<Job*>(with);
    size_t depth = job.w.rows, outputs = job.w.columns, count = job.x.columns;
    // By depth, so that some outputs are summed side by side.
    size_t blocks = (outputs + SIDE - 1) / SIDE;
    std::vector<float> weights(blocks * SIDE * depth), rows(ROWS * depth);
    for (size_t o = 0; o < outputs; ++o)
        for (size_t d = 0; d < depth; ++d) weights[(o / SIDE * depth + d) * SIDE + o % SIDE] = wide(job.weights[o * depth + d]);
    bool backwards = (job.kind == DEPENDS && count < 100) || job.kind == OTHER;
    // All of them may sum as nobody else does.
    static const bool turned = getenv("MOCK_CUBLASLT_TURNED") != nullptr;
    backwards |= turned;
    float sums[ROWS][SIDE];
    if (job.kind == FIXED) usleep(20);  // so that the others are chosen, where they may be
    for (size_t first = 0; first < count; first += ROWS) {
        size_t here = count - first < ROWS ? count - first : ROWS;
        for (size_t r = 0; r < here; ++r)
            for (size_t d = 0; d < depth; ++d) rows[d * ROWS + r] = wide(job.rows[(first + r) * depth + d]);
        for (size_t block = 0; block < blocks; ++block) {
            sum_side_by_side(sums, &weights[block * SIDE * depth], rows, backwards);
            for (size_t r = 0; r < here; ++r)
                for (size_t o = block * SIDE; o < outputs && o < (block + 1) * SIDE; ++o)
                    put(job, (first + r) * outputs + o, sums[r][o % SIDE]);
        }
    }
}

constexpr int CANDIDATES = OTHER;
constexpr Kind FIRST = SPLITS;

int submit(const Job& job, void* stream) {
    // Kept: a graph may run it again.
    mock_submit(run, new Job(job), stream);
    return 0;
}
#endif

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
int cublasLtCreate(void** handle) { *handle = malloc(1); return 0; }
int cublasLtDestroy(void* handle) { free(handle); return 0; }
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = new Layout{type, rows, columns, stride};
    return 0;
}
int cublasLtMatrixLayoutDestroy(void* layout) { delete static_cast<Layout*>(layout); return 0; }
int cublasLtMatmulDescCreate(void** product, int, int) { *product = new Product{0}; return 0; }
int cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, size_t) {
    if (attribute == TRANSA) memcpy(&static_cast<Product*>(product)->transposed, value, 4);
    return 0;
}
int cublasLtMatmulDescDestroy(void* product) { delete static_cast<Product*>(product); return 0; }
int cublasLtMatmulPreferenceCreate(void** preference) { *preference = malloc(1); return 0; }
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }
int cublasLtMatmulPreferenceDestroy(void* preference) { free(preference); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, Layout* x, void*, void*, void*, int most, Candidate* found, int* count) {
    *count = CANDIDATES == OTHER && x->columns <= FEW_ROWS ? FEW : CANDIDATES;
    if (*count > most) *count = most;
    for (int i = 0; i < *count; ++i) found[i] = {{static_cast<uint64_t>(FIRST + i), {}}, 0, 0, 1.0f, {}};
    return 0;
}
int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value, size_t, size_t*) {
    uint32_t number = attribute == SPLITK ? (algorithm->kind == SPLITS ? 4 : 1) : 0;
    memcpy(value, &number, 4);
    return 0;
}
int cublasLtMatmul(void*, void* product, const float* alpha, const void* w, void* w_layout, const void* x, void* x_layout,
                   const float* beta, const void* c, void*, void* y, void* y_layout, const Algorithm* algorithm, void*,
                   size_t, void* stream) {
    Job job{*static_cast<Layout*>(w_layout), *static_cast<Layout*>(x_layout), *static_cast<Layout*>(y_layout),
            static_cast<Kind>(algorithm->kind), static_cast<const uint16_t*>(w), static_cast<const uint16_t*>(x),
            y, *beta};
    bool fits = job.w.rows == job.x.rows && job.w.columns == job.y.rows && job.x.columns == job.y.columns;
    bool whole = job.w.stride == static_cast<int64_t>(job.w.rows) && job.x.stride == static_cast<int64_t>(job.x.rows);
    bool typed = job.w.type == R_16BF && job.x.type == R_16BF && (job.y.type == R_16BF || job.y.type == R_32F);
    bool sums = *beta == 0.0f || (*beta == 1.0f && job.y.type == R_32F && c == y);
    if (static_cast<Product*>(product)->transposed != OP_T || *alpha != 1.0f || !sums || !typed || !fits || !whole ||
        job.kind == SPLITS || (job.kind == FEW && (job.x.columns > FEW_ROWS || job.x.columns % 16 == 13)))
        return NOT_SUPPORTED;
    return submit(job, stream);
}
}
