#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "tensor.h"

#define TRY(name, ...) succeeded(ort.name(__VA_ARGS__), #name)

static bool set_options(OrtSessionOptions *options, const struct task *task, const struct job *job) {
    bool good = TRY(SetIntraOpNumThreads, options, (int)job->threads) && TRY(SetInterOpNumThreads, options, 1) &&
                TRY(SetSessionGraphOptimizationLevel, options, (GraphOptimizationLevel)job->optimisation);
    if (good && job->num_cores && job->threads > 1) {
        // The calling thread is the first; the entry lists the others, counted from 1.
        char list[8 * MAX_CORES] = "";
        for (long i = 1; i < job->threads; i++)
            snprintf(list + strlen(list), 8, "%s%ld", i > 1 ? ";" : "", job->cores[i] + 1);
        good = TRY(AddSessionConfigEntry, options, "session.intra_op_thread_affinities", list);
    }
    for (int i = 0; good && i < job->num_config; i++)
        good = TRY(AddSessionConfigEntry, options, job->config[i][0], job->config[i][1]);
    if (good && task->optimised)
        good = TRY(SetOptimizedModelFilePath, options, task->optimised);
    if (good && task->profile)
        good = TRY(EnableProfiling, options, task->profile);
    return good;
}

static bool read_shape(struct tensor *tensor, const OrtTensorTypeAndShapeInfo *info) {
    if (!TRY(GetTensorElementType, info, &tensor->type) || !TRY(GetDimensionsCount, info, &tensor->rank))
        return false;
    if (tensor->rank > MAX_RANK)
        return failed("shape", "more dimensions than the runner takes");
    return TRY(GetDimensions, info, tensor->shape, tensor->rank);
}

// Fills an input with part of a file, which holds as many as the model is to run on.
static bool feed(struct tensor *tensor, const char *path, long part, long *num_parts) {
    long size = -1, bytes = (long)tensor->bytes;
    FILE *file = fopen(path, "rb");
    if (!file)
        return failed("feed", "the file of an input cannot be read");
    bool whole = fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) > 0 && bytes > 0 && size % bytes == 0 &&
                 fseek(file, part * bytes, SEEK_SET) == 0 &&
                 fread(tensor->data, 1, tensor->bytes, file) == tensor->bytes;
    fclose(file);
    *num_parts = whole ? size / bytes : 0;
    return whole || failed("feed", "the file of an input has another size than the input");
}

static bool make_input(struct model *model, size_t index, const struct job *job) {
    struct tensor *tensor = &model->inputs[index];
    OrtTypeInfo *type = NULL;
    const OrtTensorTypeAndShapeInfo *info = NULL;
    bool good = TRY(SessionGetInputName, model->session, index, runtime.allocator, &tensor->name) &&
                TRY(SessionGetInputTypeInfo, model->session, index, &type) &&
                TRY(CastTypeInfoToTensorInfo, type, &info) &&
                (info || failed("input", "it is not a tensor")) && read_shape(tensor, info);
    if (type)
        ort.ReleaseTypeInfo(type);
    for (size_t i = 0; good && i < tensor->rank; i++) {
        if (i == 0 && tensor->shape[i] < 0)
            tensor->shape[i] = job->images;
        if (tensor->shape[i] < 0)
            good = failed("input", "a dimension other than the first is open");
    }
    good = good && tensor_make(tensor, (uint32_t)(job->seed + 0x9e3779b9L * (long)index));
    for (int i = 0; good && i < model->task->num_feeds; i++)
        if (model->task->feeds[i].input == (long)index)
            good = feed(tensor, model->task->feeds[i].path, 0, &model->num_parts);
    return good && TRY(CreateTensorWithDataAsOrtValue, runtime.memory, tensor->data, tensor->bytes, tensor->shape,
                       tensor->rank, tensor->type, &tensor->value);
}

// The first run, in which the runtime allocates the outputs; they are bound afterwards.
static bool first_run(struct model *model) {
    const char *inputs[MAX_TENSORS], *outputs[MAX_TENSORS];
    const OrtValue *given[MAX_TENSORS];
    OrtValue *made[MAX_TENSORS] = {NULL};
    for (size_t i = 0; i < model->num_inputs; i++) {
        inputs[i] = model->inputs[i].name;
        given[i] = model->inputs[i].value;
    }
    for (size_t i = 0; i < model->num_outputs; i++) {
        if (!TRY(SessionGetOutputName, model->session, i, runtime.allocator, &model->outputs[i].name))
            return false;
        outputs[i] = model->outputs[i].name;
    }
    int64_t start = nanoseconds();
    bool good = TRY(Run, model->session, NULL, inputs, given, model->num_inputs, outputs, model->num_outputs, made);
    model->first_ms = (double)(nanoseconds() - start) * 1e-6;
    for (size_t i = 0; i < model->num_outputs; i++)
        model->outputs[i].value = made[i];
    return good;
}

