#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lines.h"

static char problem[512];

static const struct number {
    const char *key;
    size_t offset;
    long least, most, usual;
} NUMBERS[] = {
#define NUMBER(name, least, most, usual) {#name, offsetof(struct job, name), least, most, usual},
    NUMBER(threads, 1, MAX_CORES, 1)
    NUMBER(images, 1, 1 << 20, 1)
    NUMBER(seed, 1, 0xffffffffL, 1)
    NUMBER(optimisation, 0, 99, 99)
    NUMBER(warmup_runs, 0, 1 << 20, 5)
    NUMBER(warmup_ms, 0, 1 << 20, 200)
    NUMBER(block_warmup_runs, 0, 1 << 20, 1)
    NUMBER(runs, 1, 1 << 16, 2)
    NUMBER(block_ms, 0, 1 << 20, 10)
    NUMBER(rounds, 0, 1 << 20, 1)
    NUMBER(evict_bytes, 0, 1L << 32, 0)
    NUMBER(deadline_s, 1, 1 << 20, 600)
    NUMBER(step_s, 1, 1 << 20, 120)
    NUMBER(lock_s, 0, 3600, 10)
    NUMBER(cool_s, 0, 3600, 0)
    NUMBER(repeats, 0, 100, 0)
    NUMBER(drop_percent, 1, 100, 3)
};

static bool to_number(const char *text, long least, long most, long *number) {
    char *end;
    errno = 0;
    *number = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == 0 && least <= *number && *number <= most;
}

// Cuts the first word off and returns it; null where no second one follows.
static char *cut(char **rest) {
    char *word = *rest, *space = strchr(word, ' ');
    if (!space)
        return NULL;
    *space = 0;
    *rest = space + 1;
    return word;
}

static bool set_cores(struct job *job, char *value) {
    for (char *word = strtok(value, ","); word; word = strtok(NULL, ",")) {
        if (job->num_cores == MAX_CORES || !to_number(word, 0, 1023, &job->cores[job->num_cores]))
            return false;
        job->num_cores++;
    }
    return job->num_cores > 0;
}

static bool add_task(struct job *job, char *value, long batch) {
    char *id = cut(&value);
    struct task task = {.batch = batch, .path = value};
    if (!id || !to_number(id, 0, 1L << 40, &task.id))
        return false;
    for (size_t i = 0; i < job->num_tasks; i++)
        if (job->tasks[i].id == task.id || (batch == 0 && job->tasks[i].batch == 0))
            return false;
    struct task *grown = realloc(job->tasks, (job->num_tasks + 1) * sizeof task);
    if (!grown)
        _exit(NO_MEMORY);
    job->tasks = grown;
    job->tasks[job->num_tasks++] = task;
    return true;
}

// "dump ID", "optimised ID PATH", "profile ID PREFIX", "feed ID INPUT PATH": more about a task that was named before.
static bool extend_task(struct job *job, const char *key, char *value) {
    char *word = strcmp(key, "dump") == 0 ? value : cut(&value);
    long id;
    if (!word || !to_number(word, 0, 1L << 40, &id))
        return false;
    struct task *task = NULL;
    for (size_t i = 0; i < job->num_tasks; i++)
        if (job->tasks[i].id == id)
            task = &job->tasks[i];
    if (!task)
        return false;
    if (strcmp(key, "dump") == 0) {
        task->dump = true;
    } else if (strcmp(key, "optimised") == 0) {
        task->optimised = value;
    } else if (strcmp(key, "profile") == 0) {
        task->profile = value;
    } else {
        char *input = cut(&value);
        struct feed *feed = &task->feeds[task->num_feeds];
        if (!input || task->num_feeds == MAX_FEEDS || !to_number(input, 0, 1023, &feed->input))
            return false;
        feed->path = value;
        task->num_feeds++;
    }
    return true;
}

static bool add_config(struct job *job, char *value) {
    char *key = cut(&value);
    if (!key || job->num_config == MAX_CONFIG)
        return false;
    job->config[job->num_config][0] = key;
    job->config[job->num_config++][1] = value;
    return true;
}

static bool set_key(struct job *job, const char *key, char *value) {
    static const char *const MORE[] = {"dump", "optimised", "profile", "feed"};
    long proto;
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++)
        if (strcmp(key, NUMBERS[i].key) == 0)
            return to_number(value, NUMBERS[i].least, NUMBERS[i].most, (long *)((char *)job + NUMBERS[i].offset));
    for (size_t i = 0; i < sizeof MORE / sizeof *MORE; i++)
        if (strcmp(key, MORE[i]) == 0)
            return extend_task(job, key, value);
    if (strcmp(key, "proto") == 0)
        return to_number(value, PROTO, PROTO, &proto);
    if (strcmp(key, "job") == 0)
        return (job->name = value) != NULL;
    if (strcmp(key, "library") == 0)
        return (job->library = value) != NULL;
    if (strcmp(key, "lock") == 0)
        return (job->lock = value) != NULL;
    if (strcmp(key, "cores") == 0)
        return set_cores(job, value);
    if (strcmp(key, "config") == 0)
        return add_config(job, value);
    if (strcmp(key, "batch") == 0)
        return to_number(value, job->num_batches + 1, job->num_batches + 1, &job->num_batches);
    if (strcmp(key, "model") == 0)
        return job->num_batches > 0 && add_task(job, value, job->num_batches);
    return strcmp(key, "reference") == 0 && add_task(job, value, 0);
}

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    long size;
    if (!file)
        return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0 &&
        (text = calloc(1, (size_t)size + 1)) && fread(text, 1, (size_t)size, file) != (size_t)size) {
        free(text);
        text = NULL;
    }
    fclose(file);
    return text;
}

static const char *parse(char *text, struct job *job) {
    for (long number = 1; *text; number++) {
        char *end = strchr(text, '\n'), *value = text;
        if (!end)
            return "the job file ends in the middle of a line";
        *end = 0;
        snprintf(problem, sizeof problem, "line %ld of the job file is not understood: %.300s", number, text);
        char *key = cut(&value);
        if (*text && (!key || !*value || !set_key(job, key, value)))
            return problem;
        text = end + 1;
    }
    return NULL;
}

const char *job_read(const char *path, struct job *job) {
    memset(job, 0, sizeof *job);
    job->name = "";
    for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++)
        *(long *)((char *)job + NUMBERS[i].offset) = NUMBERS[i].usual;
    char *text = read_file(path), *folder = strdup(path);
    if (!text || !folder) {
        snprintf(problem, sizeof problem, "%.300s cannot be read: %s", path, strerror(errno));
        return problem;
    }
    const char *wrong = parse(text, job);
    if (wrong)
        return wrong;
    if (!job->library)
        return "the job names no library";
    if (job->num_cores && job->num_cores < job->threads)
        return "the job has fewer cores than threads";
    char *slash = strrchr(folder, '/');
    if (slash) {
        *slash = 0;
        if (chdir(*folder ? folder : "/") != 0)
            return "the folder of the job file cannot be entered";
    }
    return NULL;
}
