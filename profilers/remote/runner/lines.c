#include "lines.h"

#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

static char buffer[1 << 20];  // whole lines in one write, so that other output does not fall between
static long written;
static bool first;

void lines_open(void) { setvbuf(stdout, buffer, _IOFBF, sizeof buffer); }

long lines_written(void) { return written; }

static void quoted(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if (*c < 32)
            printf("\\u%04x", *c);
        else
            putchar(*c);
    }
    putchar('"');
}

static void begin_value(const char *key) {
    if (!first)
        putchar(',');
    first = false;
    if (key) {
        quoted(key);
        putchar(':');
    }
}

void line_begin(const char *event) {
    putchar('{');
    first = true;
    line_text("ev", event);
    line_integer("proto", PROTO);
}

void line_end(void) {
    fputs("}\n", stdout);
    written++;
    if (fflush(stdout) != 0)
        _exit(NO_OUTPUT);
}

void line_text(const char *key, const char *value) {
    begin_value(key);
    quoted(value);
}

void line_integer(const char *key, long long value) {
    begin_value(key);
    printf("%lld", value);
}

void line_number(const char *key, double value) {
    begin_value(key);
    printf("%.3f", value);
}

void line_flag(const char *key, int value) {
    begin_value(key);
    fputs(value ? "true" : "false", stdout);
}

void line_integers(const char *key, const int64_t *values, size_t count) {
    line_open(key, '[');
    for (size_t i = 0; i < count; i++)
        line_integer(NULL, values[i]);
    line_close(']');
}

void line_open(const char *key, char bracket) {
    begin_value(key);
    putchar(bracket);
    first = true;
}

void line_close(char bracket) {
    putchar(bracket);
    first = false;
}
