// What the runner is asked to do: a text file of lines "key value", written by jobs.py, which explains the keys.
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum { MAX_CORES = 256, MAX_CONFIG = 16, MAX_FEEDS = 4 };

struct feed {
    long input;
    const char *path;
};

struct task {
    long id;
    long batch;  // 0: the reference, which is part of every batch
    const char *path, *optimised, *profile;
    bool dump;
    struct feed feeds[MAX_FEEDS];
    int num_feeds;
};

struct job {
    const char *name, *library, *lock;
    long cores[MAX_CORES], num_cores;
    long threads, images, seed, optimisation;
    long warmup_runs, warmup_ms, block_warmup_runs, runs, block_ms, rounds, evict_bytes;
    long deadline_s, step_s, lock_s, cool_s, repeats, drop_percent;
    const char *config[MAX_CONFIG][2];
    int num_config;
    struct task *tasks;
    size_t num_tasks;
    long num_batches;
};

// Returns null, or what is wrong. Makes the folder of the job file the current one: paths in it start there.
const char *job_read(const char *path, struct job *job);
