// Times networks with ONNX Runtime on a device that has nothing else: runner JOB-FILE. job.h and lines.h say more.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "device.h"
#include "job.h"
#include "lines.h"
#include "model.h"

enum { MAX_RUNS = 1 << 16, MAX_THREADS = 4096, CACHE_LINE = 64, REFERENCE_EVERY = 8 };
static const double SPIN_S = 0.05;  // until the governor has raised the clock
static const double REST_S = 0.5;   // one pause while the processor cools
static const double REST_SHARE = 0.25;  // of all time, at most: a processor may never be as fast again as at the start
static const double SETTLE_S = 2;   // until a busy machine has started the threads

static struct job job;
static struct model *models;  // of the batch; the reference is the first
static size_t num_models;
static int64_t cores[MAX_CORES], samples[MAX_RUNS];
static size_t num_cores;
static char masks[MAX_THREADS][MASK];
static unsigned char *rubbish;
static double started, start_mhz, rested_s;
static long num_failed, batch_now;
static volatile long current = -1;  // model in work, for the signal handler

static void line_error(const char *where, const char *text, long model, bool fatal) {
    line_begin("error");
    line_text("where", where);
    line_text("msg", text);
    if (model >= 0)
        line_integer("id", model);
    line_flag("fatal", fatal);
    line_end();
}

static _Noreturn void give_up(int code, const char *where, const char *text) {
    line_error(where, text, -1, true);
    _exit(code);
}

// Only what is allowed in a handler; the line starts anew because another may be half written.
static void on_signal(int number) {
    char text[200] = "\n{\"ev\":\"error\",\"proto\":1,\"where\":\"", digits[24];
    if (number == SIGALRM && seconds() - started >= (double)job.deadline_s)
        strcat(text, "deadline\",\"msg\":\"the deadline passed");
    else
        strcat(strcat(text, "signal\",\"msg\":\""),
               number == SIGALRM ? "it took too long" : "the processor stopped at signal ");
    size_t at = sizeof digits - 1, value = (size_t)number;
    for (digits[at] = 0; number != SIGALRM && value; value /= 10)
        digits[--at] = (char)('0' + value % 10);
    strcat(strcat(text, digits + at), "\",");
    if (current >= 0) {
        for (at = sizeof digits - 1, value = (size_t)current; at == sizeof digits - 1 || value; value /= 10)
            digits[--at] = (char)('0' + value % 10);
        strcat(strcat(strcat(text, "\"id\":"), digits + at), ",");
    }
    strcat(text, "\"fatal\":true}\n");
    if (write(STDOUT_FILENO, text, strlen(text)) < 0)
        _exit(NO_OUTPUT);
    _exit(number == SIGALRM ? TOO_LATE : CRASHED);
}

// Before every step: one that hangs ends the runner, and so does the end of its time.
static void arm(void) {
    double left = (double)job.deadline_s - (seconds() - started);
    alarm((unsigned)(left < (double)job.step_s ? (left > 0 ? left : 0) + 1 : (double)job.step_s));
}

