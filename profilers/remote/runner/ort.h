// ONNX Runtime's C interface, as far as it is used, found in a library at run time.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct OrtAllocator OrtAllocator;
typedef struct OrtEnv OrtEnv;
typedef struct OrtIoBinding OrtIoBinding;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtStatus OrtStatus;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtValue OrtValue;
typedef int GraphOptimizationLevel, ONNXTensorElementDataType, OrtAllocatorType, OrtLoggingLevel, OrtMemType;

struct interface {
#define SLOT(position, result, name, parameters) result(*name) parameters;
#include "ort_slots.h"
#undef SLOT
};

struct runtime {
    const char *version;
    double dlopen_ms;
    OrtEnv *env;
    OrtMemoryInfo *memory;
    OrtAllocator *allocator;
};

extern struct interface ort;
extern struct runtime runtime;

// Loads the library with its telemetry off. Null, or what is wrong.
const char *runtime_open(const char *library);

// Whether a call succeeded; if not, keeps its name and message for failure_where and failure_text.
bool succeeded(OrtStatus *status, const char *where);
bool failed(const char *where, const char *text);  // keeps a failure of our own; always false
const char *failure_where(void);
const char *failure_text(void);
