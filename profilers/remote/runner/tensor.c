#include "tensor.h"

#include <stdlib.h>
#include <string.h>

enum { FLOAT = 1, UINT8, INT8, INT32 = 6, INT64, BOOL = 9, FLOAT16, DOUBLE };

static const struct {
    ONNXTensorElementDataType type;
    size_t bytes;
    const char *name;
} TYPES[] = {{FLOAT, 4, "float32"}, {UINT8, 1, "uint8"},     {INT8, 1, "int8"},       {INT32, 4, "int32"},
             {INT64, 8, "int64"},   {BOOL, 1, "bool"}, {FLOAT16, 2, "float16"}, {DOUBLE, 8, "float64"}};

size_t element_bytes(ONNXTensorElementDataType type) {
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
        if (TYPES[i].type == type)
            return TYPES[i].bytes;
    return 0;
}

const char *type_name(ONNXTensorElementDataType type) {
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
        if (TYPES[i].type == type)
            return TYPES[i].name;
    return "other";
}

// Half precision of steps / 1024, for -1024 <= steps < 1024: always exact.
static uint16_t half(int steps) {
    unsigned magnitude = (unsigned)abs(steps), exponent = 0;
    if (magnitude == 0)
        return 0;
    while (magnitude >> (exponent + 1))
        exponent++;
    return (uint16_t)((steps < 0 ? 0x8000u : 0u) | (exponent + 5) << 10 | ((magnitude << (10 - exponent)) & 0x3ffu));
}

// One number of the generator as an element: floating point in [-1, 1), exact; integers below 16; all 8 bits.
static void set(void *data, size_t i, ONNXTensorElementDataType type, uint32_t bits) {
    float wide = (float)((int32_t)(bits >> 8) - (1 << 23)) / (float)(1 << 23);
    switch (type) {
        case FLOAT: ((float *)data)[i] = wide; break;
        case DOUBLE: ((double *)data)[i] = wide; break;
        case FLOAT16: ((uint16_t *)data)[i] = half((int)(bits >> 21) - 1024); break;
        case INT32: ((int32_t *)data)[i] = (int32_t)(bits >> 28); break;
        case INT64: ((int64_t *)data)[i] = (int64_t)(bits >> 28); break;
        case BOOL: ((uint8_t *)data)[i] = (uint8_t)(bits >> 31); break;
        default: ((uint8_t *)data)[i] = (uint8_t)(bits >> 24);
    }
}

bool tensor_make(struct tensor *tensor, uint32_t seed) {
    size_t elements = 1, size = element_bytes(tensor->type);
    for (size_t i = 0; i < tensor->rank; i++)
        elements *= (size_t)tensor->shape[i];
    if (size == 0)
        return failed("input", "it has an element type that the runner cannot make");
    tensor->bytes = elements * size;
    if (posix_memalign(&tensor->data, 64, tensor->bytes + 64) != 0)
        return failed("input", "there is no memory for it");
    uint32_t state = seed ? seed : 1;  // Marsaglia, Xorshift RNGs, 2003: 13, 17, 5
    for (size_t i = 0; i < elements; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        set(tensor->data, i, tensor->type, state);
    }
    return true;
}