// One job at a time, whoever asks: two would measure each other. The kernel gives the lock back when a runner ends.
static void lock_or_give_up(void) {
    int file = open(job.lock, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (file < 0)
        give_up(BUSY, "lock", "the lock file cannot be opened");
    for (double end = seconds() + (double)job.lock_s; flock(file, LOCK_EX | LOCK_NB) != 0; usleep(100000))
        if (seconds() > end)
            give_up(BUSY, "lock", "another job is running");
}

static void pin_or_give_up(void) {
    const char *wrong = job.num_cores ? pin(job.cores, job.num_cores) : NULL;
    num_cores = affinity(cores, MAX_CORES);
    if (wrong)
        give_up(BAD_CORES, "cores", wrong);
}

static void say_frequencies(void) {
    int64_t khz[MAX_CORES];
    frequencies_khz(cores, num_cores, khz);
    line_integers("khz", khz, num_cores);
}

static void hello(void) {
    char **providers, bits[24];
    int count = 0;
    struct utsname machine;
    if (!succeeded(ort.GetAvailableProviders(&providers, &count), "GetAvailableProviders"))
        give_up(NO_RUNTIME, failure_where(), failure_text());
    uname(&machine);
    line_begin("hello");
    line_text("job", job.name);
    line_text("ort", runtime.version);
    line_text("build", ort.GetBuildInfoString());
    line_open("providers", '[');
    for (int i = 0; i < count; i++)
        line_text(NULL, providers[i]);
    line_close(']');
    succeeded(ort.ReleaseAvailableProviders(providers, count), "ReleaseAvailableProviders");
    line_number("dlopen_ms", runtime.dlopen_ms);
    line_text("machine", machine.machine);
    line_text("release", machine.release);
    line_integer("page", sysconf(_SC_PAGESIZE));
    snprintf(bits, sizeof bits, "%lx", getauxval(AT_HWCAP));
    line_text("hwcap", bits);
    snprintf(bits, sizeof bits, "%lx", getauxval(AT_HWCAP2));
    line_text("hwcap2", bits);
    line_integer("ncpu", sysconf(_SC_NPROCESSORS_ONLN));
    line_integers("affinity", cores, num_cores);
    line_integer("threads", job.threads);
    line_number("mhz", start_mhz);
    say_frequencies();
    line_end();
}

static void say_tensors(const char *key, const struct tensor *tensors, size_t count) {
    line_open(key, '[');
    for (size_t i = 0; i < count; i++) {
        line_open(NULL, '{');
        line_text("name", tensors[i].name);
        line_text("type", type_name(tensors[i].type));
        line_integers("shape", tensors[i].shape, tensors[i].rank);
        line_close('}');
    }
    line_close(']');
}

static bool warm_up(struct model *model) {
    double end = seconds() + (double)job.warmup_ms * 1e-3;
    for (long i = 0; i < job.warmup_runs || seconds() < end; i++)
        if (!model_run(model))
            return false;
    return true;
}

static void drop(struct model *model) {
    line_error(failure_where(), failure_text(), model->task->id, false);
    num_failed++;
    model_close(model);
    current = -1;
}

static size_t num_pinned(void) {
    size_t pinned = 0, count = thread_masks(masks, MAX_THREADS);
    for (size_t i = 0; i < count; i++)
        pinned += strpbrk(masks[i], ",-") == NULL;
    return pinned;
}

// Loads with this thread on all cores, so that the others can start at once; each then goes to a core of its own.
static bool load_pinned(struct model *model, const struct task *task) {
    bool several = job.num_cores && job.threads > 1;
    if (several && pin(job.cores, job.num_cores))
        return failed("cores", "they are no longer granted");
    size_t expected = several ? num_pinned() + (size_t)job.threads - 1 : 0;
    bool good = model_load(model, task, &job);
    for (double end = seconds() + SETTLE_S; good && several && num_pinned() < expected; usleep(1000))
        if (seconds() > end)
            good = failed("cores", "a thread of the runtime does not go to its core");
    if (several && pin(job.cores, 1))  // after a failure, too: the models before are still timed
        good = failed("cores", "the first is no longer granted");
    return good;
}

static void say_masks(void) {
    size_t count = thread_masks(masks, MAX_THREADS);
    line_open("masks", '[');
    for (size_t i = 0; i < count; i++)
        line_text(NULL, masks[i]);
    line_close(']');
}

static bool dump(struct model *model) {
    for (long part = 0; part < model->num_parts; part++) {
        arm();
        if ((part > 0 && !model_next(model, part)) || !model_dump(model, part))
            return false;
    }
    return true;
}

static bool load(struct model *model, const struct task *task) {
    arm();
    current = task->id;
    long before = status_kb("VmRSS");
    reset_high_water();
    if (!load_pinned(model, task) || (task->dump && !dump(model)) || !warm_up(model)) {
        drop(model);
        return false;
    }
    line_begin("model");
    line_integer("id", task->id);
    line_integer("batch", task->batch);
    line_number("load_ms", model->load_ms);
    line_number("first_ms", model->first_ms);
    say_tensors("inputs", model->inputs, model->num_inputs);
    say_tensors("outputs", model->outputs, model->num_outputs);
    line_flag("dumped", task->dump);
    line_integer("rss_before_kb", before);
    line_integer("rss_kb", status_kb("VmRSS"));
    line_integer("hwm_kb", status_kb("VmHWM"));
    say_masks();
    line_end();
    current = -1;
    return true;
}

// Writes over memory, so that the caches hold nothing of the model, then reads the input, as if just computed.
static void evict(const struct model *model) {
    for (long at = 0; at < job.evict_bytes; at += CACHE_LINE)
        ((volatile unsigned char *)rubbish)[at]++;
    model_reread_inputs(model);
}

// Number of samples; 0 after a failure.
static size_t time_runs(struct model *model) {
    size_t count = 0;
    int64_t end = nanoseconds() + job.block_ms * 1000000;
    for (long i = 0; i < job.block_warmup_runs; i++)
        if (!model_run(model))
            return 0;
    while (count < MAX_RUNS && (count < (size_t)job.runs || nanoseconds() < end)) {
        if (rubbish)
            evict(model);
        int64_t start = nanoseconds();
        if (!model_run(model))
            return 0;
        samples[count++] = nanoseconds() - start;
    }
    return count;
}

static bool throttled(double mhz) { return mhz < start_mhz * (1 - (double)job.drop_percent / 100); }

// Rests while the processor is slower than at the start; seconds rested.
static double cool(double *mhz) {
    double rested = 0;
    while (throttled(*mhz = effective_mhz()) && rested < (double)job.cool_s &&
           rested_s < REST_SHARE * (seconds() - started)) {
        arm();
        usleep((useconds_t)(REST_S * 1e6));
        rested += REST_S;
        rested_s += REST_S;
        keep_busy(SPIN_S);
    }
    return rested;
}

// One block of runs; whether it may stand, is to be repeated (-1), or failed (0).
static int block(struct model *model, long round, long attempt) {
    double mhz[2], rested = cool(&mhz[0]), begun = seconds() - started;
    arm();
    struct usage before = usage();
    int cpu = sched_getcpu();
    size_t count = time_runs(model);
    struct usage after = usage();
    int cpu_after = sched_getcpu();
    if (count == 0)
        return 0;
    mhz[1] = effective_mhz();
    bool slow = throttled(mhz[0]) || throttled(mhz[1]);
    line_begin("block");
    line_integer("id", model->task->id);
    line_integer("batch", batch_now);
    line_integer("round", round);
    line_integer("attempt", attempt);
    line_flag("throttled", slow);
    line_number("t", begun);
    line_number("rested", rested);
    line_integers("cpu", (int64_t[]){cpu, cpu_after}, 2);
    line_open("mhz", '[');
    line_number(NULL, mhz[0]);
    line_number(NULL, mhz[1]);
    line_close(']');
    say_frequencies();
    line_integer("nivcsw", after.involuntary_switches - before.involuntary_switches);
    line_integer("faults", after.page_faults - before.page_faults);
    line_integers("ns", samples, count);
    line_end();
    return slow ? -1 : 1;
}

static void blocks(struct model *model, long round) {
    if (!model->session)
        return;
    current = model->task->id;
    int result = -1;
    for (long attempt = 0; result < 0 && attempt <= job.repeats; attempt++)
        result = block(model, round, attempt);
    if (result == 0)
        drop(model);
    current = -1;
}

static void unload(struct model *model) {
    if (!model->session)
        return;
    current = model->task->id;
    if (model->task->profile) {
        char *file = NULL;
        if (succeeded(ort.SessionEndProfiling(model->session, runtime.allocator, &file), "SessionEndProfiling")) {
            line_begin("profile");
            line_integer("id", model->task->id);
            line_text("file", file);
            line_end();
            succeeded(ort.AllocatorFree(runtime.allocator, file), "AllocatorFree");
        } else {
            line_error(failure_where(), failure_text(), model->task->id, false);
        }
    }
    model_close(model);
    current = -1;
}

// The reference comes first in every round, and between the others; those in every other round reversed.
static void run_batch(long batch) {
    num_models = 1;
    batch_now = batch;
    for (size_t i = 0; i < job.num_tasks; i++)
        if (job.tasks[i].batch == batch && load(&models[num_models], &job.tasks[i]))
            num_models++;
    for (long round = 0; round < job.rounds; round++) {
        blocks(&models[0], round);
        for (size_t i = 1; i < num_models; i++) {
            if (i > 1 && i % REFERENCE_EVERY == 1)
                blocks(&models[0], round);
            blocks(&models[round % 2 ? num_models - i : i], round);
        }
    }
    for (size_t i = 1; i < num_models; i++)
        unload(&models[i]);
}

static void prepare(const char *path) {
    static const int CRASHES[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM};
    const char *wrong = job_read(path, &job);
    if (wrong)
        give_up(BAD_JOB, "job", wrong);
    for (size_t i = 0; i < sizeof CRASHES / sizeof *CRASHES; i++)
        signal(CRASHES[i], on_signal);
    arm();
    if (job.lock)
        lock_or_give_up();
    pin_or_give_up();
    wrong = runtime_open(job.library);
    if (wrong)
        give_up(NO_RUNTIME, "library", wrong);
    models = calloc(job.num_tasks + 1, sizeof *models);
    if (job.evict_bytes)
        rubbish = calloc(1, (size_t)job.evict_bytes);
    if (!models || (job.evict_bytes && !rubbish))
        give_up(NO_MEMORY, "memory", "there is too little for this job");
    keep_busy(SPIN_S);
    start_mhz = effective_mhz();
}

int main(int count, char **words) {
    lines_open();
    started = seconds();
    if (count != 2)
        give_up(BAD_JOB, "job", "expected one argument: the job file");
    prepare(words[1]);
    hello();
    for (size_t i = 0; i < job.num_tasks; i++)
        if (job.tasks[i].batch == 0)
            load(&models[0], &job.tasks[i]);
    for (long batch = 1; batch <= job.num_batches; batch++)
        run_batch(batch);
    unload(&models[0]);
    line_begin("bye");
    line_integer("failed", num_failed);
    line_integer("lines", lines_written() + 1);
    line_number("mhz", effective_mhz());
    line_number("t", seconds() - started);
    line_integer("hwm_kb", status_kb("VmHWM"));
    line_end();
    _exit(DONE);  // without destructors: a thread of the runtime cannot delay the end
}
