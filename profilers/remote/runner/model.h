// One network: its session, its inputs of a fixed seed and its outputs, bound to memory that stays.
#pragma once
#include "job.h"
#include "ort.h"

enum { MAX_TENSORS = 64, MAX_RANK = 16 };

struct tensor {
    char *name;
    OrtValue *value;
    ONNXTensorElementDataType type;
    int64_t shape[MAX_RANK];
    size_t rank, bytes;
    void *data;
};

struct model {
    const struct task *task;
    OrtSession *session;
    OrtIoBinding *binding;
    struct tensor inputs[MAX_TENSORS], outputs[MAX_TENSORS];
    size_t num_inputs, num_outputs;
    long num_parts;  // of its feeds; 1 without
    double load_ms, first_ms;
};

// All return false after a failure, which failure_where and failure_text tell.
bool model_load(struct model *model, const struct task *task, const struct job *job);
bool model_run(struct model *model);
bool model_next(struct model *model, long part);  // runs it on a part of its feeds
bool model_dump(const struct model *model, long part);  // outputs into ID.INDEX.out, behind those of earlier parts
void model_reread_inputs(const struct model *model);
void model_close(struct model *model);
const char *type_name(ONNXTensorElementDataType type);
