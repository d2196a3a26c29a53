#include "device.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { KERNEL_CORES = 1024, ADDITIONS = 64, REPEATS = 4096 };

int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

double seconds(void) { return (double)nanoseconds() * 1e-9; }

const char *pin(const long *cores, long count) {
    static char problem[200];
    cpu_set_t wanted, got;
    CPU_ZERO(&wanted);
    for (long i = 0; i < count; i++)
        CPU_SET((size_t)cores[i], &wanted);
    if (CPU_COUNT(&wanted) != count)
        return "a core is named twice";
    if (sched_setaffinity(0, sizeof wanted, &wanted) != 0) {
        snprintf(problem, sizeof problem, "the kernel refuses these cores: %s", strerror(errno));
        return problem;
    }
    CPU_ZERO(&got);
    if (sched_getaffinity(0, sizeof got, &got) != 0 || !CPU_EQUAL(&wanted, &got)) {
        snprintf(problem, sizeof problem, "the kernel grants only %d of %ld cores", CPU_COUNT(&got), count);
        return problem;
    }
    return NULL;
}

size_t affinity(int64_t *cores, size_t most) {
    cpu_set_t mask;
    size_t count = 0;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0)
        return 0;
    for (size_t core = 0; core < KERNEL_CORES && count < most; core++)
        if (CPU_ISSET(core, &mask))
            cores[count++] = (int64_t)core;
    return count;
}

size_t thread_masks(char (*masks)[MASK], size_t most) {
    static const char FIELD[] = "Cpus_allowed_list:";
    char path[300], line[300];
    struct dirent *entry;
    size_t count = 0;
    DIR *threads = opendir("/proc/self/task");
    while (threads && (entry = readdir(threads))) {
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
        while (file && count < most && fgets(line, sizeof line, file))
            if (strncmp(line, FIELD, sizeof FIELD - 1) == 0)
                sscanf(line + sizeof FIELD - 1, "%63s", masks[count++]);
        if (file)
            fclose(file);
    }
    if (threads)
        closedir(threads);
    return count;
}

// Both operands are registers: some processors fold the addition of a constant and would seem far too fast.
static void add_in_a_row(void) {
    uint64_t sum = 1, one = 1;
    for (int i = 0; i < REPEATS; i++) {
#if defined(__aarch64__)
        __asm__ volatile(".rept 64\n add %0, %0, %1\n .endr" : "+r"(sum) : "r"(one));
#elif defined(__x86_64__)
        __asm__ volatile(".rept 64\n add %1, %0\n .endr" : "+r"(sum) : "r"(one));
#endif
    }
}

#ifdef IMITATED_CLOCK
// Of a test: the next number in the file "clock" in the folder of the job; the last one stays.
double effective_mhz(void) {
    static FILE *file;
    static double mhz = -1;
    if (file || (file = fopen("clock", "r")))
        (void)!fscanf(file, "%lf", &mhz);
    return mhz;
}
#else
double effective_mhz(void) {
    int64_t least = INT64_MAX;  // of three: an interrupt makes one of them slow
#if defined(__aarch64__) || defined(__x86_64__)
    for (int i = 0; i < 3; i++) {
        int64_t start = nanoseconds(), duration;
        add_in_a_row();
        duration = nanoseconds() - start;
        least = duration < least ? duration : least;
    }
    return (double)ADDITIONS * REPEATS * 1e3 / (double)(least > 0 ? least : 1);
#else
    (void)least;
    return -1;
#endif
}
#endif

void keep_busy(double duration_s) {
    for (double end = seconds() + duration_s; seconds() < end;)
        add_in_a_row();
}

void frequencies_khz(const int64_t *cores, size_t count, int64_t *khz) {
    for (size_t i = 0; i < count; i++) {
        char path[100];
        long value;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%lld/cpufreq/scaling_cur_freq", (long long)cores[i]);
        FILE *file = fopen(path, "r");
        khz[i] = file && fscanf(file, "%ld", &value) == 1 ? value : -1;
        if (file)
            fclose(file);
    }
}

struct usage usage(void) {
    struct rusage used;
    if (getrusage(RUSAGE_SELF, &used) != 0)
        return (struct usage){-1, -1};
    return (struct usage){used.ru_nivcsw, used.ru_minflt + used.ru_majflt};
}

long status_kb(const char *field) {
    char line[300];
    size_t length = strlen(field);
    long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && value < 0 && fgets(line, sizeof line, file))
        if (strncmp(line, field, length) == 0 && line[length] == ':')
            value = strtol(line + length + 1, NULL, 10);
    if (file)
        fclose(file);
    return value;
}

void reset_high_water(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file) {
        fputs("5", file);
        fclose(file);
    }
}
