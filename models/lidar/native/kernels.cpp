// The one translation unit of the native kernels: compiled by common/native.py with -march=native, so which
// instructions are used is decided here, at compile time, for the processor that will run them.
#include "convolve_calls.h"
#include "maps.h"
#include "norm.h"
#include "pool.h"

extern "C" {

// The widest instructions that this build uses, in words.
const char* tandem_instructions() {
#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
    return "AVX-512, AMX bf16";
#elif defined(__AVX512BF16__)
    return "AVX-512, bf16";
#elif defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
    return "AVX2";
#else
    return "no vector instructions known by name";
#endif
}
}
