// cuBLASLt for tests: what a program that asks for libcublasLt.so finds beside the emulated libcuda.so. As much of the library
// as prunectl calls, by plain loops over the emulated device's memory, with the checks that the real one leaves to a crash:
// layouts, leading dimensions, types, the alignment that was promised when the algorithm was chosen, live memory.
//
// Sums go over k from its end, so that they differ in their last bits from those of our own kernels, as the real ones do.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

extern "C" int prunectl_emulator_submit(void* stream, const char* (*work)(void*), void* data);
extern "C" int prunectl_emulator_is_live(const void* address, size_t bytes);
extern "C" void prunectl_emulator_wrote(const void* address, size_t bytes);

namespace {

// cublasStatus_t, cudaDataType_t and the attributes of cublasLt.h, by their names there.
enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_16BF = 14 };
enum { COMPUTE_32F = 68 };
enum { OP_N = 0, OP_T = 1 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };
enum { DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS_POINTER = 8 };
enum { PREF_MAX_WORKSPACE = 1, PREF_ALIGNMENT_A = 5, PREF_ALIGNMENT_B = 6, PREF_ALIGNMENT_C = 7, PREF_ALIGNMENT_D = 8 };

struct Description {
    int32_t trans_a = OP_N, trans_b = OP_N;
    uint32_t epilogue = EPILOGUE_DEFAULT;
    const void* bias = nullptr;
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;  // elements from column to column
    size_t element() const { return type == R_32F ? 4 : 2; }
    size_t bytes() const { return ((columns - 1) * static_cast<uint64_t>(leading) + rows) * element(); }
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};  // of a, b, c, d: the library's default
};
// What a chosen algorithm relies on, in the eight words of cublasLtMatmulAlgo_t.
struct Algorithm {
    uint64_t magic, m, n, k, workspace;
    uint32_t alignment[4];
    uint64_t rest;
};
static_assert(sizeof(Algorithm) == 64);
struct HeuristicResult {  // cublasLtMatmulHeuristicResult_t
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
constexpr uint64_t MAGIC = 0x6d756c7469706c79;

int refuse(Status status, const char* why) {
    std::fprintf(stderr, "emulated cuBLASLt: %s\n", why);
    return status;
}

float load(const Layout& layout, const void* base, uint64_t row, uint64_t column) {
    const uint64_t i = column * static_cast<uint64_t>(layout.leading) + row;
    if (layout.type == R_32F) {
        return static_cast<const float*>(base)[i];
    }
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(base)[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

void store(const Layout& layout, void* base, uint64_t row, uint64_t column, float value) {
    const uint64_t i = column * static_cast<uint64_t>(layout.leading) + row;
    if (layout.type == R_32F) {
        static_cast<float*>(base)[i] = value;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const bool nan = value != value;
    static_cast<uint16_t*>(base)[i] =
        static_cast<uint16_t>(nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

// The sizes of d = op(a) op(b), or null where they do not fit.
const char* sizes(const Description& what, const Layout& a, const Layout& b, const Layout& c, const Layout& d, uint64_t (&mnk)[3]) {
    mnk[0] = what.trans_a == OP_T ? a.columns : a.rows;
    mnk[1] = what.trans_b == OP_T ? b.rows : b.columns;
    mnk[2] = what.trans_a == OP_T ? a.rows : a.columns;
    if ((what.trans_b == OP_T ? b.columns : b.rows) != mnk[2]) {
        return "a and b have different k";
    }
    if (d.rows != mnk[0] || d.columns != mnk[1] || c.rows != d.rows || c.columns != d.columns || c.leading != d.leading) {
        return "c or d has another shape than a b";
    }
    for (const Layout* layout : {&a, &b, &c, &d}) {
        if (layout->rows == 0 || layout->columns == 0 || layout->leading < static_cast<int64_t>(layout->rows)) {
            return "a layout is empty, or its columns overlap";
        }
    }
    if (a.type != R_16BF || b.type != R_16BF || c.type != d.type) {
        return "types other than bf16 by bf16, or c of another type than d";
    }
    // Real algorithms read 16 bytes at a time.
    return a.leading % 8 != 0 || b.leading % 8 != 0 ? "columns of a or b are no multiples of 16 bytes" : nullptr;
}

struct Product {
    Description what;
    Layout a, b, d;
    const void *pa, *pb, *pc;
    void* pd;
    float alpha, beta;
    uint64_t m, n, k;
    const char* run() const {
        const size_t bias_bytes = m * d.element();
        if (!prunectl_emulator_is_live(pa, a.bytes()) || !prunectl_emulator_is_live(pb, b.bytes()) ||
            !prunectl_emulator_is_live(pc, d.bytes()) || !prunectl_emulator_is_live(pd, d.bytes()) ||
            (what.epilogue == EPILOGUE_BIAS && !prunectl_emulator_is_live(what.bias, bias_bytes))) {
            return "[cublaslt] an operand is not within a live allocation";
        }
        const Layout bias = {d.type, m, 1, static_cast<int64_t>(m)};
        std::vector<float> column(k);
        for (uint64_t j = 0; j < n; ++j) {
            for (uint64_t l = 0; l < k; ++l) {
                column[l] = what.trans_b == OP_T ? load(b, pb, j, l) : load(b, pb, l, j);
            }
            for (uint64_t i = 0; i < m; ++i) {
                float sum = 0.0f;
                for (uint64_t l = k; l-- > 0;) {
                    sum += (what.trans_a == OP_T ? load(a, pa, l, i) : load(a, pa, i, l)) * column[l];
                }
                sum *= alpha;
                if (beta != 0.0f) {
                    sum += beta * load(d, pc, i, j);
                }
                if (what.epilogue == EPILOGUE_BIAS) {
                    sum += load(bias, what.bias, i, 0);
                }
                store(d, pd, i, j, sum);
            }
            prunectl_emulator_wrote(static_cast<char*>(pd) + j * static_cast<uint64_t>(d.leading) * d.element(), m * d.element());
        }
        return nullptr;
    }
};

const char* run_product(void* data) {
    const auto* product = static_cast<Product*>(data);
    const char* problem = product->run();
    delete product;
    return problem;
}

template <typename T>
int copy_attribute(T& to, const void* from, size_t bytes) {
    if (bytes != sizeof(T)) {
        return refuse(INVALID_VALUE, "an attribute of another size");
    }
    std::memcpy(&to, from, sizeof(T));
    return SUCCESS;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API size_t cublasLtGetVersion() { return 130000; }
API int cublasLtCreate(void** handle) {
    *handle = new char;
    return SUCCESS;
}
API int cublasLtDestroy(void* handle) {
    delete static_cast<char*>(handle);
    return SUCCESS;
}
API int cublasLtMatmulDescCreate(void** description, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != R_32F) {
        return refuse(NOT_SUPPORTED, "sums in another type than f32");
    }
    *description = new Description;
    return SUCCESS;
}
API int cublasLtMatmulDescDestroy(void* description) {
    delete static_cast<Description*>(description);
    return SUCCESS;
}
API int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t bytes) {
    auto& to = *static_cast<Description*>(description);
    switch (attribute) {
        case DESC_TRANSA:
            return copy_attribute(to.trans_a, value, bytes);
        case DESC_TRANSB:
            return copy_attribute(to.trans_b, value, bytes);
        case DESC_EPILOGUE:
            return copy_attribute(to.epilogue, value, bytes);
        case DESC_BIAS_POINTER:
            return copy_attribute(to.bias, value, bytes);
        default:
            return refuse(NOT_SUPPORTED, "an attribute of a product that this stand-in has not");
    }
}
API int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (type != R_32F && type != R_16BF) {
        return refuse(NOT_SUPPORTED, "a matrix of another type than f32 or bf16");
    }
    *layout = new Layout{type, rows, columns, leading};
    return SUCCESS;
}
API int cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return SUCCESS;
}
API int cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = new Preference;
    return SUCCESS;
}
API int cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<Preference*>(preference);
    return SUCCESS;
}
API int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
    auto& to = *static_cast<Preference*>(preference);
    if (attribute == PREF_MAX_WORKSPACE) {
        return copy_attribute(to.workspace, value, bytes);
    }
    if (attribute >= PREF_ALIGNMENT_A && attribute <= PREF_ALIGNMENT_D) {
        return copy_attribute(to.alignment[attribute - PREF_ALIGNMENT_A], value, bytes);
    }
    return refuse(NOT_SUPPORTED, "a preference that this stand-in has not");
}
API int cublasLtMatmulAlgoGetHeuristic(void*, void* description, void* a, void* b, void* c, void* d, void* preference, int,
                                       HeuristicResult* results, int* count) {
    const auto& wanted = *static_cast<Preference*>(preference);
    uint64_t mnk[3];
    const char* problem = sizes(*static_cast<Description*>(description), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
                                *static_cast<Layout*>(c), *static_cast<Layout*>(d), mnk);
    *count = 0;
    if (problem != nullptr) {
        return refuse(NOT_SUPPORTED, problem);
    }
    Algorithm algorithm = {MAGIC, mnk[0], mnk[1], mnk[2], wanted.workspace / 2, {}, 0};
    std::memcpy(algorithm.alignment, wanted.alignment, sizeof(algorithm.alignment));
    *results = {algorithm, wanted.workspace / 2, SUCCESS, 1.0f, {}};
    *count = 1;
    return SUCCESS;
}
API int cublasLtMatmul(void*, void* description, const void* alpha, const void* pa, void* a, const void* pb, void* b,
                       const void* beta, const void* pc, void* c, void* pd, void* d, const Algorithm* algorithm, void* workspace,
                       size_t workspace_bytes, void* stream) {
    const auto& what = *static_cast<Description*>(description);
    uint64_t mnk[3];
    const char* problem =
        sizes(what, *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(c), *static_cast<Layout*>(d), mnk);
    if (problem != nullptr) {
        return refuse(INVALID_VALUE, problem);
    }
    if (algorithm->magic != MAGIC || algorithm->m != mnk[0] || algorithm->n != mnk[1] || algorithm->k != mnk[2]) {
        return refuse(INVALID_VALUE, "an algorithm that was chosen for another shape");
    }
    if (workspace_bytes < algorithm->workspace || !prunectl_emulator_is_live(workspace, workspace_bytes)) {
        return refuse(INVALID_VALUE, "less workspace than the algorithm uses");
    }
    const void* operands[] = {pa, pb, pc, pd};
    for (int i = 0; i < 4; ++i) {
        if (reinterpret_cast<uintptr_t>(operands[i]) % algorithm->alignment[i] != 0) {
            return refuse(INVALID_VALUE, "an operand is aligned less than the algorithm was chosen for");
        }
    }
    auto* product = new Product{what, *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(d), pa, pb, pc, pd,
                                *static_cast<const float*>(alpha), *static_cast<const float*>(beta), mnk[0], mnk[1], mnk[2]};
    return prunectl_emulator_submit(stream, run_product, product) == 0 ? SUCCESS : EXECUTION_FAILED;
}
