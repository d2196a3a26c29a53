// The processor and the kernel as the runner sees them. Whatever cannot be read is -1.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { MASK = 64 };

double seconds(void);       // of a clock that only goes forward
int64_t nanoseconds(void);  // of the same clock

// Pins this thread. Null, or what is wrong: the kernel takes a mask silently when part of its cores are there.
const char *pin(const long *cores, long count);
size_t affinity(int64_t *cores, size_t most);                         // cores this thread may run on
size_t thread_masks(char (*masks)[MASK], size_t most);                // the kernel's list of cores of every thread
double effective_mhz(void);                                           // additions in a row, one a cycle
void keep_busy(double duration_s);
void frequencies_khz(const int64_t *cores, size_t count, int64_t *khz);  // what the governor says

struct usage {
    long involuntary_switches, page_faults;
};
struct usage usage(void);

long status_kb(const char *field);  // a line of /proc/self/status, such as VmHWM
void reset_high_water(void);
