// What the runner says: one JSON object a line on stdout, its first keys "ev" and "proto".
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { PROTO = 1 };

enum code {
    DONE = 0,
    BAD_JOB = 2,      // the job file cannot be read or contradicts itself
    NO_RUNTIME = 3,   // the library does not load, or is too old
    BAD_CORES = 4,    // the cores asked for are not there, or not all of them
    TOO_LATE = 5,     // the deadline passed, or one step took too long
    NO_OUTPUT = 6,    // stdout cannot be written
    CRASHED = 7,      // a signal such as SIGILL; the model is named
    NO_MEMORY = 8,
    BUSY = 9,  // another job is running
};

void lines_open(void);
long lines_written(void);

void line_begin(const char *event);
void line_end(void);

// A null key adds an element to the array that is open.
void line_text(const char *key, const char *value);
void line_integer(const char *key, long long value);
void line_number(const char *key, double value);
void line_flag(const char *key, int value);
void line_integers(const char *key, const int64_t *values, size_t count);
void line_open(const char *key, char bracket);
void line_close(char bracket);
