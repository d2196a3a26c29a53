#include "ort.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { VERSION = 21, LOG_ERRORS = 3 };  // the oldest version that has all slots

struct base {
    const void *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
};

struct interface ort;
struct runtime runtime;

static char where[64], text[2000];

bool failed(const char *name, const char *message) {
    snprintf(where, sizeof where, "%s", name);
    snprintf(text, sizeof text, "%s", message);
    return false;
}

bool succeeded(OrtStatus *status, const char *name) {
    if (!status)
        return true;
    failed(name, ort.GetErrorMessage(status));
    ort.ReleaseStatus(status);
    return false;
}

const char *failure_where(void) { return where; }
const char *failure_text(void) { return text; }

const char *runtime_open(const char *library) {
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    unsetenv("ORT_INTRA_OP_NUM_THREADS");
    unsetenv("ORT_INTER_OP_NUM_THREADS");
    double start = seconds();
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return dlerror();
    runtime.dlopen_ms = (seconds() - start) * 1e3;
    const struct base *(*get_base)(void);
    void *symbol = dlsym(handle, "OrtGetApiBase");
    if (!symbol)
        return "the library has no OrtGetApiBase: it is not ONNX Runtime";
    memcpy(&get_base, &symbol, sizeof get_base);
    const struct base *base = get_base();
    const char *table = base->GetApi(VERSION);
    if (!table)
        return "the library is older than ONNX Runtime 1.21";
#define SLOT(position, result, name, parameters) \
    memcpy(&ort.name, table + (position) * sizeof(void *), sizeof ort.name);
#include "ort_slots.h"
#undef SLOT
    runtime.version = base->GetVersionString();
    if (!succeeded(ort.CreateEnv(LOG_ERRORS, "hwnas", &runtime.env), "CreateEnv") ||
        !succeeded(ort.CreateCpuMemoryInfo(0, 0, &runtime.memory), "CreateCpuMemoryInfo") ||
        !succeeded(ort.GetAllocatorWithDefaultOptions(&runtime.allocator), "GetAllocatorWithDefaultOptions"))
        return text;
    return NULL;
}