static bool read_output(struct tensor *tensor) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    bool good = TRY(GetTensorTypeAndShape, tensor->value, &info) && read_shape(tensor, info) &&
                TRY(GetTensorMutableData, tensor->value, &tensor->data);
    if (info)
        ort.ReleaseTensorTypeAndShapeInfo(info);
    tensor->bytes = element_bytes(tensor->type);
    for (size_t i = 0; i < tensor->rank; i++)
        tensor->bytes *= (size_t)tensor->shape[i];
    return good;
}

static bool bind(struct model *model) {
    bool good = TRY(CreateIoBinding, model->session, &model->binding);
    for (size_t i = 0; good && i < model->num_inputs; i++)
        good = TRY(BindInput, model->binding, model->inputs[i].name, model->inputs[i].value);
    for (size_t i = 0; good && i < model->num_outputs; i++)
        good = read_output(&model->outputs[i]) &&
               TRY(BindOutput, model->binding, model->outputs[i].name, model->outputs[i].value);
    return good;
}

static bool open_session(struct model *model, const struct job *job) {
    OrtSessionOptions *options = NULL;
    double start = seconds();
    bool good = TRY(CreateSessionOptions, &options) && set_options(options, model->task, job) &&
                TRY(CreateSession, runtime.env, model->task->path, options, &model->session);
    model->load_ms = (seconds() - start) * 1e3;
    if (options)
        ort.ReleaseSessionOptions(options);
    return good;
}

bool model_load(struct model *model, const struct task *task, const struct job *job) {
    memset(model, 0, sizeof *model);
    model->task = task;
    model->num_parts = 1;
    size_t inputs = 0, outputs = 0;
    if (!open_session(model, job) || !TRY(SessionGetInputCount, model->session, &inputs) ||
        !TRY(SessionGetOutputCount, model->session, &outputs))
        return false;
    if (inputs > MAX_TENSORS || outputs > MAX_TENSORS)
        return failed("model", "more inputs or outputs than the runner takes");
    for (int i = 0; i < task->num_feeds; i++)
        if ((size_t)task->feeds[i].input >= inputs)
            return failed("feed", "the model has no such input");
    model->num_inputs = inputs;
    model->num_outputs = outputs;
    for (size_t i = 0; i < inputs; i++)
        if (!make_input(model, i, job))
            return false;
    return first_run(model) && bind(model);
}

bool model_run(struct model *model) { return TRY(RunWithBinding, model->session, NULL, model->binding); }

bool model_next(struct model *model, long part) {
    long num_parts;
    for (int i = 0; i < model->task->num_feeds; i++)
        if (!feed(&model->inputs[model->task->feeds[i].input], model->task->feeds[i].path, part, &num_parts))
            return false;
    return model_run(model);
}

bool model_dump(const struct model *model, long part) {
    for (size_t i = 0; i < model->num_outputs; i++) {
        char path[64];
        snprintf(path, sizeof path, "%ld.%zu.out", model->task->id, i);
        FILE *file = fopen(path, part ? "ab" : "wb");
        const struct tensor *output = &model->outputs[i];
        bool whole = file && fwrite(output->data, 1, output->bytes, file) == output->bytes;
        if (!file || fclose(file) != 0 || !whole)
            return failed("dump", "an output cannot be written");
    }
    return true;
}

void model_reread_inputs(const struct model *model) {
    volatile unsigned char seen = 0;
    for (size_t i = 0; i < model->num_inputs; i++)
        for (size_t at = 0; at < model->inputs[i].bytes; at += 64)
            seen ^= ((const unsigned char *)model->inputs[i].data)[at];
}

void model_close(struct model *model) {
    if (model->binding)
        ort.ReleaseIoBinding(model->binding);
    for (size_t i = 0; i < model->num_outputs; i++) {
        if (model->outputs[i].value)
            ort.ReleaseValue(model->outputs[i].value);
        if (model->outputs[i].name)
            succeeded(ort.AllocatorFree(runtime.allocator, model->outputs[i].name), "AllocatorFree");
    }
    for (size_t i = 0; i < model->num_inputs; i++) {
        if (model->inputs[i].value)
            ort.ReleaseValue(model->inputs[i].value);
        free(model->inputs[i].data);
        if (model->inputs[i].name)
            succeeded(ort.AllocatorFree(runtime.allocator, model->inputs[i].name), "AllocatorFree");
    }
    if (model->session)
        ort.ReleaseSession(model->session);
    memset(model, 0, sizeof *model);
}
