// Compiles only if ort_slots.h agrees with the official header (Debian: libonnxruntime-dev). No part of the runner.
#include <onnxruntime_c_api.h>
#include <stddef.h>

#define SLOT(position, result, name, parameters)                                                         \
    _Static_assert(offsetof(OrtApi, name) == (position) * sizeof(void *), #name ": another position");   \
    _Static_assert(_Generic(((OrtApi *)0)->name, result(*) parameters: 1, default: 0), #name ": another type");
#include "ort_slots.h"

_Static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == 1 && ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE == 11, "element types");
_Static_assert(ORT_LOGGING_LEVEL_ERROR == 3 && OrtDeviceAllocator == 0 && OrtMemTypeDefault == 0, "constants");
