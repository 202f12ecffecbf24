/*
 * A function over many items, written once: C takes them one after the other, CUDA one in each thread.
 *
 * KERNEL name(int64_t n, ...) { EACH(k, n) ... } must not care about the order of the items.
 */
#ifdef __CUDACC__
typedef long long int64_t;
typedef int int32_t;
typedef unsigned char uint8_t;
#define INFINITY __longlong_as_double(0x7ff0000000000000)
#define KERNEL extern "C" __global__ void
#define EACH(k, n) \
    for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < (n); k += (int64_t)gridDim.x * blockDim.x)
#define INLINE static __forceinline__
#define UNROLL _Pragma("unroll")
#else
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define KERNEL void
#define EACH(k, n) for (int64_t k = 0; k < (n); k++)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64") /* so that small arrays stay in the registers */
#endif
